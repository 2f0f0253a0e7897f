"""The library as programs see it: its names, its types, what its results raise, what its reprs and errors show."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncpush

ROOT = Path(__file__).parents[1]


def _types_in(hint: object) -> Iterator[type]:
    if isinstance(hint, list):
        for each in hint:
            yield from _types_in(each)
    elif typing.get_origin(hint) is not None:
        for each in typing.get_args(hint):
            yield from _types_in(each)
    elif isinstance(hint, type):
        yield hint


def _signatures(thing: object) -> Iterator[dict[str, object]]:
    """The hints of a function; of a class, those of its fields and of its public methods and properties."""
    if not inspect.isclass(thing):
        yield typing.get_type_hints(inspect.unwrap(thing))
        return
    yield typing.get_type_hints(thing)
    for name, member in inspect.getmembers_static(thing):
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        is_public = not name.startswith("_") or name == "__call__"
        if isinstance(function, types.FunctionType) and is_public and function.__module__.startswith("asyncpush"):
            yield typing.get_type_hints(function)


def test_every_type_of_a_public_signature_is_public() -> None:
    hidden = set()
    for name in asyncpush.__all__:
        thing = getattr(asyncpush, name)
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            found = _types_in(thing)  # an alias
        else:
            found = (each for hints in _signatures(thing) for hint in hints.values() for each in _types_in(hint))
        for each in found:
            is_ours = each.__module__.partition(".")[0] not in sys.stdlib_module_names
            if is_ours and getattr(asyncpush, each.__name__, None) is not each:
                hidden.add(f"{name}: {each.__module__}.{each.__name__}")

    assert not hidden


def test_public_names_for_type_checkers_are_those_at_run_time() -> None:
    imports = [
        each for each in ast.walk(ast.parse(Path(asyncpush.__file__).read_text())) if isinstance(each, ast.ImportFrom)
    ]
    listed = {
        alias.asname: f"{each.module}".removeprefix("asyncpush.")
        for each in imports
        if f"{each.module}".startswith("asyncpush.")
        for alias in each.names
    }

    assert listed == asyncpush._HOMES


def test_programs_of_users_pass_a_strict_type_check() -> None:
    if not os.environ.get("ASYNCPUSH_REQUIRE_PEERS"):
        pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "tests/typing"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
