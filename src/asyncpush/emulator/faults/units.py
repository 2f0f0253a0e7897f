"""Durations and rates as people write them: text in, seconds or bytes a second out, and back."""

from __future__ import annotations

import math
import re

from asyncpush.errors import UsageError

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_DURATION = re.compile(rf"({_NUMBER})(ms|s)")
_RATE = re.compile(rf"({_NUMBER})([a-zA-Z]+)/s")

_BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
    "kbit": 125, "Kbit": 125, "Mbit": 125_000, "Gbit": 125_000_000,
}  # fmt: skip


def parse_duration(text: str) -> float:
    """Read ``40ms`` or ``1.5s``, in seconds.

    Raises:
        UsageError: *text* is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = math.inf if match is None else float(match[1]) / (1000 if match[2] == "ms" else 1)
    if math.isinf(seconds):
        raise UsageError(f"{text!r} is no duration", hint="write 40ms or 1.5s")
    return seconds


def format_duration(seconds: float) -> str:
    """Write *seconds* so that ``parse_duration`` gives them again."""
    short = f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
    return short if parse_duration(short) == seconds else f"{seconds!r}s"


def parse_rate(text: str) -> float:
    """Read ``30MB/s``, ``512KiB/s`` or ``100Mbit/s``, in bytes a second.

    Raises:
        UsageError: *text* is no rate, or is nothing.
    """
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _BYTES.get(match[2], 0) if match else 0.0
    if not 0 < rate < math.inf:
        raise UsageError(f"{text!r} is no bandwidth", hint="write 30MB/s, 512KiB/s or 100Mbit/s")
    return rate


def format_rate(rate: float) -> str:
    """Write *rate* so that ``parse_rate`` gives it again."""
    for unit in ("GB", "MB", "kB"):
        short = f"{rate / _BYTES[unit]:g}{unit}/s"
        if rate >= _BYTES[unit] and parse_rate(short) == rate:
            return short
    return f"{rate!r}B/s"


def format_number(number: float) -> str:
    """Write a number without a fraction that says nothing."""
    return str(int(number)) if number == int(number) else repr(number)
