"""What a migration could not do: images of limited sources, those that the plan lost, or all if it ended early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from asyncpush.cli.report import Json, error_document
from asyncpush.cli.run import say_error
from asyncpush.errors import AsyncpushError
from asyncpush.migrate.limited_sources import LimitedSource, limited_sources
from asyncpush.migrate.plan.model import Plan
from asyncpush.migrate.report import Report
from asyncpush.reference import Destination
from asyncpush.units import some_text

#: Images that an error lists.
_SHOWN_NAMES = 3


def gone_error(gone: Sequence[tuple[str, str]]) -> AsyncpushError:
    """The error for images that failed before, and that the plan does not ask for any more (``Report.gone``)."""
    names = some_text([f"{source} to {destination}" for source, destination in gone], _SHOWN_NAMES)
    count, them = (f"{len(gone)} images", "them") if len(gone) > 1 else ("1 image", "it")
    return AsyncpushError(
        f"{count} failed before, and the plan does not ask for {them} any more: {names}",
        hint=f"add {them} to the plan again, or run the plan without --failed to forget {them}",
    )


def say_left(report: Report) -> None:
    """Say of each source whose limit is used up what was left, and until when."""
    for source in limited_sources(report.results):
        error = AsyncpushError(
            f"{source.left} (its pull limit)",
            hint="run the same command again then, with --failed, or with --wait to stay",
        )
        say_error(error, about=source.host)


def undone_document(report: Report) -> Json:
    """Both, for a JSON report; without members if there are none."""
    limited = limited_sources(report.results)
    return {
        **({"gone": [{"source": source, "destination": to} for source, to in report.gone]} if report.gone else {}),
        **({"limitedSources": [_limited(source) for source in limited]} if limited else {}),
    }


def _limited(source: LimitedSource) -> Json:
    return {
        "source": source.host,
        "images": source.images,
        "referrers": source.referrers,
        "until": datetime.fromtimestamp(source.until, UTC).isoformat(timespec="seconds"),
        "isGuess": source.is_guess,
    }


def entries_document(plans: Iterable[Plan], cause: AsyncpushError) -> Json:
    """The result of a migration that *cause* has ended before its images were known: the entries of its plan."""
    images: list[Json] = [
        {
            "source": entry.source,
            "destination": str(Destination(goal.target.registry, goal.repository, goal.tag)),
            "entry": entry.place,
            "outcome": "failed",
            "digest": None,
            "error": error_document(cause),
        }
        for plan in plans
        for entry in plan.entries
        for goal in entry.goals
    ]
    return {"images": images, "totals": {"images": len(images), "failed": len(images)}}
