"""How layers get to all the repositories of a migration: each is read once, and sent to each registry once.

A registry that mounts blobs gets a layer's bytes for one repository, and takes it over from there into the others. ECR
mounts only what an image refers to: so one image leads each layer, and the others wait until that image is put.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from asyncpush.digest_set import PackedNames
from asyncpush.engine.context import PushContext
from asyncpush.engine.layer import send_layer
from asyncpush.errors import AsyncpushError, RegistryError, SourceError
from asyncpush.journal import LeftUpload
from asyncpush.manifest import Manifest
from asyncpush.model import Digest, PushedLayer
from asyncpush.protocols import Blob, Repository
from asyncpush.settings import MiB
from asyncpush.single_flight import FirstFailure

#: Mounts that a registry may decline, without one that it grants, before no more are tried.
_MAX_DECLINED = 3


@dataclass(slots=True, eq=False)
class _Registry:
    """What is known of one registry.

    Attributes:
        leads: layers on their way.
        mounts: whether it mounts blobs; None if nobody knows.
        asked: whether ECR was asked that.
        held: for each layer that an image refers to, a repository where one does.
        granted: mounts that it has granted.
        declined: mounts that it has declined.
    """

    leads: Leads
    mounts: bool | None = None
    asked: bool = False
    held: PackedNames = field(default_factory=PackedNames)
    granted: int = 0
    declined: int = 0


@dataclass(slots=True, eq=False)
class _Gathering:
    """Repositories that wait for the same bytes, while there is no slot yet to send them."""

    blob: Blob
    places: list[_Place] = field(default_factory=list)
    ended: anyio.Event = field(default_factory=anyio.Event)

    def join(self, repository: Repository, begins: Callable[[], bool]) -> _Place:
        """Add a repository, and what is told when it has its turn; False is that it does not want it any more."""
        self.places.append(_Place(repository, begins))
        return self.places[-1]


@dataclass(slots=True, eq=False)
class _Place:
    """One repository of a gathering, and what became of it; nothing, if it was not its turn."""

    repository: Repository
    begins: Callable[[], bool]
    stood_back: bool = False
    outcome: PushedLayer | AsyncpushError | None = None


class LayerDistributor:
    """Sends the layers of all images of a run.

    Args:
        push: what all layers share.
    """

    def __init__(self, push: PushContext) -> None:
        self._push = push
        self._sent = SentLayer()
        self._readings = FirstFailure(SourceError)
        self._registries: dict[str, _Registry] = {}
        self._gathering: dict[str, _Gathering] = {}
        self._sending: dict[tuple[str, str], _Gathering] = {}
        self._left: dict[str, dict[str, int]] = {}

    def continues(self, left: Iterable[LeftUpload]) -> None:
        """Learn what an interrupted run has sent for images that it did not put."""
        for upload in left:
            self._left.setdefault(upload.identity, {})[upload.repository] = upload.received

    def lost(self, repository: Repository, blobs: Iterable[Blob]) -> int:
        """Acknowledged bytes that would be sent again if *repository* were to be brought *blobs* now.

        Another repository of the registry has them, and they can be mounted from there once an image refers to them.
        """
        registry, address = self._registry(repository), registry_of(repository)
        lost = 0
        for blob in blobs if registry.mounts is not False and self._left else ():
            left = self._left.get(blob.identity, {})
            digest = blob.descriptor.digest if blob.descriptor else None
            if digest not in registry.held and digest not in registry.leads:
                most = max((size for place, size in left.items() if place.startswith(f"{address}/")), default=0)
                lost += most - left.get(repository.address, 0) if most else 0
        return lost

    async def mounts(self, registry: str, ask: Callable[[], Awaitable[bool | None]]) -> bool:
        """Whether *registry* mounts blobs; by *ask* once, the first time. If nobody knows, it may.

        Args:
            registry: what its repositories' addresses begin with.
            ask: learns it from ECR.
        """
        state = self._at(registry)
        if not state.asked:
            mounts = await ask()
            if not state.asked:
                state.asked, state.mounts = True, mounts
        return state.mounts is not False

    def remember(self, registry: str, repository: str, digest: Digest) -> None:
        """Learn from an earlier run that an image of *repository*, an address, refers to a layer."""
        self._at(registry).held.setdefault(digest, repository.removeprefix(f"{registry}/"))

    def holds(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Learn that images of *repository* refer to these layers."""
        registry = self._registry(repository)
        for digest in digests:
            if registry.mounts is not False:
                registry.held.setdefault(digest, repository.name)
            registry.leads.settle(digest)

    @contextmanager
    def sender(
        self, repository: Repository, blobs: Iterable[Blob], present: Iterable[Blob] = ()
    ) -> Iterator[ImageSender]:
        """What sends the layers of one image, which leads those of *blobs* that no other image leads.

        Args:
            repository: where they go.
            blobs: what it lacks.
            present: what it has of the image already; others can mount it once the image is put.
        """
        registry = self._registry(repository)
        # Where nothing is mounted, nobody waits.
        shared, there = (list(blobs), present) if registry.mounts is not False else ([], ())
        begun = {blob.identity for blob in shared if repository.address in self._left.get(blob.identity, ())}
        cargo = registry.leads.join(repository.name, shared, registry.held, begun, there)
        try:
            yield ImageSender(self, registry.leads, cargo)
        finally:
            registry.leads.leave(cargo)

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
            if not registry.granted and registry.declined >= _MAX_DECLINED:
                self._give_up_mounting(registry)
            return None
        registry.granted += 1
        if journal := self._push.journal:
            await journal.layer_completed(repository.address, blob.identity, descriptor)
        return PushedLayer(descriptor, 0, "mounted")

    def try_again(self) -> None:
        """Let sources be read again that could not be."""
        self._readings.forget()

    async def upload(
        self, repository: Repository, blob: Blob, begins: Callable[[], bool] = lambda: True
    ) -> PushedLayer | None:
        """Send the bytes, together with whoever waits for the same ones, in one of the run's slots.

        A source that can't be read is tried once (``try_again``).

        Args:
            repository: where to.
            blob: the bytes.
            begins: asked when it is their turn, whether they are still wanted.

        Returns:
            The layer; None if it was not wanted.

        Raises:
            SourceError: the blob can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        return await self._readings.do(blob, lambda: self._upload(repository, blob, begins))

    def _give_up_mounting(self, registry: _Registry) -> None:
        registry.mounts = False
        registry.leads.settle_all()

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Whether other repositories get *blob* from the reading that goes on for *repository*."""
        gathering = self._sending.get((repository.address, blob.identity))
        return gathering is not None and len(gathering.places) > 1

    async def _upload(self, repository: Repository, blob: Blob, begins: Callable[[], bool]) -> PushedLayer | None:
        while True:
            gathering = self._gathering.get(blob.identity)
            if gathering is None:
                gathering = _Gathering(blob)
                place = gathering.join(repository, begins)
                await self._send_gathered(gathering)
            else:
                place = gathering.join(repository, begins)
                await gathering.ended.wait()
            if place.stood_back:
                return None
            outcome = place.outcome
            if outcome is None:
                continue  # who had the bytes sent was cancelled
            if isinstance(outcome, SourceError) and gathering.blob != blob:
                continue  # another source of the same bytes has failed, not ours
            if isinstance(outcome, AsyncpushError):
                raise outcome
            return outcome

    async def _send_gathered(self, gathering: _Gathering) -> None:
        blob, address = gathering.blob, gathering.places[0].repository.address
        self._gathering[blob.identity] = self._sending[address, blob.identity] = gathering
        try:
            async with self._push.limiter.hold(blob.source_size):
                self._close(blob.identity, gathering)
                for place in gathering.places:
                    place.stood_back = not place.begins()
                going = [place for place in gathering.places if not place.stood_back]
                if not going:
                    return
                began = time.monotonic()
                outcomes = await send_layer([place.repository for place in going], blob, self._push)
                for place, outcome in zip(going, outcomes, strict=True):
                    place.outcome = outcome
                    if isinstance(outcome, PushedLayer):
                        self._sent.add(outcome.sent, time.monotonic() - began)
        finally:
            self._sending.pop((address, blob.identity), None)
            self._close(blob.identity, gathering)
            gathering.ended.set()

    def _close(self, identity: str, gathering: _Gathering) -> None:
        if self._gathering.get(identity) is gathering:
            del self._gathering[identity]

    def _registry(self, repository: Repository) -> _Registry:
        return self._at(registry_of(repository))

    def _at(self, address: str) -> _Registry:
        if address not in self._registries:
            self._registries[address] = _Registry(Leads(self._sent, lambda: self._push.limiter.is_idle))
        return self._registries[address]


@dataclass(frozen=True, slots=True)
class ImageSender:
    """Sends the layers of one image into one repository (an ``image.LayerSender``).

    Attributes:
        exchange: what it has in common with the others.
        leads: who brings what into the registry.
        cargo: what it leads and follows.
    """

    exchange: LayerDistributor
    leads: Leads
    cargo: Cargo

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*: by a mount where that can be, else by an upload."""
        lead = self.cargo.leads.get(blob.descriptor.digest) if blob.descriptor else None
        layer: PushedLayer | None = None
        while layer is None:
            if lead is not None:
                await self.leads.follow(self.cargo, lead)
            layer = await self.exchange.mount(repository, blob) or await self.exchange.upload(
                repository, blob, lambda: self.leads.begins(self.cargo, blob)
            )
        self.leads.arrives(self.cargo, blob)
        return layer

    def referenced(self, repository: Repository, manifest: Manifest) -> None:
        """Hear that an image of *repository* refers to the blobs of *manifest* now."""
        self.exchange.holds(repository, (blob.digest for blob in manifest.blobs()))

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Whether other repositories are being sent *blob* along with *repository*."""
        return self.exchange.is_awaited(repository, blob)

    def failed(self) -> None:
        """Hear that the image will not be put: then others lead its layers."""
        self.leads.leave(self.cargo)


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


#: Bytes that may be sent again so that followers need not wait: so many, or that share of what was sent.
_AGAIN = 4 * MiB
_AGAIN_SHARE = 0.01

#: Seconds that followers must gain before anything is sent again; and how many, and how many times what sending it
#: takes, where that is more than the bytes above.
MIN_GAIN = 1.0
MIN_LARGE_GAIN = 5.0
_TIMES = 8

#: Bytes a second of one upload where none has ended yet: what is there already is not sent again for a guess.
_SLOWEST = MiB

#: Seconds between two looks at a lead: at least, and at most where its bytes take less.
LOOK_INTERVAL = 0.25
_LOOK_AT_LAST = 5.0


@dataclass(slots=True, eq=False)
class Lead:
    """A layer on its way into a registry.

    Attributes:
        size: its bytes.
        leader: the image that brings it.
        begun: when the first byte of it left for the leader's repository.
        arrived: when all of it was there.
        took: seconds from the first byte to then.
        passed: how often it has passed on after it had begun.
        settled: whether an image refers to it, or none will: then nobody waits for it.
        followers: the other images that lack it.
    """

    size: int
    leader: Cargo
    begun: float | None = None
    arrived: float | None = None
    took: float = 0.0
    passed: int = 0
    settled: bool = False
    followers: set[Cargo] = field(default_factory=set)
    _changed: anyio.Event = field(default_factory=anyio.Event, init=False)

    def settle(self) -> None:
        """Let nobody wait for it any more."""
        self.settled = True
        self.tell()

    def tell(self) -> None:
        """Let all who wait look at it again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changes(self, seconds: float) -> None:
        """Wait until something of it has changed, at most so long."""
        changed = self._changed
        with anyio.move_on_after(seconds):
            await changed.wait()

    def waited(self, now: float) -> float:
        """Seconds since it was there."""
        return 0.0 if self.arrived is None else now - self.arrived

    @property
    def due(self) -> float:
        """When it has been there for as long as it took to send it."""
        return float("inf") if self.arrived is None else self.arrived + self.took


@dataclass(slots=True, eq=False)
class Cargo:
    """What an image lacks.

    Attributes:
        repository: the repository that it goes to.
        left: bytes of its layers that are not there yet, by identity.
        begun: when those of them began to be sent that did.
        leads: those that it, or another image, brings into the registry.
    """

    repository: str
    left: dict[str, int]
    begun: dict[str, float] = field(default_factory=dict)
    leads: dict[Digest, Lead] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that are left."""
        return sum(self.left.values())

    def waits_for(self, lead: Lead) -> bool:
        """Whether another image brings *lead*, and to another repository."""
        return not lead.settled and lead.leader.repository != self.repository

    def awaited(self) -> list[Lead]:
        """All that it waits for."""
        return [lead for lead in self.leads.values() if self.waits_for(lead)]

    def seconds(self, rate: float, now: float) -> float:
        """How long all of it will take, all layers at once, at *rate* bytes a second."""
        return max((size / rate - (now - self.begun.get(each, now)) for each, size in self.left.items()), default=0.0)


@dataclass(slots=True)
class SentLayer:
    """What was sent so far, in all uploads.

    Attributes:
        size: its bytes.
        seconds: how long they took, one upload after the other.
        again: bytes that were sent again for followers.
    """

    size: int = 0
    seconds: float = 0.0
    again: int = 0

    @property
    def rate(self) -> float:
        """Bytes a second of one upload; a guess where nobody knows."""
        return self.size / self.seconds if self.size and self.seconds else _SLOWEST

    def add(self, size: int, seconds: float) -> None:
        """Note an upload."""
        self.size += size
        self.seconds += seconds

    def allows(self, again: int) -> bool:
        """Whether so many bytes that are sent again hardly count."""
        return self.again + again <= max(_AGAIN, self.size * _AGAIN_SHARE)


class Leads:
    """The layers on their way into one registry.

    Args:
        sent: what all registries were sent.
        is_idle: whether there are slots that no layer waits for.
    """

    def __init__(self, sent: SentLayer, is_idle: Callable[[], bool]) -> None:
        self._sent = sent
        self._is_idle = is_idle
        self._leads: dict[Digest, Lead] = {}
        self._cargoes: defaultdict[str, set[Cargo]] = defaultdict(set)

    def __contains__(self, digest: Digest | None) -> bool:
        return digest in self._leads

    def join(
        self,
        repository: str,
        blobs: Iterable[Blob],
        held: Container[Digest],
        begun: Collection[str],
        present: Iterable[Blob] = (),
    ) -> Cargo:
        """Let an image lead those of *blobs* that no image brings yet, and follow the others.

        Args:
            repository: where it goes.
            blobs: what it lacks.
            held: layers that can be mounted already.
            begun: identities of those that an interrupted run has begun to send to that repository.
            present: layers that the repository has, and that nobody can mount from there before the image is put.
        """
        lacking, now = list(blobs), time.monotonic()
        cargo = Cargo(repository, {blob.identity: blob.source_size for blob in lacking})
        for blob in lacking:
            digest = blob.descriptor.digest if blob.descriptor else None
            if digest is None or digest in held:
                continue
            if (lead := self._leads.get(digest)) is not None:
                lead.followers.add(cargo)
            else:
                lead = Lead(blob.source_size, cargo, begun=now if blob.identity in begun else None)
                self._leads[digest] = lead
            cargo.leads[digest] = lead
        for blob in present:
            digest = blob.descriptor.digest if blob.descriptor else None
            if digest is not None and digest not in held and digest not in self._leads:
                takes = blob.source_size / self._sent.rate
                lead = Lead(blob.source_size, cargo, begun=now, arrived=now, took=takes)
                cargo.leads[digest] = self._leads[digest] = lead
        self._cargoes[repository].add(cargo)
        awaited = cargo.awaited()
        if all(lead.begun is None and cargo.size < lead.leader.size for lead in awaited):
            _pass(awaited, cargo)  # it costs nothing yet
        return cargo

    def leave(self, cargo: Cargo) -> None:
        """Let what *cargo* leads, and no image refers to by now, be led by one that follows; if none can, by nobody."""
        self._cargoes[cargo.repository].discard(cargo)
        if not self._cargoes[cargo.repository]:
            del self._cargoes[cargo.repository]
        for digest, lead in cargo.leads.items():
            if lead.leader is not cargo or lead.settled:
                continue
            able = [each for each in lead.followers if all(other.leader is cargo for other in _others(each))]
            if able:
                best = min(able, key=lambda each: each.size)
                _pass([other for other in best.leads.values() if other.leader is cargo and not other.settled], best)
            else:
                self.settle(digest)
        for lead in cargo.leads.values():
            lead.followers.discard(cargo)

    def settle(self, digest: Digest) -> None:
        """Let nobody wait for a layer any more."""
        if (lead := self._leads.pop(digest, None)) is not None:
            lead.settle()

    def settle_all(self) -> None:
        """Let nobody wait for anything any more."""
        for digest in list(self._leads):
            self.settle(digest)

    async def follow(self, cargo: Cargo, lead: Lead) -> None:
        """Wait for as long as another image brings *lead*; or until *cargo* is to bring it itself."""
        pause = 0.0
        while cargo.waits_for(lead):
            now = time.monotonic()
            await lead.changes(max(lead.due - now, pause))
            if cargo.waits_for(lead) and time.monotonic() >= lead.due:
                self._reconsider(lead)
                pause = max(min(2 * pause, _LOOK_AT_LAST), lead.took, LOOK_INTERVAL)

    def begins(self, cargo: Cargo, blob: Blob) -> bool:
        """Hear that *blob* has its turn; False if another image brings it after all."""
        lead = cargo.leads.get(blob.descriptor.digest) if blob.descriptor else None
        if lead is not None and cargo.waits_for(lead):
            return False
        cargo.begun[blob.identity] = time.monotonic()
        if lead is not None and lead.begun is None:
            lead.begun = time.monotonic()
        return True

    def arrives(self, cargo: Cargo, blob: Blob) -> None:
        """Hear that *blob* is in the repository of *cargo*."""
        now = time.monotonic()
        begun = cargo.begun.get(blob.identity, now)
        for each in self._cargoes.get(cargo.repository, ()):
            each.left.pop(blob.identity, None)
        lead = cargo.leads.get(blob.descriptor.digest) if blob.descriptor else None
        if lead is not None and lead.leader.repository == cargo.repository and lead.arrived is None:
            lead.begun, lead.arrived, lead.took = begun, now, now - begun
            lead.tell()

    def _reconsider(self, lead: Lead) -> None:
        """Let *lead* pass on to the follower that has the least left, if that helps much more than it costs."""
        if not self._is_idle():
            return  # whoever waits leaves its place to others
        cargo = min((each for each in lead.followers if each.waits_for(lead)), key=lambda each: each.size)
        taken, now = cargo.awaited(), time.monotonic()
        if any(each.begun is not None and now < each.due for each in taken):
            return
        rate = self._sent.rate
        # Who has had it wait for so long may do so for as long again.
        theirs = max(max(each.leader.seconds(rate, now), each.waited(now) / 2**each.passed) for each in taken)
        ours = cargo.seconds(rate, now)
        if theirs < 2 * ours + MIN_GAIN:
            return
        again = sum(each.size for each in taken if each.begun is not None)
        if not self._sent.allows(again) and theirs < _TIMES * ours + MIN_LARGE_GAIN:
            return
        self._sent.again += again
        _pass(taken, cargo)


def _others(cargo: Cargo) -> Iterator[Lead]:
    """What a follower waits for, or would if the leader were in another repository."""
    return (lead for lead in cargo.leads.values() if not lead.settled and lead.leader is not cargo)


def _pass(leads: Iterable[Lead], cargo: Cargo) -> None:
    """Let *cargo* lead these."""
    for lead in leads:
        lead.followers.discard(cargo)
        if lead.begun is not None:
            lead.passed += 1
        lead.followers.add(lead.leader)
        lead.leader, lead.begun, lead.arrived = cargo, None, None
        lead.tell()
