"""The contents of a journal, as a summary or row by row, even while a run writes it.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from asyncpush.journal.database import has_table, read_database
from asyncpush.journal.sql import unpacked

RunOutcome: TypeAlias = Literal["unfinished", "failed", "finished"]


def _kind(name: str) -> str:
    return name.removesuffix("Row").lower()


class _Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="kind", tag=_kind):
    """A line of an export: members have camelCase names, and ``kind`` tells the type."""


class RunRow(_Row, frozen=True, kw_only=True):
    """A run; *failed* and *finished* count its images. Without an end, it is running or was interrupted."""

    id: int
    plan: str
    state: RunOutcome
    started: datetime
    resumed: datetime | None
    ended: datetime | None
    finished: int
    failed: int


class ImageRow(_Row, frozen=True, kw_only=True):
    """The outcome of an image of a run."""

    run: int
    copy: str
    outcome: str
    source_digest: str | None
    digest: str | None
    reason: str | None
    at: datetime


class TagRow(_Row, frozen=True, kw_only=True):
    """What a tag named when it was last checked."""

    repository: str
    tag: str
    source_digest: str | None
    digest: str
    at: datetime


class ReferrersRow(_Row, frozen=True, kw_only=True):
    """A manifest whose referrers were copied."""

    repository: str
    digest: str
    at: datetime


class CreationRow(_Row, frozen=True, kw_only=True, tag="making"):
    """A repository that is being created, and may lack its policies."""

    repository: str
    at: datetime


class ProofRow(_Row, frozen=True, kw_only=True):
    """An image that was whole when it was verified, by its tag or digest; *deep* if its bytes were read."""

    repository: str
    reference: str
    digest: str
    deep: bool
    at: datetime


class LayerRow(_Row, frozen=True, kw_only=True):
    """A layer that a repository has."""

    repository: str
    digest: str
    size: int
    referenced: bool


class CompressedRow(_Row, frozen=True, kw_only=True):
    """The layer that a blob became whose digest was unknown before it was read."""

    identity: str
    media_type: str
    digest: str
    size: int


class UploadRow(_Row, frozen=True, kw_only=True):
    """An upload that was not completed; its id is useless without credentials."""

    repository: str
    identity: str
    id: str
    part_size: int
    received: int
    begun: datetime
    heard: datetime


Row: TypeAlias = (
    RunRow | ImageRow | TagRow | ReferrersRow | CreationRow | ProofRow | LayerRow | CompressedRow | UploadRow
)


class JournalSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The contents of a journal, counted; *layer_bytes* counts a layer once for each repository that has it."""

    runs: list[RunRow]
    repositories: int
    layers: int
    layers_referenced: int
    layer_bytes: int
    tags: int
    compressed: int
    proofs: int
    deep_proofs: int
    last_proof: datetime | None
    uploads: list[UploadRow]


def summarize(path: Path) -> JournalSummary:
    """Count the contents of a journal.

    Raises:
        UsageError: there is no journal.
        JournalError: it is damaged.
    """
    with read_database(path) as connection:
        repositories, layers, referenced, size = connection.execute(
            # total() is a float, which a claim in a manifest can't overflow.
            "SELECT count(DISTINCT repository), count(*), total(referenced), total(size) FROM layer"
        ).fetchone()
        proofs, deep, last = _proof_counts(connection)
        return JournalSummary(
            runs=list(run_rows(connection)),
            repositories=repositories,
            layers=layers,
            layers_referenced=int(referenced),
            layer_bytes=int(size),
            tags=_count(connection, "SELECT count(*) FROM known"),
            compressed=_count(connection, "SELECT count(*) FROM compressed"),
            proofs=proofs,
            deep_proofs=deep,
            last_proof=None if last is None else _time(last),
            uploads=list(_uploads(connection)),
        )


def rows(path: Path) -> Iterator[Row]:
    """All rows of a journal, from one snapshot.

    Raises:
        UsageError: there is no journal.
        JournalError: it is damaged.
    """
    with read_database(path) as connection:
        yield from run_rows(connection)
        yield from image_rows(connection)
        yield from _tags(connection)
        yield from _referrers(connection)
        yield from _making(connection)
        yield from _proofs(connection)
        yield from _layers(connection)
        yield from _compressed(connection)
        yield from _uploads(connection)


def run_rows(connection: sqlite3.Connection) -> Iterator[RunRow]:
    """The runs of an open journal."""
    found = connection.execute(
        "SELECT id, plan, started, begun, ended, run.failed, images_finished + count(digest),"
        " images_failed + count(image.run) - count(digest)"
        " FROM run LEFT JOIN image ON image.run = run.id GROUP BY id ORDER BY id"
    )
    for key, plan, started, begun, ended, failures, finished, failed in found:
        state: RunOutcome = "unfinished" if ended is None else "failed" if failures else "finished"
        yield RunRow(
            id=key,
            plan=plan,
            state=state,
            started=_time(started),
            resumed=_time(begun) if begun > started else None,
            ended=None if ended is None else _time(ended),
            finished=finished,
            # A run can have failures without an image, such as a source that could not be listed.
            failed=max(failed, failures),
        )


def image_rows(connection: sqlite3.Connection) -> Iterator[ImageRow]:
    """The images of all its runs."""
    found = connection.execute(
        "SELECT run, copy, outcome, source_digest, digest, reason, at FROM image ORDER BY run, copy"
    )
    for run, copy, outcome, source, digest, reason, at in found:
        yield ImageRow(
            run=run,
            copy=_text(copy),
            outcome=outcome,
            source_digest=_optional(source),
            digest=_optional(digest),
            reason=None if reason is None else _text(reason),
            at=_time(at),
        )


def _tags(connection: sqlite3.Connection) -> Iterator[TagRow]:
    found = connection.execute("SELECT repository, tag, source_digest, digest, at FROM known ORDER BY repository, tag")
    for repository, tag, source, digest, at in found:
        yield TagRow(
            repository=repository,
            tag=tag,
            source_digest=_optional(source),
            digest=str(unpacked(digest)),
            at=_time(at),
        )


def _referrers(connection: sqlite3.Connection) -> Iterator[ReferrersRow]:
    for repository, digest, at in connection.execute(
        "SELECT repository, digest, at FROM carried ORDER BY repository, digest"
    ):
        yield ReferrersRow(repository=repository, digest=str(unpacked(digest)), at=_time(at))


def _making(connection: sqlite3.Connection) -> Iterator[CreationRow]:
    if has_table(connection, "making"):
        for repository, at in connection.execute("SELECT repository, at FROM making ORDER BY repository"):
            yield CreationRow(repository=repository, at=_time(at))


def _proofs(connection: sqlite3.Connection) -> Iterator[ProofRow]:
    if has_table(connection, "proved"):
        for repository, reference, digest, deep, at in connection.execute(
            "SELECT repository, reference, digest, deep, at FROM proved ORDER BY repository, reference"
        ):
            yield ProofRow(
                repository=repository, reference=reference, digest=str(unpacked(digest)), deep=bool(deep), at=_time(at)
            )


def _proof_counts(connection: sqlite3.Connection) -> tuple[int, int, float | None]:
    """How many images were proved, how many of them deep, and when the last was."""
    if not has_table(connection, "proved"):
        return 0, 0, None
    [(count, deep, last)] = connection.execute("SELECT count(*), count(nullif(deep, 0)), max(at) FROM proved")
    return count, deep, last


def _layers(connection: sqlite3.Connection) -> Iterator[LayerRow]:
    found = connection.execute(
        "SELECT address, digest, size, referenced FROM repository JOIN layer ON repository = key ORDER BY key, digest"
    )
    for address, digest, size, referenced in found:
        yield LayerRow(repository=address, digest=str(unpacked(digest)), size=size, referenced=bool(referenced))


def _compressed(connection: sqlite3.Connection) -> Iterator[CompressedRow]:
    for identity, media_type, digest, size in connection.execute(
        "SELECT identity, media_type, digest, size FROM compressed ORDER BY identity"
    ):
        yield CompressedRow(identity=identity, media_type=media_type, digest=str(unpacked(digest)), size=size)


def _uploads(connection: sqlite3.Connection) -> Iterator[UploadRow]:
    for repository, identity, key, part_size, received, begun, last_heard in connection.execute(
        "SELECT repository, identity, id, part_size, received, begun, heard FROM sound_upload"
        " ORDER BY repository, identity"
    ):
        yield UploadRow(
            repository=repository,
            identity=identity,
            id=key,
            part_size=part_size,
            received=received,
            begun=_time(begun),
            heard=_time(last_heard),
        )


def _count(connection: sqlite3.Connection, query: str) -> int:
    [(count,)] = connection.execute(query)
    return int(count)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _text(column: bytes) -> str:
    """Text for a screen or for JSON; a file name need not be UTF-8."""
    return column.decode("utf-8", "replace")


def _optional(column: bytes | None) -> str | None:
    return None if column is None else str(unpacked(column))
