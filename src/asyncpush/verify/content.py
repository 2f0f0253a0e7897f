"""The content of one repository: its manifests and blobs, read together, and the verdict on each image.

A deep verification compares each layer's uncompressed bytes with the diff id that the image's config names, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import anyio
from anyio import CapacityLimiter, to_thread

from asyncpush.engine.decompress import SMALL_WINDOW_LOG, WINDOW_LOG, CorruptError, LargeWindowError, UnpackedHash
from asyncpush.errors import ConnectionFailedError, ManifestError, ServiceError
from asyncpush.manifest import DOCKER_CONFIG, OCI_CONFIG, Manifest, is_foreign, parse_manifest
from asyncpush.model import Descriptor, Digest, LayerBytes
from asyncpush.protocols import NotHeld, RepositoryReader, StoredBlob, StoredManifest
from asyncpush.settings import MAX_INDEX_DEPTH
from asyncpush.sources.blobs import MAX_DOCUMENT_SIZE
from asyncpush.sources.detection import HEAD_SIZE, sniff
from asyncpush.sources.loader import ImageConfig, parse_config
from asyncpush.verify.results import Problem, Verification, VerificationTarget

#: Error codes that concern one blob; any other error concerns all of them.
_OF_ONE_BLOB = frozenset({"LayersNotFoundException", "LayerInaccessibleException", "UnableToGetUpstreamLayerException"})


@dataclass(frozen=True, slots=True)
class _Node:
    """A manifest as it was found: its content, or its problem."""

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
        """The blobs that ECR must have, each with ``config`` or ``layer``."""
        if self.manifest and self.manifest.config:
            yield "config", self.manifest.config
        for layer in self.manifest.layers if self.manifest else ():
            if not is_foreign(layer):
                yield "layer", layer


@dataclass(slots=True)
class _Read:
    """What was read from the blobs of a repository."""

    blobs: dict[Digest, LayerBytes | Problem] = field(default_factory=dict)
    uncompressed: dict[Digest, Uncompressed] = field(default_factory=dict)
    configs: dict[Digest, ImageConfig | None] = field(default_factory=dict)


class RepositoryContent:
    """The content of one repository: manifests by tag or digest, and blobs by digest.

    Args:
        reader: reads the repository.
        reads: how many blobs are read at once; None to read none.
    """

    def __init__(self, reader: RepositoryReader, reads: CapacityLimiter | None) -> None:
        self._reader = reader
        self._reads = reads
        self._nodes: dict[str | Digest, _Node] = {}
        self._blobs: dict[Digest, StoredBlob | NotHeld] = {}
        self._read = _Read()
        self._large = anyio.Lock()

    async def load(self, references: set[str | Digest]) -> None:
        """Read these manifests and everything that they name, level by level; then look up or read all blobs."""
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
            # Start with the largest: at the end, it would be read alone.
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
        """The verification of *target*."""
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
            # Read it again, one at a time: each may take 128 MiB of memory, however small it is.
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
        """Read a blob; None if it can't be read, or does not match its digest."""
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
    """A walk over one image; it collects sizes of what is right by digest, and the problems in order."""

    nodes: Mapping[str | Digest, _Node]
    stored: Mapping[Digest, StoredBlob | NotHeld]
    read: _Read | None
    manifests: dict[Digest, int] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    problems: dict[Problem, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def shape(self, root: _Node, target: VerificationTarget) -> None:
        """Check that *root* has the config, and the number and types of layers, that *target* expects."""
        if target.config is None or root.digest is None or root.manifest is None:
            return
        config, layers = root.manifest.config, len(root.manifest.layers)
        types = tuple(layer.media_type for layer in root.manifest.layers)
        if config is None or config.digest != target.config:
            detail = f"with {f'the config {config.digest}' if config else 'no config'} and not {target.config}"
        elif layers != target.layers:
            detail = f"with {layers} layers and not {target.layers}"
        elif target.layer_types and types != target.layer_types:
            actual, expected = next((a, b) for a, b in zip(types, target.layer_types, strict=True) if a != b)
            detail = f"with a layer of type {actual} and not {expected} (see --compression)"
        else:
            return
        self._note(Problem("unexpected", f"tag {target.reference} names", root.digest, detail))

    def node(self, node: _Node) -> None:
        """Check a manifest and everything that it names."""
        if node.problem:
            self.problems[node.problem] = None
        if node.digest is None or node.problem or node.digest in self.manifests:
            return
        self.manifests[node.digest] = node.size
        for child in node.children:
            found = self.nodes.get(child.digest)
            if found is None:
                self._note(
                    Problem("unreadable", "manifest", child.digest, "is nested too deeply in indexes to be checked")
                )
            elif found.digest and found.size != child.size:
                self._note(_other_size("manifest", child, found.size))
            else:
                self.node(found)
        contradicted = self._contradicted(node.manifest) if node.manifest else {}
        for subject, blob in node.blobs:
            if problem := next(self._problems(subject, blob), contradicted.get(blob.digest)):
                self._note(problem)
            else:
                self.blobs[blob.digest] = blob.size

    def _contradicted(self, image: Manifest) -> dict[Digest | None, Problem]:
        """The problems between the config and the layers of an image, by blob."""
        found: dict[Digest | None, Problem] = {}
        if self.read is None or image.config is None or image.config.digest not in self.read.configs:
            return found
        config = self.read.configs[image.config.digest]
        for finding in compare(image.config, config, image.layers, self.read.uncompressed):
            if isinstance(finding, Problem):
                found.setdefault(finding.digest, finding)
            else:
                self.notes[finding] = None
        return found

    def _problems(self, subject: str, blob: Descriptor) -> Iterator[Problem]:
        stored = self.stored[blob.digest]
        if isinstance(stored, NotHeld):
            yield Problem("missing", subject, blob.digest, f"is missing ({_reason(stored)})")
            return
        if stored.size not in (None, blob.size):
            yield _other_size(subject, blob, stored.size)
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
    digest = reference if isinstance(reference, Digest) else None
    if isinstance(answer, NotHeld):
        return _Node(problem=Problem("missing", subject, digest, f"is missing ({_reason(answer)})"))
    if (actual := Digest.of(answer.raw)) != answer.digest:
        problem = Problem("damaged", "manifest", answer.digest, f"is damaged: its bytes have the digest {actual}")
        return _Node(answer.digest, len(answer.raw), problem=problem)
    try:
        manifest = parse_manifest(answer.raw, media_type=answer.media_type, name="it")
    except ManifestError as error:
        problem = Problem("unreadable", "manifest", answer.digest, f"can't be read: {error}")
        return _Node(answer.digest, len(answer.raw), problem=problem)
    return _Node(manifest.digest, len(manifest.raw), replace(manifest, raw=b""))  # there may be very many


def _other_size(subject: str, descriptor: Descriptor, actual: int | None) -> Problem:
    detail = f"is damaged: it has {actual} bytes, but its descriptor says {descriptor.size}"
    return Problem("damaged", subject, descriptor.digest, detail)


def _reason(answer: NotHeld) -> str:
    return f"{answer.code}: {answer.reason}" if answer.reason else answer.code


#: Types of configs that have diff ids if the layers are those of a file system; cosign and BuildKit reuse the types.
_IMAGE_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_TAR_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?)"
)

#: Types of all layers of file systems, including those that asyncpush can't read: encrypted and future ones.
_FILE_SYSTEM = re.compile(r"application/vnd\.(?:oci\.image\.layer|docker\.image\.rootfs)\..+")


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """The digest of an uncompressed layer, or why it is unknown.

    Attributes:
        digest: the digest of the uncompressed bytes.
        damage: the damage of the bytes, if there is any.
        unknown: why asyncpush can't uncompress them.
    """

    digest: Digest | None = None
    damage: str = ""
    unknown: str = ""


class LayerHash:
    """Uncompresses and hashes the bytes of a layer; call it in worker threads.

    The first bytes tell the compression, as for clients that pull the layer, since media types are often wrong.

    Args:
        window_log: the largest window, as a power of 2.

    Attributes:
        is_too_large: the window is larger; the result is invalid.
    """

    def __init__(self, window_log: int = WINDOW_LOG) -> None:
        self.is_too_large = False
        self._window_log = window_log
        self._head = bytearray()
        self._is_plain = False
        self._unpacked: UnpackedHash | None = None
        self._outcome: Uncompressed | None = None

    def update(self, block: bytes) -> None:
        """Take the next bytes; damage is part of the result."""
        if self._outcome is not None or self._is_plain:
            return
        if self._unpacked is None:
            self._head += block
            if len(self._head) < HEAD_SIZE:
                return
            block = self._begin()
        self._add(block)

    def finish(self, own: Digest) -> Uncompressed:
        """The result; *own* is the digest of the bytes as they are."""
        if self._outcome is None and not self._is_plain and self._unpacked is None:
            self._add(self._begin())
        if self._unpacked is not None and self._outcome is None:
            try:
                self._outcome = Uncompressed(self._unpacked.finish())
            except CorruptError as error:
                self._outcome = Uncompressed(damage=str(error))
        return self._outcome or Uncompressed(own)

    def _begin(self) -> bytes:
        head, self._head = bytes(self._head), bytearray()
        packing = sniff(head)
        if packing is None:
            self._is_plain = True
        elif packing == "gzip" or packing == "zstd":
            self._unpacked = UnpackedHash(packing, self._window_log)
        else:
            self._outcome = Uncompressed(unknown=f"is compressed with {packing}")
        return head

    def _add(self, block: bytes) -> None:
        if self._unpacked is None or self._outcome is not None:
            return
        try:
            self._unpacked.update(memoryview(block))
        except CorruptError as error:
            self._outcome = Uncompressed(damage=str(error))
            self.is_too_large = isinstance(error, LargeWindowError)
            self._unpacked.close()


class ConfigBytes:
    """Collects the bytes of a config, up to the largest size of a config."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._is_too_long = False

    def update(self, block: bytes) -> None:
        """Take the next bytes."""
        self._is_too_long = self._is_too_long or len(self._kept) + len(block) > MAX_DOCUMENT_SIZE
        self._kept = bytearray() if self._is_too_long else self._kept + block

    def finish(self) -> ImageConfig | None:
        """The config; None if it is not the config of an image."""
        try:
            return None if self._is_too_long else parse_config(bytes(self._kept), "it")
        except ManifestError:
            return None


def has_diff_ids(manifest: Manifest) -> bool:
    """Whether *manifest* is that of an image whose config should have a diff id for each layer."""
    return (
        manifest.config is not None
        and manifest.config.media_type in _IMAGE_CONFIGS
        and any(_FILE_SYSTEM.fullmatch(layer.media_type) for layer in manifest.layers)
    )


def is_tar_layer(layer: Descriptor) -> bool:
    """Whether *layer* is a layer of a file system, which has a diff id."""
    return _TAR_LAYER.fullmatch(layer.media_type) is not None


def compare(
    descriptor: Descriptor,
    config: ImageConfig | None,
    layers: Sequence[Descriptor],
    read: Mapping[Digest, Uncompressed],
) -> Iterator[Problem | str]:
    """Compare the layers of an image with its config.

    Args:
        descriptor: the config's descriptor.
        config: the config; None if it can't be read.
        layers: all layers of the image.
        read: the uncompressed digests of layers that were read and match their digests.

    Yields:
        Problems, and messages about what could not be compared.
    """
    if config is None:
        yield f"config {descriptor.digest} can't be read: no layer was compared with its diff id"
        return
    if not config.diff_ids:
        yield f"config {descriptor.digest} has no diff ids: no layer was compared with its diff id"
        return
    if len(config.diff_ids) != len(layers):
        detail = f"is damaged: it has {len(config.diff_ids)} diff ids, but the manifest has {len(layers)} layers"
        yield Problem("damaged", "config", descriptor.digest, detail)
        return
    for layer, diff_id in zip(layers, config.diff_ids, strict=True):
        if not is_tar_layer(layer):
            if not is_foreign(layer):
                yield f"layer {layer.digest} is of type {layer.media_type[:100]}: it was not compared with its diff id"
        elif layer.digest in read:
            yield from _compare(layer, diff_id, read[layer.digest])


def _compare(layer: Descriptor, diff_id: str, found: Uncompressed) -> Iterator[Problem | str]:
    if found.damage:
        yield Problem("damaged", "layer", layer.digest, f"is damaged: {found.damage}")
    elif found.digest is None:
        yield f"layer {layer.digest} {found.unknown}: it was not compared with its diff id"
    elif not diff_id.startswith("sha256:"):
        yield f"layer {layer.digest} has the diff id {diff_id[:100]!r}, which is not sha256: they were not compared"
    elif str(found.digest) != diff_id:
        detail = f"is damaged: its uncompressed bytes have the digest {found.digest}, but the config says {diff_id}"
        yield Problem("damaged", "layer", layer.digest, detail)
