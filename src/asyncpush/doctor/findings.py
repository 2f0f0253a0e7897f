"""Findings, and how checks run: each for a limited time, all at once, and none hides what another one finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import anyio

from asyncpush.errors import AsyncpushError, foreseen

#: ``unknown``: no harmless call tells, or ECR's answer does not.
Status = Literal["ok", "note", "unknown", "problem"]

#: Seconds that a check may take.
CHECK_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        name: what was checked, such as ``clock`` or ``ecr:PutImage``.
        status: ``problem`` if the task fails because of it, ``note`` if it works with a restriction.
        text: what was found, in one line.
        advice: what to do about it.
    """

    name: str
    status: Status
    text: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """The findings about one thing, such as a registry or this machine."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: the name of its finding if it fails or takes too long.
        run: makes the findings.
        if_slow: what to do if it takes too long.
    """

    name: str
    run: Callable[[], Awaitable[Sequence[Finding]]]
    if_slow: str = "check the network"


Checks: TypeAlias = Sequence[Check]


async def run_check(check: Check, limit: float) -> tuple[Finding, ...]:
    """Run one check for at most *limit* seconds; its failure is a finding."""
    try:
        with anyio.fail_after(limit), foreseen():
            return tuple(await check.run())
    except TimeoutError:
        return (Finding(check.name, "problem", f"no result within {limit:g} seconds", check.if_slow),)
    except AsyncpushError as error:
        return (problem(check.name, error),)


async def run_checks(checks: Checks, limit: float) -> list[Finding]:
    """Run *checks* at once; their findings are in the order of *checks*."""
    found: dict[int, tuple[Finding, ...]] = {}

    async def run_one(position: int, check: Check) -> None:
        found[position] = await run_check(check, limit)

    async with anyio.create_task_group() as tg:
        for position, check in enumerate(checks):
            tg.start_soon(run_one, position, check)
    return [finding for position in sorted(found) for finding in found[position]]


def problem(name: str, error: AsyncpushError) -> Finding:
    """The finding for an error."""
    return Finding(name, "problem", error.message, error.hint)
