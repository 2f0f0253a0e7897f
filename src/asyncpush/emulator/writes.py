"""The statements that change the catalog; each is called within a transaction of it."""

from __future__ import annotations

import sqlite3

import msgspec

from asyncpush.emulator.records import Image, RepositoryRecord, TemplateRecord, UploadRecord
from asyncpush.emulator.registry import Registry
from asyncpush.model import Digest


class Writes:
    """What can be done in one transaction (``Catalog.writing``)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def add_repository(self, registry: Registry, record: RepositoryRecord) -> int:
        """Enter a repository; its key comes back."""
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
        """Take out a repository with its images, layers and uploads."""
        self._run("DELETE FROM repository WHERE key = ?", (key,))

    def add_image(self, key: int, image: Image) -> None:
        """Enter an image."""
        manifest = msgspec.json.encode(image.manifest)
        self._run(
            "INSERT INTO image (repository, digest, pushed_at, manifest) VALUES (?, ?, ?, ?)",
            (key, image.manifest.digest.hex, image.pushed_at, manifest),
        )

    def set_tag(self, key: int, tag: str, digest: Digest) -> None:
        """Let a tag name an image that is entered."""
        self._run(
            "INSERT INTO tag (repository, name, digest) VALUES (?, ?, ?)"
            " ON CONFLICT (repository, name) DO UPDATE SET digest = excluded.digest",
            (key, tag, digest.hex),
        )

    def remove_tag(self, key: int, tag: str) -> None:
        """Take out a tag."""
        self._run("DELETE FROM tag WHERE repository = ? AND name = ?", (key, tag))

    def remove_image(self, key: int, digest: Digest) -> None:
        """Take out an image and its tags."""
        self._run("DELETE FROM image WHERE repository = ? AND digest = ?", (key, digest.hex))

    def add_layer(self, key: int, digest: Digest, size: int) -> None:
        """Enter a layer of *size* bytes."""
        self._run("INSERT INTO layer (repository, digest, size) VALUES (?, ?, ?)", (key, digest.hex, size))

    def add_upload(self, upload: UploadRecord) -> None:
        """Enter an upload."""
        self._run(
            "INSERT INTO upload (id, repository, created_at, parts, received, last_part, short_part, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (upload.id, upload.repository, upload.created_at, *_progress(upload)),
        )

    def save_upload(self, upload: UploadRecord) -> None:
        """Replace what is known of an upload's bytes."""
        self._run(
            "UPDATE upload SET parts = ?, received = ?, last_part = ?, short_part = ?, digest = ? WHERE id = ?",
            (*_progress(upload), upload.id),
        )

    def remove_upload(self, upload: str) -> None:
        """Take out an upload."""
        self._run("DELETE FROM upload WHERE id = ?", (upload,))

    def remember(self, upload: str, key: int, digest: Digest) -> None:
        """Keep what an upload became."""
        self._run("INSERT INTO completed (upload, repository, digest) VALUES (?, ?, ?)", (upload, key, digest.hex))

    def set_setting(self, registry: Registry, name: str, value: str) -> None:
        """Set an account setting."""
        self._run("INSERT OR REPLACE INTO setting VALUES (?, ?, ?, ?, ?)", (*_key(registry), name, value))

    def set_template(self, registry: Registry, record: TemplateRecord) -> None:
        """Enter or replace a repository creation template."""
        values = (*_key(registry), record.prefix, msgspec.json.encode(record))
        self._run("INSERT OR REPLACE INTO template VALUES (?, ?, ?, ?, ?)", values)

    def remove_template(self, registry: Registry, prefix: str) -> None:
        """Take out a repository creation template."""
        self._run(
            "DELETE FROM template WHERE service = ? AND account = ? AND region = ? AND prefix = ?",
            (*_key(registry), prefix),
        )


def _key(registry: Registry) -> tuple[str, str, str]:
    return registry.service, registry.account, registry.region


def _progress(upload: UploadRecord) -> tuple[int, int, int, bool, str]:
    return upload.parts, upload.received, upload.last_part, upload.short_part, upload.digest
