"""The structure that the design draws, held by machines: import directions, public names, sizes of files."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import asyncpush
from support.places import ROOT


def test_imports_go_the_way_that_the_contracts_say() -> None:
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command as main; main()"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_there_and_documented() -> None:
    for name in asyncpush.__all__:
        assert inspect.getdoc(getattr(asyncpush, name)) or name in ("Emit", "Event"), name
    assert asyncpush.__all__ == sorted(asyncpush.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = asyncpush.no_such_name


def test_importing_the_package_imports_no_client() -> None:
    code = "import asyncpush, sys; sys.exit(any(name in sys.modules for name in ('botocore', 'aiohttp', 'rich')))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_type_information_ships() -> None:
    assert (Path(asyncpush.__file__).parent / "py.typed").is_file()


def test_no_module_outgrows_its_job() -> None:
    """A module of more than 650 lines is one that two readers look for different things in."""
    sources = Path(asyncpush.__file__).parent.rglob("*.py")
    too_long = {path.name: count for path in sources if (count := len(path.read_text().splitlines())) > 650}
    assert not too_long
