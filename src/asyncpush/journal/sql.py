"""The journal's records and the statements that read and write them.

Each function runs within a transaction, in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from asyncpush.digest_set import PackedSet
from asyncpush.manifest import Manifest, is_foreign
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from asyncpush.settings import MAX_PART_SIZE


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run that has begun.

    Attributes:
        id: its number in the journal, from 1 on.
        resumed: whether it resumes an interrupted run of the same plan.
        started: when it started first, UTC.
        finished: how many images it has finished so far (``SqliteJournal.finished``).
        outdated: when an interrupted run of the same plan started that is too old to resume; None if there is none.
    """

    id: int
    resumed: bool
    started: datetime
    finished: int
    outdated: datetime | None = None


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that the run has finished.

    Attributes:
        source_digest: its digest at the source; None if it had none.
        digest: its digest at the destination.
        outcome: how it ended, such as ``pushed``.
    """

    source_digest: Digest | None
    digest: Digest
    outcome: str


@dataclass(frozen=True, slots=True)
class KnownImage:
    """What a tag named when an image was last pushed or found there.

    Attributes:
        source_digest: its digest at the source; None if it had none.
        digest: the digest that the tag named.
        choice: the platforms that were selected from the source's index; empty for all.
    """

    source_digest: Digest | None
    digest: Digest
    choice: str = ""


@dataclass(frozen=True, slots=True)
class LeftUpload:
    """Bytes of a blob that a repository has, but no image refers to.

    Attributes:
        repository: the repository's address.
        identity: the blob's.
        received: bytes that ECR has acknowledged; all bytes if the upload was completed.
    """

    repository: str
    identity: str
    received: int


def destination_of(copy: str) -> tuple[str, str] | None:
    """The repository's address and the tag that a copy, ``SOURCE -> ADDRESS:TAG``, goes to.

    None where it names no tag (``ADDRESS@DIGEST``).
    """
    repository, _, tag = copy.rpartition(" -> ")[2].rpartition(":")
    if not repository or not tag or "@" in repository or "/" in tag:
        return None
    return repository, tag


#: SQLite's largest integer; the size in a manifest is a claim, and can be any number.
_MOST = 2**63 - 1


def packed(digest: Digest) -> bytes:
    """A digest as a column stores it."""
    return bytes.fromhex(digest.hex)


def unpacked(column: bytes) -> Digest:
    """The digest of a column."""
    return Digest(column.hex())


def packed_text(text: str) -> bytes:
    """Text that can contain a file name with any bytes, as a column stores it."""
    return text.encode("utf-8", "surrogatepass")


def unpacked_text(column: bytes) -> str:
    """The text of a column that can contain a file name."""
    try:
        return column.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return column.decode(errors="replace")  # equals no text that is looked up


def optional_digest(column: bytes | None) -> Digest | None:
    """The digest of a column; None if it is NULL."""
    return None if column is None else unpacked(column)


@dataclass(frozen=True, slots=True)
class BegunRun:
    """A run, the images that it has finished, and when an interrupted run started that is too old to resume."""

    id: int
    resumed: bool
    started: float
    finished: dict[str, FinishedImage]
    outdated: float | None = None


def begin_run(connection: sqlite3.Connection, plan: str, fresh: bool, since: float, now: float) -> BegunRun:
    """Resume the plan's last run if it started after *since* and was interrupted; otherwise insert a new one."""
    last = connection.execute(
        "SELECT id, started, ended IS NULL FROM run WHERE plan = ? ORDER BY id DESC LIMIT 1", (plan,)
    ).fetchone()
    is_interrupted = last is not None and last[2] and not fresh
    if is_interrupted and last[1] >= since:
        key, started, _ = last
        connection.execute("UPDATE run SET begun = ?, ended = NULL, failed = 0 WHERE id = ?", (now, key))
        return BegunRun(key, True, started, _finished(connection, key))
    # Replace the images of the plan's earlier runs by counts, or a nightly run would fill the disk.
    connection.execute(
        "UPDATE run SET (images_finished, images_failed) = (SELECT images_finished + count(digest),"
        " images_failed + count(*) - count(digest) FROM image WHERE run = run.id) WHERE plan = ?",
        (plan,),
    )
    connection.execute("DELETE FROM image WHERE run IN (SELECT id FROM run WHERE plan = ?)", (plan,))
    added = connection.execute("INSERT INTO run (plan, started, begun) VALUES (?, ?, ?)", (plan, now, now))
    assert added.lastrowid is not None, "an INSERT has one"  # noqa: S101
    return BegunRun(added.lastrowid, False, now, {}, outdated=last[1] if is_interrupted else None)


def _finished(connection: sqlite3.Connection, run: int) -> dict[str, FinishedImage]:
    rows = connection.execute(
        "SELECT copy, source_digest, digest, outcome FROM image WHERE run = ? AND digest IS NOT NULL", (run,)
    )
    return {
        unpacked_text(copy): FinishedImage(optional_digest(source), unpacked(digest), outcome)
        for copy, source, digest, outcome in rows
    }


def end_run(connection: sqlite3.Connection, run: int, failed: int, now: float) -> None:
    """Update a run that has ended."""
    connection.execute("UPDATE run SET ended = ?, failed = ? WHERE id = ?", (now, failed, run))


#: Reports that a journal keeps of one plan's runs: a nightly run has one of the last month.
_REPORTS = 31


def save_report(
    connection: sqlite3.Connection, run: int, begun: float, seconds: float, sent: int, document: bytes
) -> None:
    """Insert what a process did for a run, and delete the oldest reports of its plan."""
    connection.execute("INSERT OR REPLACE INTO report VALUES (?, ?, ?, ?, ?)", (run, begun, seconds, sent, document))
    connection.execute(
        "DELETE FROM report WHERE rowid IN (SELECT report.rowid FROM report JOIN run ON run.id = report.run"
        " WHERE plan = (SELECT plan FROM run WHERE id = ?) ORDER BY report.begun DESC LIMIT -1 OFFSET ?)",
        (run, _REPORTS),
    )


def save_finished(
    connection: sqlite3.Connection, run: int, copy: str, image: FinishedImage, choice: str, now: float
) -> None:
    """Insert an image that was finished, and what its tag names, with its *choice* of platforms."""
    source = packed(image.source_digest) if image.source_digest else None
    connection.execute(
        "INSERT OR REPLACE INTO image (run, copy, source_digest, digest, outcome, at) VALUES (?, ?, ?, ?, ?, ?)",
        (run, packed_text(copy), source, packed(image.digest), image.outcome, now),
    )
    if destination := destination_of(copy):
        connection.execute(
            "INSERT OR REPLACE INTO known (repository, tag, source_digest, digest, choice, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*destination, source, packed(image.digest), choice, now),
        )


def save_failed(connection: sqlite3.Connection, run: int, copy: str, outcome: str, reason: str, now: float) -> None:
    """Insert an image that failed."""
    connection.execute(
        "INSERT OR REPLACE INTO image (run, copy, outcome, reason, at) VALUES (?, ?, ?, ?, ?)",
        (run, packed_text(copy), outcome, packed_text(reason), now),
    )


def save_referrers_copied(connection: sqlite3.Connection, repository: str, digest: Digest, now: float) -> None:
    """Insert a manifest whose referrers were copied."""
    connection.execute("INSERT OR REPLACE INTO carried VALUES (?, ?, ?)", (repository, packed(digest), now))


def begin_repository(connection: sqlite3.Connection, repository: str, now: float) -> None:
    """Insert a repository that is being created."""
    connection.execute("INSERT OR REPLACE INTO making VALUES (?, ?)", (repository, now))


def end_repository(connection: sqlite3.Connection, repository: str) -> None:
    """Delete a repository that has its policies, or that was not created."""
    connection.execute("DELETE FROM making WHERE repository = ?", (repository,))


def save_proofs(
    connection: sqlite3.Connection, repository: str, images: Mapping[str, Digest], deep: bool, now: float
) -> None:
    """Insert images that are whole; of two proofs of one digest, a deep one stays."""
    connection.executemany(
        "INSERT INTO proved (repository, reference, digest, deep, at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET digest = excluded.digest, deep = excluded.deep, at = excluded.at"
        " WHERE excluded.deep >= deep OR excluded.digest <> digest",
        [(repository, reference, packed(digest), deep, now) for reference, digest in images.items()],
    )


def remove_proofs(connection: sqlite3.Connection, repository: str, reference: str, digest: Digest | None) -> None:
    """Delete what was proved of an image that is not whole, under whatever name."""
    connection.execute(
        "DELETE FROM proved WHERE repository = ? AND (reference = ? OR digest = ?)",
        (repository, reference, packed(digest) if digest else None),
    )


def deep_proofs(connection: sqlite3.Connection, repository: str, since: float) -> dict[Digest, float]:
    """The images of a repository whose bytes were read and matched after *since*, and when."""
    rows = connection.execute(
        "SELECT digest, max(at) FROM proved WHERE repository = ? AND deep AND at >= ? GROUP BY digest",
        (repository, since),
    )
    return {unpacked(digest): at for digest, at in rows}


def begin_upload(
    connection: sqlite3.Connection, repository: str, identity: str, upload: Upload, part_size: int, now: float
) -> None:
    """Insert an upload; it replaces an earlier one of the same blob."""
    connection.execute(
        "INSERT OR REPLACE INTO upload (repository, identity, id, asked_part_size, max_parts, part_size, received,"
        " begun, heard) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)",
        (repository, identity, upload.id, upload.part_size, upload.max_parts, part_size, now, now),
    )


def save_received(
    connection: sqlite3.Connection, repository: str, identity: str, upload: Upload, received: int, now: float
) -> None:
    """Update the bytes that ECR has of an upload; never to fewer, and only if it is the blob's current upload."""
    connection.execute(
        "UPDATE upload SET received = max(received, ?), heard = ? WHERE repository = ? AND identity = ? AND id = ?",
        (received, now, repository, identity, upload.id),
    )


def remove_upload(connection: sqlite3.Connection, repository: str, identity: str) -> None:
    """Delete an upload."""
    connection.execute("DELETE FROM upload WHERE repository = ? AND identity = ?", (repository, identity))


def save_layer(connection: sqlite3.Connection, repository: str, identity: str, descriptor: Descriptor) -> None:
    """Insert a layer, and the descriptor of its blob; delete its upload."""
    _add_layers(connection, repository, [descriptor], referenced=False)
    remove_upload(connection, repository, identity)
    if identity != str(descriptor.digest):
        connection.execute(
            "INSERT OR REPLACE INTO compressed (identity, media_type, digest, size) VALUES (?, ?, ?, ?)",
            (identity, descriptor.media_type, packed(descriptor.digest), _bounded(descriptor.size)),
        )


def remove_layers(connection: sqlite3.Connection, repository: str, digests: Collection[Digest]) -> None:
    """Delete layers."""
    connection.executemany(
        "DELETE FROM layer WHERE repository = (SELECT key FROM repository WHERE address = ?) AND digest = ?",
        [(repository, packed(digest)) for digest in digests],
    )


def save_image(connection: sqlite3.Connection, repository: str, manifest: Manifest, tag: str | None) -> None:
    """Mark the blobs of a manifest as referenced, and delete what the tag named if that was another image.

    A foreign layer is marked only if the repository is known to have it, since ECR does not require it.
    """
    blobs = list(manifest.blobs())
    _add_layers(connection, repository, [blob for blob in blobs if not is_foreign(blob)], referenced=True)
    connection.executemany(
        "UPDATE layer SET referenced = 1"
        " WHERE repository = (SELECT key FROM repository WHERE address = ?) AND digest = ?",
        [(repository, packed(blob.digest)) for blob in blobs if is_foreign(blob)],
    )
    # An open upload of one of them is of no use any more.
    connection.executemany(
        "DELETE FROM upload WHERE repository = ? AND identity = ?",
        [(repository, str(blob.digest)) for blob in blobs],
    )
    if tag is not None:
        connection.execute(
            "DELETE FROM known WHERE repository = ? AND tag = ? AND digest <> ?",
            (repository, tag, packed(manifest.digest)),
        )


def _add_layers(
    connection: sqlite3.Connection, repository: str, layers: Iterable[Descriptor], *, referenced: bool
) -> None:
    connection.execute("INSERT OR IGNORE INTO repository (address) VALUES (?)", (repository,))
    connection.executemany(
        "INSERT INTO layer (repository, digest, size, referenced)"
        " VALUES ((SELECT key FROM repository WHERE address = ?), ?, ?, ?)"
        " ON CONFLICT (repository, digest) DO UPDATE SET referenced = max(referenced, excluded.referenced)",
        [(repository, packed(layer.digest), _bounded(layer.size), referenced) for layer in layers],
    )


def _bounded(size: int) -> int:
    return min(size, _MOST)


#: Digests in one statement; SQLite allows 32,766 parameters, older versions 999.
_AT_ONCE = 900


@dataclass(frozen=True, slots=True)
class CachedRows:
    """The rows that are cached while a journal is open: they are used often, and there are tens of thousands at most.

    Attributes:
        known: what tags name, by repository and tag.
        referrers_copied: repositories and manifests whose referrers were copied.
        compressed: the descriptors of blobs that had no digest before they were compressed, by identity.
        making: repositories that are being created.
    """

    known: dict[str, dict[str, KnownImage]]
    referrers_copied: PackedSet
    compressed: dict[str, Descriptor]
    making: set[str]


def load(connection: sqlite3.Connection) -> CachedRows:
    """Read the rows to cache."""
    memory = CachedRows({}, PackedSet(), {}, set())
    for repository, tag, source, digest, choice in connection.execute(
        "SELECT repository, tag, source_digest, digest, choice FROM known"
    ):
        image = KnownImage(optional_digest(source), unpacked(digest), choice)
        memory.known.setdefault(repository, {})[tag] = image
    for repository, digest in connection.execute("SELECT repository, digest FROM carried"):
        memory.referrers_copied.add((repository, unpacked(digest)))
    for identity, media_type, digest, size in connection.execute(
        "SELECT identity, media_type, digest, size FROM compressed"
    ):
        memory.compressed[identity] = Descriptor(media_type, unpacked(digest), size)
    memory.making.update(repository for (repository,) in connection.execute("SELECT repository FROM making"))
    return memory


def find_upload(connection: sqlite3.Connection, repository: str, identity: str, since: float) -> OpenUpload | None:
    """The upload of a blob, if ECR acknowledged something of it after *since*."""
    row = connection.execute(
        "SELECT id, asked_part_size, max_parts, part_size, received FROM sound_upload"
        " WHERE repository = ? AND identity = ? AND heard >= ? AND part_size <= ?",
        (repository, identity, since, MAX_PART_SIZE),
    ).fetchone()
    if row is None:
        return None
    upload, asked, max_parts, part_size, received = row
    return OpenUpload(Upload(upload, asked, max_parts), part_size, received)


def left_uploads(connection: sqlite3.Connection, since: float) -> tuple[LeftUpload, ...]:
    """The uploads that ECR acknowledged something of after *since*, and the completed layers without an image."""
    rows = connection.execute("SELECT repository, identity, received FROM sound_upload WHERE heard >= ?", (since,))
    uploads = [LeftUpload(*row) for row in rows]
    rows = connection.execute(
        "SELECT address, digest, size FROM layer JOIN repository ON key = repository WHERE NOT referenced"
    )
    return (*uploads, *(LeftUpload(address, str(unpacked(digest)), size) for address, digest, size in rows))


def completed(connection: sqlite3.Connection, repository: str, digests: Collection[Digest] | None) -> frozenset[Digest]:
    """The layers of one repository; only those of *digests*, if given."""
    query = "SELECT digest FROM layer WHERE repository = (SELECT key FROM repository WHERE address = ?)"
    if digests is None:
        return frozenset(unpacked(digest) for (digest,) in connection.execute(query, (repository,)))
    found = set[Digest]()
    for batch, marks in _batches(digests):
        rows = connection.execute(f"{query} AND digest IN ({marks})", (repository, *batch))
        found.update(unpacked(digest) for (digest,) in rows)
    return frozenset(found)


def mount_sources(connection: sqlite3.Connection, registry: str, digests: Collection[Digest]) -> dict[Digest, str]:
    """For each of *digests*, one repository of a registry where an image refers to it."""
    beginning, found = f"{registry.rstrip('/')}/", dict[Digest, str]()
    for batch, marks in _batches(digests):
        query = (
            "SELECT digest, (SELECT address FROM layer AS held JOIN repository ON key = repository"  # noqa: S608 - marks
            " WHERE held.digest = layer.digest AND referenced AND substr(address, 1, ?) = ? LIMIT 1) AS address"
            f" FROM (SELECT DISTINCT digest FROM layer WHERE digest IN ({marks})) AS layer"
        )
        rows = connection.execute(query, (len(beginning), beginning, *batch))
        found.update({unpacked(digest): address for digest, address in rows if address is not None})
    return found


def _batches(digests: Collection[Digest]) -> Iterator[tuple[list[bytes], str]]:
    """Batches of digests that fit into one statement, as columns store them, with their placeholders."""
    columns = [packed(digest) for digest in digests]
    for first in range(0, len(columns), _AT_ONCE):
        batch = columns[first : first + _AT_ONCE]
        yield batch, ", ".join("?" * len(batch))
