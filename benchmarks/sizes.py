"""Sizes as people write them: ``800MiB``."""

from __future__ import annotations

import argparse
import re

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Bytes in *text*: a number and KiB, MiB, GiB, KB, MB or GB.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]i?B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 800MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def show_size(size: int) -> str:
    """*size* in the largest unit that leaves a whole number."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]} {unit}"
    return f"{size} B"
