"""Which image brings a layer into a registry that mounts blobs, and for how long the others wait for it.

ECR mounts only what an image refers to. So a layer is of use to other repositories once the image that leads it is put,
and not before: an image with much else to send makes them all wait. Then the lead passes on to the follower that can be
put soonest, which sends the layer once more where it is on its way already: only while slots are free, so that nothing
else would have them, and only as many bytes as hardly count.

No two images ever wait for each other: an image follows only leads that were there before it, and a lead passes only to
an image that waits for none from then on.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field

import anyio

from asyncpush.model import Digest
from asyncpush.protocols import Blob
from asyncpush.settings import MiB

#: Bytes that may be sent again so that followers need not wait: so many, or that share of what was sent.
_AGAIN = 4 * MiB
_AGAIN_SHARE = 0.01

#: Seconds that followers must gain before anything is sent again; and how many, and how many times what sending it
#: takes, where that is more than the bytes above.
_WORTH_IT = 1.0
_WORTH_MUCH = 5.0
_TIMES = 8

#: Bytes a second of one upload where none has ended yet: what is there already is not sent again for a guess.
_SLOWEST = MiB

#: Seconds between two looks at a lead: at least, and at most where its bytes take less.
_LOOK_AGAIN = 0.25
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
class Sent:
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

    def __init__(self, sent: Sent, is_idle: Callable[[], bool]) -> None:
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
                pause = max(min(2 * pause, _LOOK_AT_LAST), lead.took, _LOOK_AGAIN)

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
        if theirs < 2 * ours + _WORTH_IT:
            return
        again = sum(each.size for each in taken if each.begun is not None)
        if not self._sent.allows(again) and theirs < _TIMES * ours + _WORTH_MUCH:
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
