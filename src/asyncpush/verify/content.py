"""The content of one repository: its manifests and records of blobs, read together, and the verdict on each image.

A deep verification compares each layer's uncompressed bytes with the diff id that the image's config names, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from anyio import to_thread

from asyncpush.errors import ManifestError
from asyncpush.manifest import Manifest, is_foreign, parse_manifest
from asyncpush.model import ARCHIVED, Descriptor, Digest
from asyncpush.protocols import NotHeld, RepositoryReader, StoredBlob, StoredManifest
from asyncpush.settings import MAX_INDEX_DEPTH
from asyncpush.verify.diff_ids import compare
from asyncpush.verify.reading import ReadBlobs
from asyncpush.verify.results import Problem, Verification, VerificationTarget


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


class RepositoryContent:
    """The content of one repository: manifests by tag or digest, and ECR's records of blobs by digest.

    Args:
        reader: reads the repository.
    """

    def __init__(self, reader: RepositoryReader) -> None:
        self._reader = reader
        self._nodes: dict[str | Digest, _Node] = {}
        self._blobs: dict[Digest, StoredBlob | NotHeld] = {}

    async def load(self, references: set[str | Digest]) -> None:
        """Read these manifests and everything that they name, level by level; then look up all blobs."""
        for _ in range(MAX_INDEX_DEPTH + 1):
            answers = await self._reader.manifests(references)
            # A large index takes milliseconds to hash and parse.
            nodes = await to_thread.run_sync(_judge_all, answers)
            self._nodes |= nodes
            named = {child.digest for node in nodes.values() for child in node.children}
            references = {digest for digest in named if digest not in self._nodes}
            if not references:
                break
        self._blobs |= await self._reader.blobs(
            {blob.digest for node in self._nodes.values() for _, blob in node.blobs}
        )

    @property
    def manifests(self) -> Iterator[Manifest]:
        """The manifests that could be read."""
        return (node.manifest for node in self._nodes.values() if node.manifest)

    def digest(self, target: VerificationTarget) -> Digest | None:
        """What *target* names; None if there is nothing."""
        return self._nodes[target.reference].digest

    def blobs(self, target: VerificationTarget) -> dict[Digest, int]:
        """The blobs of *target* that ECR has, and their sizes."""
        ahead, seen = [self._nodes[target.reference]], set[Digest]()
        sizes: dict[Digest, int] = {}
        while ahead:
            node = ahead.pop()
            sizes |= {
                blob.digest: blob.size for _, blob in node.blobs if isinstance(self._blobs[blob.digest], StoredBlob)
            }
            children = {child.digest for child in node.children if child.digest in self._nodes} - seen
            seen |= children
            ahead += [self._nodes[child] for child in children]
        return sizes

    def verdict(self, target: VerificationTarget, read: ReadBlobs | None) -> Verification:
        """The verification of *target*, of whose blobs *read* has the bytes; None if they were not read."""
        root = self._nodes[target.reference]
        walk = _Walk(self._nodes, self._blobs, read)
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
            deep=read is not None,
            notes=tuple(walk.notes),
        )


@dataclass(slots=True)
class _Walk:
    """A walk over one image; it collects sizes of what is right by digest, and the problems in order."""

    nodes: Mapping[str | Digest, _Node]
    stored: Mapping[Digest, StoredBlob | NotHeld]
    read: ReadBlobs | None
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
        kind: Literal["archived", "missing"] = "archived" if answer.code == ARCHIVED else "missing"
        return _Node(problem=Problem(kind, subject, digest, f"is {kind} ({_reason(answer)})"))
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
