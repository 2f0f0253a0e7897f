"""The catalog: all data but the blobs, in one SQLite file with one writer."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.records import ImageRecord, ParsedManifest, RepositoryRecord, TemplateRecord, UploadRecord
from asyncpush.model import Digest

FILE = "catalog.sqlite"

#: The file header's application id ("apsh"), and the version of the tables.
_APPLICATION = 0x61707368
_VERSION = 1

_SCHEMA = f"""
BEGIN;
CREATE TABLE repository (
    key INTEGER PRIMARY KEY, service TEXT NOT NULL, account TEXT NOT NULL, region TEXT NOT NULL, name TEXT NOT NULL,
    record BLOB NOT NULL, UNIQUE (service, account, region, name));
CREATE TABLE image (
    repository INTEGER NOT NULL REFERENCES repository ON DELETE CASCADE, digest TEXT NOT NULL, pushed_at REAL NOT NULL,
    manifest BLOB NOT NULL, UNIQUE (repository, digest));
CREATE TABLE tag (
    repository INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (repository, name),
    FOREIGN KEY (repository, digest) REFERENCES image (repository, digest) ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX tag_of_image ON tag (repository, digest);
CREATE TABLE layer (
    repository INTEGER NOT NULL REFERENCES repository ON DELETE CASCADE, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE upload (
    id TEXT PRIMARY KEY, repository INTEGER NOT NULL REFERENCES repository ON DELETE CASCADE, created_at REAL NOT NULL,
    parts INTEGER NOT NULL, received INTEGER NOT NULL, last_part INTEGER NOT NULL, short_part INTEGER NOT NULL,
    digest TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX upload_of_repository ON upload (repository);
CREATE TABLE completed (
    upload TEXT PRIMARY KEY, repository INTEGER NOT NULL REFERENCES repository ON DELETE CASCADE,
    digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE setting (
    service TEXT NOT NULL, account TEXT NOT NULL, region TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (service, account, region, name)) WITHOUT ROWID;
CREATE TABLE template (
    service TEXT NOT NULL, account TEXT NOT NULL, region TEXT NOT NULL, prefix TEXT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (service, account, region, prefix)) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class CatalogError(ValueError):
    """Raised when a file is not a catalog, or not one that this version can read."""


class Catalog:
    """The open file. Its methods block, each is one transaction, and any thread may call them: one at a time runs.

    What a method has written outlives a killed process when it returns; with *fsync*, a power cut too, but for parts
    and uploads, which the client can send again.

    Args:
        connection: to the file, in autocommit mode.
        fsync: whether layers, images and settings must outlive a power cut.

    Raises:
        OSError: (any method) the disk is full, or the file can't be used; nothing was changed.
    """

    def __init__(self, connection: sqlite3.Connection, *, fsync: bool) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        # In WAL mode FULL syncs each commit, NORMAL only checkpoints (a power cut may take the last commits, the file
        # stays whole), OFF nothing.
        self._levels = ("NORMAL", "FULL") if fsync else ("OFF", "OFF")
        self._level = ""

    @classmethod
    def open(cls, path: Path, *, fsync: bool, new: bool) -> Self:
        """Open a catalog, or create one where the file is missing or empty.

        Args:
            path: the file.
            fsync: see the class.
            new: whether it may be empty: nothing lies beside it that it should name.

        Raises:
            CatalogError: the file is something else, damaged, or another version's.
        """
        with _translated(path):
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with _translated(path):
                _prepare(connection, path, new=new)
        except (OSError, CatalogError):
            connection.close()
            raise
        return cls(connection, fsync=fsync)

    def close(self) -> None:
        """Write the WAL back into the file, and close it."""
        with self._lock:
            self._connection.close()

    def problems(self) -> list[str]:
        """The problems that SQLite finds in the file (integrity_check and foreign_key_check)."""
        with self._lock:
            try:
                found = [row[0] for row in self._connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
                broken = self._connection.execute("PRAGMA foreign_key_check").fetchall()
            except sqlite3.DatabaseError as error:
                return [str(error)]
        return found + [f"a row of {row[0]} refers to a row of {row[2]} that is not there" for row in broken]

    def repositories(self) -> Iterator[tuple[int, RegistryId, RepositoryRecord]]:
        """All repositories with their keys."""
        for key, *registry, record in self._rows("SELECT key, service, account, region, record FROM repository"):
            yield key, RegistryId(*registry), msgspec.json.decode(record, type=RepositoryRecord)

    def images(self) -> Iterator[tuple[int, ImageRecord]]:
        """All images, oldest first within a repository."""
        decoder = msgspec.json.Decoder(ParsedManifest)
        for key, pushed_at, manifest in self._rows("SELECT repository, pushed_at, manifest FROM image ORDER BY rowid"):
            yield key, ImageRecord(decoder.decode(manifest), pushed_at)

    def tags(self) -> Iterator[tuple[int, str, Digest]]:
        """All tags, and the digests that they name."""
        for key, name, digest in self._rows("SELECT repository, name, digest FROM tag"):
            yield key, name, Digest(digest)

    def layers(self) -> Iterator[tuple[int, Digest, int]]:
        """All layers with their sizes."""
        for key, digest, size in self._rows("SELECT repository, digest, size FROM layer"):
            yield key, Digest(digest), size

    def uploads(self) -> Iterator[UploadRecord]:
        """All unfinished uploads."""
        columns = "id, repository, created_at, parts, received, last_part, short_part, digest"
        for upload, key, created_at, parts, received, last_part, short, digest in self._rows(
            f"SELECT {columns} FROM upload"  # noqa: S608 - the columns are ours
        ):
            yield UploadRecord(upload, key, created_at, parts, received, last_part, bool(short), digest)

    def settings(self) -> Iterator[tuple[RegistryId, str, str]]:
        """All account settings: name and value."""
        for *registry, name, value in self._rows("SELECT service, account, region, name, value FROM setting"):
            yield RegistryId(*registry), name, value

    def templates(self) -> Iterator[tuple[RegistryId, TemplateRecord]]:
        """All repository creation templates."""
        for *registry, record in self._rows("SELECT service, account, region, record FROM template"):
            yield RegistryId(*registry), msgspec.json.decode(record, type=TemplateRecord)

    def completed(self, upload: str, repository: int) -> Digest | None:
        """The layer that an upload became, if that was remembered."""
        query = "SELECT digest FROM completed WHERE upload = ? AND repository = ?"
        return next((Digest(digest) for (digest,) in self._rows(query, upload, repository)), None)

    @contextmanager
    def writing(self, *, lasting: bool = True) -> Iterator[Writes]:
        """Run one transaction: committed at the end of the block, rolled back if it raises.

        Args:
            lasting: whether it must survive a power cut, where the catalog syncs at all.
        """
        with self._lock, _translated():
            self._sync(self._levels[lasting])
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield Writes(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _sync(self, level: str) -> None:
        if level != self._level:
            self._connection.execute(f"PRAGMA synchronous = {level}")
            self._level = level

    def _rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock, _translated():
            return self._connection.execute(query, values).fetchall()


@contextmanager
def _translated(path: Path | None = None) -> Iterator[None]:
    """Turn SQLite's errors into OSError: a failing disk is the same fault, whoever writes."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, f"catalog: {error}", str(path) if path else None) from error
    except sqlite3.DatabaseError as error:
        raise CatalogError(f"{path or 'the catalog'} is damaged, or no catalog: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path, *, new: bool) -> None:
    # The directory has one owner: without a second process, the WAL's index is in memory and there is no -shm file.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    version, application, tables = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_schema")
    )
    if not version and not application and not tables:
        if not new:
            raise CatalogError(f"{path} is empty, and there is data that it should name")
        connection.executescript(_SCHEMA)
    elif application != _APPLICATION:
        raise CatalogError(f"{path} is not this emulator's catalog")
    elif version != _VERSION:
        raise CatalogError(f"{path} has version {version}, and this asyncpush reads version {_VERSION}")


class Writes:
    """The changes that one transaction can make (``Catalog.writing``)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def add_repository(self, registry: RegistryId, record: RepositoryRecord) -> int:
        """Add a repository; returns its key."""
        added = self._run(
            "INSERT INTO repository (service, account, region, name, record) VALUES (?, ?, ?, ?, ?)",
            (*_key(registry), record.name, msgspec.json.encode(record)),
        )
        assert added.lastrowid is not None, "an INSERT has one"  # noqa: S101
        return added.lastrowid

    def save_repository(self, key: int, record: RepositoryRecord) -> None:
        """Replace a repository's settings."""
        self._run("UPDATE repository SET record = ? WHERE key = ?", (msgspec.json.encode(record), key))

    def remove_repository(self, key: int) -> None:
        """Remove a repository with its images, layers and uploads."""
        self._run("DELETE FROM repository WHERE key = ?", (key,))

    def add_image(self, key: int, image: ImageRecord) -> None:
        """Add an image."""
        manifest = msgspec.json.encode(image.manifest)
        self._run(
            "INSERT INTO image (repository, digest, pushed_at, manifest) VALUES (?, ?, ?, ?)",
            (key, image.manifest.digest.hex, image.pushed_at, manifest),
        )

    def set_tag(self, key: int, tag: str, digest: Digest) -> None:
        """Let a tag name an image of the catalog."""
        self._run(
            "INSERT INTO tag (repository, name, digest) VALUES (?, ?, ?)"
            " ON CONFLICT (repository, name) DO UPDATE SET digest = excluded.digest",
            (key, tag, digest.hex),
        )

    def remove_tag(self, key: int, tag: str) -> None:
        """Remove a tag."""
        self._run("DELETE FROM tag WHERE repository = ? AND name = ?", (key, tag))

    def remove_image(self, key: int, digest: Digest) -> None:
        """Remove an image and its tags."""
        self._run("DELETE FROM image WHERE repository = ? AND digest = ?", (key, digest.hex))

    def add_layer(self, key: int, digest: Digest, size: int) -> None:
        """Add a layer of *size* bytes."""
        self._run("INSERT INTO layer (repository, digest, size) VALUES (?, ?, ?)", (key, digest.hex, size))

    def add_upload(self, upload: UploadRecord) -> None:
        """Add an upload."""
        self._run(
            "INSERT INTO upload (id, repository, created_at, parts, received, last_part, short_part, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (upload.id, upload.repository, upload.created_at, *_progress(upload)),
        )

    def save_upload(self, upload: UploadRecord) -> None:
        """Replace the record of an upload."""
        self._run(
            "UPDATE upload SET parts = ?, received = ?, last_part = ?, short_part = ?, digest = ? WHERE id = ?",
            (*_progress(upload), upload.id),
        )

    def remove_upload(self, upload: str) -> None:
        """Remove an upload."""
        self._run("DELETE FROM upload WHERE id = ?", (upload,))

    def remember(self, upload: str, key: int, digest: Digest) -> None:
        """Remember which layer an upload became."""
        self._run("INSERT INTO completed (upload, repository, digest) VALUES (?, ?, ?)", (upload, key, digest.hex))

    def set_setting(self, registry: RegistryId, name: str, value: str) -> None:
        """Set an account setting."""
        self._run("INSERT OR REPLACE INTO setting VALUES (?, ?, ?, ?, ?)", (*_key(registry), name, value))

    def set_template(self, registry: RegistryId, record: TemplateRecord) -> None:
        """Add or replace a repository creation template."""
        values = (*_key(registry), record.prefix, msgspec.json.encode(record))
        self._run("INSERT OR REPLACE INTO template VALUES (?, ?, ?, ?, ?)", values)

    def remove_template(self, registry: RegistryId, prefix: str) -> None:
        """Remove a repository creation template."""
        self._run(
            "DELETE FROM template WHERE service = ? AND account = ? AND region = ? AND prefix = ?",
            (*_key(registry), prefix),
        )


def _key(registry: RegistryId) -> tuple[str, str, str]:
    return registry.service, registry.account, registry.region


def _progress(upload: UploadRecord) -> tuple[int, int, int, bool, str]:
    return upload.parts, upload.received, upload.last_part, upload.short_part, upload.digest
