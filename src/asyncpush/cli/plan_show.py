"""Prints what a plan comes to: a list that ``asyncpush migrate`` takes, or JSON."""

from __future__ import annotations

from collections.abc import Iterator

from asyncpush.cli.migrate import in_list, nothing_document, say_notes
from asyncpush.cli.options import OutputFormat
from asyncpush.cli.report import Json, error_document, print_document
from asyncpush.cli.run import say_error, status_of
from asyncpush.cli.streams import write_lines
from asyncpush.migrate.plan.model import PlanEntry
from asyncpush.migrate.report import Copy
from asyncpush.migrate.resolution import Resolution


def print_resolution(resolution: Resolution, output: OutputFormat) -> int:
    """Print a resolution, and its failures on standard error.

    Returns:
        The exit status.
    """
    if output == "json":
        print_document(_document(resolution))
    else:
        write_lines(_lines(resolution))
    say_notes(resolution.nothing_taken)
    for result in resolution.failed:
        assert result.error is not None, "what failed says why"  # noqa: S101
        say_error(result.error, about=result.copy.destination)
    return status_of([result.error for result in resolution.failed if result.error])


def _lines(resolution: Resolution) -> Iterator[str]:
    alone = len({copy.goal.target for _, copies in resolution.entries for copy in copies}) == 1
    for entry, copies in resolution.entries:
        yield f"# {entry.place}: {entry.source} ({_choice(entry)})"
        for copy in copies:
            yield f"{copy.source} {_destination(copy, alone=alone)}"
    for tag in resolution.left_out:
        yield f"# {tag.name} is left out: {tag.reason}"
    for result in resolution.failed:
        source = result.copy.source
        yield f"# {source} can't be copied to {result.copy.destination}: {' '.join(str(result.error).split())}"


def _choice(entry: PlanEntry) -> str:
    """What an entry chooses of its source."""
    words = [str(entry.tags) if entry.reference is None else "one image"]
    if entry.platforms:
        words.append(f"platforms: {', '.join(map(str, entry.platforms))}")
    if not entry.referrers:
        words.append("without referrers")
    return "; ".join(words)


def _destination(copy: Copy, *, alone: bool) -> str:
    """Where a copy goes, as a list has it; registries without a name are told apart by their endpoints."""
    name = in_list(copy)
    return str(name) if alone or name.registry.host else copy.destination


def _document(resolution: Resolution) -> Json:
    return {
        "images": [
            {
                "source": copy.source,
                "destination": copy.destination,
                "target": copy.goal.target.name,
                "entry": entry.place,
                "platforms": [str(platform) for platform in entry.platforms],
                "referrers": entry.referrers,
            }
            for entry, copies in resolution.entries
            for copy in copies
        ],
        "nothingTaken": [nothing_document(nothing) for nothing in resolution.nothing_taken],
        "leftOut": [{"source": tag.source, "tag": tag.tag, "reason": tag.reason} for tag in resolution.left_out],
        "failed": [
            {
                "source": result.copy.source,
                "destination": result.copy.destination,
                "entry": result.copy.entry.place,
                **({"error": error_document(result.error)} if result.error else {}),
            }
            for result in resolution.failed
        ],
        "totals": {
            "repositories": len({(entry.host, entry.repository or entry.location) for entry, _ in resolution.entries}),
            "images": sum(len(copies) for _, copies in resolution.entries),
            "leftOut": len(resolution.left_out),
            "failed": len(resolution.failed),
        },
    }
