"""The wheel that users install: what is in it, and that everybody who builds it gets the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from email import message_from_bytes
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from support.places import ROOT

DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")


def checkout(folder: Path) -> Path:
    """What of this repository a wheel is made of, in another place and with other times."""
    shutil.copytree(
        ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copy
    )
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    return folder


def build(folder: Path, **environment: str) -> Path:
    """Build the wheel of a checkout, with the backend that pyproject.toml names and without a network."""
    script = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    kept = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "dist")],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        version("hatchling")
    except PackageNotFoundError:
        if os.environ.get("ASYNCPUSH_REQUIRE_PEERS"):
            pytest.fail("hatchling is not installed, and ASYNCPUSH_REQUIRE_PEERS is set")
        pytest.skip("the build backend, hatchling, is not installed")
    return build(checkout(tmp_path_factory.mktemp("checkout")))


def test_a_wheel_has_the_same_bytes_whoever_builds_it(wheel: Path, tmp_path: Path) -> None:
    other = checkout(tmp_path)
    for path in [*other.glob("src/asyncpush/*.py"), *other.glob("src/asyncpush/cli/*.py")]:
        path.chmod(0o640)
        os.utime(path, (1, 1))
    (other / "src/asyncpush/__pycache__").mkdir()
    (other / "src/asyncpush/__pycache__/api.cpython-311.pyc").write_bytes(b"compiled")

    again = build(other, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")

    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_a_wheel_holds_the_package_its_licence_and_nothing_else(wheel: Path) -> None:
    [info] = {name.partition("/")[0] for name in ZipFile(wheel).namelist() if ".dist-info/" in name}
    tracked = (path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*") if path.is_file())
    package = {path.as_posix() for path in tracked if "__pycache__" not in path.parts}
    beside = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}

    with ZipFile(wheel) as archive:
        assert set(archive.namelist()) == package | beside
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert {"asyncpush/py.typed", "asyncpush/docs/faults.md"} <= package


def test_a_wheel_says_what_it_needs_and_what_it_installs(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        [info] = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        points = archive.read(f"{info}/entry_points.txt").decode()

    assert (metadata["Name"], metadata["Requires-Python"]) == ("asyncpush", ">=3.11")
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    needs = map(Requirement, metadata.get_all("Requires-Dist"))
    assert {need for need in needs if "extra" not in str(need.marker)} == set(map(Requirement, DEPENDENCIES))
    assert "[console_scripts]\nasyncpush = asyncpush.__main__:main\n" in points
    assert "[pytest11]\nasyncpush = asyncpush.emulator.pytest_plugin\n" in points
    assert callable(EntryPoint("asyncpush", "asyncpush.__main__:main", "console_scripts").load())
