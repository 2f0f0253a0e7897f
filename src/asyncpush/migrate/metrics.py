"""A migration's figures in Prometheus's text format, for a node exporter's textfile collector."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from anyio import to_thread

from asyncpush import open_files
from asyncpush.errors import AsyncpushError
from asyncpush.migrate.results import Report


async def write_metrics(report: Report, path: Path) -> None:
    """Write the figures of *report* to *path*, in one step, so that nobody reads half of them.

    Raises:
        AsyncpushError: the file can't be written.
    """
    await to_thread.run_sync(_write, render(report), path)


def render(report: Report) -> str:
    """The figures as text (Prometheus exposition formats, text format 0.0.4)."""
    images = Counter[str](result.outcome for result in report.results if result.subject is None)
    referrers = Counter[str](result.outcome for result in report.results if result.subject is not None)
    families = (
        ("images", "Images by how they ended.", _labelled("outcome", images)),
        ("referrers", "Signatures, attestations and SBOMs by how they ended.", _labelled("outcome", referrers)),
        ("sent_bytes", "Bytes of layers that were sent.", [("", report.sent)]),
        ("entries_without_tags", "Entries of the plan that take no tag.", [("", len(report.nothing_taken))]),
        (
            "mounted_bytes",
            "Bytes of layers that were taken over from another repository.",
            [("", sum(each.bytes_mounted for each in report.results))],
        ),
        (
            "present_bytes",
            "Bytes of layers that were there already.",
            [("", sum(each.bytes_present for each in report.results))],
        ),
        ("requests", "Requests by operation.", _labelled("operation", report.requests)),
        ("duration_seconds", "How long the run took.", [("", report.seconds)]),
    )
    return "".join(_family(name, text, samples) for name, text, samples in families)


def _labelled(label: str, counts: Mapping[str, int]) -> list[tuple[str, float]]:
    return [(f'{{{label}="{key}"}}', value) for key, value in sorted(counts.items())]


def _family(name: str, text: str, samples: Iterable[tuple[str, float]]) -> str:
    def lines() -> Iterator[str]:
        yield f"# HELP asyncpush_migration_{name} {text}"
        yield f"# TYPE asyncpush_migration_{name} gauge"
        for labels, value in samples:
            yield f"asyncpush_migration_{name}{labels} {value:.10g}"

    return "\n".join(lines()) + "\n"


def _write(text: str, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise AsyncpushError(f"the metrics can't be written to {path}: {open_files.reason(error)}") from error
