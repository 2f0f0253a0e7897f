"""What is known of one repository: its manifests and blobs, asked for together, and the verdict on each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import anyio
from anyio import CapacityLimiter, to_thread

from asyncpush.engine.decompress import SMALL_WINDOW_LOG, WINDOW_LOG
from asyncpush.errors import ConnectionFailedError, ManifestError, ServiceError
from asyncpush.manifest import Manifest, is_foreign, parse_manifest
from asyncpush.model import Descriptor, Digest, LayerBytes
from asyncpush.protocols import NotHeld, RepositoryReader, StoredBlob, StoredManifest
from asyncpush.settings import MAX_INDEX_DEPTH
from asyncpush.sources.loader import ImageConfig
from asyncpush.verify.diff_ids import ConfigBytes, LayerHash, Uncompressed, compare, has_diff_ids, is_tar_layer
from asyncpush.verify.results import Problem, Verification, VerificationTarget

#: What a server of blobs answers about one blob; any other error is about all of them.
_OF_ONE_BLOB = frozenset({"LayersNotFoundException", "LayerInaccessibleException", "UnableToGetUpstreamLayerException"})


@dataclass(frozen=True, slots=True)
class _Node:
    """A manifest as it was found: what it names, or what is wrong with it."""

    digest: Digest | None = None
    size: int = 0
    manifest: Manifest | None = None
    problem: Problem | None = None

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """The manifests that it names."""
        return self.manifest.children if self.manifest else ()

    @property
    def blobs(self) -> Iterator[tuple[str, Descriptor]]:
        """The blobs that ECR must have of it, and what they are."""
        if self.manifest and self.manifest.config:
            yield "config", self.manifest.config
        for layer in self.manifest.layers if self.manifest else ():
            if not is_foreign(layer):
                yield "layer", layer


@dataclass(slots=True)
class _Read:
    """What was read of one repository's blobs."""

    blobs: dict[Digest, LayerBytes | Problem] = field(default_factory=dict)
    uncompressed: dict[Digest, Uncompressed] = field(default_factory=dict)
    configs: dict[Digest, ImageConfig | None] = field(default_factory=dict)


class RepositoryContent:
    """What is known of one repository: manifests by what they were asked for, and blobs by digest.

    Args:
        reader: reads the repository.
        reads: how many blobs may be read at once; None reads none.
    """

    def __init__(self, reader: RepositoryReader, reads: CapacityLimiter | None) -> None:
        self._reader = reader
        self._reads = reads
        self._nodes: dict[str | Digest, _Node] = {}
        self._blobs: dict[Digest, StoredBlob | NotHeld] = {}
        self._read = _Read()
        self._large = anyio.Lock()

    async def load(self, references: set[str | Digest]) -> None:
        """Ask for these manifests and all that they name, level by level; then for all blobs."""
        for _ in range(MAX_INDEX_DEPTH + 1):
            answers = await self._reader.manifests(references)
            # A large index takes milliseconds to hash and parse.
            nodes = await to_thread.run_sync(_judge_all, answers)
            self._nodes |= nodes
            named = {child.digest for node in nodes.values() for child in node.children}
            references = {digest for digest in named if digest not in self._nodes}
            if not references:
                break
        sizes = {blob.digest: blob.size for node in self._nodes.values() for _, blob in node.blobs}
        self._blobs |= await self._reader.blobs(sizes)
        if self._reads is None:
            return
        images = [node.manifest for node in self._nodes.values() if node.manifest and has_diff_ids(node.manifest)]
        configs = {image.config.digest for image in images if image.config}
        layers = {layer.digest for image in images for layer in image.layers if is_tar_layer(layer)} - configs
        async with anyio.create_task_group() as tg:
            # The largest first: one that is left for the end would run alone.
            for digest in sorted(sizes, key=sizes.__getitem__, reverse=True):
                if not isinstance(self._blobs[digest], StoredBlob):
                    continue
                if digest in configs:
                    tg.start_soon(self._read_config, digest, self._reads)
                elif digest in layers:
                    tg.start_soon(self._read_layer, digest, self._reads)
                else:
                    tg.start_soon(self._read_blob, digest, self._reads)

    def verdict(self, target: VerificationTarget) -> Verification:
        """What was found of *target*."""
        root = self._nodes[target.reference]
        walk = _Walk(self._nodes, self._blobs, self._read if self._reads else None)
        if root.digest and target.digest not in (None, root.digest):
            subject = f"{target} is" if isinstance(target.reference, Digest) else f"tag {target.reference} names"
            detail = f"and not {target.digest}"
            walk.problems[Problem("unexpected", subject, root.digest, detail)] = None
        walk.shape(root, target)
        walk.node(root)
        return Verification(
            str(target),
            root.digest,
            len(walk.manifests),
            len(walk.blobs),
            sum(walk.manifests.values()) + sum(walk.blobs.values()),
            tuple(walk.problems),
            deep=self._reads is not None,
            notes=tuple(walk.notes),
        )

    async def _read_config(self, digest: Digest, reads: CapacityLimiter) -> None:
        config = ConfigBytes()
        if await self._read_blob(digest, reads, config.update):
            self._read.configs[digest] = await to_thread.run_sync(config.finish)

    async def _read_layer(self, digest: Digest, reads: CapacityLimiter) -> None:
        layer = await self._unpack(digest, reads, SMALL_WINDOW_LOG)
        if layer.is_too_large:
            # It is read again: each of these may take 128 MiB, however small it is.
            async with self._large:
                await self._unpack(digest, reads, WINDOW_LOG)

    async def _unpack(self, digest: Digest, reads: CapacityLimiter, window_log: int) -> LayerHash:
        layer = LayerHash(window_log)
        if read := await self._read_blob(digest, reads, layer.update):
            self._read.uncompressed[digest] = await to_thread.run_sync(layer.finish, read.digest)
        return layer

    async def _read_blob(
        self, digest: Digest, reads: CapacityLimiter, also: Callable[[bytes], None] | None = None
    ) -> LayerBytes | None:
        """Read a blob; None if that can't be done, or if its bytes are not those of its digest."""
        async with reads:
            try:
                read = self._read.blobs[digest] = await self._reader.read_blob(digest, also)
            except ConnectionFailedError as error:
                self._read.blobs[digest] = Problem("unreadable", "", digest, f"can't be read: {error}")
            except ServiceError as error:
                if error.code not in _OF_ONE_BLOB and not error.code.startswith("HTTP"):
                    raise
                kind: Literal["missing", "unreadable"]
                kind = "missing" if error.code == "LayersNotFoundException" else "unreadable"
                self._read.blobs[digest] = Problem(kind, "", digest, f"can't be read: {error}")
            else:
                return read if read.digest == digest else None
        return None


@dataclass(slots=True)
class _Walk:
    """A walk over one image: what is good of it, by digest with its size, and what is not, in order."""

    nodes: Mapping[str | Digest, _Node]
    stored: Mapping[Digest, StoredBlob | NotHeld]
    read: _Read | None
    manifests: dict[Digest, int] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    problems: dict[Problem, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def shape(self, root: _Node, target: VerificationTarget) -> None:
        """See that *root* has the config, and as many layers, of such types, as are wanted."""
        if target.config is None or root.digest is None or root.manifest is None:
            return
        config, layers = root.manifest.config, len(root.manifest.layers)
        types = tuple(layer.media_type for layer in root.manifest.layers)
        if config is None or config.digest != target.config:
            detail = f"with {f'the config {config.digest}' if config else 'no config'} and not {target.config}"
        elif layers != target.layers:
            detail = f"with {layers} layers and not {target.layers}"
        elif target.layer_types and types != target.layer_types:
            there, wanted = next((a, b) for a, b in zip(types, target.layer_types, strict=True) if a != b)
            detail = f"with a layer of type {there} and not {wanted} (see --compression)"
        else:
            return
        self._note(Problem("unexpected", f"tag {target.reference} names", root.digest, detail))

    def node(self, node: _Node) -> None:
        """Look at a manifest and all that it names."""
        if node.problem:
            self.problems[node.problem] = None
        if node.digest is None or node.problem or node.digest in self.manifests:
            return
        self.manifests[node.digest] = node.size
        for child in node.children:
            there = self.nodes.get(child.digest)
            if there is None:
                self._note(Problem("unreadable", "manifest", child.digest, "lies too deep in indexes to be looked at"))
            elif there.digest and there.size != child.size:
                self._note(_other_size("manifest", child, there.size))
            else:
                self.node(there)
        contradicted = self._contradicted(node.manifest) if node.manifest else {}
        for subject, blob in node.blobs:
            if problem := next(self._problems(subject, blob), contradicted.get(blob.digest)):
                self._note(problem)
            else:
                self.blobs[blob.digest] = blob.size

    def _contradicted(self, image: Manifest) -> dict[Digest | None, Problem]:
        """The blobs of an image whose config and layers contradict one another."""
        found: dict[Digest | None, Problem] = {}
        if self.read is None or image.config is None or image.config.digest not in self.read.configs:
            return found
        said = self.read.configs[image.config.digest]
        for each in compare(image.config, said, image.layers, self.read.uncompressed):
            if isinstance(each, Problem):
                found.setdefault(each.digest, each)
            else:
                self.notes[each] = None
        return found

    def _problems(self, subject: str, blob: Descriptor) -> Iterator[Problem]:
        there = self.stored[blob.digest]
        if isinstance(there, NotHeld):
            yield Problem("missing", subject, blob.digest, f"is missing ({_said(there)})")
            return
        if there.size not in (None, blob.size):
            yield _other_size(subject, blob, there.size)
        if self.read is None:
            return
        read = self.read.blobs[blob.digest]
        if isinstance(read, Problem):
            yield replace(read, subject=subject)
        elif read.size != blob.size:
            yield _other_size(subject, blob, read.size)
        elif read.digest != blob.digest:
            detail = f"is damaged: its bytes have the digest {read.digest}"
            yield Problem("damaged", subject, blob.digest, detail, stays=True)

    def _note(self, problem: Problem) -> None:
        self.problems[problem] = None


def _judge_all(answers: Mapping[str | Digest, StoredManifest | NotHeld]) -> dict[str | Digest, _Node]:
    return {reference: _judge(reference, answer) for reference, answer in answers.items()}


def _judge(reference: str | Digest, answer: StoredManifest | NotHeld) -> _Node:
    """Parse a manifest; blocking, for as long as its bytes take to hash."""
    subject = "manifest" if isinstance(reference, Digest) else f"tag {reference}"
    asked = reference if isinstance(reference, Digest) else None
    if isinstance(answer, NotHeld):
        return _Node(problem=Problem("missing", subject, asked, f"is missing ({_said(answer)})"))
    if (own := Digest.of(answer.raw)) != answer.digest:
        problem = Problem("damaged", "manifest", answer.digest, f"is damaged: its bytes have the digest {own}")
        return _Node(answer.digest, len(answer.raw), problem=problem)
    try:
        manifest = parse_manifest(answer.raw, media_type=answer.media_type, name="it")
    except ManifestError as error:
        problem = Problem("unreadable", "manifest", answer.digest, f"can't be read: {error}")
        return _Node(answer.digest, len(answer.raw), problem=problem)
    return _Node(manifest.digest, len(manifest.raw), replace(manifest, raw=b""))  # there may be very many


def _other_size(subject: str, descriptor: Descriptor, actual: int | None) -> Problem:
    detail = f"is damaged: it has {actual} bytes, and what points at it says {descriptor.size}"
    return Problem("damaged", subject, descriptor.digest, detail)


def _said(answer: NotHeld) -> str:
    return f"{answer.code}: {answer.reason}" if answer.reason else answer.code
