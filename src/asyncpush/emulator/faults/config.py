"""The fault configuration as a document, in a YAML or JSON file or at the admin endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from asyncpush import open_files
from asyncpush.emulator.faults.injector import HitCount
from asyncpush.emulator.faults.rules import FaultConfig, parse_fault, parse_throttle
from asyncpush.errors import UsageError
from asyncpush.files import read_small
from asyncpush.units import format_duration, format_rate, parse_duration, parse_rate

#: Bytes of the longest file: thousands of rules.
_LONGEST = 4 * 1024 * 1024

_HINT = "use an object with any of latency, jitter, bandwidth, throttle, quotas, fault and seed"


class FaultConfigDocument(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """The fault configuration as text, as a file or the command line gives it.

    Attributes:
        latency: a duration, such as ``40ms``.
        jitter: a duration.
        bandwidth: a rate, such as ``30MB/s``.
        throttle: ``OPERATION=RATE[:BURST]`` each.
        quotas: ``aws`` or nothing.
        fault: a rule each.
        seed: any number.
        hit_counts: what the admin endpoint reports; it sets nothing.
    """

    latency: str | None = None
    jitter: str | None = None
    bandwidth: str | None = None
    throttle: tuple[str, ...] = ()
    quotas: Literal["aws"] | None = None
    fault: tuple[str, ...] = ()
    seed: int | None = None
    hit_counts: tuple[HitCount, ...] = ()

    def over(self, other: FaultConfigDocument) -> FaultConfigDocument:
        """This one, with *other* for what it leaves out; throttles and rules of both, its own first."""
        return FaultConfigDocument(
            latency=self.latency or other.latency,
            jitter=self.jitter or other.jitter,
            bandwidth=self.bandwidth or other.bandwidth,
            throttle=self.throttle + other.throttle,
            quotas=self.quotas or other.quotas,
            fault=self.fault + other.fault,
            seed=other.seed if self.seed is None else self.seed,
        )

    def fault_config(self) -> FaultConfig:
        """The configuration that it describes.

        Raises:
            UsageError: a member is malformed or out of range.
        """
        return FaultConfig(
            latency=_duration("latency", self.latency),
            jitter=_duration("jitter", self.jitter),
            bandwidth=parse_rate(self.bandwidth) if self.bandwidth else None,
            throttles=tuple(map(parse_throttle, self.throttle)),
            quotas=self.quotas,
            faults=tuple(map(parse_fault, self.fault)),
            seed=self.seed,
        )


def describe(fault_config: FaultConfig, hit_counts: tuple[HitCount, ...] = ()) -> FaultConfigDocument:
    """The document of a fault configuration, and how often its throttles and rules have fired."""
    return FaultConfigDocument(
        latency=format_duration(fault_config.latency) if fault_config.latency else None,
        jitter=format_duration(fault_config.jitter) if fault_config.jitter else None,
        bandwidth=format_rate(fault_config.bandwidth) if fault_config.bandwidth else None,
        throttle=tuple(map(str, fault_config.throttles)),
        quotas=fault_config.quotas,
        fault=tuple(map(str, fault_config.faults)),
        seed=fault_config.seed,
        hit_counts=hit_counts,
    )


def read_json(raw: bytes) -> FaultConfigDocument:
    """Read a document in JSON.

    Raises:
        UsageError: it is malformed.
    """
    try:
        return msgspec.json.decode(raw, type=FaultConfigDocument)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the fault configuration can't be read: {error}", hint=_HINT) from error


def read_file(path: Path) -> FaultConfigDocument:
    """Read a file in YAML or JSON; blocks.

    Raises:
        UsageError: it can't be read, or is malformed.
    """
    try:
        raw = read_small(path, _LONGEST)
        if path.suffix == ".json" or raw.lstrip().startswith(b"{"):
            return read_json(raw)
        return msgspec.yaml.decode(raw, type=FaultConfigDocument)
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {open_files.reason(error)}", hint="name a YAML or JSON file"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = f"{_HINT}; a rule that begins with * needs quotes"
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}", hint=hint) from error
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


def _duration(name: str, text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return parse_duration(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error.message}", hint=error.hint) from error
