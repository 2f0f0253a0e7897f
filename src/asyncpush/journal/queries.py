"""What is read from the journal; each function is called within a transaction, in a worker thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from asyncpush.journal.records import HeldLayer, KnownImage, LeftUpload
from asyncpush.journal.statements import optional_digest, packed, unpacked
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from asyncpush.packed import PackedSet
from asyncpush.settings import MAX_PART_SIZE

#: Digests that are looked for with one statement; SQLite takes 32,766 parameters, older ones 999.
_AT_ONCE = 900


@dataclass(frozen=True, slots=True)
class Memory:
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


def load(connection: sqlite3.Connection) -> Memory:
    """Read what is kept in memory."""
    memory = Memory({}, PackedSet(), {}, set())
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


def repositories(connection: sqlite3.Connection, registry: str) -> list[tuple[int, str]]:
    """The keys and addresses of a registry's repositories."""
    beginning = f"{registry.rstrip('/')}/"
    return connection.execute(
        "SELECT key, address FROM repository WHERE substr(address, 1, ?) = ? ORDER BY address",
        (len(beginning), beginning),
    ).fetchall()


def held(
    connection: sqlite3.Connection, key: int, address: str, after: Digest | None, limit: int
) -> tuple[HeldLayer, ...]:
    """Some of one repository's layers, in the order of their digests: those that come *after* one."""
    rows = connection.execute(
        "SELECT digest, referenced FROM layer WHERE repository = ? AND digest > ? ORDER BY digest LIMIT ?",
        (key, packed(after) if after else b"", limit),
    )
    return tuple(HeldLayer(address, unpacked(digest), bool(referenced)) for digest, referenced in rows)


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
