"""Which private names of asyncpush tests use all the same, and why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from support.places import TESTS

#: What has no public door; five at the most.
OF_ASYNCPUSH = {
    "ecr/test_credentials.py: _ecr": "to the client of a connection",
    "ecr/test_credentials.py: _client": "whether it checks certificates can only be asked of the client itself",
    "ecr/test_mount.py: _ecr": "to what mounts layers over a connection",
    "ecr/test_mount.py: _login": "the password for a host of AWS's own, which no test can reach",
}

#: Names of other packages', which are no promise of asyncpush's.
OF_OTHERS = {
    "ecr/test_credentials.py: _SSO_TOKEN_CACHE_DIR": "botocore keeps SSO's tokens in the home directory only",
    "ecr/test_credentials.py: _endpoint": "botocore's, to its sender of requests",
    "ecr/test_credentials.py: _verify": "aiobotocore's, whether that checks certificates",
    "ecr/test_tls.py: _get_session": "aiobotocore's, which asyncpush mends where it does not check host names",
    "ecr/test_tls.py: _session": "aioboto3's, to botocore's own session",
    "emulator/test_distribution_spec.py: _base_url": "aiohttp's, of a session that was given it",
    "engine/test_event_loop.py: _run": "asyncio's, to see how long each callback takes",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(path: Path) -> Iterator[str]:
    """Private names that a file imports, replaces or looks up, but for those of its own objects."""
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute):
            is_own = node.attr in own or (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            if is_private(node.attr) and not is_own:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            yield from (name for given in node.args[:2] for name in texts(given) if is_private(name))


def texts(given: ast.expr) -> Iterator[str]:
    """The names in what ``setattr`` is given as text."""
    for each in ast.walk(given):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield from each.value.split(".")


def test_tests_use_the_private_names_that_are_listed_and_no_others() -> None:
    found = {
        f"{path.relative_to(TESTS)}: {name}" for path in sorted(TESTS.rglob("*.py")) for name in private_names(path)
    }

    assert found == {*OF_ASYNCPUSH, *OF_OTHERS}


def test_few_private_names_of_asyncpush_are_left() -> None:
    assert len(OF_ASYNCPUSH) <= 5
