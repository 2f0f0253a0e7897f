"""From the plan's entries to images that are ready to be pushed: digests compared, manifests read, ECR asked.

Images are found faster than they are sent, so that what waits for its push is bounded (``Backlog``).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from asyncpush.engine.diff import ImageDiff, KnownLayers, TaggedImage, assume_missing, diff_images, leaves, nodes
from asyncpush.engine.memory import MemoryBudget
from asyncpush.errors import AsyncpushError, RepositoryNotFoundError, foreseen, only_cause
from asyncpush.events import Listed
from asyncpush.journal import FinishedImage
from asyncpush.manifest import Manifest
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.plan.model import PlanEntry, PlanTarget
from asyncpush.migrate.report import Copy, CopyResult
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Image, ImageNode, Repository, StoredImage

#: Manifests and blobs of images that wait for their push, about 2 KiB each: 500 images of 15 layers, or 120 images for
#: 8 platforms. The image that helps the others most is chosen among them.
MAX_WAITING = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """An image that can be pushed.

    Attributes:
        image: the image.
        copies: its copies, and what each destination lacks.
    """

    image: Image
    copies: tuple[tuple[Copy, ImageDiff], ...]

    @property
    def identities(self) -> frozenset[str]:
        """The blobs to send."""
        return frozenset(blob.identity for _, diff in self.copies for blob in diff.to_send)

    @property
    def weight(self) -> int:
        """The number of its manifests and blobs."""
        return weight(self.image)


@dataclass(frozen=True, slots=True, eq=False)
class Present:
    """An image that its destination has already.

    Attributes:
        copy: the copy.
        manifest: its manifest or index, as the repository has it.
    """

    copy: Copy
    manifest: Manifest

    @property
    def weight(self) -> int:
        """The number of manifests and blobs that it names, and itself."""
        return 1 + len(self.manifest.layers) + len(self.manifest.children)


Discovered = Ready | Present


class Backlog:
    """The images that wait for their push, bounded.

    Args:
        on_full: called when an image has to wait for room.
    """

    def __init__(self, on_full: Callable[[], None]) -> None:
        self._budget = MemoryBudget(MAX_WAITING, window=0)
        self._on_full = on_full

    async def take(self, found: Discovered) -> None:
        """Wait until there is room for *found*; an image that is larger than the backlog gets all of it."""
        if self._budget.held + found.weight > self._budget.limit:
            self._on_full()
        await self._budget.take(found.weight)

    def give_back(self, found: Discovered) -> None:
        """Release the room of *found*."""
        self._budget.give_back(found.weight)


def weight(image: Image) -> int:
    """The number of manifests and blobs of an image."""
    return sum(1 for _ in nodes(image.root)) + sum(1 + len(leaf.layers) for leaf in leaves(image.root))


T = TypeVar("T")

#: Entries that are processed at once; each requests many tags and manifests at a time.
_ENTRIES_AT_ONCE = 16

#: Copies of an entry that are compared at once; one BatchGetImage takes as many.
COMPARED_AT_ONCE = 100

#: Images of an entry that are read at once, and the number of blobs after which ECR is asked what it lacks.
READ_AT_ONCE = 8
BLOBS_AT_ONCE = 500


class Discovery:
    """Finds out what each entry of a plan has to push; a failure is the result of its copies.

    Args:
        context: the migration.
        found: takes each image that is found.
        backlog: bounds how many of them wait.
    """

    def __init__(self, context: MigrationContext, found: MemoryObjectSendStream[Discovered], backlog: Backlog) -> None:
        self._context = context
        self._found = found
        self._backlog = backlog
        self._turns = anyio.Semaphore(_ENTRIES_AT_ONCE)
        self._listing = SourceListing(context)
        self._unlisted = Counter[str]()
        self._repositories = 0

    async def discover(self, entries: Iterable[PlanEntry]) -> None:
        """Find out what *entries* have to push, many entries at once."""

        async def discover(group: EntryGroup) -> None:
            try:
                try:
                    if self._context.is_ending:
                        return
                    listed = [await self._list_copies(entry) for entry in group.entries]
                    for earlier in group.before:
                        await earlier.claimed.wait()
                    pending = [copy for copies in listed for copy in copies or () if self._context.claim(copy)]
                finally:
                    group.claimed.set()
                started = await self._start(group.entries[0], pending)
                self._note_listed(group.entries)
                if any(copies is not None for copies in listed):
                    await self._discover_copies(group.entries[0], started)
            finally:
                self._turns.release()

        with only_cause():
            async with anyio.create_task_group() as tg:
                for group in group_entries(entries):
                    await self._turns.acquire()
                    tg.start_soon(discover, group)

    async def rediscover(self, copies: Mapping[PlanEntry, Sequence[Copy]]) -> None:
        """Find out again what these copies have to push."""

        async def discover(entry: PlanEntry, batch: Sequence[Copy]) -> None:
            try:
                await self._discover_copies(entry, await self._start(entry, batch))
            finally:
                self._turns.release()

        with only_cause():
            async with anyio.create_task_group() as tg:
                for entry, batch in copies.items():
                    await self._turns.acquire()
                    tg.start_soon(discover, entry, batch)

    def expect(self, entries: Iterable[PlanEntry]) -> None:
        """Learn which entries will be discovered in all."""
        self._unlisted = Counter(map(_repository_of, entries))
        self._repositories = len(self._unlisted)
        self._context.emit(Listed(0, self._repositories))

    def _note_listed(self, entries: Iterable[PlanEntry]) -> None:
        """Emit how many repositories are listed, if *entries* are the last of one."""
        before = len(self._unlisted)
        for entry in entries:
            repository = _repository_of(entry)
            self._unlisted[repository] -= 1
            if not self._unlisted[repository]:
                del self._unlisted[repository]
        if len(self._unlisted) < before:
            self._context.emit(Listed(self._repositories - len(self._unlisted), self._repositories))

    async def _start(self, entry: PlanEntry, copies: Sequence[Copy]) -> Sequence[Copy]:
        """Start those of *copies* that an interrupted run did not finish."""
        unfinished = await self._skip_finished(entry, copies)
        for copy in unfinished:
            self._context.start(copy)
        return unfinished

    async def _discover_copies(self, entry: PlanEntry, started: Sequence[Copy]) -> None:
        """Find out what *started* have to push; they are of one entry, or of several with the source of *entry*."""
        pending = [copy for copy in started if not self._is_refused(copy)]
        if entry.kind == "local":
            await self._diff_all(await self._load_archive(entry, pending), {})
            return
        missing: dict[Descriptor, list[Copy]] = defaultdict(list)
        stored: dict[Repository, list[StoredImage]] = defaultdict(list)
        for batch in _by_reference(pending):
            if self._context.is_ending:
                return
            await self._compare(entry, batch, missing, stored)
        await self._read(entry, missing, stored)

    async def _compare(
        self,
        entry: PlanEntry,
        copies: Sequence[Copy],
        missing: dict[Descriptor, list[Copy]],
        stored: dict[Repository, list[StoredImage]],
    ) -> None:
        """Compare source and targets; add copies to *missing*, and what the repositories have to *stored*."""
        found = await self._find_stored(copies)
        pending = [copy for copy in copies if copy.repository in found]
        known: dict[str, set[Digest]] = defaultdict(set)
        for copy in pending:
            source_digests = (
                self._source_digest_of(copy, image) for image in found[copy.repository] if _is_at(image, copy)
            )
            known[copy.reference].update(filter(None, source_digests))
        descriptors = await self._listing.resolve(entry, pending, known)
        wanted = set()
        for copy in pending:
            descriptor = descriptors.get(copy.reference)
            if descriptor is not None and not await self._is_present(copy, descriptor, found):
                missing[descriptor].append(copy)
                wanted.add(descriptor.digest)
        for repository, images in found.items():
            # The manifests of other images are not needed any more: it is enough to know that they exist.
            stored[repository] += [
                image if entry.platforms or image.digest in wanted else replace(image, manifest=None)
                for image in images
            ]

    async def _read(
        self,
        entry: PlanEntry,
        missing: Mapping[Descriptor, Sequence[Copy]],
        stored: Mapping[Repository, Sequence[StoredImage]],
    ) -> None:
        """Read the manifests of *missing* images and hand the images over, a bounded number at once."""
        loaded: list[tuple[Copy, Image]] = []
        blobs = 0
        descriptors = {copy.reference: descriptor for descriptor, copies in missing.items() for copy in copies}
        for batch in _batches(list(missing.values()), READ_AT_ONCE):
            if self._context.is_ending:
                return
            read = await self._listing.load(entry, [copy for copies in batch for copy in copies], descriptors)
            loaded += read
            blobs += sum(map(weight, {id(image): image for _, image in read}.values()))
            if blobs >= BLOBS_AT_ONCE:
                await self._diff_all(loaded, stored)
                loaded, read, blobs = [], [], 0
        await self._diff_all(loaded, stored)

    async def _list_copies(self, entry: PlanEntry) -> list[Copy] | None:
        """The copies of *entry*; None if its source can't be listed: then its placeholders have failed."""
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

    # What an interrupted run finished, and what can't be pushed

    async def _skip_finished(self, entry: PlanEntry, copies: Sequence[Copy]) -> Sequence[Copy]:
        """Those of *copies* that an interrupted run did not finish, or that have changed at their source since."""
        journal = self._context.journal
        if journal is None or self._context.options.recheck:
            return copies
        finished = {copy: journal.finished[copy.key] for copy in copies if copy.key in journal.finished}
        for copy in finished:
            self._context.attempts[copy.key] += 1
        now = await self._digests_now(entry, finished)
        unchanged = {copy for copy, image in finished.items() if copy in now and image.source_digest == now[copy]}
        for copy in unchanged:
            self._context.record(CopyResult(copy=copy, outcome="finished", digest=finished[copy].digest))
        return [copy for copy in copies if copy not in unchanged and (copy not in finished or copy in now)]

    async def _digests_now(self, entry: PlanEntry, finished: Mapping[Copy, FinishedImage]) -> dict[Copy, Digest | None]:
        """The digest of each copy at its source now, by one HEAD each; copies that can't be resolved have failed."""
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
        """The images that the repositories have under the copies' tags; one request asks for a hundred."""
        stored: dict[Repository, Sequence[StoredImage]] = {}

        async def find(repository: Repository, group: Sequence[Copy]) -> None:
            if self._is_empty(group[0]):
                stored[repository] = ()
                return
            tags = {copy.tag for copy in group if copy.tag}
            digests = {Digest.parse(copy.reference) for copy in group if copy.tag is None}
            since = time.monotonic()
            try:
                stored[repository] = await repository.find_images(tags=tags, digests=digests)
            except RepositoryNotFoundError as error:
                await self._create(group[0], error, since)
                stored[repository] = ()

        await self._for_each_repository(copies, find)
        return stored

    async def _create(self, copy: Copy, error: RepositoryNotFoundError, since: float) -> None:
        """Create a repository that could not be described before, or was deleted."""
        context, goal = self._context, copy.goal
        if not context.options.dry:
            await context.create_repository(copy, error, since)
        elif copy.entry.create:
            context.targets[goal.target].states[goal.repository] = "missing"
        else:
            raise error

    async def _is_present(
        self, copy: Copy, descriptor: Descriptor, stored: Mapping[Repository, Sequence[StoredImage]]
    ) -> bool:
        candidates = [image for image in stored.get(copy.repository, ()) if _is_at(image, copy)]
        match = next((image for image in candidates if self._source_digest_of(copy, image) == descriptor.digest), None)
        if match is None or match.manifest is None:
            return False
        self._context.source_digests[copy.key] = descriptor.digest
        self._context.distributor.mark_referenced(copy.repository, (blob.digest for blob in match.manifest.blobs()))
        await self._hand_over(Present(copy, match.manifest))
        return True

    def _source_digest_of(self, copy: Copy, stored: StoredImage) -> Digest | None:
        """The digest of *copy* at its source if *stored* was made from it; None if that is unknown."""
        if not copy.entry.platforms:
            return stored.digest
        # The index with only some platforms is known once it was pushed.
        journal = self._context.journal
        known = journal.known_images(copy.repository.address).get(copy.tag or "") if journal else None
        if known is None or (known.digest, known.choice) != (stored.digest, copy.choice):
            return None
        return known.source_digest

    async def _diff_all(
        self, loaded: Sequence[tuple[Copy, Image]], stored: Mapping[Repository, Sequence[StoredImage]]
    ) -> None:
        """Ask each repository what it lacks of its images, and hand over the images that can be pushed."""
        images = dict(loaded)
        diffs: dict[Copy, ImageDiff] = {}

        async def compare(repository: Repository, group: Sequence[Copy]) -> None:
            if self._is_empty(group[0]):
                diffs.update({copy: assume_missing(images[copy]) for copy in group})
                return
            known = KnownLayers.of(self._context.journal, repository)
            wanted = [TaggedImage(images[copy], copy.tag) for copy in group]
            since = time.monotonic()
            try:
                found = await diff_images(wanted, repository, known, stored=stored.get(repository))
            except RepositoryNotFoundError as error:
                await self._create(group[0], error, since)
                diffs.update({copy: assume_missing(images[copy]) for copy in group})
                return
            for copy, diff in zip(group, found, strict=True):
                if isinstance(diff, ImageDiff):
                    diffs[copy] = diff
                else:
                    self._context.fail(copy, diff)

        await self._for_each_repository(images, compare)
        together: dict[int, list[tuple[Copy, ImageDiff]]] = defaultdict(list)
        for copy, diff in diffs.items():
            together[id(images[copy])].append((copy, diff))
        for group in together.values():
            image = images[group[0][0]]
            for copy, _ in group:
                self._context.source_digests.setdefault(copy.key, source_digest(image))
            await self._hand_over(Ready(image, tuple(group)))

    async def _hand_over(self, found: Discovered) -> None:
        await self._backlog.take(found)
        await self._found.send(found)

    def _is_empty(self, copy: Copy) -> bool:
        """Whether the copy's repository must be empty: it is new, or does not exist yet."""
        return self._context.targets[copy.goal.target].states.get(copy.goal.repository) in ("new", "missing")

    async def _for_each_repository(
        self, copies: Iterable[Copy], ask: Callable[[Repository, Sequence[Copy]], Awaitable[None]]
    ) -> None:
        """Call *ask* with the copies of each repository; if it fails, the copies have failed."""
        by_repository: dict[Repository, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_repository[copy.repository].append(copy)

        async def call(repository: Repository, group: Sequence[Copy]) -> None:
            try:
                with foreseen():
                    await ask(repository, group)
            except AsyncpushError as error:
                for copy in group:
                    self._context.fail(copy, error)

        with only_cause():
            async with anyio.create_task_group() as tg:
                for repository, group in by_repository.items():
                    tg.start_soon(call, repository, group)


def source_digest(image: Image) -> Digest | None:
    """The digest that identifies an image of an archive: its manifest's, or if that is not built yet, its config's."""
    if image.root.manifest is not None:
        return image.root.manifest.digest
    config = image.root.config.descriptor if isinstance(image.root, ImageNode) else None
    return config.digest if config else None


def _is_at(stored: StoredImage, copy: Copy) -> bool:
    """Whether a stored image is where *copy* goes: under its tag, or anywhere if it has none."""
    return copy.tag is None or copy.tag == stored.tag


def _by_reference(copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
    """*copies* in batches that can be compared at once; copies of one reference stay together."""
    batch: list[Copy] = []
    for _, alike in groupby(copies, key=lambda copy: copy.reference):
        group = list(alike)
        if batch and len(batch) + len(group) > COMPARED_AT_ONCE:
            yield batch
            batch = []
        batch += group
    if batch:
        yield batch


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


#: Lines of a list that are processed together: as many tags as one BatchGetImage takes.
_LINES_TOGETHER = 100


@dataclass(slots=True, eq=False)
class EntryGroup:
    """Entries that are processed together: one, or lines of a list with the same source and destinations.

    Attributes:
        entries: the entries, in the plan's order.
        before: groups that claim some of its destinations first: of two images for one, the plan's first gets it.
        claimed: set when its destinations are claimed.
    """

    entries: list[PlanEntry]
    before: Collection[EntryGroup]
    claimed: anyio.Event = field(default_factory=anyio.Event)

    def takes(self, entry: PlanEntry) -> bool:
        """Whether *entry* can be processed with these: a line is one image, and one request asks for many."""
        first = self.entries[0]
        return len(self.entries) < _LINES_TOGETHER and _source_of(first) == _source_of(entry) is not None


def _source_of(entry: PlanEntry) -> tuple[object, ...] | None:
    """What entries that are processed together have in common; None for an entry that is processed alone."""
    if entry.kind == "local" or entry.reference is None:
        return None
    return entry.host, entry.repository, entry.platforms, [(goal.target, goal.repository) for goal in entry.goals]


def _repository_of(entry: PlanEntry) -> str:
    """The repository, layout or archive of an entry."""
    return entry.location if entry.kind == "local" else f"{entry.host}/{entry.repository}"


def group_entries(entries: Iterable[PlanEntry]) -> list[EntryGroup]:
    """*entries* in groups, such that each destination is claimed in the plan's order."""
    groups: list[EntryGroup] = []
    latest: dict[tuple[PlanTarget, str], EntryGroup] = {}
    for entry in entries:
        destinations = [(goal.target, goal.repository) for goal in entry.goals]
        before = list(dict.fromkeys(latest[destination] for destination in destinations if destination in latest))
        if len(before) == 1 and before[0].takes(entry):
            before[0].entries.append(entry)
            continue
        groups.append(EntryGroup([entry], before))
        latest.update(dict.fromkeys(destinations, groups[-1]))
    return groups
