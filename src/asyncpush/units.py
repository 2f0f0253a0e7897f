"""Parses and formats sizes, rates, durations and counts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

from asyncpush.errors import UsageError

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_SIZE = re.compile(r"([0-9]+)\s*([a-zA-Z]*)")
_DURATION = re.compile(rf"({_NUMBER})(ms|[smhdw])")
_RATE = re.compile(rf"({_NUMBER})([a-zA-Z]+)/s")

# The units of sizes may be abbreviated and of any case: 10M is 10MiB.
_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "kib": 2**10, "mib": 2**20, "gib": 2**30,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}  # fmt: skip
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
    "kbit": 125, "Kbit": 125, "Mbit": 125_000, "Gbit": 125_000_000,
}  # fmt: skip
_SHOWN = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_size(text: str) -> int:
    """Parse a size such as ``256MiB``, ``10M`` (the same unit), ``20MB`` or ``1048576``, into bytes.

    Raises:
        UsageError: *text* is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _SIZES:
        raise UsageError(f"invalid size {text!r}", hint="use a number with KiB, MiB or GiB, such as 256MiB")
    return int(match[1]) * _SIZES[match[2].lower()]


def parse_duration(text: str) -> float:
    """Parse a duration such as ``40ms``, ``1.5s``, ``5m``, ``12h``, ``30d`` or ``8w``, into seconds.

    Raises:
        UsageError: *text* is not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = math.inf if match is None else float(match[1]) * _SECONDS[match[2]]
    if math.isinf(seconds):
        raise UsageError(f"invalid duration {text!r}", hint="use a number with ms, s, m, h, d or w, such as 90s")
    return seconds


def format_duration(seconds: float) -> str:
    """Format *seconds* so that ``parse_duration`` returns the same value."""
    short = f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"
    return short if parse_duration(short) == seconds else f"{seconds!r}s"


def parse_rate(text: str) -> float:
    """Parse ``30MB/s``, ``512KiB/s`` or ``100Mbit/s``, into bytes per second.

    Raises:
        UsageError: *text* is not a rate, or is zero.
    """
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * _BYTES.get(match[2], 0) if match else 0.0
    if not 0 < rate < math.inf:
        raise UsageError(f"invalid bandwidth {text!r}", hint="use 30MB/s, 512KiB/s or 100Mbit/s")
    return rate


def format_rate(rate: float) -> str:
    """Format *rate* so that ``parse_rate`` returns the same value."""
    for unit in ("GB", "MB", "kB"):
        short = f"{rate / _BYTES[unit]:g}{unit}/s"
        if rate >= _BYTES[unit] and parse_rate(short) == rate:
            return short
    return f"{rate!r}B/s"


def format_number(number: float) -> str:
    """Format a number, without the fraction if it is an integer."""
    return str(int(number)) if number == int(number) else repr(number)


def count_text(count: int, noun: str, plural: str = "") -> str:
    """Format *count* with its noun: ``1 image``, ``3 images``; *plural* is the noun's, if that is not ``NOUNs``."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def some_text(names: Sequence[str], most: int) -> str:
    """Format up to *most* of *names*, and how many others there are: ``a, b, c and 2 more``."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def size_text(size: float) -> str:
    """Format *size* bytes in binary units, at most 8 characters: ``512 B``, ``1.2 GiB``, ``210 MiB``."""
    value, unit = max(float(size), 0.0), 0
    while value >= 999.5 and unit < len(_SHOWN) - 1:
        value /= 1024
        unit += 1
    return f"{value:.{0 if unit == 0 or value >= 99.95 else 1}f} {_SHOWN[unit]}"


def rate_text(rate: float) -> str:
    """Format *rate* bytes per second, at most 10 characters."""
    return size_text(rate) + "/s"


def time_text(seconds: float) -> str:
    """Format *seconds* as ``0:16``, ``1:02:03`` or ``3 d 4 h``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment_text(moment: float) -> str:
    """Format a time in seconds since 1970 as ``02:10``, local and never too early; with the date if it is far away."""
    local = time.localtime(math.ceil(moment / 60) * 60)
    return time.strftime("%H:%M" if abs(moment - time.time()) < 20 * 60 * 60 else "%Y-%m-%d %H:%M", local)


def percent_text(part: int, whole: int) -> str:
    """Format *part* as a percentage of *whole*, 4 characters; 100 % only if they are equal."""
    return f"{100 * min(max(part, 0), whole) // whole if whole > 0 else 100:3d}%"
