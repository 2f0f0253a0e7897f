"""The options of ``asyncpush serve`` that make bad weather."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from asyncpush.emulator import Weather
from asyncpush.emulator.weather.document import WeatherDocument, read_file

_WEATHER = Group("Weather")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherOptions:
    """The conditions that the emulator serves in."""

    latency: Annotated[str | None, Parameter(group=_WEATHER, metavar="TIME")] = None
    """What each request takes longer, such as 40ms: one round trip."""

    jitter: Annotated[str | None, Parameter(group=_WEATHER, metavar="TIME")] = None
    """By how much that varies, up and down."""

    bandwidth: Annotated[str | None, Parameter(group=_WEATHER, metavar="RATE")] = None
    """Bytes a second on each connection, in each direction: 30MB/s, 512KiB/s, 100Mbit/s."""

    throttle: Annotated[list[str] | None, Parameter(group=_WEATHER, metavar="OPERATION=RATE[:BURST]")] = None
    """Requests a second that an operation may have, and how many at once, for each account. Can be repeated."""

    quotas: Annotated[Literal["aws"] | None, Parameter(group=_WEATHER)] = None
    """ECR's documented request rates, where no --throttle says otherwise."""

    fault: Annotated[list[str] | None, Parameter(group=_WEATHER, metavar="RULE")] = None
    """Something that goes wrong; see below. Can be repeated: of several rules that fire, the first acts."""

    seed: Annotated[int | None, Parameter(group=_WEATHER)] = None
    """Makes chance repeatable (probability, jitter)."""

    weather: Annotated[Path | None, Parameter(group=_WEATHER, metavar="FILE")] = None
    """The same as a YAML or JSON file, its members called like these options; what is given here comes first."""


def make_weather(options: WeatherOptions | None) -> Weather:
    """The weather that the options ask for; blocks while it reads the file.

    Raises:
        UsageError: one of them, or the file, is written wrong.
    """
    options = options or WeatherOptions()
    given = WeatherDocument(
        latency=options.latency,
        jitter=options.jitter,
        bandwidth=options.bandwidth,
        throttle=tuple(options.throttle or ()),
        quotas=options.quotas,
        fault=tuple(options.fault or ()),
        seed=options.seed,
    )
    return given.over(read_file(options.weather) if options.weather else WeatherDocument()).weather()
