"""What is written into the journal; each function is called within a transaction, in a worker thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from asyncpush.digest_set import PackedSet
from asyncpush.journal.records import FinishedImage, HeldLayer, KnownImage, LeftUpload, destination_of
from asyncpush.manifest import Manifest, is_foreign
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from asyncpush.settings import MAX_PART_SIZE

#: What SQLite can count up to; a size in a manifest is a claim, and may be anything.
_MOST = 2**63 - 1


def packed(digest: Digest) -> bytes:
    """A digest as its column has it."""
    return bytes.fromhex(digest.hex)


def unpacked(column: bytes) -> Digest:
    """The digest of a column."""
    return Digest(column.hex())


def packed_text(text: str) -> bytes:
    """Text that may hold the name of a file, whatever bytes that has."""
    return text.encode("utf-8", "surrogatepass")


def unpacked_text(column: bytes) -> str:
    """The text of a column that may hold the name of a file."""
    try:
        return column.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return column.decode(errors="replace")  # equals nothing that is asked for


def optional_digest(column: bytes | None) -> Digest | None:
    """The digest of a column that may be empty."""
    return None if column is None else unpacked(column)


@dataclass(frozen=True, slots=True)
class BegunRun:
    """A run's row, the images that it has finished, and when a run began that is too old to go on with."""

    id: int
    resumed: bool
    started: float
    finished: dict[str, FinishedImage]
    outdated: float | None = None


def begin_run(connection: sqlite3.Connection, plan: str, fresh: bool, since: float, now: float) -> BegunRun:
    """Go on with the plan's last run if that has begun *since*, and was interrupted; or enter a new one."""
    last = connection.execute(
        "SELECT id, started, ended IS NULL FROM run WHERE plan = ? ORDER BY id DESC LIMIT 1", (plan,)
    ).fetchone()
    is_left = last is not None and last[2] and not fresh
    if is_left and last[1] >= since:
        key, started, _ = last
        connection.execute("UPDATE run SET begun = ?, ended = NULL, failed = 0 WHERE id = ?", (now, key))
        return BegunRun(key, True, started, _finished(connection, key))
    # The rows of the plan's earlier runs become two numbers each, or a nightly run would fill the disk.
    connection.execute(
        "UPDATE run SET (images_finished, images_failed) = (SELECT images_finished + count(digest),"
        " images_failed + count(*) - count(digest) FROM image WHERE run = run.id) WHERE plan = ?",
        (plan,),
    )
    connection.execute("DELETE FROM image WHERE run IN (SELECT id FROM run WHERE plan = ?)", (plan,))
    added = connection.execute("INSERT INTO run (plan, started, begun) VALUES (?, ?, ?)", (plan, now, now))
    assert added.lastrowid is not None, "an INSERT has one"  # noqa: S101
    return BegunRun(added.lastrowid, False, now, {}, outdated=last[1] if is_left else None)


def _finished(connection: sqlite3.Connection, run: int) -> dict[str, FinishedImage]:
    rows = connection.execute(
        "SELECT copy, source_digest, digest, outcome FROM image WHERE run = ? AND digest IS NOT NULL", (run,)
    )
    return {
        unpacked_text(copy): FinishedImage(optional_digest(source), unpacked(digest), outcome)
        for copy, source, digest, outcome in rows
    }


def end_run(connection: sqlite3.Connection, run: int, failed: int, now: float) -> None:
    """Note how a run ended."""
    connection.execute("UPDATE run SET ended = ?, failed = ? WHERE id = ?", (now, failed, run))


def save_finished(
    connection: sqlite3.Connection, run: int, copy: str, image: FinishedImage, choice: str, now: float
) -> None:
    """Enter an image that was finished, and what its tag names, of which *choice* of platforms."""
    source = packed(image.source_digest) if image.source_digest else None
    connection.execute(
        "INSERT OR REPLACE INTO image (run, copy, source_digest, digest, outcome, at) VALUES (?, ?, ?, ?, ?, ?)",
        (run, packed_text(copy), source, packed(image.digest), image.outcome, now),
    )
    if there := destination_of(copy):
        connection.execute(
            "INSERT OR REPLACE INTO known (repository, tag, source_digest, digest, choice, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*there, source, packed(image.digest), choice, now),
        )


def save_failed(connection: sqlite3.Connection, run: int, copy: str, reason: str, now: float) -> None:
    """Enter an image that failed."""
    connection.execute(
        "INSERT OR REPLACE INTO image (run, copy, outcome, reason, at) VALUES (?, ?, 'failed', ?, ?)",
        (run, packed_text(copy), packed_text(reason), now),
    )


def save_carried(connection: sqlite3.Connection, repository: str, digest: Digest, now: float) -> None:
    """Enter a manifest whose referrers were brought along."""
    connection.execute("INSERT OR REPLACE INTO carried VALUES (?, ?, ?)", (repository, packed(digest), now))


def begin_repository(connection: sqlite3.Connection, repository: str, now: float) -> None:
    """Enter a repository whose creation has begun."""
    connection.execute("INSERT OR REPLACE INTO making VALUES (?, ?)", (repository, now))


def end_repository(connection: sqlite3.Connection, repository: str) -> None:
    """Take out a repository that is whole, or that was not created."""
    connection.execute("DELETE FROM making WHERE repository = ?", (repository,))


def begin_upload(
    connection: sqlite3.Connection, repository: str, identity: str, upload: Upload, part_size: int, now: float
) -> None:
    """Enter an upload, in the place of an earlier one of the same blob."""
    connection.execute(
        "INSERT OR REPLACE INTO upload (repository, identity, id, asked_part_size, max_parts, part_size, received,"
        " begun, heard) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)",
        (repository, identity, upload.id, upload.part_size, upload.max_parts, part_size, now, now),
    )


def save_received(
    connection: sqlite3.Connection, repository: str, identity: str, upload: Upload, received: int, now: float
) -> None:
    """Enter what ECR has of an upload; never less than before, and nothing of another upload of the same blob."""
    connection.execute(
        "UPDATE upload SET received = max(received, ?), heard = ? WHERE repository = ? AND identity = ? AND id = ?",
        (received, now, repository, identity, upload.id),
    )


def remove_upload(connection: sqlite3.Connection, repository: str, identity: str) -> None:
    """Take out an upload."""
    connection.execute("DELETE FROM upload WHERE repository = ? AND identity = ?", (repository, identity))


def save_layer(connection: sqlite3.Connection, repository: str, identity: str, descriptor: Descriptor) -> None:
    """Enter a layer, and what its blob became; its upload is over."""
    _add_layers(connection, repository, [descriptor], referenced=False)
    remove_upload(connection, repository, identity)
    if identity != str(descriptor.digest):
        connection.execute(
            "INSERT OR REPLACE INTO compressed (identity, media_type, digest, size) VALUES (?, ?, ?, ?)",
            (identity, descriptor.media_type, packed(descriptor.digest), _bounded(descriptor.size)),
        )


def remove_layers(connection: sqlite3.Connection, repository: str, digests: Collection[Digest]) -> None:
    """Take out layers."""
    connection.executemany(
        "DELETE FROM layer WHERE repository = (SELECT key FROM repository WHERE address = ?) AND digest = ?",
        [(repository, packed(digest)) for digest in digests],
    )


def save_image(connection: sqlite3.Connection, repository: str, manifest: Manifest, tag: str | None) -> None:
    """Mark a manifest's blobs as referenced, and forget another image that the tag was known to name.

    A foreign layer is marked where it is known to be there: ECR does not ask for it.
    """
    blobs = list(manifest.blobs())
    _add_layers(connection, repository, [blob for blob in blobs if not is_foreign(blob)], referenced=True)
    connection.executemany(
        "UPDATE layer SET referenced = 1"
        " WHERE repository = (SELECT key FROM repository WHERE address = ?) AND digest = ?",
        [(repository, packed(blob.digest)) for blob in blobs if is_foreign(blob)],
    )
    # Whoever has sent them: an upload that was left of one of them is of no use any more.
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
        [(repository, packed(each.digest), _bounded(each.size), referenced) for each in layers],
    )


def _bounded(size: int) -> int:
    return min(size, _MOST)


#: Digests that are looked for with one statement; SQLite takes 32,766 parameters, older ones 999.
_AT_ONCE = 900


@dataclass(frozen=True, slots=True)
class CachedRows:
    """What is kept in memory while a journal is open: it is asked for often, and there are tens of thousands at most.

    Attributes:
        known: what tags name, by repository and tag.
        carried: repositories and manifests whose referrers were brought along.
        compressed: what blobs became that had no digest of their own, by identity.
        making: repositories whose creation has begun, and is not known to be whole.
    """

    known: dict[str, dict[str, KnownImage]]
    carried: PackedSet
    compressed: dict[str, Descriptor]
    making: set[str]


def load(connection: sqlite3.Connection) -> CachedRows:
    """Read what is kept in memory."""
    memory = CachedRows({}, PackedSet(), {}, set())
    for repository, tag, source, digest, choice in connection.execute(
        "SELECT repository, tag, source_digest, digest, choice FROM known"
    ):
        image = KnownImage(optional_digest(source), unpacked(digest), choice)
        memory.known.setdefault(repository, {})[tag] = image
    for repository, digest in connection.execute("SELECT repository, digest FROM carried"):
        memory.carried.add((repository, unpacked(digest)))
    for identity, media_type, digest, size in connection.execute(
        "SELECT identity, media_type, digest, size FROM compressed"
    ):
        memory.compressed[identity] = Descriptor(media_type, unpacked(digest), size)
    memory.making.update(repository for (repository,) in connection.execute("SELECT repository FROM making"))
    return memory


def find_upload(connection: sqlite3.Connection, repository: str, identity: str, since: float) -> OpenUpload | None:
    """The upload of a blob, if ECR was heard of it *since*."""
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
    """The uploads that ECR was heard of *since*, and the completed layers that no image refers to."""
    rows = connection.execute("SELECT repository, identity, received FROM sound_upload WHERE heard >= ?", (since,))
    uploads = [LeftUpload(*row) for row in rows]
    rows = connection.execute(
        "SELECT address, digest, size FROM layer JOIN repository ON key = repository WHERE NOT referenced"
    )
    return (*uploads, *(LeftUpload(address, str(unpacked(digest)), size) for address, digest, size in rows))


def completed(connection: sqlite3.Connection, repository: str, digests: Collection[Digest] | None) -> frozenset[Digest]:
    """The layers of one repository, of *digests* if they are given."""
    query = "SELECT digest FROM layer WHERE repository = (SELECT key FROM repository WHERE address = ?)"
    if digests is None:
        return frozenset(unpacked(digest) for (digest,) in connection.execute(query, (repository,)))
    found = set[Digest]()
    for some, marks in _asked(digests):
        rows = connection.execute(f"{query} AND digest IN ({marks})", (repository, *some))
        found.update(unpacked(digest) for (digest,) in rows)
    return frozenset(found)


def mount_sources(connection: sqlite3.Connection, registry: str, digests: Collection[Digest]) -> dict[Digest, str]:
    """For each of *digests* one repository of a registry where an image refers to it: a base layer may be in all."""
    beginning, found = f"{registry.rstrip('/')}/", dict[Digest, str]()
    for some, marks in _asked(digests):
        query = (
            "SELECT digest, (SELECT address FROM layer AS held JOIN repository ON key = repository"  # noqa: S608 - marks
            " WHERE held.digest = layer.digest AND referenced AND substr(address, 1, ?) = ? LIMIT 1) AS address"
            f" FROM (SELECT DISTINCT digest FROM layer WHERE digest IN ({marks})) AS layer"
        )
        rows = connection.execute(query, (len(beginning), beginning, *some))
        found.update({unpacked(digest): address for digest, address in rows if address is not None})
    return found


def _asked(digests: Collection[Digest]) -> Iterator[tuple[list[bytes], str]]:
    """Digests as their column has them, as many as one statement takes, and its marks for them."""
    columns = [packed(digest) for digest in digests]
    for first in range(0, len(columns), _AT_ONCE):
        some = columns[first : first + _AT_ONCE]
        yield some, ", ".join("?" * len(some))


def holders(connection: sqlite3.Connection, registry: str, digests: Collection[Digest]) -> tuple[HeldLayer, ...]:
    """Who holds some of *digests* in a registry."""
    beginning, found = f"{registry.rstrip('/')}/", list[HeldLayer]()
    for some, marks in _asked(digests):
        query = (
            "SELECT address, digest, referenced FROM layer JOIN repository ON key = repository"  # noqa: S608 - marks only
            f" WHERE digest IN ({marks}) AND substr(address, 1, ?) = ? ORDER BY digest, address"
        )
        rows = connection.execute(query, (*some, len(beginning), beginning))
        found += (HeldLayer(address, unpacked(digest), bool(referenced)) for address, digest, referenced in rows)
    return tuple(found)
