"""The layers of one image on their way into a repository, and who sends them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from asyncpush.errors import CREDENTIALS_LOST, AsyncpushError, JournalError, SourceError
from asyncpush.layer import PushedLayer, Resources, push_layer
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor
from asyncpush.once import FailsOnce, Once
from asyncpush.protocols import Blob, Repository


class LayerSender(Protocol):
    """How a layer gets into a repository that lacks it."""

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*.

        Raises:
            SourceError: the blob can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        ...

    def referenced(self, repository: Repository, manifest: Manifest) -> None:
        """Hear that an image of *repository* refers to the blobs of *manifest* now."""
        ...

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Whether other repositories are being sent *blob* along with *repository*."""
        ...

    def failed(self) -> None:
        """Hear that the image will not be put, though some of its layers may be on their way for others yet."""
        ...


@dataclass(frozen=True, slots=True)
class DirectSender:
    """Sends each layer by itself; one that can't be read is tried once."""

    resources: Resources
    readings: FailsOnce = field(default_factory=lambda: FailsOnce(SourceError))

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*, in one of the run's slots."""
        return await self.readings.do(blob, lambda: push_layer(repository, blob, self.resources))

    def referenced(self, repository: Repository, manifest: Manifest) -> None:
        """Nobody waits for it."""

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:  # noqa: ARG002 - each is sent by itself
        """None is."""
        return False

    def failed(self) -> None:
        """Nobody waits for it."""


@dataclass(slots=True, eq=False)
class _Sending:
    """A layer on its way.

    Attributes:
        blob: the layer.
        scope: stops it.
        is_ours: whether it is this image that sends it, while others may wait for it.
    """

    blob: Blob
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_ours: bool = False


class ImageLayers:
    """The layers of one image: all are sent at once, and each once for all images of a run.

    When one fails, the others stop, but for those that other images wait for.

    Args:
        repository: where they go.
        layers: what has been sent.
        sender: sends what has not.

    Attributes:
        sent: those that this image has sent.
    """

    def __init__(self, repository: Repository, layers: Once[Descriptor | None], sender: LayerSender) -> None:
        self.sent: list[PushedLayer] = []
        self._repository = repository
        self._layers = layers
        self._sender = sender
        self._sending: list[_Sending] = []
        self._failure: AsyncpushError | None = None
        self._ended = anyio.Event()

    async def send(self, blobs: Iterable[Blob], available: Mapping[str, Descriptor]) -> dict[str, Descriptor]:
        """Send those of *blobs* that are not *available*; what points at each, by identity.

        Raises:
            SourceError: one can't be read, or is damaged; this one, or another one of the image.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        descriptors: dict[str, Descriptor] = {}

        async def one(blob: Blob) -> None:
            if (known := available.get(blob.identity)) is not None:
                descriptors[blob.identity] = known
            elif self._failure is None and (found := await self._send(blob)) is not None:
                descriptors[blob.identity] = found

        async with anyio.create_task_group() as tg:
            for blob in sorted(blobs, key=lambda blob: -blob.source_size):
                tg.start_soon(one, blob)
        if self._failure is not None:
            while self._sending:
                await self._ended.wait()
            raise self._failure
        return descriptors

    async def _send(self, blob: Blob) -> Descriptor | None:
        """Send a layer; what points at it, or None if it, or another one before it, has failed."""
        sending = _Sending(blob)

        async def send() -> Descriptor | None:
            sending.is_ours = True
            pushed = await self._sender.send(self._repository, blob)
            self.sent.append(pushed)
            return None if blob.descriptor else pushed.descriptor

        self._sending.append(sending)
        try:
            with sending.scope:
                found, _ = await self._layers.do(self._key(blob), send)
                return found or blob.descriptor
        except AsyncpushError as error:
            self._fail(error)
            if isinstance(error, (JournalError, *CREDENTIALS_LOST)):
                raise  # of that all will fail
        finally:
            self._sending.remove(sending)
            self._ended.set()
            self._ended = anyio.Event()
        return None

    def _fail(self, error: AsyncpushError) -> None:
        if self._failure is None:
            self._failure = error
            self._sender.failed()
        for each in self._sending:
            if not (each.is_ours and self._is_awaited(each.blob)):
                each.scope.cancel()

    def _is_awaited(self, blob: Blob) -> bool:
        """Whether another image waits for a layer that this one sends."""
        own = sum(each.blob.identity == blob.identity for each in self._sending) - 1
        return self._layers.waiting(self._key(blob)) > own or self._sender.is_awaited(self._repository, blob)

    def _key(self, blob: Blob) -> tuple[str, str]:
        return self._repository.address, blob.identity
