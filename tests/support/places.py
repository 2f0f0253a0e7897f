"""Paths in a checkout."""

from __future__ import annotations

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).parents[2]

#: The folder from which tests import ``support``; programs that tests start put it into PYTHONPATH.
TESTS = ROOT / "tests"
