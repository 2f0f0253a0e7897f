"""No version with a published advisory can be installed, or is installed here: pip-audit without a network."""

from __future__ import annotations

import tomllib
from importlib.metadata import version

import pytest

from support.places import ROOT

#: The first version without the advisory: name, floor. A package of ours that gets one is added here and to pyproject.
FLOORS = {"aiohttp": (3, 14, 3), "urllib3": (2, 7)}

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", FLOORS)
def test_the_range_of_a_dependency_begins_behind_its_last_advisory(name: str) -> None:
    [wanted] = [each for each in PYPROJECT["project"]["dependencies"] if each.startswith(f"{name}>=")]
    floor = wanted.removeprefix(f"{name}>=").partition(",")[0]

    assert numbers(floor) >= FLOORS[name]


@pytest.mark.parametrize("name", FLOORS)
def test_what_is_installed_has_no_known_advisory(name: str) -> None:
    assert numbers(version(name)) >= FLOORS[name]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
