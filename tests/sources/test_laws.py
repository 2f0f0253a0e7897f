"""Laws of every kind of source, and of every kind of blob that sources give.

A layout gives files, an archive regions of itself, a compressed archive or an object in S3 regions of its copy, a
docker-archive layers that are compressed as they are read and a config in memory, a registry streams.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import from_thread, to_thread

import asyncpush
from asyncpush import Settings, SourceRegistry
from asyncpush.emulator import Emulator
from asyncpush.engine.compress import zstd
from asyncpush.errors import DigestMismatchError, SourceError, SourceNotFoundError, only_cause
from asyncpush.protocols import Image, RemoteBlob, SeekableReader
from asyncpush.reference import S3Location
from asyncpush.sources import Source, open_source
from asyncpush.sources.registry import open_pool
from support.aws import aws
from support.images import IMAGE_NAME, SETTINGS, A, B, C, DockerSave, Layout, digest, hybrid, saved

NAMES = [("app", "1.0"), ("app", "2.0")]


def layout(*layers: bytes, tag: str = "1.0") -> Layout:
    """An OCI layout with an image of these layers, and another one beside it."""
    made = Layout()
    made.tag(made.image(*layers), tag, **{IMAGE_NAME: f"docker.io/library/app:{tag}"})
    return made.tag(made.image(A), "2.0", **{IMAGE_NAME: "docker.io/library/app:2.0"})


def docker_save(*layers: bytes) -> bytes:
    """The same images as a docker-archive."""
    return DockerSave().image(*layers, tags=["app:1.0"]).image(A, tags=["app:2.0"]).archive()


#: The layer B as OCI layouts have it.
PACKED = gzip.compress(B, 1, mtime=0)

#: What an image's manifest must have as its digest, where the source keeps it.
DIGEST = layout(A, B, C).manifests[0]["digest"]


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        make: its bytes, for an image with these layers; None where it is a directory or a registry.
        keeps_manifest: whether it holds manifests as they are; else they are built as layers are compressed.
        names: the images in it.
    """

    make: Callable[..., bytes] | None = None
    keeps_manifest: bool = True
    names: list[tuple[str, str]] = field(default_factory=lambda: NAMES)


KINDS = {
    "oci-layout": Kind(),
    "oci-archive": Kind(lambda *layers: layout(*layers).archive()),
    "oci-archive, gzip": Kind(lambda *layers: gzip.compress(layout(*layers).archive(), 1)),
    "oci-archive, xz": Kind(lambda *layers: lzma.compress(layout(*layers).archive())),
    "oci-archive, zstd": Kind(lambda *layers: zstd.compress(layout(*layers).archive())),
    "docker-archive": Kind(docker_save, keeps_manifest=False),
    "docker-archive, gzip": Kind(lambda *layers: gzip.compress(docker_save(*layers), 1), keeps_manifest=False),
    "docker-archive, zstd": Kind(lambda *layers: zstd.compress(docker_save(*layers)), keeps_manifest=False),
    "docker save 25": Kind(
        lambda *layers: hybrid(*layers, name="app:1.0", packed=False), keeps_manifest=False, names=NAMES[:1]
    ),
    "docker save, containerd": Kind(lambda *layers: hybrid(*layers, name="app:1.0", packed=True), names=NAMES[:1]),
    "pipe": Kind(lambda *layers: gzip.compress(layout(*layers).archive(), 1)),
    "object": Kind(lambda *layers: layout(*layers).archive()),
    "registry": Kind(names=NAMES[:1]),
}


@dataclass
class Store:
    """A source of some kind, and how to open it, choosing the image ``app:1.0``.

    Attributes:
        name: the kind's.
        path: where its bytes are: a directory, a file, or the emulator's data.
        emulator: for a registry.
    """

    name: str
    path: Path
    emulator: Emulator | None = None

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @asynccontextmanager
    async def open(self, choice: str = "") -> AsyncIterator[Source]:
        if self.emulator:
            host = f"{self.emulator.host}:{self.emulator.port}"
            registry = SourceRegistry(host=host, plain_http=True, anonymous=True)
            async with (
                open_pool({host: registry}) as pool,
                open_source(f"docker://{host}/app:1.0", SETTINGS, remotes=pool) as source,
            ):
                yield source
        elif self.name == "pipe":
            async with piped(self.path.read_bytes()) as stdin, open_source("-", SETTINGS, stdin=stdin) as source:
                yield source
        elif self.name == "object":
            async with open_source(f"s3://bucket/app.tar{choice}", SETTINGS, objects=Objects(self.path)) as source:
                yield source
        else:
            async with open_source(f"{self.path}{choice}", SETTINGS) as source:
                yield source

    @asynccontextmanager
    async def image(self) -> AsyncIterator[Image]:
        async with self.open() as source:
            yield (await source.images())[0]


@dataclass
class Objects:
    """S3 with one object, ``s3://bucket/app.tar``, that arrives in pieces."""

    path: Path
    position: int = 0

    @asynccontextmanager
    async def open(self, location: S3Location) -> AsyncIterator[Objects]:
        if location.key != "app.tar":
            raise SourceNotFoundError("there is no such object")
        yield self

    async def readinto(self, buffer: memoryview) -> int:
        data = (await anyio.Path(self.path).read_bytes())[self.position :][: len(buffer)]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


@asynccontextmanager
async def piped(data: bytes) -> AsyncIterator[io.BufferedReader]:
    """The reading end of a pipe that these bytes are written to; it breaks when the block is left."""
    inlet, outlet = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(outlet, "wb") as writer:
                writer.write(data)
        except BrokenPipeError:
            pass

    with only_cause():
        async with anyio.create_task_group() as tasks:
            with os.fdopen(inlet, "rb") as reader:
                tasks.start_soon(to_thread.run_sync, feed)
                yield reader


@asynccontextmanager
async def stored(name: str, folder: Path, *layers: bytes) -> AsyncIterator[Store]:
    """Make a source of a kind with these images."""
    kind = KINDS[name]
    if kind.make:
        yield Store(name, saved(folder / "app.tar", kind.make(*layers)))
    elif name == "registry":
        written = layout(*layers).write(folder / "layout")
        async with Emulator(folder / "data", fsync=False, verify_signatures=False) as emulator:
            async with asyncpush.connect(
                aws=aws(emulator.endpoint_url), settings=Settings(create_repository=True)
            ) as target:
                await asyncpush.push(target, f"oci:{written}:1.0", "app:1.0")
            yield Store(name, folder / "data", emulator)
    else:
        yield Store(name, layout(*layers).write(folder / "app"))


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with stored(request.param, tmp_path, A, B, C) as made:
        yield made


def blobs_of(image: Image) -> list[Any]:
    """The config and the layers of an image."""
    return [image.root.config, *image.root.layers]


async def read(blob: Any, size: int = 100_000) -> bytes:
    """All bytes of a blob, local or remote."""
    out, buffer = bytearray(), memoryview(bytearray(size))
    if isinstance(blob, RemoteBlob):
        async with blob.stream() as stream:
            while count := await stream.readinto(buffer):
                out += buffer[:count]
        return bytes(out)

    def drain() -> None:
        with blob.open() as reader:
            before = reader.consumed
            while count := reader.readinto(buffer):
                out.extend(buffer[:count])
                assert reader.consumed >= before, "consumed went back"
                before = reader.consumed
            assert reader.consumed == blob.source_size

    await to_thread.run_sync(drain)
    return bytes(out)


async def read_all(store: Store) -> None:
    """Open a source, and read every byte of its first image."""
    async with store.image() as image:
        for blob in blobs_of(image):
            data = await read(blob)
            if blob.descriptor and digest(data) != str(blob.descriptor.digest):
                raise blob.mismatch(blob.descriptor.digest, blob.descriptor.digest.of(data))  # as the engine does


async def test_an_image_has_one_manifest_digest_in_every_kind(store: Store) -> None:
    """The digest is the manifest's own, where the kind holds it; else it is known once the layers are compressed."""
    async with store.image() as image:
        manifest = image.root.manifest

    assert (str(manifest.digest) if manifest else None) == (DIGEST if store.kind.keeps_manifest else None)


async def test_an_image_has_the_same_layers_in_every_kind(store: Store) -> None:
    async with store.image() as image:
        config, *layers = [await read(blob) for blob in blobs_of(image)]

    assert [gzip.decompress(layer) for layer in layers] == [A, B, C]
    assert json.loads(config)["rootfs"]["diff_ids"] == [digest(layer) for layer in (A, B, C)]


async def test_blobs_have_the_digest_and_size_that_they_claim(store: Store) -> None:
    async with store.image() as image:
        read_ones = [(blob, await read(blob)) for blob in blobs_of(image)]

    described = [(blob, data) for blob, data in read_ones if blob.descriptor]
    for blob, data in described:
        assert (str(blob.descriptor.digest), blob.descriptor.size) == (digest(data), len(data))
        assert blob.descriptor.media_type == blob.media_type
    assert len(described) == (len(read_ones) if store.kind.keeps_manifest else 1)


async def test_blobs_give_the_same_bytes_each_time(store: Store) -> None:
    """Whatever the size of the buffer that they are read into, and also when the source is opened again."""
    async with store.image() as image:
        first = [await read(blob) for blob in blobs_of(image)]
        identities = [blob.identity for blob in blobs_of(image)]
        assert [await read(blob, 4096) for blob in blobs_of(image)] == first
    async with store.image() as image:
        assert [blob.identity for blob in blobs_of(image)] == identities
        assert [await read(blob) for blob in blobs_of(image)] == first


async def test_ranges_of_blobs_are_slices_of_the_whole(store: Store) -> None:
    """By ``read_at`` where a reader has it, which moves no position, or by ``stream(start)`` of a remote blob."""
    async with store.image() as image:
        for blob in blobs_of(image):
            whole = await read(blob)
            ranges = [(0, 1), (0, len(whole)), (len(whole) // 3, 1000), (len(whole) - 1, 10), (len(whole), 10)]
            assert [await read_range(blob, *each) for each in ranges] == [
                None if blob.descriptor is None else whole[start : start + size] for start, size in ranges
            ]


async def read_range(blob: Any, start: int, size: int) -> bytes | None:
    """Some bytes of a blob; None where only all of them can be read, in order."""
    buffer = memoryview(bytearray(size))
    if isinstance(blob, RemoteBlob):
        async with blob.stream(start) as stream:
            return bytes(buffer[: await stream.readinto(buffer)])

    def look() -> bytes | None:
        with blob.open() as reader:
            if not isinstance(reader, SeekableReader):
                return None
            reader.readinto(memoryview(bytearray(3)))
            found = bytes(reader.read_at(start, buffer))
            assert reader.consumed == min(3, blob.source_size)
            return found

    return await to_thread.run_sync(look)


async def test_all_images_are_listed_by_name(store: Store) -> None:
    async with store.open() as source:
        images = await source.images()

    assert [(image.repository, image.tag) for image in images] == store.kind.names


async def test_a_listed_image_can_be_opened_as_it_is_written(store: Store) -> None:
    async with store.open() as source:
        written = [image.source for image in await source.images()]

    if store.name == "pipe":
        assert written == ["oci-archive:-:1.0", "oci-archive:-:2.0"]
    elif store.name == "registry":
        async with store.open() as source:
            assert written == [(await source.image()).source]
    else:
        for reference in written:
            async with open_source(reference, SETTINGS, objects=Objects(store.path)) as source:
                assert (await source.image()).source == reference


async def test_a_truncated_store_is_an_error_that_names_it(store: Store, tmp_path: Path) -> None:
    """A file of a layout or registry lacks its end, or an archive does: reading says which."""
    named = truncate(store)

    with pytest.raises(SourceError, match=named) as caught:
        await read_all(store)

    assert str(caught.value).isprintable()


def truncate(store: Store) -> str:
    """Cut a store in the middle of the layer B; returns what the error must name."""
    if store.path.is_file():
        data = store.path.read_bytes()
        store.path.write_bytes(data[: len(data) // 3])
        return {"pipe": "standard input", "object": "s3://bucket/app.tar"}.get(store.name, str(store.path))
    name = digest(PACKED)[7:]
    [path] = store.path.rglob(name)
    path.write_bytes(path.read_bytes()[:-7])
    return name[:12]


@pytest.mark.parametrize("name", KINDS)
async def test_an_altered_store_is_an_error_that_names_what(name: str, tmp_path: Path) -> None:
    """A byte of a layer differs: what is read is not what the manifest, or the config, says."""
    kind = KINDS[name]
    if kind.make is None:
        async with stored(name, tmp_path, A, B, C) as store:
            [path] = store.path.rglob(digest(PACKED)[7:])
            path.write_bytes(PACKED[:-1] + bytes([PACKED[-1] ^ 1]))
            with pytest.raises(DigestMismatchError, match=digest(PACKED)[7:]):
                await read_all(store)
        return
    data = altered(kind.make)
    with pytest.raises(DigestMismatchError, match=r"layer|blob|sha256"):
        await read_all(Store(name, saved(tmp_path / "app.tar", data)))


def altered(make: Callable[..., bytes]) -> bytes:
    """An archive with the layer B altered in it, under its old name: compressed again if it was."""
    data = make(A, B, C)
    packers: dict[bytes, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        b"\x1f\x8b": (gzip.decompress, gzip.compress),
        b"\xfd7": (lzma.decompress, lzma.compress),
        b"(\xb5": (zstd.decompress, zstd.compress),
    }
    unpack, pack = packers.get(data[:2], (bytes, bytes))
    plain = unpack(data)
    stored = next(layer for layer in (B, PACKED) if layer in plain)
    place = plain.index(stored) + len(stored) // 2
    return pack(plain[:place] + bytes([plain[place] ^ 1]) + plain[place + 1 :])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", KINDS)
async def test_cancellation_while_reading_leaves_nothing_open(name: str, tmp_path: Path) -> None:
    """Whoever reads is cancelled in the middle of a layer: no descriptor stays open."""
    async with stored(name, tmp_path, A, B, C) as store:
        await read_all(store)  # what is opened once for the process is open
        async with no_more_descriptors():
            with anyio.CancelScope() as scope:
                async with store.image() as image:
                    await read_some(image.root.layers[1], scope.cancel)
            assert scope.cancelled_caught


async def read_some(blob: Any, then: Callable[[], None]) -> None:
    """Read 100 bytes of a blob, call *then*, and go on to the end."""
    buffer = memoryview(bytearray(100))
    if isinstance(blob, RemoteBlob):
        async with blob.stream() as stream:
            await stream.readinto(buffer)
            then()
            await anyio.sleep_forever()

    def drain() -> None:
        with blob.open() as reader:
            reader.readinto(buffer)
            from_thread.run_sync(then)
            while reader.readinto(buffer):
                from_thread.check_cancelled()

    await to_thread.run_sync(drain)


@asynccontextmanager
async def no_more_descriptors() -> AsyncIterator[None]:
    """As many files are open after the block as before; the emulator's end of a connection may close a moment later."""
    before = len(open_descriptors())
    yield
    with anyio.fail_after(5):
        while len(open_descriptors()) > before:  # noqa: ASYNC110 - the kernel tells nobody
            await anyio.sleep(0.01)


def open_descriptors() -> list[Path]:
    return list(Path("/proc/self/fd").iterdir())
