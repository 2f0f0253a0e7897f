"""How layers get to all the repositories of a migration: each is read once, and sent to each registry once.

A registry that mounts blobs gets a layer's bytes for one repository, and takes it over from there into the others. ECR
mounts only what an image refers to: so one image leads each layer, and the others wait until that image is put.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from asyncpush.errors import AsyncpushError, RegistryError, SourceError
from asyncpush.journal import LeftUpload
from asyncpush.layer import PushedLayer, Resources, send_layer
from asyncpush.manifest import Manifest
from asyncpush.model import Digest
from asyncpush.packed import PackedNames
from asyncpush.protocols import Blob, Repository

#: Mounts that a registry may decline, without one that it grants, before no more are tried.
_PATIENCE = 3


@dataclass(slots=True, eq=False)
class _Lead:
    """A layer on its way into a registry, and the image that brings it.

    Attributes:
        repository: the repository that it goes to.
        settled: set when an image refers to it, or when none will.
    """

    repository: str
    settled: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True, eq=False)
class _Registry:
    """What is known of one registry.

    Attributes:
        mounts: whether it mounts blobs; None if nobody knows.
        asked: whether ECR was asked that.
        held: for each layer that an image refers to, a repository where one does.
        leads: layers on their way.
        granted: mounts that it has granted.
        declined: mounts that it has declined.
    """

    mounts: bool | None = None
    asked: bool = False
    held: PackedNames = field(default_factory=PackedNames)
    leads: dict[Digest, _Lead] = field(default_factory=dict)
    granted: int = 0
    declined: int = 0


@dataclass(slots=True, eq=False)
class _Gathering:
    """Repositories that wait for the same bytes, while there is no slot yet to send them."""

    blob: Blob
    repositories: list[Repository] = field(default_factory=list)
    outcomes: Sequence[PushedLayer | AsyncpushError] = ()
    ended: anyio.Event = field(default_factory=anyio.Event)

    def join(self, repository: Repository) -> int:
        self.repositories.append(repository)
        return len(self.repositories) - 1


class Exchange:
    """Sends the layers of all images of a run.

    Args:
        resources: what all layers share.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._registries: dict[str, _Registry] = {}
        self._gathering: dict[str, _Gathering] = {}
        self._left: dict[str, dict[str, int]] = {}

    def continues(self, left: Iterable[LeftUpload]) -> None:
        """Learn which uploads an interrupted run has left."""
        for upload in left:
            self._left.setdefault(upload.identity, {})[upload.repository] = upload.received

    def lost(self, repository: Repository, blobs: Iterable[Blob]) -> int:
        """Acknowledged bytes that would be sent again if *repository* were to be brought *blobs* now.

        They were on their way into another repository of the registry, and can be mounted from there once they are in.
        """
        registry, address = self._registry(repository), registry_of(repository)
        lost = 0
        for blob in blobs if registry.mounts is not False and self._left else ():
            elsewhere = self._left.get(blob.identity, {})
            digest = blob.descriptor.digest if blob.descriptor else None
            if repository.address not in elsewhere and digest not in registry.held and digest not in registry.leads:
                lost += max((size for place, size in elsewhere.items() if place.startswith(f"{address}/")), default=0)
        return lost

    async def mounts(self, registry: str, ask: Callable[[], Awaitable[bool | None]]) -> bool:
        """Whether *registry* mounts blobs; by *ask* once, the first time. If nobody knows, it may.

        Args:
            registry: what its repositories' addresses begin with.
            ask: learns it from ECR.
        """
        state = self._registries.setdefault(registry, _Registry())
        if not state.asked:
            mounts = await ask()
            if not state.asked:
                state.asked, state.mounts = True, mounts
        return state.mounts is not False

    def remember(self, registry: str, repository: str, digest: Digest) -> None:
        """Learn from an earlier run that an image of *repository*, an address, refers to a layer."""
        held = self._registries.setdefault(registry, _Registry()).held
        held.setdefault(digest, repository.removeprefix(f"{registry}/"))

    def holds(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Learn that images of *repository* refer to these layers."""
        registry = self._registry(repository)
        for digest in digests:
            if registry.mounts is not False:
                registry.held.setdefault(digest, repository.name)
            if (lead := registry.leads.pop(digest, None)) is not None:
                lead.settled.set()

    @contextmanager
    def sender(self, repository: Repository, blobs: Iterable[Blob]) -> Iterator[ImageSender]:
        """What sends the layers of one image, which leads those of *blobs* that no other image leads.

        It waits only for images that had begun to lead before it, so that no two wait for each other.
        """
        registry = self._registry(repository)
        led: dict[Digest, _Lead] = {}
        followed: dict[Digest, _Lead] = {}
        # Where nothing is mounted, nobody waits.
        shared = blobs if registry.mounts is not False else ()
        for digest in (blob.descriptor.digest for blob in shared if blob.descriptor):
            if (lead := registry.leads.get(digest)) is not None:
                followed[digest] = lead
            elif digest not in registry.held:
                led[digest] = registry.leads[digest] = _Lead(repository.name)
        try:
            yield ImageSender(self, followed)
        finally:
            # What no image refers to by now, none will on behalf of this one: whoever waits helps himself.
            for digest, lead in led.items():
                lead.settled.set()
                if registry.leads.get(digest) is lead:
                    del registry.leads[digest]

    async def mount(self, repository: Repository, blob: Blob) -> PushedLayer | None:
        """Take *blob* over from another repository, if there is one and its registry does that."""
        registry, descriptor = self._registry(repository), blob.descriptor
        source = registry.held.get(descriptor.digest) if descriptor else None
        if descriptor is None or source is None or source == repository.name or registry.mounts is False:
            return None
        try:
            granted = await repository.mount(descriptor.digest, source)
        except RegistryError:
            granted = False  # an upload needs no /v2/, and says what is wrong if that fails, too
        if not granted:
            registry.declined += 1
            if not registry.granted and registry.declined >= _PATIENCE:
                self._give_up_mounting(registry)
            return None
        registry.granted += 1
        if journal := self._resources.journal:
            await journal.layer_completed(repository.address, blob.identity, descriptor)
        return PushedLayer(descriptor, 0, "mounted")

    async def upload(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Send the bytes, together with whoever waits for the same ones, in one of the run's slots.

        Raises:
            SourceError: the blob can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        while True:
            gathering = self._gathering.get(blob.identity)
            if gathering is None:
                gathering = _Gathering(blob)
                place = gathering.join(repository)
                await self._send_gathered(gathering)
            else:
                place = gathering.join(repository)
                await gathering.ended.wait()
            if not gathering.outcomes:
                continue  # who had the bytes sent was cancelled
            outcome = gathering.outcomes[place]
            if isinstance(outcome, SourceError) and gathering.blob is not blob:
                continue  # another source of the same bytes has failed, not ours
            if isinstance(outcome, AsyncpushError):
                raise outcome
            return outcome

    def _give_up_mounting(self, registry: _Registry) -> None:
        registry.mounts = False
        for lead in registry.leads.values():
            lead.settled.set()

    async def _send_gathered(self, gathering: _Gathering) -> None:
        identity = gathering.blob.identity
        self._gathering[identity] = gathering
        try:
            async with self._resources.slots.hold(gathering.blob.source_size):
                self._close(identity, gathering)
                gathering.outcomes = await send_layer(gathering.repositories, gathering.blob, self._resources)
        finally:
            self._close(identity, gathering)
            gathering.ended.set()

    def _close(self, identity: str, gathering: _Gathering) -> None:
        if self._gathering.get(identity) is gathering:
            del self._gathering[identity]

    def _registry(self, repository: Repository) -> _Registry:
        return self._registries.setdefault(registry_of(repository), _Registry())


@dataclass(frozen=True, slots=True)
class ImageSender:
    """Sends the layers of one image into one repository (an ``image.LayerSender``).

    Attributes:
        exchange: what it has in common with the others.
        followed: layers that another image brings into the registry.
    """

    exchange: Exchange
    followed: Mapping[Digest, _Lead]

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*: by a mount where that can be, else by an upload."""
        lead = self.followed.get(blob.descriptor.digest) if blob.descriptor else None
        if lead is not None and lead.repository != repository.name:
            await lead.settled.wait()
        return await self.exchange.mount(repository, blob) or await self.exchange.upload(repository, blob)

    def referenced(self, repository: Repository, manifest: Manifest) -> None:
        """Hear that an image of *repository* refers to the blobs of *manifest* now."""
        self.exchange.holds(repository, (blob.digest for blob in manifest.blobs()))


def registry_of(repository: Repository) -> str:
    """The address of the registry that *repository* is in."""
    return repository.address.removesuffix(f"/{repository.name}")


def score(blobs: Iterable[Blob], wanted_by: Callable[[str], int]) -> float:
    """How much an image helps others: the bytes that they wait for, for each byte that it takes itself.

    Args:
        blobs: what the image lacks.
        wanted_by: how many images lack a blob, by its identity.
    """
    own = shared = 1
    for blob in blobs:
        own += blob.source_size
        shared += blob.source_size * (wanted_by(blob.identity) - 1)
    return shared / own
