"""Sources of images: layouts, archives, registries, container engines, S3; opened, listed, and read."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from anyio import CancelScope, to_thread

from asyncpush.errors import ManifestError, SourceError
from asyncpush.events import Emit, Notice, ignore
from asyncpush.protocols import BlobStream, ObjectStore
from asyncpush.settings import Settings
from asyncpush.sources.blobs import DocumentMemory, file_blob, readable
from asyncpush.sources.oci_layout import INDEX, Directory, read_oci_layout
from asyncpush.sources.registry import RegistryPool, RegistrySource, is_remote, open_pool, parse_remote
from asyncpush.sources.source import MANIFEST, LocalSource, Location, Source, UnreadImage, locate
from asyncpush.sources.streams import EngineImage, is_stream, open_archive_stream

if TYPE_CHECKING:
    from asyncpush.sources.file_pool import ReadFile
    from asyncpush.sources.spool import SpoolLimit

__all__ = ["Source", "UnreadImage", "file_blob", "is_stream", "open_source"]


@asynccontextmanager
async def open_source(
    reference: str | Path,
    settings: Settings,
    *,
    stdin: BinaryIO | None = None,
    remotes: RegistryPool | None = None,
    objects: ObjectStore | None = None,
    emit: Emit = ignore,
) -> AsyncIterator[Source]:
    """Open a source and list its images; their blobs can be read until it is closed.

    Args:
        reference: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:REF]``, a path, or ``-`` for
            an archive on standard input. ``@N`` or ``@DIGEST`` in the place of a tag choose by position or digest.
            ``docker://HOST/REPOSITORY[:TAG|@DIGEST]`` is an image in a registry, to which no request is sent yet.
            ``docker-daemon:NAME`` and ``containers-storage:NAME`` are images in an engine, and ``s3://BUCKET/KEY[:TAG]``
            an archive in S3; all of these three are copied now. A ``Path`` is a path, whatever its name.
        settings: how uncompressed layers are compressed, whether foreign layers are pushed, and whether an index of
            the available platforms is.
        stdin: the stream for ``-``; None is the process's own standard input.
        remotes: the open registries, for ``docker://``; None opens one, reached as by docker and podman.
        objects: S3, for ``s3://``; None where it can't be read.
        emit: receives a ``Notice`` about whatever the source names but lacks.

    Raises:
        InvalidReferenceError: *reference* is of no known kind.
        SourceError: it can't be read, or is not of its kind.
    """
    if isinstance(reference, str) and is_remote(reference):
        async with _open_remote(reference, settings, remotes) as source:
            yield source
        return
    stack = ExitStack()
    try:
        if isinstance(reference, str) and is_stream(reference):
            async with open_archive_stream(reference, objects, emit) as (location, stream):
                opened = await to_thread.run_sync(_open_stream, location, settings, stream, stack)
        else:
            location = await to_thread.run_sync(locate, reference)
            opened = await to_thread.run_sync(_open, location, settings, stdin, stack)
        source = replace(opened, emit=emit)
        for note in source.notes:
            emit(Notice(note))
        yield source
    finally:
        # Freeing a large temporary file takes a while.
        with CancelScope(shield=True):
            await to_thread.run_sync(stack.close)


@asynccontextmanager
async def _open_remote(reference: str, settings: Settings, remotes: RegistryPool | None) -> AsyncIterator[Source]:
    parsed = parse_remote(reference)
    async with AsyncExitStack() as stack:
        if remotes is None:
            remotes = await stack.enter_async_context(open_pool())
        yield RegistrySource(remotes.at(parsed.host), parsed, settings.push_foreign_layers)


def _open(location: Location, settings: Settings, stdin: BinaryIO | None, stack: ExitStack) -> LocalSource:
    with readable(location.label):
        is_file, path = location.path != "-", Path(location.path)
        is_directory = is_file and path.is_dir()
        size = path.stat().st_size if is_file and path.is_file() else 0
    if is_directory:
        return _open_directory(location, settings, stack)
    return _open_archive(location, settings, stdin, stack, size)


def _open_archive(
    location: Location, settings: Settings, stdin: BinaryIO | None, stack: ExitStack, size: int
) -> LocalSource:
    # What reads archives and compresses layers takes longer to import than a layout takes to push.
    from asyncpush.sources.spool import SpoolLimit, open_archive

    limit = SpoolLimit(settings.max_unpacked)
    file = open_archive(location.path, location.label, stdin, stack, limit)
    return _read_archive(file, location, settings, stack, limit, size)


def _open_stream(location: Location, settings: Settings, stream: BlobStream, stack: ExitStack) -> LocalSource:
    from asyncpush.sources.spool import SpoolLimit, open_stream

    limit = SpoolLimit(settings.max_unpacked)
    file = open_stream(stream, location.label, stack, limit)
    source = _read_archive(file, location, settings, stack, limit)
    image = EngineImage.parse(location.path)
    if image is None or image.repository is None:
        return source
    # An engine saves an image that is named by its digest without the name.
    entries = (
        entry if entry.repository else replace(entry, repository=image.repository, tag=image.tag)
        for entry in source.entries
    )
    return replace(source, entries=tuple(entries))


def _read_archive(
    file: ReadFile, location: Location, settings: Settings, stack: ExitStack, limit: SpoolLimit, size: int = 0
) -> LocalSource:
    from asyncpush.sources.descriptions import read_archive
    from asyncpush.sources.spool import Scratch
    from asyncpush.sources.tar_index import TarIndex

    memory = DocumentMemory(size or getattr(file, "source_size", 0))
    stack.callback(memory.close)
    archive = TarIndex(file, location.label, memory)
    source = read_archive(archive, location, settings, Scratch(stack, limit))
    return replace(source, notes=(*archive.notes, *source.notes))


def _open_directory(location: Location, settings: Settings, stack: ExitStack) -> LocalSource:
    memory = DocumentMemory(None)
    stack.callback(memory.close)
    store = Directory(Path(location.path), location.label, memory)
    if store.find(INDEX) is None and store.find(MANIFEST) is not None:
        _refuse_unpacked(store)
    if location.kind == "docker-archive":
        raise SourceError(f"{location.path} is a directory; a docker-archive is a file")
    if store.find(INDEX) is None or store.find(MANIFEST) is None:
        return LocalSource("oci", location, read_oci_layout(store, settings, location.stem))
    from asyncpush.sources.descriptions import read_directory
    from asyncpush.sources.spool import Scratch, SpoolLimit

    scratch = Scratch(stack, SpoolLimit(settings.max_unpacked))
    return read_directory(store, location, settings, scratch)  # what `docker save` wrote, unpacked


def _refuse_unpacked(store: Directory) -> None:
    """Refuse a directory with manifest.json alone, with a hint if its kind is known."""
    from asyncpush.sources.docker_archive import SkopeoDirError, saved_images

    try:
        saved_images(store)
    except SkopeoDirError:
        raise
    except ManifestError:
        return
    raise SourceError(
        f"{store.path} is an unpacked docker-archive; a docker-archive is a file",
        hint=f"tar it: `tar -C {shlex.quote(str(store.path))} -c . | asyncpush push - DESTINATION`",
    )
