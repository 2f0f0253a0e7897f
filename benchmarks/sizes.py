"""Sizes as arguments of a benchmark: ``800MiB``."""

from __future__ import annotations

import argparse

from asyncpush import units
from asyncpush.errors import UsageError


def parse_size(text: str) -> int:
    """Bytes in *text*, as the command line of asyncpush reads it.

    Raises:
        argparse.ArgumentTypeError: it is not a size.
    """
    try:
        return units.parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def show_size(size: int) -> str:
    """*size* in the largest unit that leaves a whole number."""
    for unit, count in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % count == 0:
            return f"{size // count} {unit}"
    return f"{size} B"
