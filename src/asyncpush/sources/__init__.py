"""Where bytes come from: OCI layouts and archives, docker-archives, registries; opened, listed, and read in place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from anyio import CancelScope, to_thread

from asyncpush.errors import SourceError
from asyncpush.settings import Settings
from asyncpush.sources.content import file_blob, readable
from asyncpush.sources.docker_archive import MANIFEST, has_uncompressed_layers, read_docker_archive
from asyncpush.sources.names import Kind, Location, locate
from asyncpush.sources.oci_layout import INDEX, LAYOUT, Directory, read_oci_layout
from asyncpush.sources.registry import Remotes, RemoteSource, is_remote, open_remotes, parse_remote
from asyncpush.sources.source import LocalSource, Source
from asyncpush.sources.spool import Scratch, open_archive
from asyncpush.sources.tar_index import TarIndex

__all__ = ["Source", "file_blob", "open_source"]


@asynccontextmanager
async def open_source(
    reference: str, settings: Settings, *, stdin: BinaryIO | None = None, remotes: Remotes | None = None
) -> AsyncIterator[Source]:
    """Open a source and list its images; their blobs can be read until it is closed.

    Args:
        reference: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:REF]``, a path, or ``-`` for
            an archive on standard input. ``@N`` or ``@DIGEST`` in the place of a tag choose by position or digest.
            ``docker://HOST/REPOSITORY[:TAG|@DIGEST]`` is an image in a registry, which is not asked yet.
        settings: how uncompressed layers are compressed, and whether foreign layers are pushed.
        stdin: what ``-`` reads; None is the process's own standard input.
        remotes: the open registries, for ``docker://``; None opens one that is reached as docker and podman would.

    Raises:
        InvalidReferenceError: *reference* is of no known kind.
        SourceError: it can't be read, or is not what it claims to be.
    """
    if is_remote(reference):
        async with _open_remote(reference, settings, remotes) as source:
            yield source
        return
    location = await to_thread.run_sync(locate, reference)
    held = ExitStack()
    try:
        yield await to_thread.run_sync(_open, location, settings, stdin, held)
    finally:
        # Freeing a large temporary file takes a while.
        with CancelScope(shield=True):
            await to_thread.run_sync(held.close)


@asynccontextmanager
async def _open_remote(reference: str, settings: Settings, remotes: Remotes | None) -> AsyncIterator[Source]:
    parsed = parse_remote(reference)
    async with AsyncExitStack() as stack:
        if remotes is None:
            remotes = await stack.enter_async_context(open_remotes())
        yield RemoteSource(remotes.at(parsed.host), parsed, settings.push_foreign_layers)


def _open(location: Location, settings: Settings, stdin: BinaryIO | None, held: ExitStack) -> LocalSource:
    with readable(location.label):
        is_directory = location.path != "-" and Path(location.path).is_dir()
    if is_directory:
        return _open_directory(location, settings)
    archive = TarIndex(open_archive(location.path, location.label, stdin, held), location.label)
    kind = location.kind or _kind(archive, settings)
    if kind == "docker-archive":
        return LocalSource(kind, location, read_docker_archive(archive, settings, Scratch(held)))
    return LocalSource("oci-archive", location, read_oci_layout(archive, settings, location.stem))


def _open_directory(location: Location, settings: Settings) -> LocalSource:
    if location.kind == "docker-archive":
        raise SourceError(f"{location.path} is a directory; a docker-archive is a file")
    store = Directory(Path(location.path), location.label)
    return LocalSource("oci", location, read_oci_layout(store, settings, location.stem))


def _kind(archive: TarIndex, settings: Settings) -> Kind:
    """Tell the kind; an archive of both kinds is taken as the one whose layers arrive compressed."""
    is_oci = archive.find(INDEX) is not None and archive.find(LAYOUT) is not None
    is_docker = archive.find(MANIFEST) is not None
    if not is_oci and not is_docker:
        raise SourceError(
            f"{archive.label} holds no image: neither {INDEX} and {LAYOUT}, nor {MANIFEST}",
            hint=archive.advice() or "push a single layer with `asyncpush layers`",
        )
    if is_oci and is_docker:
        compress = settings.compression != "none" and has_uncompressed_layers(archive)
        return "docker-archive" if compress else "oci-archive"
    return "oci-archive" if is_oci else "docker-archive"
