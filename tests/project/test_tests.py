"""What `tests/README.md` says of the tests, and how tests are named."""

from __future__ import annotations

import re

from support.places import ROOT, TESTS

README = (TESTS / "README.md").read_text()
FILES = {path: path.read_text() for path in sorted(TESTS.rglob("*.py"))}


def test_the_index_of_helpers_names_each_module_of_support_once() -> None:
    table = README.partition("## Support")[2]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]

    assert sorted(named) == sorted(path.stem for path in FILES if path.parent.name == "support" and path.stem[0] != "_")


def test_every_variable_that_tests_read_is_in_the_readme() -> None:
    read = {
        name for text in FILES.values() for name in re.findall(r"os\.environ(?:\.get\(|\[)\"(ASYNCPUSH_\w+)\"", text)
    }

    assert read
    assert {name for name in read if name not in README} == set()


def test_the_worked_example_is_a_test_that_runs() -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    assert example in FILES[TESTS / "engine" / "test_push.py"]


def test_each_room_is_one_of_the_package_or_is_explained() -> None:
    rooms = {path.parent for path in FILES if path.name.startswith("test_")} - {TESTS}
    of_package = {room for room in rooms if (ROOT / "src" / "asyncpush" / room.relative_to(TESTS)).is_dir()}

    assert {room.name for room in rooms - of_package if f"- `{room.name}`" not in README} == set()


def test_tests_import_what_they_share_from_support_only() -> None:
    imported = r"^\s*(?:from|import) (?:conftest|test_\w+|\w+\.test_\w+)\b"
    found = {
        str(path.relative_to(TESTS)): re.findall(imported, text, re.MULTILINE)
        for path, text in FILES.items()
        if re.search(imported, text, re.MULTILINE)
    }

    # Programs that these start import them.
    assert set(found) <= {"journal/test_kills.py"}
