"""Which interrupted run a migration goes on with: one of the same plan, into the same registries, that began lately."""

from __future__ import annotations

from collections.abc import Sequence

from asyncpush.events import Emit, Notice
from asyncpush.journal import SqliteJournal
from asyncpush.migrate.context import Options
from asyncpush.migrate.plan.model import Plan
from asyncpush.model import Digest
from asyncpush.settings import Settings


async def begin_run(journal: SqliteJournal, plan: str, options: Options, emit: Emit) -> bool:
    """Begin a run of a *plan*, by its fingerprint, or go on with one; whether it does that."""
    state = await journal.begin_run(plan, anew=options.recheck, within=options.resume_within)
    if state.outdated is not None:
        emit(
            Notice(
                f"the run that began {state.outdated:%Y-%m-%d %H:%M} UTC was interrupted, and is too old to be gone on "
                "with (--resume-within): every image is looked at again"
            )
        )
    return state.resumed


def fingerprint(plan: Plan, settings: Settings, registries: Sequence[str]) -> str:
    """Equal for plans that ask for the same, and get the same made of it; without any secret.

    Args:
        plan: the plan.
        settings: some of them change what is made of an image.
        registries: the addresses of the plan's targets, which name the account that a run has found.
    """
    making = (
        settings.compression,
        settings.compression_level,
        settings.push_foreign_layers,
        settings.available_platforms,
    )
    return Digest.of(repr((plan.targets, plan.entries, making, list(registries))).encode()).hex
