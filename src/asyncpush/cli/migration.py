"""What a migration prints: results as lines or as one JSON document, and a summary for people."""

from __future__ import annotations

from collections import Counter

from asyncpush.cli.options import OutputFormat
from asyncpush.cli.report import Json, error_document, left_out_document, print_document
from asyncpush.cli.streams import say, write_lines
from asyncpush.errors import InvalidReferenceError
from asyncpush.migrate.copies import Copy, CopyResult
from asyncpush.migrate.results import Report
from asyncpush.progress._text import printable, size_text, time_text
from asyncpush.reference import Destination, parse_destination

_WORDS = {
    "pushed": "pushed",
    "present": "already there",
    "finished": "finished before",
    "planned": "to be sent",
    "refused": "refused by ECR",
    "failed": "failed",
}


def print_migration(report: Report, output: OutputFormat) -> None:
    """Print what became of all images: ``DESTINATION@DIGEST`` a line, those that failed left out; or all as JSON."""
    if output == "json":
        print_document(_document(report))
        return
    lines = [_line(result) for result in report.results if result.outcome not in ("failed", "refused")]
    if any(result.outcome == "planned" for result in report.results):
        lines += [f"{each.source}:{each.tag}  left out: {each.reason}" for each in report.left_out]
    write_lines(lines)


def say_notes(report: Report) -> None:
    """Say on standard error which entries take nothing."""
    for each in report.nothing_taken:
        say(f"asyncpush: note: {printable(str(each))}")


def say_summary(report: Report) -> None:
    """Say on standard error what it all came to."""
    images = [result for result in report.results if result.subject is None]
    counts = Counter(result.outcome for result in images)
    words = [f"{count} {_WORDS[outcome]}" for outcome, count in counts.items()]
    referrers = Counter(result.outcome for result in report.results if result.subject is not None)
    if referrers:
        inner = ", ".join(f"{count} {_WORDS[outcome]}" for outcome, count in referrers.items())
        words.append(f"{referrers.total()} referrers ({inner})")
    sent = "to send" if counts["planned"] else "sent"
    planned = sum(result.bytes_sent for result in report.results)
    sizes = [
        f"{size_text(planned if counts['planned'] else report.sent)} {sent}",
        f"{size_text(sum(result.bytes_mounted for result in report.results))} mounted",
        f"{size_text(sum(result.bytes_present for result in report.results))} already there",
    ]
    head = f"{len(images)} image{'s' if len(images) != 1 else ''}"
    requests = sum(report.requests.values())
    say(
        f"asyncpush: {head}: {', '.join(words) or 'nothing to do'}; {', '.join(sizes)}; "
        f"{requests} requests in {time_text(report.seconds)}"
    )


def failed_lines(report: Report) -> list[str]:
    """What failed, as ``SOURCE DESTINATION``; or as a comment, where that can't be migrated by itself."""
    lines = []
    for result in report.failed:
        copy = result.copy
        if result.subject is None and copy.reference and not copy.choice:
            lines.append(f"{copy.source} {_in_list(copy)}")
        else:
            # Of an entry whose tags can't be read, nobody knows what it asks for; of a referrer, its image is pushed;
            # and a list has no room for platforms: from one, all of an index would go.
            lines.append(f"# {copy.source} to {copy.destination}: {' '.join(str(result.error).split())}")
    return lines


def _in_list(copy: Copy) -> Destination:
    """Where a copy goes, with the registry's host where it has one: another run may have another account or region."""
    try:
        registry = parse_destination(copy.repository.address).registry
    except InvalidReferenceError:  # it is known by its endpoint
        registry = copy.goal.target.registry
    if not registry.host:
        registry = copy.goal.target.registry
    return Destination(registry, copy.repository.name, copy.tag)


def _line(result: CopyResult) -> str:
    name = result.copy.destination
    if result.digest and not name.endswith(str(result.digest)):
        name = f"{name}@{result.digest}"
    if result.outcome != "planned":
        return name
    parts = [f"would send {result.layers_sent} blobs, {result.bytes_sent} bytes"]
    if result.layers_mounted:
        parts.append(f"mount {result.layers_mounted}, {result.bytes_mounted} bytes")
    return f"{name}  {', '.join(parts)}; {result.layers_present} are already there, {result.bytes_present} bytes"


def _document(report: Report) -> Json:
    counts = Counter[str](result.outcome for result in report.results if result.subject is None)
    return {
        "images": [_image(result) for result in report.results if result.subject is None],
        "referrers": [_image(result) for result in report.results if result.subject is not None],
        "nothingTaken": [
            {"entry": each.entry.place, "source": each.entry.source, "rules": str(each.entry.tags), "tags": each.tags}
            for each in report.nothing_taken
        ],
        "leftOut": [{"source": each.source, "tag": each.tag, "reason": each.reason} for each in report.left_out],
        "totals": {
            "images": counts.total(),
            **{outcome: counts[outcome] for outcome in _WORDS},
            "bytesSent": sum(result.bytes_sent for result in report.results),
            "bytesMounted": sum(result.bytes_mounted for result in report.results),
            "bytesPresent": sum(result.bytes_present for result in report.results),
            "requests": dict(sorted(report.requests.items())),
            "seconds": round(report.seconds, 3),
            "resumed": report.resumed,
        },
        **({"stopped": error_document(report.stopped)} if report.stopped else {}),
    }


def _image(result: CopyResult) -> Json:
    return {
        "source": result.copy.source,
        "destination": result.copy.destination,
        "entry": result.copy.entry.place,
        "outcome": result.outcome,
        "digest": str(result.digest) if result.digest else None,
        **({"subject": str(result.subject)} if result.subject else {}),
        "layersSent": result.layers_sent,
        "bytesSent": result.bytes_sent,
        "layersMounted": result.layers_mounted,
        "bytesMounted": result.bytes_mounted,
        "layersPresent": result.layers_present,
        "bytesPresent": result.bytes_present,
        "seconds": round(result.seconds, 3),
        "attempts": result.attempts,
        "leftOut": left_out_document(result.left_out),
        **({"error": error_document(result.error)} if result.error else {}),
    }
