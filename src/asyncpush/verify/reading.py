"""Reads the blobs of a repository back, each once, and hashes them as they are and uncompressed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio import CapacityLimiter, to_thread

from asyncpush.engine.decompress import SMALL_WINDOW_LOG, WINDOW_LOG
from asyncpush.errors import ConnectionFailedError, ServiceError
from asyncpush.events import Emit, ImagePlanned, LayerDone, LayerFailed, LayerStarted, PartRead
from asyncpush.manifest import Manifest
from asyncpush.model import Digest, LayerBytes
from asyncpush.protocols import RepositoryReader
from asyncpush.sources.loader import ImageConfig
from asyncpush.verify.diff_ids import ConfigBytes, LayerHash, Uncompressed, has_diff_ids, is_tar_layer
from asyncpush.verify.results import Problem

#: Error codes that concern one blob; any other error concerns all of them.
_OF_ONE_BLOB = frozenset({"LayersNotFoundException", "LayerInaccessibleException", "UnableToGetUpstreamLayerException"})


@dataclass(slots=True)
class ReadBlobs:
    """What was read from the blobs of a repository."""

    blobs: dict[Digest, LayerBytes | Problem] = field(default_factory=dict)
    uncompressed: dict[Digest, Uncompressed] = field(default_factory=dict)
    configs: dict[Digest, ImageConfig | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageBlobs:
    """The blobs of one image, with their sizes, and its name in events."""

    name: str
    sizes: Mapping[Digest, int]

    @property
    def largest(self) -> int:
        """The size of the largest."""
        return max(self.sizes.values(), default=0)


class BlobReading:
    """Reads blobs of one repository.

    Args:
        reader: reads the repository.
        reads: how many blobs are read at once.
        repository: its name in events, unique in the run.
        emit: takes the events.

    Attributes:
        found: what was read so far.
    """

    def __init__(self, reader: RepositoryReader, reads: CapacityLimiter, repository: str, emit: Emit) -> None:
        self.found = ReadBlobs()
        self._reader = reader
        self._reads = reads
        self._repository = repository
        self._emit = emit
        self._sizes: dict[Digest, int] = {}
        self._configs: set[Digest] = set()
        self._layers: set[Digest] = set()
        self._large = anyio.Lock()

    async def read(
        self, images: Sequence[ImageBlobs], manifests: Iterable[Manifest], done: Callable[[int], Awaitable[None]]
    ) -> None:
        """Read all blobs of *images*, one image after the other.

        Args:
            images: the images.
            manifests: those of the repository: they tell which blobs are configs and layers.
            done: called with the position of each image once all its blobs were read.
        """
        self._sort(manifests)
        waiting: defaultdict[Digest, list[int]] = defaultdict(list)
        missing = [len(image.sizes) for image in images]
        # Start with the largest: at the end, it would be read alone.
        for at in sorted(range(len(images)), key=lambda at: images[at].largest, reverse=True):
            self._plan(images[at])
            for digest in images[at].sizes:
                waiting[digest].append(at)

        async def read(digest: Digest) -> None:
            await self._read(digest)
            for at in waiting[digest]:
                missing[at] -= 1
                if not missing[at]:
                    await done(at)

        async with anyio.create_task_group() as tg:
            for digest in self._sizes:
                tg.start_soon(read, digest)
            for at, count in enumerate(missing):
                if not count:
                    await done(at)

    def _sort(self, manifests: Iterable[Manifest]) -> None:
        """Find out which blobs are the configs and layers of images with diff ids."""
        images = [manifest for manifest in manifests if has_diff_ids(manifest)]
        self._configs = {image.config.digest for image in images if image.config}
        self._layers = {layer.digest for image in images for layer in image.layers if is_tar_layer(layer)}

    def _plan(self, image: ImageBlobs) -> None:
        """Add the blobs of *image* to those to read, the largest first; what images share counts for the first."""
        new = [digest for digest in image.sizes if digest not in self._sizes]
        new.sort(key=image.sizes.__getitem__, reverse=True)
        self._sizes.update((digest, image.sizes[digest]) for digest in new)
        size = sum(image.sizes[digest] for digest in new)
        self._emit(ImagePlanned(image.name, len(new), size, 0, 0, tuple(map(self._key, new))))

    def _key(self, digest: Digest) -> str:
        return f"{self._repository}@{digest}"

    async def _read(self, digest: Digest) -> None:
        if digest in self._configs:
            await self._read_config(digest)
        elif digest in self._layers:
            await self._read_layer(digest)
        else:
            await self._read_blob(digest)

    async def _read_config(self, digest: Digest) -> None:
        config = ConfigBytes()
        if await self._read_blob(digest, config.update):
            self.found.configs[digest] = await to_thread.run_sync(config.finish)

    async def _read_layer(self, digest: Digest) -> None:
        layer = await self._unpack(digest, SMALL_WINDOW_LOG)
        if layer.is_too_large:
            # Read it again, one at a time: each may take 128 MiB of memory, however small it is.
            async with self._large:
                await self._unpack(digest, WINDOW_LOG)

    async def _unpack(self, digest: Digest, window_log: int) -> LayerHash:
        layer = LayerHash(window_log)
        if read := await self._read_blob(digest, layer.update):
            self.found.uncompressed[digest] = await to_thread.run_sync(layer.finish, read.digest)
        return layer

    async def _read_blob(self, digest: Digest, also: Callable[[bytes], None] | None = None) -> LayerBytes | None:
        """Read a blob; None if it can't be read, or does not match its digest."""
        async with self._reads:
            with self._shown(digest) as arrived:
                try:
                    read = self.found.blobs[digest] = await self._reader.read_blob(digest, also, arrived)
                except ConnectionFailedError as error:
                    self.found.blobs[digest] = Problem("unreadable", "", digest, f"can't be read: {error}")
                except ServiceError as error:
                    if error.code not in _OF_ONE_BLOB and not error.code.startswith("HTTP"):
                        raise
                    kind: Literal["missing", "unreadable"]
                    kind = "missing" if error.code == "LayersNotFoundException" else "unreadable"
                    self.found.blobs[digest] = Problem(kind, "", digest, f"can't be read: {error}")
                else:
                    return read if read.digest == digest else None
        return None

    @contextmanager
    def _shown(self, digest: Digest) -> Iterator[Callable[[int], None]]:
        """Emit the events of one blob; its bytes are given to the function."""
        key = self._key(digest)
        self._emit(LayerStarted(key, digest.short, self._sizes[digest], self._repository))
        is_interrupted = False
        try:
            yield lambda read: self._emit(PartRead(key, read))
        except anyio.get_cancelled_exc_class():
            is_interrupted = True
            raise
        finally:
            if isinstance(self.found.blobs.get(digest), LayerBytes):
                self._emit(LayerDone(key, digest, "read"))
            else:
                self._emit(LayerFailed(key, interrupted=is_interrupted))
