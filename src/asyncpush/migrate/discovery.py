"""From the plan's entries to images that are ready to be pushed: digests compared, manifests read, ECR asked.

Images are found faster than they are sent, so that what waits for its push is bounded (``Room``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from asyncpush.engine.diff import ImageDiff, KnownLayers, WantedImage, assume_missing, diff_images, leaves, nodes
from asyncpush.engine.memory import MemoryBudget
from asyncpush.errors import AsyncpushError, RepositoryNotFoundError, foreseen, only_cause
from asyncpush.journal import FinishedImage
from asyncpush.manifest import Manifest
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.plan.model import PlanEntry, PlanTarget
from asyncpush.migrate.report import Copy, CopyResult
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.migrate.targets import create_by_push
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Image, ImageNode, Repository, StoredImage

#: Manifests and blobs of images that are found and not pushed yet, about 2 KiB each. Among so many that image is looked
#: for that helps the others most: 500 images of 15 layers, or 120 for 8 platforms.
MAX_WAITING = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """An image that can go.

    Attributes:
        image: the image.
        copies: where it goes, and what is missing there.
    """

    image: Image
    copies: tuple[tuple[Copy, ImageDiff], ...]

    @property
    def identities(self) -> frozenset[str]:
        """The blobs that are to be sent."""
        return frozenset(blob.identity for _, plan in self.copies for blob in plan.to_send)

    @property
    def weight(self) -> int:
        """Its manifests and blobs."""
        return weight(self.image)


@dataclass(frozen=True, slots=True, eq=False)
class Present:
    """An image that is there already.

    Attributes:
        copy: where it is.
        manifest: its manifest or index, as the repository has it.
    """

    copy: Copy
    manifest: Manifest

    @property
    def weight(self) -> int:
        """Its manifest, and what that names."""
        return 1 + len(self.manifest.layers) + len(self.manifest.children)


Discovered = Ready | Present


class Backlog:
    """Room for what waits.

    Args:
        on_full: called when something has to wait for room.
    """

    def __init__(self, on_full: Callable[[], None]) -> None:
        self._budget = MemoryBudget(MAX_WAITING, window=0)
        self._on_full = on_full

    async def take(self, found: Discovered) -> None:
        """Wait until there is room for *found*; one that is larger than all of it has it alone."""
        if self._budget.held + found.weight > self._budget.limit:
            self._on_full()
        await self._budget.take(found.weight)

    def give_back(self, found: Discovered) -> None:
        """Hear that *found* is done with."""
        self._budget.give_back(found.weight)


def weight(image: Image) -> int:
    """The manifests and blobs of an image."""
    return sum(1 for _ in nodes(image.root)) + sum(1 + len(leaf.layers) for leaf in leaves(image.root))


T = TypeVar("T")

#: Entries that are looked into at once; each asks for its tags and manifests many at a time.
_ENTRIES_AT_ONCE = 16

#: Copies of an entry that are compared at once; a BatchGetImage takes as many.
COMPARED_AT_ONCE = 100

#: Images of an entry that are read at once, and blobs of them after which ECR is asked what it lacks.
READ_AT_ONCE = 8
BLOBS_AT_ONCE = 500


class Discovery:
    """Looks into the entries of a plan; what fails is noted as the result of its copies.

    Args:
        context: the migration.
        found: hears of what there is to do, as it is found.
        room: for what is found.
    """

    def __init__(self, context: MigrationContext, found: MemoryObjectSendStream[Discovered], backlog: Backlog) -> None:
        self._context = context
        self._found = found
        self._backlog = backlog
        self._turns = anyio.Semaphore(_ENTRIES_AT_ONCE)
        self._listing = SourceListing(context)

    async def discover(self, entries: Iterable[PlanEntry]) -> None:
        """Look into *entries*, many at once."""

        async def one(group: EntryGroup) -> None:
            try:
                try:
                    asked = [await self._list_copies(entry) for entry in group.entries]
                    for earlier in group.before:
                        await earlier.claimed.wait()
                    going = [copy for copies in asked for copy in copies or () if self._context.claim(copy)]
                finally:
                    group.claimed.set()
                if any(copies is not None for copies in asked):
                    await self._discover_copies(group.entries[0], going)
            finally:
                self._turns.release()

        with only_cause():
            async with anyio.create_task_group() as tg:
                for group in group_entries(entries):
                    await self._turns.acquire()
                    tg.start_soon(one, group)

    async def rediscover(self, copies: Mapping[PlanEntry, Sequence[Copy]]) -> None:
        """Find out what there is to do for *copies*, by their entries."""

        async def one(entry: PlanEntry, some: Sequence[Copy]) -> None:
            try:
                await self._discover_copies(entry, some)
            finally:
                self._turns.release()

        with only_cause():
            async with anyio.create_task_group() as tg:
                for entry, some in copies.items():
                    await self._turns.acquire()
                    tg.start_soon(one, entry, some)

    async def _discover_copies(self, entry: PlanEntry, copies: Sequence[Copy]) -> None:
        """Find out what there is to do for *copies*, all of one entry, or of several of one source like *entry*."""
        going = await self._skip_finished(entry, copies)
        for copy in going:
            self._context.start(copy)
        going = [copy for copy in going if not self._is_refused(copy)]
        if entry.kind == "local":
            await self._plan_all(await self._load_archive(entry, going), {})
            return
        missing: dict[Descriptor, list[Copy]] = defaultdict(list)
        stored: dict[Repository, list[StoredImage]] = defaultdict(list)
        for some in _alike_together(going):
            await self._compare(entry, some, missing, stored)
        await self._read(entry, missing, stored)

    async def _compare(
        self,
        entry: PlanEntry,
        copies: Sequence[Copy],
        missing: dict[Descriptor, list[Copy]],
        stored: dict[Repository, list[StoredImage]],
    ) -> None:
        """Compare source and targets: those of *copies* that are *missing* are noted, and what is *stored*."""
        found = await self._find_stored(copies)
        going = [copy for copy in copies if copy.repository in found]
        there: dict[str, set[Digest]] = defaultdict(set)
        for copy in going:
            brought = (self._brought_from(copy, each) for each in found[copy.repository] if _is_at(each, copy))
            there[copy.reference].update(filter(None, brought))
        descriptors = await self._listing.resolve(entry, going, there)
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
        entry: PlanEntry,
        missing: Mapping[Descriptor, Sequence[Copy]],
        stored: Mapping[Repository, Sequence[StoredImage]],
    ) -> None:
        """Read the manifests of what is *missing*, and hand it over, no more at once than fits in memory."""
        loaded: list[tuple[Copy, Image]] = []
        blobs = 0
        descriptors = {copy.reference: descriptor for descriptor, copies in missing.items() for copy in copies}
        for some in _batches(list(missing.values()), READ_AT_ONCE):
            read = await self._listing.load(entry, [copy for copies in some for copy in copies], descriptors)
            loaded += read
            blobs += sum(map(weight, {id(image): image for _, image in read}.values()))
            if blobs >= BLOBS_AT_ONCE:
                await self._plan_all(loaded, stored)
                loaded, read, blobs = [], [], 0
        await self._plan_all(loaded, stored)

    async def _list_copies(self, entry: PlanEntry) -> list[Copy] | None:
        """The copies that *entry* asks for; None if that can't be learnt: then one that stands for all has failed."""
        placeholders = [self._listing.placeholder(entry, goal) for goal in entry.goals]
        try:
            with foreseen():
                copies = await self._listing.copies(entry)
        except AsyncpushError as error:
            self._context.unlisted.add(entry)
            for copy in placeholders:
                self._context.start(copy)
                self._context.fail(copy, error)
            return None
        if entry in self._context.unlisted:
            self._context.unlisted.remove(entry)
            for copy in placeholders:
                self._context.results.pop(copy.key, None)
        return copies

    async def _load_archive(self, entry: PlanEntry, copies: Sequence[Copy]) -> Sequence[tuple[Copy, Image]]:
        try:
            with foreseen():
                return await self._listing.load_archive(entry, copies)
        except AsyncpushError as error:
            for copy in copies:
                self._context.fail(copy, error)
            return ()

    # What is done, or can't be done

    async def _skip_finished(self, entry: PlanEntry, copies: Sequence[Copy]) -> Sequence[Copy]:
        """Those of *copies* that an interrupted run has not finished, or that have moved at their source since."""
        journal = self._context.journal
        if journal is None or self._context.options.recheck:
            return copies
        finished = {copy: journal.finished[copy.key] for copy in copies if copy.key in journal.finished}
        for copy in finished:
            self._context.attempts[copy.key] += 1
        now = await self._digests_now(entry, finished)
        unmoved = {copy for copy, image in finished.items() if copy in now and image.source_digest == now[copy]}
        for copy in unmoved:
            self._context.record(CopyResult(copy=copy, outcome="finished", digest=finished[copy].digest))
        return [copy for copy in copies if copy not in unmoved and (copy not in finished or copy in now)]

    async def _digests_now(self, entry: PlanEntry, finished: Mapping[Copy, FinishedImage]) -> dict[Copy, Digest | None]:
        """What each copy is at its source now, for one HEAD each; those that can't be asked for have failed."""
        if entry.kind == "local":
            loaded = await self._load_archive(entry, list(finished))
            return {copy: source_digest(image) for copy, image in loaded}
        moving = {copy: image for copy, image in finished.items() if not copy.reference.startswith("sha256:")}
        before: dict[str, set[Digest]] = defaultdict(set)
        for copy, image in moving.items():
            before[copy.reference].update([image.source_digest] if image.source_digest else [])
        descriptors = await self._listing.resolve(entry, moving, before) if moving else {}
        now = {copy: descriptors[copy.reference].digest for copy in moving if copy.reference in descriptors}
        return {**{copy: image.source_digest for copy, image in finished.items() if copy not in moving}, **now}

    def _is_refused(self, copy: Copy) -> bool:
        failure = self._context.targets[copy.goal.target].failures.get(copy.goal.repository)
        if failure is not None:
            self._context.fail(copy, failure)
        return failure is not None

    # What the targets have

    async def _find_stored(self, copies: Iterable[Copy]) -> dict[Repository, Sequence[StoredImage]]:
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
            await context.push.created.do(copy.repository.address, create)
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
        self._context.source_digests[copy.key] = descriptor.digest
        self._context.distributor.mark_referenced(copy.repository, (blob.digest for blob in match.manifest.blobs()))
        await self._hand_over(Present(copy, match.manifest))
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
        plans: dict[Copy, ImageDiff] = {}

        async def one(repository: Repository, asking: Sequence[Copy]) -> None:
            if self._is_empty(asking[0]):
                plans.update({copy: assume_missing(images[copy]) for copy in asking})
                return
            memory = KnownLayers.of(self._context.journal, repository)
            wanted = [WantedImage(images[copy], copy.tag) for copy in asking]
            try:
                found = await diff_images(wanted, repository, memory, found=stored.get(repository))
            except RepositoryNotFoundError as error:
                await self._create(asking[0], error)
                plans.update({copy: assume_missing(images[copy]) for copy in asking})
                return
            for copy, plan in zip(asking, found, strict=True):
                if isinstance(plan, ImageDiff):
                    plans[copy] = plan
                else:
                    self._context.fail(copy, plan)

        await self._for_each_repository(images, one)
        together: dict[int, list[tuple[Copy, ImageDiff]]] = defaultdict(list)
        for copy, plan in plans.items():
            together[id(images[copy])].append((copy, plan))
        for group in together.values():
            image = images[group[0][0]]
            for copy, _ in group:
                self._context.source_digests.setdefault(copy.key, source_digest(image))
            await self._hand_over(Ready(image, tuple(group)))

    async def _hand_over(self, found: Discovered) -> None:
        await self._backlog.take(found)
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
                    self._context.fail(copy, error)

        with only_cause():
            async with anyio.create_task_group() as tg:
                for repository, asking in by_repository.items():
                    tg.start_soon(one, repository, asking)


def source_digest(image: Image) -> Digest | None:
    """What tells an image of an archive from others: its manifest's digest; its config's if that is yet to be built."""
    if image.root.manifest is not None:
        return image.root.manifest.digest
    config = image.root.config.descriptor if isinstance(image.root, ImageNode) else None
    return config.digest if config else None


def _is_at(stored: StoredImage, copy: Copy) -> bool:
    """Whether an image that a repository holds is where *copy* goes: under its tag, or anywhere if it has none."""
    return copy.tag is None or copy.tag == stored.tag


def _alike_together(copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
    """*copies*, as many at a time as can be compared at once; those of one reference stay together."""
    some: list[Copy] = []
    for _, alike in groupby(copies, key=lambda copy: copy.reference):
        group = list(alike)
        if some and len(some) + len(group) > COMPARED_AT_ONCE:
            yield some
            some = []
        some += group
    if some:
        yield some


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


#: Lines of a list that are looked into together: as many tags as one BatchGetImage takes.
_LINES_TOGETHER = 100


@dataclass(slots=True, eq=False)
class EntryGroup:
    """Entries that are looked into together: one, or lines of a list that bring images of one source to one place.

    Attributes:
        entries: the entries, in the plan's order.
        before: the groups that go to some of its places first: of two images for one place the plan's first has it.
        claimed: set when its places are claimed.
    """

    entries: list[PlanEntry]
    before: Collection[EntryGroup]
    claimed: anyio.Event = field(default_factory=anyio.Event)

    def takes(self, entry: PlanEntry) -> bool:
        """Whether *entry* can be looked into with these: a line is one image, and a request asks for many."""
        first = self.entries[0]
        return len(self.entries) < _LINES_TOGETHER and _source_of(first) == _source_of(entry) is not None


def _source_of(entry: PlanEntry) -> tuple[object, ...] | None:
    """What entries have in common that are looked into together; None for those that are looked into alone."""
    if entry.kind == "local" or entry.reference is None:
        return None
    return entry.host, entry.repository, entry.platforms, [(goal.target, goal.repository) for goal in entry.goals]


def group_entries(entries: Iterable[PlanEntry]) -> list[EntryGroup]:
    """*entries* in groups, so that each place is claimed in the plan's order."""
    groups: list[EntryGroup] = []
    latest: dict[tuple[PlanTarget, str], EntryGroup] = {}
    for entry in entries:
        places = [(goal.target, goal.repository) for goal in entry.goals]
        before = list(dict.fromkeys(latest[place] for place in places if place in latest))
        if len(before) == 1 and before[0].takes(entry):
            before[0].entries.append(entry)
            continue
        groups.append(EntryGroup([entry], before))
        latest.update(dict.fromkeys(places, groups[-1]))
    return groups
