"""What the store holds, as tables of bounded length, at the cost of what has changed since the last look."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import anyio.lowlevel

from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.records import ImageRecord
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store
from asyncpush.emulator.store.uploads import StagedUpload
from asyncpush.model import Digest

#: Rows of each table.
REPOSITORIES = 500
IMAGES = 50
LAYERS = 50
UPLOADS = 100

#: Rows of one repository's own table of images.
IMAGES_OF_ONE = 200

#: Tags of an image, and repositories of a layer, that a row names.
_NAMES = 8

#: Layers or images that are looked at before others get their turn in the event loop.
_TURN = 200

Row = dict[str, object]


class Inventory:
    """Follows a store's repositories and uploads: an update takes in only what has changed.

    Its memory grows with the layers of the store; whoever has no more readers drops it.

    Args:
        store: the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[RepositoryState, _Seen] = {}
        self._holders: dict[str, list[RepositoryState]] = {}
        self._sizes: dict[str, int] = {}
        self._uses: Counter[str] = Counter()
        self._shared: set[str] = set()
        self._bytes = self._saved = 0
        self._most_shared: list[str] | None = None
        self._moves: dict[str, _Move] = {}
        self._looked = 0

    async def update(self) -> None:
        """Take in what has changed; others get their turn in between."""
        current = [state for held in self._store.repositories.values() for state in held.values()]
        for gone in self._seen.keys() - set(current):
            await self._forget(gone)
        for state in current:
            await self._look_at(state)

    def totals(self) -> dict[str, int]:
        """How much there is: bytes of different layers, and those that images save by sharing them."""
        return {
            "repositories": len(self._seen),
            "images": sum(len(state.images) for state in self._seen),
            "tags": sum(len(state.tags) for state in self._seen),
            "layers": len(self._sizes),
            "bytes": self._bytes,
            "saved": self._saved,
            "uploads": len(self._store.uploads),
        }

    def repositories(self) -> Row:
        """A row for each repository, the one with the last push first."""
        chosen = heapq.nlargest(REPOSITORIES, self._seen, key=_changed_at)
        return _table((self._repository(state) for state in chosen), len(self._seen))

    def images(self) -> Row:
        """A row for each of the newest images of all repositories."""
        # The newest images are in the repositories with the last pushes.
        repositories = heapq.nlargest(IMAGES, self._seen, key=_changed_at)
        images = ((image, state) for state in repositories for image in islice(reversed(state.images.values()), IMAGES))
        newest = heapq.nlargest(IMAGES, images, key=lambda pair: pair[0].pushed_at)
        rows = (self._image(state, image) for image, state in newest)
        return _table(rows, sum(len(state.images) for state in self._seen))

    def images_of(self, key: int) -> Row | None:
        """A row for each of the newest images of one repository; None if there is none with this key."""
        state = next((state for state in self._seen if state.key == key), None)
        if state is None:
            return None
        newest = islice(reversed(state.images.values()), IMAGES_OF_ONE)
        return _table((self._image(state, image) for image in newest), len(state.images))

    def shared_layers(self) -> Row:
        """A row for each layer, config blobs included, that several images name; the largest saving first."""
        if self._most_shared is None:
            self._most_shared = heapq.nlargest(LAYERS, self._shared, key=self._saving)
        return _table((self._layer(layer) for layer in self._most_shared), len(self._shared))

    def uploads(self) -> Row:
        """A row for each upload in flight, the one that moved last first."""
        now, uploads = time.time(), self._store.uploads
        self._moves = {upload_id: move for upload_id, move in self._moves.items() if upload_id in uploads}
        for upload_id, upload in uploads.items():
            self._moves.setdefault(upload_id, _Move(upload.record.created_at)).follow(upload.record.received, now)
        names = {state.key: state for state in self._seen}
        chosen = heapq.nlargest(UPLOADS, uploads.values(), key=lambda upload: self._moves[upload.id].at)
        return _table((_upload(each, self._moves[each.id], names) for each in chosen), len(uploads))

    async def _look_at(self, state: RepositoryState) -> None:
        """Take in what is new in a repository."""
        seen = self._seen.setdefault(state, _Seen())
        # Layers are added at the end, and stay as long as the repository.
        layers = list(islice(state.layers.items(), seen.layers, None))
        # Replaced as a whole by each change; put after its layers, so these are all known.
        old, new = seen.images, state.images
        for digest, size in layers:
            await self._take_turn()
            self._add_layer(str(digest), size, state)
        seen.layers += len(layers)
        seen.bytes += sum(size for _, size in layers)
        if old is not new:
            for digest in new.keys() - old.keys():
                await self._take_turn()
                self._use(new[digest], +1)
            for digest in old.keys() - new.keys():
                await self._take_turn()
                self._use(old[digest], -1)
            seen.images = new

    def _add_layer(self, layer: str, size: int, holder: RepositoryState) -> None:
        if layer not in self._holders:
            self._holders[layer] = []
            self._sizes[layer] = size
            self._bytes += size
        self._holders[layer].append(holder)
        self._most_shared = None

    def _use(self, image: ImageRecord, change: int) -> None:
        """Count an image at its layers."""
        self._most_shared = None
        for layer in {blob.digest for blob in (*image.manifest.blobs, *image.manifest.foreign)}:
            if layer not in self._sizes:
                continue
            before = self._saving(layer)
            self._uses[layer] += change
            self._saved += self._saving(layer) - before
            if self._uses[layer] > 1:
                self._shared.add(layer)
            else:
                self._shared.discard(layer)

    async def _forget(self, state: RepositoryState) -> None:
        seen = self._seen.pop(state)
        for image in seen.images.values():
            await self._take_turn()
            self._use(image, -1)
        for digest in islice(state.layers, seen.layers):
            await self._take_turn()
            layer = str(digest)
            self._holders[layer].remove(state)
            if not self._holders[layer]:
                self._bytes -= self._sizes.pop(layer)
                del self._holders[layer], self._uses[layer]

    async def _take_turn(self) -> None:
        """Let others have the event loop now and then."""
        self._looked += 1
        if self._looked % _TURN == 0:
            await anyio.lowlevel.checkpoint()

    def _saving(self, layer: str) -> int:
        return self._sizes[layer] * max(self._uses[layer] - 1, 0)

    def _repository(self, state: RepositoryState) -> Row:
        seen = self._seen[state]
        return {
            "key": state.key,
            "name": state.name,
            "registry": _registry_name(state.registry),
            "images": len(state.images),
            "tags": len(state.tags),
            "layers": seen.layers,
            "bytes": seen.bytes,
            "changedAt": round(_changed_at(state)),
        }

    def _image(self, state: RepositoryState, image: ImageRecord) -> Row:
        tags = self._seen[state].tags_of(state).get(image.manifest.digest, [])
        manifest = image.manifest
        kind = "index" if manifest.children else "artifact" if manifest.subject else "image"
        return {
            "repository": state.name,
            "registry": _registry_name(state.registry),
            "tags": tags[:_NAMES],
            "moreTags": max(len(tags) - _NAMES, 0),
            "digest": str(manifest.digest),
            "kind": kind,
            "parts": len(manifest.children) if kind == "index" else manifest.layer_count,
            "bytes": sum(blob.size for blob in manifest.blobs),
            "pushedAt": round(image.pushed_at),
        }

    def _layer(self, layer: str) -> Row:
        holders = self._holders[layer]
        return {
            "digest": layer,
            "bytes": self._sizes[layer],
            "images": self._uses[layer],
            "repositories": len(holders),
            "saved": self._saving(layer),
            "names": [state.name for state in holders[:_NAMES]],
        }


@dataclass(slots=True)
class _Seen:
    """What was taken in of a repository."""

    layers: int = 0
    bytes: int = 0
    images: Mapping[Digest, ImageRecord] = field(default_factory=dict)
    _tags: dict[str, Digest] = field(default_factory=dict)
    _tags_by_image: dict[Digest, list[str]] = field(default_factory=dict)

    def tags_of(self, state: RepositoryState) -> dict[Digest, list[str]]:
        """The tags of each image; sorted only if they have changed, which replaces them as a whole."""
        if self._tags is not state.tags:
            self._tags, self._tags_by_image = state.tags, state.tags_by_image()
        return self._tags_by_image


@dataclass(slots=True)
class _Move:
    """How an upload moves: when it grew last, and how fast."""

    at: float
    received: int = 0
    rate: float = 0.0
    _looked: float = 0.0

    def follow(self, received: int, now: float) -> None:
        if received > self.received:
            self.rate = (received - self.received) / (now - self._looked) if self._looked else 0.0
            self.received, self.at = received, now
        else:
            self.rate = 0.0
        self._looked = now


def _upload(upload: StagedUpload, move: _Move, repositories: Mapping[int, RepositoryState]) -> Row:
    state = repositories.get(upload.record.repository)
    return {
        "id": upload.id,
        "repository": state.name if state else "",
        "registry": _registry_name(state.registry) if state else "",
        "bytes": upload.record.received,
        "parts": upload.record.parts,
        "rate": round(move.rate),
        "startedAt": round(upload.record.created_at),
        "movedAt": round(move.at),
    }


def _changed_at(state: RepositoryState) -> float:
    """When the last image came, or the repository itself; images are in order."""
    last = next(reversed(state.images.values()), None)
    return max(last.pushed_at if last else 0.0, state.record.created_at)


def _registry_name(registry: RegistryId) -> str:
    return " ".join(part for part in (registry.service, registry.account, registry.region) if part)


def _table(rows: Iterable[Row], total: int) -> Row:
    """Rows, and how many more there are."""
    chosen = list(rows)
    return {"rows": chosen, "left": total - len(chosen)}
