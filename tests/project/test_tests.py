"""What `tests/README.md` says of the tests, and how tests are named."""

from __future__ import annotations

import ast
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


def functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The tests of a file."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [each for each in found if each.name.startswith("test_")]


def test_names_of_tests_have_at_most_70_characters() -> None:
    """A name is the unit, the condition and the result; the law is in the docstring."""
    too_long = [each.name for text in FILES.values() for each in functions(text) if len(each.name) > 70]

    assert not too_long


def test_every_skip_and_xfail_has_a_reason() -> None:
    """The summary of a run prints it; a bare mark tells the reader nothing."""
    unexplained = [f"{path.relative_to(TESTS)}:{line}" for path, text in FILES.items() for line in bare_skips(text)]

    assert not unexplained


def bare_skips(text: str) -> list[int]:
    """The lines that skip a test, or expect it to fail, without a reason."""
    nodes = list(ast.walk(ast.parse(text)))
    calls = {node.func: node for node in nodes if isinstance(node, ast.Call)}
    skips = [node for node in nodes if isinstance(node, ast.Attribute) and is_skip(node)]
    return [node.lineno for node in skips if node not in calls or not has_reason(calls[node])]


def is_skip(node: ast.Attribute) -> bool:
    """Whether this is a mark or function of pytest's that leaves a test out, or expects it to fail."""
    of_pytest = ast.unparse(node.value) in ("pytest", "pytest.mark")
    return of_pytest and node.attr in ("skip", "skipif", "xfail", "importorskip")


def has_reason(call: ast.Call) -> bool:
    """Whether a call gives ``reason=``, or is ``pytest.skip(REASON)``."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    if ast.unparse(call.func) in ("pytest.skip", "pytest.xfail"):
        given += call.args[:1]
    return any(ast.unparse(reason).strip("'\"") for reason in given)
