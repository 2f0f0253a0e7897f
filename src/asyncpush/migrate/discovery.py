"""From the plan's entries to images that are ready to go: digests compared, manifests read, ECR asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from asyncpush.errors import AsyncpushError, RepositoryNotFoundError, foreseen, only_cause
from asyncpush.migrate.catalog import Catalog
from asyncpush.migrate.context import Context
from asyncpush.migrate.copies import Copy, CopyResult
from asyncpush.migrate.plan.model import Entry, Target
from asyncpush.migrate.room import Discovered, Present, Ready, Room, weight
from asyncpush.migrate.targets import create_by_push
from asyncpush.model import Descriptor, Digest
from asyncpush.planning import Memory, Plan, Wanted, plan_anew, plan_images
from asyncpush.protocols import Image, Repository, StoredImage

T = TypeVar("T")

#: Entries that are looked into at once; each asks for its tags and manifests many at a time.
_ENTRIES_AT_ONCE = 16

#: Copies of an entry that are compared at once; a BatchGetImage takes as many.
_COMPARED_AT_ONCE = 100

#: Images of an entry that are read at once, and blobs of them after which ECR is asked what it lacks.
_READ_AT_ONCE = 8
_BLOBS_AT_ONCE = 500


class Discovery:
    """Looks into the entries of a plan; what fails is noted as the result of its copies.

    Args:
        context: the migration.
        held: keeps archives open for as long as their images may go.
        found: hears of what there is to do, as it is found.
        room: for what is found.
    """

    def __init__(
        self, context: Context, held: AsyncExitStack, found: MemoryObjectSendStream[Discovered], room: Room
    ) -> None:
        self._context = context
        self._found = found
        self._room = room
        self._turns = anyio.Semaphore(_ENTRIES_AT_ONCE)
        self._catalog = Catalog(context, held)

    async def entries(self, entries: Iterable[Entry]) -> None:
        """Look into *entries*, many at once."""
        latest: dict[tuple[Target, str], anyio.Event] = {}

        async def one(entry: Entry, before: Collection[anyio.Event], claimed: anyio.Event) -> None:
            try:
                try:
                    copies = await self._asked_for(entry)
                    for earlier in before:
                        await earlier.wait()
                    going = [copy for copy in copies or () if self._context.claims(copy)]
                finally:
                    claimed.set()
                if copies is not None:
                    await self._copies(entry, going)
            finally:
                self._turns.release()

        with only_cause():
            async with anyio.create_task_group() as tg:
                for entry in entries:
                    # Of two images for one place the plan's first has it, whichever is found first.
                    places, claimed = [(goal.target, goal.repository) for goal in entry.goals], anyio.Event()
                    before = [latest[place] for place in places if place in latest]
                    latest.update(dict.fromkeys(places, claimed))
                    await self._turns.acquire()
                    tg.start_soon(one, entry, before, claimed)

    async def again(self, copies: Mapping[Entry, Sequence[Copy]]) -> None:
        """Find out what there is to do for *copies*, by their entries."""

        async def one(entry: Entry, some: Sequence[Copy]) -> None:
            try:
                await self._copies(entry, some)
            finally:
                self._turns.release()

        with only_cause():
            async with anyio.create_task_group() as tg:
                for entry, some in copies.items():
                    await self._turns.acquire()
                    tg.start_soon(one, entry, some)

    async def _copies(self, entry: Entry, copies: Sequence[Copy]) -> None:
        """Find out what there is to do for *copies*, all of one entry."""
        going = [copy for copy in copies if not self._is_finished(copy)]
        for copy in going:
            self._context.started(copy)
        going = [copy for copy in going if not self._is_refused(copy)]
        if entry.kind == "local":
            await self._plan_archive(entry, going)
            return
        missing: dict[Descriptor, list[Copy]] = defaultdict(list)
        stored: dict[Repository, list[StoredImage]] = defaultdict(list)
        for some in _alike_together(going):
            await self._compare(entry, some, missing, stored)
        await self._read(entry, missing, stored)

    async def _compare(
        self,
        entry: Entry,
        copies: Sequence[Copy],
        missing: dict[Descriptor, list[Copy]],
        stored: dict[Repository, list[StoredImage]],
    ) -> None:
        """Compare source and targets: those of *copies* that are *missing* are noted, and what is *stored*."""
        found = await self._stored(copies)
        going = [copy for copy in copies if copy.repository in found]
        there: dict[str, set[Digest]] = defaultdict(set)
        for copy in going:
            brought = (self._brought_from(copy, each) for each in found[copy.repository] if _is_at(each, copy))
            there[copy.reference].update(filter(None, brought))
        descriptors = await self._catalog.resolve(entry, going, there)
        wanted = set()
        for copy in going:
            descriptor = descriptors.get(copy.reference)
            if descriptor is not None and not await self._is_present(copy, descriptor, found):
                missing[descriptor].append(copy)
                wanted.add(descriptor.digest)
        for repository, images in found.items():
            # The manifest of another image is needed no more: that it is there is enough.
            stored[repository] += [
                each if entry.platforms or each.digest in wanted else replace(each, manifest=None) for each in images
            ]

    async def _read(
        self,
        entry: Entry,
        missing: Mapping[Descriptor, Sequence[Copy]],
        stored: Mapping[Repository, Sequence[StoredImage]],
    ) -> None:
        """Read the manifests of what is *missing*, and hand it over, no more at once than fits in memory."""
        loaded: list[tuple[Copy, Image]] = []
        blobs = 0
        descriptors = {copy.reference: descriptor for descriptor, copies in missing.items() for copy in copies}
        for some in _batches(list(missing.values()), _READ_AT_ONCE):
            read = await self._catalog.load(entry, [copy for copies in some for copy in copies], descriptors)
            loaded += read
            blobs += sum(map(weight, {id(image): image for _, image in read}.values()))
            if blobs >= _BLOBS_AT_ONCE:
                await self._plan_all(loaded, stored)
                loaded, read, blobs = [], [], 0
        await self._plan_all(loaded, stored)

    async def _asked_for(self, entry: Entry) -> list[Copy] | None:
        """The copies that *entry* asks for; None if that can't be learnt: then one that stands for all has failed."""
        stand_ins = [self._catalog.stand_in(entry, goal) for goal in entry.goals]
        try:
            with foreseen():
                copies = await self._catalog.copies(entry)
        except AsyncpushError as error:
            self._context.unread.add(entry)
            for copy in stand_ins:
                self._context.started(copy)
                self._context.failed(copy, error)
            return None
        if entry in self._context.unread:
            self._context.unread.remove(entry)
            for copy in stand_ins:
                self._context.results.pop(copy.key, None)
        return copies

    async def _plan_archive(self, entry: Entry, copies: Sequence[Copy]) -> None:
        try:
            with foreseen():
                loaded = await self._catalog.load_archive(entry, copies)
        except AsyncpushError as error:
            for copy in copies:
                self._context.failed(copy, error)
            return
        await self._plan_all(loaded, {})

    # What is done, or can't be done

    def _is_finished(self, copy: Copy) -> bool:
        """Whether an interrupted run has finished it: then nobody looks at it again."""
        journal = self._context.journal
        finished = journal.finished.get(copy.key) if journal and not self._context.options.recheck else None
        if finished is None:
            return False
        self._context.ended(CopyResult(copy=copy, outcome="finished", digest=finished.digest))
        return True

    def _is_refused(self, copy: Copy) -> bool:
        failure = self._context.targets[copy.goal.target].failures.get(copy.goal.repository)
        if failure is not None:
            self._context.failed(copy, failure)
        return failure is not None

    # What the targets have

    async def _stored(self, copies: Iterable[Copy]) -> dict[Repository, Sequence[StoredImage]]:
        """What the repositories hold under the copies' tags: one question for a hundred."""
        stored: dict[Repository, Sequence[StoredImage]] = {}

        async def one(repository: Repository, asking: Sequence[Copy]) -> None:
            if self._is_empty(asking[0]):
                stored[repository] = ()
                return
            tags = {copy.tag for copy in asking if copy.tag}
            digests = {Digest.parse(copy.reference) for copy in asking if copy.tag is None}
            try:
                stored[repository] = await repository.find_images(tags=tags, digests=digests)
            except RepositoryNotFoundError as error:
                await self._create(asking[0], error)
                stored[repository] = ()

        await self._for_each_repository(copies, one)
        return stored

    async def _create(self, copy: Copy, error: RepositoryNotFoundError) -> None:
        """Create a repository that nobody was allowed to look for before."""
        context, goal = self._context, copy.goal
        if not context.options.dry:
            create = partial(create_by_push, context.targets[goal.target], copy.entry, copy.repository, error)
            await context.run.created.do(copy.repository.address, create)
        elif not copy.entry.create:
            raise error
        context.targets[goal.target].states[goal.repository] = "missing" if context.options.dry else "new"

    async def _is_present(
        self, copy: Copy, descriptor: Descriptor, stored: Mapping[Repository, Sequence[StoredImage]]
    ) -> bool:
        there = [each for each in stored.get(copy.repository, ()) if _is_at(each, copy)]
        match = next((each for each in there if self._brought_from(copy, each) == descriptor.digest), None)
        if match is None or match.manifest is None:
            return False
        self._context.sources[copy.key] = descriptor.digest
        self._context.exchange.holds(copy.repository, (blob.digest for blob in match.manifest.blobs()))
        await self._tell(Present(copy, match.manifest))
        return True

    def _brought_from(self, copy: Copy, stored: StoredImage) -> Digest | None:
        """The digest that *copy* has at its source if *stored* was made of it; None if nobody knows."""
        if not copy.entry.platforms:
            return stored.digest
        # What a choice of platforms makes of an index is known once it was made.
        journal = self._context.journal
        known = journal.known_images(copy.repository.address).get(copy.tag or "") if journal else None
        if known is None or (known.digest, known.choice) != (stored.digest, copy.choice):
            return None
        return known.source_digest

    async def _plan_all(
        self, loaded: Sequence[tuple[Copy, Image]], stored: Mapping[Repository, Sequence[StoredImage]]
    ) -> None:
        """Ask each repository what it lacks of all its images, and hand over what is ready to go."""
        images = dict(loaded)
        plans: dict[Copy, Plan] = {}

        async def one(repository: Repository, asking: Sequence[Copy]) -> None:
            if self._is_empty(asking[0]):
                plans.update({copy: plan_anew(images[copy]) for copy in asking})
                return
            memory = await Memory.of(self._context.journal, repository)
            wanted = [Wanted(images[copy], copy.tag) for copy in asking]
            try:
                found = await plan_images(wanted, repository, memory, found=stored.get(repository))
            except RepositoryNotFoundError as error:
                await self._create(asking[0], error)
                plans.update({copy: plan_anew(images[copy]) for copy in asking})
                return
            for copy, plan in zip(asking, found, strict=True):
                if isinstance(plan, Plan):
                    plans[copy] = plan
                else:
                    self._context.failed(copy, plan)

        await self._for_each_repository(images, one)
        together: dict[int, list[tuple[Copy, Plan]]] = defaultdict(list)
        for copy, plan in plans.items():
            together[id(images[copy])].append((copy, plan))
        for group in together.values():
            image = images[group[0][0]]
            for copy, _ in group:
                self._context.sources.setdefault(copy.key, image.root.manifest.digest if image.root.manifest else None)
            await self._tell(Ready(image, tuple(group)))

    async def _tell(self, found: Discovered) -> None:
        await self._room.take(found)
        await self._found.send(found)

    def _is_empty(self, copy: Copy) -> bool:
        """Whether nothing can be in the copy's repository: it is new, or not there yet."""
        return self._context.targets[copy.goal.target].states.get(copy.goal.repository) in ("new", "missing")

    async def _for_each_repository(
        self, copies: Iterable[Copy], ask: Callable[[Repository, Sequence[Copy]], Awaitable[None]]
    ) -> None:
        """Do *ask* for the copies of each repository; they have failed where it fails."""
        by_repository: dict[Repository, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_repository[copy.repository].append(copy)

        async def one(repository: Repository, asking: Sequence[Copy]) -> None:
            try:
                with foreseen():
                    await ask(repository, asking)
            except AsyncpushError as error:
                for copy in asking:
                    self._context.failed(copy, error)

        with only_cause():
            async with anyio.create_task_group() as tg:
                for repository, asking in by_repository.items():
                    tg.start_soon(one, repository, asking)


def _is_at(stored: StoredImage, copy: Copy) -> bool:
    """Whether an image that a repository holds is where *copy* goes: under its tag, or anywhere if it has none."""
    return copy.tag is None or copy.tag == stored.tag


def _alike_together(copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
    """*copies*, as many at a time as can be compared at once; those of one reference stay together."""
    some: list[Copy] = []
    for _, alike in groupby(copies, key=lambda copy: copy.reference):
        group = list(alike)
        if some and len(some) + len(group) > _COMPARED_AT_ONCE:
            yield some
            some = []
        some += group
    if some:
        yield some


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
