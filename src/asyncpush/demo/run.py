"""The demonstration's steps, in order: images, emulator, push, push again, read back."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import anyio
from anyio import to_thread

from asyncpush.api import connect, push_all
from asyncpush.demo.images import make_images
from asyncpush.ecr.session import open_client
from asyncpush.emulator.process import local_ecr
from asyncpush.engine.image import ImageResult
from asyncpush.errors import DigestMismatchError, RegistryError, only_cause
from asyncpush.events import Emit
from asyncpush.manifest import ACCEPTED_TYPES, Manifest, parse_manifest
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Image
from asyncpush.reference import Destination, RegistryName, parse_prefix
from asyncpush.settings import AwsConfiguration, Settings
from asyncpush.sources import open_source

Face = Callable[[int], AbstractAsyncContextManager[Emit]]


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One image's way through the demonstration: pushed, pushed again, read back."""

    name: str
    first: ImageResult
    second: ImageResult
    proof: Proof


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What happened.

    Attributes:
        images: each image's way.
        first_requests: requests of the first push, by operation.
        second_requests: those of the second.
        first_seconds: how long the first push took.
        second_seconds: how long the second took.
    """

    images: tuple[DemoImage, ...]
    first_requests: Counter[str]
    second_requests: Counter[str]
    first_seconds: float
    second_seconds: float


async def demonstrate(face: Face, say: Callable[[str], None]) -> DemoReport:
    """Run the demonstration; no AWS configuration is read, and nothing is left behind.

    Args:
        face: shows the progress of a push of so many images.
        say: tells the user what happens next.

    Raises:
        AsyncpushError: a step failed.
    """
    with tempfile.TemporaryDirectory(prefix="asyncpush-demo-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        say("Making four images: two versions that share layers, an index of two platforms, a docker-archive ...")
        sources = await to_thread.run_sync(make_images, folder)
        async with local_ecr(folder / "ecr") as aws, AsyncExitStack() as stack:
            url = str(aws.endpoint_url)
            say(f"A local ECR runs at {url}. Pushing ...")
            images = await _open(stack, sources)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            first, first_seconds = await _push(aws, images, face)
            first_requests = await _requests(session, url)
            say("Pushing all of it again ...")
            second, second_seconds = await _push(aws, images, face)
            second_requests = await _requests(session, url) - first_requests
            say("Reading every image back, and checking each digest ...")
            headers = {"Authorization": f"Basic {await _token(aws)}"}
            reading = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
            proofs = [await read_back(reading, url, to.repository, to.tag or "latest") for _, to in images]
    for result, proof in zip(first, proofs, strict=True):
        if result.digest != proof.digest:
            raise RegistryError(f"{result.destination} was pushed as {result.digest} and read back as {proof.digest}")
    rows = zip(images, first, second, proofs, strict=True)
    return DemoReport(
        tuple(DemoImage(str(to), one, two, proof) for (_, to), one, two, proof in rows),
        first_requests,
        second_requests,
        first_seconds,
        second_seconds,
    )


async def _open(stack: AsyncExitStack, sources: tuple[str, ...]) -> list[tuple[Image, Destination]]:
    prefix = parse_prefix("demo")
    images = []
    for source in sources:
        opened = await stack.enter_async_context(open_source(source, Settings()))
        images += [(image, prefix.join(image.repository or "image", image.tag)) for image in await opened.images()]
    return images


async def _push(
    aws: AwsConfiguration, images: list[tuple[Image, Destination]], face: Face
) -> tuple[list[ImageResult], float]:
    started = time.monotonic()
    async with (
        face(len(images)) as emit,
        connect(aws=aws, settings=Settings(create_repository=True), emit=emit) as registry,
    ):
        results = await push_all(registry, images)
    seconds = time.monotonic() - started
    results.raise_for_failures()
    return [result for result in results if isinstance(result, ImageResult)], seconds


async def _token(aws: AwsConfiguration) -> str:
    """What opens ``/v2/`` (GetAuthorizationToken)."""
    async with open_client(RegistryName(), aws, 1) as client:
        [grant] = (await client.get_authorization_token())["authorizationData"]
    return str(grant["authorizationToken"])


async def _requests(session: aiohttp.ClientSession, url: str) -> Counter[str]:
    async with session.get(f"{url}/_emulator/requests") as answer:
        document = json.loads(await answer.read())
    return Counter({name: count for name, count in document["counts"].items() if name.isalnum()})


@dataclass(frozen=True, slots=True)
class Proof:
    """What was read of one image, and matched its digests: how many blobs and manifests, and their bytes."""

    digest: Digest
    blobs: int
    size: int


async def read_back(session: aiohttp.ClientSession, url: str, repository: str, tag: str) -> Proof:
    """Read the image that *tag* names, and all that it names.

    Raises:
        DigestMismatchError: what was read is not what its digest says.
        RegistryError: something of it is not there.
    """
    reading = _ReadBack(session, f"{url}/v2/{repository}", f"{repository}:{tag}")
    with only_cause():
        root = await reading.manifest(tag)
    return Proof(root.digest, len(reading.found), sum(reading.found.values()))


class _ReadBack:
    def __init__(self, session: aiohttp.ClientSession, base: str, name: str) -> None:
        self.found: dict[Digest, int] = {}
        self._session = session
        self._base = base
        self._name = name

    async def manifest(self, reference: str) -> Manifest:
        async with self._get(f"manifests/{reference}") as answer:
            read = parse_manifest(await answer.read(), media_type=answer.content_type, name=self._name)
        self.found[read.digest] = len(read.raw)
        if reference.startswith("sha256:") and str(read.digest) != reference:
            raise self._mismatch(Digest.parse(reference), read.digest)
        async with anyio.create_task_group() as tg:
            for child in read.children:
                tg.start_soon(self.manifest, str(child.digest))
            for descriptor in read.blobs():
                if descriptor.digest not in self.found:
                    self.found[descriptor.digest] = descriptor.size
                    tg.start_soon(self._blob, descriptor)
        return read

    async def _blob(self, descriptor: Descriptor) -> None:
        sha256 = hashlib.sha256()
        size = 0
        async with self._get(f"blobs/{descriptor.digest}") as answer:
            async for block in answer.content.iter_chunked(2**20):
                size += len(block)
                await to_thread.run_sync(sha256.update, block)
        if Digest(sha256.hexdigest()) != descriptor.digest:
            raise self._mismatch(descriptor.digest, Digest(sha256.hexdigest()))
        if size != descriptor.size:
            raise self._mismatch(descriptor.size, size)

    def _mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        return DigestMismatchError(self._name, expected, actual, hint="the registry gives other bytes than were pushed")

    @asynccontextmanager
    async def _get(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._session.get(f"{self._base}/{path}", headers={"Accept": ", ".join(ACCEPTED_TYPES)}) as answer:
            if answer.status != 200:
                raise RegistryError(f"{self._name} can't be read back: HTTP {answer.status} for {path}")
            yield answer
