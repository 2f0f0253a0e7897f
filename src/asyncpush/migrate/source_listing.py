"""What the entries of a plan ask for, and what their sources have: tags selected and resolved, manifests read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import anyio

from asyncpush.digest_set import PackedMap
from asyncpush.engine.diff import leaves
from asyncpush.errors import (
    AsyncpushError,
    ChoiceError,
    InvalidReferenceError,
    ManifestError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
    foreseen,
    only_cause,
)
from asyncpush.events import Notice, working_on
from asyncpush.migrate.ecr_sources import ArchivedImages, archived_error, reason_of
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.plan.model import Goal, PlanEntry
from asyncpush.migrate.plan.tags import choose
from asyncpush.migrate.report import Copy, CopyResult, LeftOutTag, NothingTaken, taken_text
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import Image, ImageNode, IndexNode
from asyncpush.reference import Service, destination
from asyncpush.settings import MiB
from asyncpush.single_flight import SingleFlight
from asyncpush.sources import UnreadImage, open_source
from asyncpush.sources.registry.blob import RegistryBlob
from asyncpush.units import some_text

#: Sizes above this are counted as this one: none can be real.
_LARGEST = 2**64 - 1

#: Tags that a notice lists.
_SHOWN_TAGS = 20


class SourceListing:
    """Reads the sources of a migration; what can't be read is noted as the result of its copies.

    Args:
        context: the migration.
    """

    def __init__(self, context: MigrationContext) -> None:
        self._context = context
        self._archives: SingleFlight[tuple[Image | UnreadImage, ...]] = SingleFlight()
        self._sizes = PackedMap()
        self._stored_sizes: dict[Digest, int | None] = {}

    async def copies(self, entry: PlanEntry) -> list[Copy]:
        """The copies that *entry* asks for; those of tags that it names and its source lacks have failed."""
        archived = ArchivedImages()
        if entry.kind == "local":
            tags = [image.tag or "" for image in await self._archive(entry)]
        elif named := self._named_copies(entry):
            return named
        else:
            tags = list(await self._context.tags(entry.host, entry.repository))
            archived = await self._context.ecr_sources.archived(entry.host, entry.repository)
            tags = list(dict.fromkeys((*tags, *archived.tags)))
        # A name in an archive need not be a valid tag, since the plan can give another one.
        selection = await choose(entry.tags, tags, entry.source, any_name=entry.kind == "local")
        if entry.kind == "local":
            self._check_distinct(entry, await self._archive(entry), selection.taken)
        self._context.left_out += [LeftOutTag(entry.source, tag.tag, tag.reason) for tag in selection.left_out]
        taken = self._without_archived(entry, selection.taken, archived)
        is_reported = bool(selection.missing) or len(taken) < len(selection.taken)
        self._check_taken(entry, len(taken), len(tags), is_reported=is_reported)
        for name in selection.missing:
            error = SourceNotFoundError(f"{entry.source} has no tag {name}", hint="see the plan's `tags`")
            for goal in entry.goals:
                copy = self.copy(entry, goal, name)
                self._context.start(copy)
                self._context.fail(copy, error)
        copies = [self.copy(entry, goal, tag) for tag in taken for goal in entry.goals]
        return [copy for copy in copies if self._has_valid_tag(copy)]

    def _without_archived(self, entry: PlanEntry, tags: Sequence[str], archived: ArchivedImages) -> list[str]:
        """Those of *tags* whose images can be pulled; archived ones are left out, and have failed if they are named."""
        taken: list[str] = []
        left_out: list[str] = []
        for tag in tags:
            image = archived.find(tag)
            if image is None:
                taken.append(tag)
            elif tag in entry.tags.names:
                for goal in entry.goals:
                    copy = self.copy(entry, goal, tag)
                    self._context.start(copy)
                    self._context.fail(copy, archived_error(entry, tag, image))
            else:
                left_out.append(tag)
                self._context.left_out.append(LeftOutTag(entry.source, tag, reason_of(image)))
        if left_out:
            shown = some_text(left_out, _SHOWN_TAGS)
            text = f"{entry.source}: {len(left_out)} archived tag{'s are' if len(left_out) > 1 else ' is'} left out"
            self._context.emit(Notice(f"{text} ({shown}); to copy them, restore them with update-image-storage-class"))
        return taken

    async def _explain(self, entry: PlanEntry, reference: str, error: AsyncpushError) -> AsyncpushError:
        """*error*, or if *reference* names an archived image or an index with one, the error that says so."""
        if not isinstance(error, SourceError) or isinstance(error, SourceUnavailableError):
            return error
        archived = await self._context.ecr_sources.archived(entry.host, entry.repository)
        if (image := archived.find(reference)) is not None:
            return archived_error(entry, reference, image)
        if (image := archived.named_in(error.message)) is not None:
            return archived_error(entry, image.digest, image)
        return error

    def _named_copies(self, entry: PlanEntry) -> list[Copy]:
        """The copies of an entry of a registry that names them; none if its source must be listed."""
        if entry.kind == "local" or (entry.reference is None and entry.tags.needs_listing):
            return []
        references = [entry.reference] if entry.reference else list(entry.tags.names)
        return [self.copy(entry, goal, reference) for reference in references for goal in entry.goals]

    def _has_valid_tag(self, copy: Copy) -> bool:
        """Whether a copy's tag is valid; it has failed otherwise."""
        try:
            destination(copy.goal.target.registry, copy.goal.repository, copy.tag)
        except InvalidReferenceError as error:
            self._context.start(copy)
            self._context.fail(copy, error)
            return False
        return True

    def _check_taken(self, entry: PlanEntry, taken: int, total: int, *, is_reported: bool) -> None:
        """Check that *entry* selects enough tags; note that it selects none, unless failures show that already."""
        if taken < (entry.min_tags or 0):
            raise SourceNotFoundError(
                f"{taken_text(entry, taken, total)}; it must be {entry.min_tags} or more (min_tags or --strict)",
                hint="see the plan's `tags`",
            )
        if not taken and not is_reported:
            self._context.nothing_taken[f"{entry.place} {entry.source}"] = NothingTaken(entry, total)

    def copy(self, entry: PlanEntry, goal: Goal, reference: str) -> Copy:
        """The copy of one image of *entry*, by its tag or digest at the source, to one of its goals."""
        is_digest = reference.startswith("sha256:")
        tag = goal.tag or (None if is_digest else reference or ("latest" if entry.kind == "local" else None))
        source = entry.location
        if reference and entry.reference is None:
            source = f"{entry.location}:{reference}"
        return self._copy(entry, goal, source, reference, tag)

    def fail_rest(self, entries: Iterable[PlanEntry], error: AsyncpushError) -> None:
        """Note that everything without a result has failed with *error*, which stopped the migration."""
        context = self._context
        copies = list(context.claimed)
        known = {copy.entry for copy in copies} | {result.copy.entry for result in context.results.values()}
        for entry in entries:
            if entry not in known:
                copies += self._named_copies(entry) or [self.placeholder(entry, goal) for goal in entry.goals]
        for copy in copies:
            if copy.key not in context.results and (copy.is_placeholder or context.takes(copy)):
                context.record(CopyResult(copy=copy, outcome="failed", error=error))

    def placeholder(self, entry: PlanEntry, goal: Goal) -> Copy:
        """The copy that stands for all images of *entry*, while they are unknown."""
        return replace(self._copy(entry, goal, entry.location, "", goal.tag), is_placeholder=True)

    def _copy(self, entry: PlanEntry, goal: Goal, source: str, reference: str, tag: str | None) -> Copy:
        target = self._context.targets[goal.target]
        alone = len(self._context.targets) == 1
        name = target.destination(goal.repository, tag, alone=alone)
        return Copy(entry, goal, source, reference, target.repository(goal.repository), tag, name)

    async def load_archive(self, entry: PlanEntry, copies: Iterable[Copy]) -> list[tuple[Copy, Image]]:
        """The images of a layout or archive for *copies*; copies of images that can't be read have failed."""
        images = await self._archive(entry)
        by_tag = {image.tag or "": image for image in reversed(images)}
        by_tag |= {image.tag or "": image for image in images if isinstance(image, Image)}
        loaded = []
        for copy in copies:
            image = by_tag[copy.reference]
            if isinstance(image, UnreadImage):
                self._context.fail(copy, image.error)
            else:
                loaded.append((copy, image))
        return loaded

    async def _archive(self, entry: PlanEntry) -> tuple[Image | UnreadImage, ...]:
        async def read() -> tuple[Image | UnreadImage, ...]:
            context = self._context
            opened = open_source(entry.location, context.push.settings, objects=context.objects, emit=context.emit)
            source = await self._context.archives.enter_async_context(opened)
            images = await source.all_images(platform=entry.platforms)
            self._note_absent(entry, [image for image in images if isinstance(image, Image)])
            return images

        images, _ = await self._archives.do((entry.location, entry.platforms), read)
        return images

    def _check_distinct(self, entry: PlanEntry, images: Iterable[Image | UnreadImage], tags: Collection[str]) -> None:
        """Check that no two images of an archive share one of *tags*, or have none: only one could be pushed."""
        by_tag: dict[str, Image] = {}
        for image in images:
            tag = image.tag or ""
            if isinstance(image, UnreadImage) or tag not in tags:
                continue
            other = by_tag.setdefault(tag, image)
            if other.content != image.content:
                words = f"{entry.place}: two images of {entry.location} have {f'the tag {tag}' if tag else 'no tag'}"
                raise ChoiceError(words, [other.source, image.source])
        for image in images:
            if isinstance(image, UnreadImage) and (image.tag or "") in by_tag:
                self._context.emit(Notice(f"{image.source} is left out: {image.error}"))

    async def resolve(
        self, entry: PlanEntry, copies: Iterable[Copy], known: Mapping[str, Collection[Digest]] | None = None
    ) -> dict[str, Descriptor]:
        """What each reference names at the source; copies of references that can't be read have failed.

        Args:
            entry: the entry.
            copies: its copies.
            known: what references named when they were last copied to a target: if that is unchanged, only the digest
                is requested. The manifests of the others are needed anyway, and are read.
        """
        registry = self._context.source_pool.at(entry.host)
        resolved: dict[str, Descriptor] = {}
        by_reference: dict[str, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_reference[copy.reference].append(copy)

        async def resolve(reference: str, waiting: Sequence[Copy]) -> None:
            target = Digest.parse(reference) if reference.startswith("sha256:") else reference
            try:
                with foreseen(), working_on(image=waiting[0].destination):
                    resolved[reference] = await registry.resolve(
                        entry.repository, target, (known or {}).get(reference, ())
                    )
            except AsyncpushError as error:
                explained = await self._explain(entry, reference, error)
                for copy in waiting:
                    self._context.fail(copy, explained)

        with only_cause():
            async with anyio.create_task_group() as tg:
                for reference, waiting in by_reference.items():
                    tg.start_soon(resolve, reference, waiting)
        return resolved

    async def _without_wrong_sizes(self, loaded: Sequence[tuple[Copy, Image]]) -> list[tuple[Copy, Image]]:
        """Those of *loaded* whose manifests give the right size of each blob.

        Reading a blob shows its size, but a blob that another image pushes is not read again. So where two manifests
        contradict each other, the registry is asked.
        """
        doubted: dict[Digest, RegistryBlob] = {}
        for blob in _blobs(image for _, image in loaded):
            digest, size = blob.descriptor.digest, blob.descriptor.size
            key, size = bytes.fromhex(digest.hex), min(size, _LARGEST)
            if (known := self._sizes.get(key)) is None:
                self._sizes.put(key, size)
            elif known != size and digest not in self._stored_sizes:
                doubted[digest] = blob

        async def ask(digest: Digest, blob: RegistryBlob) -> None:
            self._stored_sizes[digest] = await _stored_size(blob)

        async with anyio.create_task_group() as tg:
            for digest, blob in doubted.items():
                tg.start_soon(ask, digest, blob)
        correct: list[tuple[Copy, Image]] = []
        for copy, image in loaded:
            doubtful = _blobs([image]) if self._stored_sizes else ()
            wrong = next((blob for blob in doubtful if self._is_wrong(blob)), None)
            if wrong is None:
                correct.append((copy, image))
                continue
            actual = self._stored_sizes[wrong.descriptor.digest]
            error = ManifestError(
                f"{wrong.name} of {image.source} has {actual} bytes, and its manifest says {wrong.descriptor.size}",
                hint="the manifest is wrong; build and push the image again",
            )
            self._context.fail(copy, error)
        return correct

    def _is_wrong(self, blob: RegistryBlob) -> bool:
        return self._stored_sizes.get(blob.descriptor.digest) not in (None, blob.descriptor.size)

    async def load(
        self, entry: PlanEntry, copies: Iterable[Copy], descriptors: Mapping[str, Descriptor]
    ) -> list[tuple[Copy, Image]]:
        """Read the manifests of *copies*, each image once."""
        registry = self._context.source_pool.at(entry.host)
        by_digest: dict[Descriptor, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_digest[descriptors[copy.reference]].append(copy)
        loaded: list[tuple[Copy, Image]] = []

        async def load(descriptor: Descriptor, waiting: Sequence[Copy]) -> None:
            try:
                with foreseen(), working_on(image=waiting[0].destination):
                    # By its digest, since a HEAD may give a wrong size or type.
                    manifest = await registry.manifest(entry.repository, descriptor.digest)
                    root = await registry.load(
                        entry.repository,
                        manifest.descriptor,
                        entry.platforms,
                        push_foreign_layers=self._context.push.settings.push_foreign_layers,
                    )
                image = Image(waiting[0].source, entry.repository, waiting[0].tag, root)
                self._note_absent(entry, [image])
            except AsyncpushError as error:
                explained = await self._explain(entry, str(descriptor.digest), error)
                for copy in waiting:
                    self._context.fail(copy, explained)
                return
            notices: set[str | None] = set()
            for copy in waiting:
                try:
                    notices.add(check_limits(image, self._context.targets[copy.goal.target].registry.name.service))
                except AsyncpushError as error:
                    self._context.fail(copy, error)
                    continue
                self._context.source_digests[copy.key] = descriptor.digest
                loaded.append((copy, image))
            for notice in filter(None, notices):
                self._context.emit(Notice(notice))

        with only_cause():
            async with anyio.create_task_group() as tg:
                for descriptor, waiting in by_digest.items():
                    tg.start_soon(load, descriptor, waiting)
        return await self._without_wrong_sizes(loaded)

    def _note_absent(self, entry: PlanEntry, images: Iterable[Image]) -> None:
        for image in images:
            if isinstance(image.root, ImageNode) and len(entry.platforms) > 1:
                asked = " and ".join(map(str, entry.platforms))
                self._context.emit(Notice(f"{image.source} is for one platform, but the plan asks for {asked}"))
            for platform in _absent(image.root, entry.platforms):
                self._context.emit(Notice(f"{image.source} has no image for {platform}"))


def _blobs(images: Iterable[Image]) -> Iterator[RegistryBlob]:
    """The blobs of images in registries."""
    for image in images:
        for leaf in leaves(image.root):
            for blob in (leaf.config, *leaf.layers):
                if isinstance(blob, RegistryBlob):
                    yield blob


async def _stored_size(blob: RegistryBlob) -> int | None:
    try:
        return await blob.stored_size()
    except SourceError:
        return None  # reading it will fail and tell why


def _absent(root: ImageNode | IndexNode, wanted: Collection[Platform]) -> list[Platform]:
    """Those of *wanted* platforms that an index has no image for."""
    if not isinstance(root, IndexNode):
        return []  # it is for one of them, or would not have been loaded
    present = [child.platform for child in root.manifest.children if child.platform]
    return [platform for platform in wanted if not any(other.satisfies(platform) for other in present)]


#: ECR's limit for the size of a layer ("Amazon ECR service quotas").
MAX_LAYER_SIZE: dict[Service, int] = {"ecr": 52_000 * MiB, "ecr-public": 10_000 * MiB}

#: Layers of an image. ECR documents no limit, but has one: images of 500 layers are known to pass. So this only warns.
KNOWN_LAYERS = 500


def check_limits(image: Image, service: Service) -> str | None:
    """Check *image* against ECR's limits before any of it is sent.

    Returns:
        A notice for the user; None if there is none.

    Raises:
        ManifestError: a layer is larger than ECR allows.
    """
    notice = None
    for leaf in leaves(image.root):
        for layer in leaf.layers:
            if layer.source_size > MAX_LAYER_SIZE[service] and layer.descriptor:
                raise ManifestError(
                    f"{layer.name} of {image.source} has {layer.source_size} bytes",
                    hint=f"ECR allows layers of up to {MAX_LAYER_SIZE[service] // MiB} MiB",
                )
        if len(leaf.layers) > KNOWN_LAYERS:
            notice = f"{image.source} has {len(leaf.layers)} layers; ECR may refuse more than {KNOWN_LAYERS}"
    return notice
