"""A push that is cancelled, wherever it is: nothing of it stays behind, and the next one is whole."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asyncpush import (
    Digest,
    Image,
    Manifest,
    Part,
    Settings,
    StoredImage,
    TagMutability,
    Upload,
    open_journal,
    open_source,
)
from asyncpush.engine.context import PushContext
from asyncpush.engine.image import push_image
from asyncpush.errors import LayersNotFoundError, UploadNotFoundError
from asyncpush.protocols import RandomAccess
from support.images import Layout, at, tar

PART = 3000
TAG = "1.0"


@dataclass
class Steps:
    """Counts what happens, and cancels at one of these steps."""

    cancel_at: int | None = None
    taken: int = 0
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def count(self) -> None:
        self.taken += 1
        if self.taken == self.cancel_at:
            self.scope.cancel()

    async def step(self) -> None:
        self.count()
        await checkpoint()


class Stepwise:
    """Something whose methods each take two steps: one before their work, and one after it."""

    def __init__(self, target: Any, steps: Steps) -> None:
        self._target = target
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def method(*given: Any, **named: Any) -> Any:
            await self._steps.step()
            result = await found(*given, **named)
            await self._steps.step()
            return result

        return method


class HeldPart:
    """A part's encoder that keeps its bytes as they are."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._data = bytearray()

    def add(self, block: memoryview) -> None:
        self._data += block

    def finish(self) -> Part:
        data = bytes(self._data)
        last = self._first + len(data) - 1
        return Part(self._first, last, (data,), None, len(data), hashlib.sha256(data).hexdigest())


@dataclass
class MemoryRepository:
    """A repository in memory, as strict as ECR."""

    name: str = "app"
    address: str = "registry.test/app"
    pull_name: str | None = None
    layers: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    begun: int = 0

    async def create(self) -> bool:
        return False

    async def tag_mutability(self) -> TagMutability:
        return TagMutability()

    async def available(self, digests: Collection[Digest]) -> frozenset[Digest]:
        return frozenset(self.layers.keys() & set(digests))

    async def begin_upload(self) -> Upload:
        self.begun += 1
        upload = Upload(f"upload-{self.begun}", PART, 4200)
        self.uploads[upload.id] = bytearray()
        return upload

    def encoder(self, upload: Upload, first: int, content: RandomAccess | None) -> HeldPart:
        return HeldPart(first)

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        received = self._upload("UploadLayerPart", upload)
        if part.last >= len(received):  # else it is sent again
            assert part.first == len(received), "parts come in order"
            received += part.body[0]
        if on_sent:
            on_sent()

    async def complete_upload(self, upload: Upload, digest: Digest) -> Literal["pushed", "present"]:
        data = bytes(self._upload("CompleteLayerUpload", upload))
        del self.uploads[upload.id]
        assert Digest.of(data) == digest
        self.layers[digest] = data
        return "pushed"

    def _upload(self, operation: str, upload: Upload) -> bytearray:
        if upload.id not in self.uploads:
            raise UploadNotFoundError(operation, "UploadNotFoundException", "no such upload")
        return self.uploads[upload.id]

    async def mount(self, digest: Digest, source: str) -> bool:
        return False

    async def find_images(self, *, tags: Collection[str], digests: Collection[Digest]) -> tuple[StoredImage, ...]:
        named = [(self.tags[tag], tag) for tag in tags if tag in self.tags]
        known = [(digest, None) for digest in digests if digest in self.manifests]
        return tuple(StoredImage(digest, tag, self.manifests[digest]) for digest, tag in (*named, *known))

    async def put_image(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        blobs = {blob.digest for blob in (manifest.config, *manifest.layers) if blob}
        children = {child.digest for child in manifest.children}
        if not (blobs <= self.layers.keys() and children <= self.manifests.keys()):
            raise LayersNotFoundError("PutImage", "LayersNotFoundException", "blobs are missing")
        self.manifests[manifest.digest] = manifest
        if tag:
            self.tags[tag] = manifest.digest
        return "pushed"

    def assert_whole(self, image: Image) -> None:
        """Whether the tag names the image, and all that it names is there."""
        assert self.tags == {TAG: image.root.manifest.digest}
        index = self.manifests[self.tags[TAG]]
        [child] = index.children
        manifest = self.manifests[child.digest]
        assert manifest.config
        assert {manifest.config.digest, *(layer.digest for layer in manifest.layers)} <= self.layers.keys()
        assert all(Digest.of(data) == digest for digest, data in self.layers.items())


@pytest.fixture
async def image(tmp_path: Path) -> AsyncIterator[Image]:
    """An index with one image of two layers, of two parts each."""
    layout, dice = Layout(), random.Random(1)
    layers = [tar({name: dice.randbytes(4000)}) for name in ("one", "two")]
    index = layout.index(at(layout.image(*layers), "linux/amd64"))
    async with open_source(f"oci:{layout.tag(index, TAG).write(tmp_path / 'layout')}") as source:
        yield await source.image()


async def push(image: Image, run: PushContext, repository: Any) -> None:
    with anyio.fail_after(60):
        result = await push_image(image, repository, TAG, "app:1.0", run)
    assert result.outcome in ("pushed", "present")


def context(journal: Any = None) -> PushContext:
    return PushContext.of(Settings(), journal=journal)


@contextmanager
def counted_turns(steps: Steps) -> Iterator[None]:
    """Take each turn of the event loop as a step."""
    loop = asyncio.get_running_loop()

    def turn() -> None:
        nonlocal handle
        steps.count()
        handle = loop.call_soon(turn)

    handle = loop.call_soon(turn)
    try:
        yield
    finally:
        handle.cancel()


async def assert_nothing_is_left(run: PushContext, tasks: set[asyncio.Task[Any]]) -> None:
    resources = run
    assert asyncio.all_tasks() == tasks
    assert (resources.memory.held, resources.limiter.taken, resources.threads.borrowed_tokens) == (0, 0, 0)


async def push_and_cancel(image: Image, repository: MemoryRepository, steps: Steps, *, turns: bool = False) -> None:
    """Push until a step, look at what was left, and push again over the same connection."""
    run, tasks = context(), asyncio.all_tasks()
    with steps.scope, counted_turns(steps) if turns else nullcontext():
        await push(image, run, Stepwise(repository, Steps() if turns else steps))

    await assert_nothing_is_left(run, tasks)
    assert repository.tags.get(TAG) in (None, image.root.manifest.digest)
    await push(image, run, repository)
    await assert_nothing_is_left(run, tasks)
    repository.assert_whole(image)


async def test_a_push_cancelled_at_any_call_leaves_nothing_and_the_next_is_whole(image: Image) -> None:
    """Each call of the repository's is a step before it has done its work, and one after."""
    steps = Steps()
    await push_and_cancel(image, MemoryRepository(), steps)
    assert steps.taken >= 2 * (2 + 3 + 5 + 3 + 2), "questions, uploads, parts, ends of uploads, manifests"

    for step in range(1, steps.taken + 1):
        await push_and_cancel(image, MemoryRepository(), Steps(step))


async def test_a_push_cancelled_in_any_turn_leaves_nothing_and_the_next_is_whole(image: Image) -> None:
    """Turns of the event loop: whatever a task waits for, be it memory, a thread or another task."""
    ended, step = False, 0
    while not ended:
        step += 1
        steps = Steps(step)
        await push_and_cancel(image, MemoryRepository(), steps, turns=True)
        ended = steps.taken < step
    assert step > 50, "of a push's turns"


async def test_an_interrupted_push_goes_on_from_its_journal(image: Image, tmp_path: Path) -> None:
    """With each call of the journal's a step as well; the next push knows of the first what the journal does."""
    total, step = 1, 0
    async with open_journal(tmp_path / "journal") as journal:
        tasks = asyncio.all_tasks()
        while step < total:
            step += 1
            steps, repository = Steps(step), MemoryRepository(address=f"registry.test/app-{step}")
            run = context(Stepwise(journal, steps))
            with steps.scope:
                await push(image, run, Stepwise(repository, steps))
            total = max(total, steps.taken + 1)

            await assert_nothing_is_left(run, tasks)
            await push(image, context(journal), repository)
            repository.assert_whole(image)
    assert total > 50, "of the repository's and the journal's calls"
