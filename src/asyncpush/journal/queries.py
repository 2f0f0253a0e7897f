"""What is read from the journal; each function is called within a transaction, in a worker thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from asyncpush.journal.records import HeldLayer, KnownImage, LeftUpload
from asyncpush.journal.statements import optional_digest, packed, unpacked
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from asyncpush.packed import PackedSet

#: Digests that are looked for with one statement; SQLite takes 32,766 parameters, older ones 999.
_AT_ONCE = 900


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept in memory while a journal is open: it is asked for often, and there are tens of thousands at most.

    Attributes:
        known: what tags name, by repository and tag.
        carried: repositories and manifests whose referrers were brought along.
        compressed: what blobs became that had no digest of their own, by identity.
    """

    known: dict[str, dict[str, KnownImage]]
    carried: PackedSet
    compressed: dict[str, Descriptor]


def load(connection: sqlite3.Connection) -> Memory:
    """Read what is kept in memory."""
    memory = Memory({}, PackedSet(), {})
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
    return memory


def find_upload(connection: sqlite3.Connection, repository: str, identity: str, since: float) -> OpenUpload | None:
    """The upload of a blob, if ECR was heard of it *since*."""
    row = connection.execute(
        "SELECT id, asked_part_size, max_parts, part_size, received FROM upload"
        " WHERE repository = ? AND identity = ? AND heard >= ?",
        (repository, identity, since),
    ).fetchone()
    if row is None:
        return None
    upload, asked, max_parts, part_size, received = row
    return OpenUpload(Upload(upload, asked, max_parts), part_size, received)


def left_uploads(connection: sqlite3.Connection, since: float) -> tuple[LeftUpload, ...]:
    """The uploads that ECR was heard of *since*."""
    rows = connection.execute("SELECT repository, identity, received FROM upload WHERE heard >= ?", (since,))
    return tuple(LeftUpload(*row) for row in rows)


def completed(connection: sqlite3.Connection, repository: str) -> frozenset[Digest]:
    """The layers of one repository."""
    rows = connection.execute(
        "SELECT digest FROM layer WHERE repository = (SELECT key FROM repository WHERE address = ?)", (repository,)
    )
    return frozenset(unpacked(digest) for (digest,) in rows)


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
    beginning = f"{registry.rstrip('/')}/"
    columns, found = [packed(digest) for digest in digests], list[HeldLayer]()
    for first in range(0, len(columns), _AT_ONCE):
        some = columns[first : first + _AT_ONCE]
        marks = ", ".join("?" * len(some))
        query = (
            "SELECT address, digest, referenced FROM layer JOIN repository ON key = repository"  # noqa: S608 - marks only
            f" WHERE digest IN ({marks}) AND substr(address, 1, ?) = ? ORDER BY digest, address"
        )
        rows = connection.execute(query, (*some, len(beginning), beginning))
        found += (HeldLayer(address, unpacked(digest), bool(referenced)) for address, digest, referenced in rows)
    return tuple(found)
