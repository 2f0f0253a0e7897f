"""The corpus of ``migrate``: repositories in two registries, with much that they share; the same for the same seed.

Base layers belong to most repositories, middle layers to groups of them, and the rest to one repository or tag. Sizes
are spread evenly on a logarithmic scale, or more to its small end: many layers are small, and a few have most bytes.
Every fourth repository calls its last image ``latest``, too; every eighth holds indexes of two platforms; of every
fifth, one image is signed: by referrers (OCI 1.1) where the registry knows them, or by a tag, as cosign does it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

KiB, MiB = 1024, 1024 * 1024

#: The smallest layer's size.
_LEAST = 10 * KiB

#: Where a repository is served from: docker-registry, or the emulator.
Host = Literal["registry", "emulator"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a corpus is made of.

    Attributes:
        seed: of everything that looks like chance.
        size: bytes of all layers, each counted once; real images among them.
        repositories: how many; every other one is the emulator's.
        tags: of all of them; signatures' tags come on top.
        images: an OCI layout of real images, which take the place of some; empty for none.
        largest: bytes of a layer at most; a third of all where that is less.
    """

    seed: int = 1
    size: int = 600_000_000
    repositories: int = 40
    tags: int = 120
    images: str = ""
    largest: int = 30 * MiB


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to make: what its bytes are drawn from, where its size may begin on the scale (0 to 1), and its size."""

    name: str
    least: float
    size: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest of the corpus.

    Attributes:
        digest: of its bytes.
        media_type: its media type.
        blobs: sizes in bytes by digest: the config's and the layers'.
        children: the manifests that an index names.
        subject: what a referrer refers to; empty otherwise.
    """

    digest: str
    media_type: str
    blobs: dict[str, int] = field(default_factory=dict)
    children: tuple[str, ...] = ()
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the corpus: where it is, and all that it holds.

    Attributes:
        name: its name at the source; the last component is its own.
        host: which source.
        tags: digests by tag.
        signatures: digests by tag of what cosign has put beside the images.
        manifests: all, referrers among them.
    """

    name: str
    host: Host
    tags: dict[str, str]
    signatures: dict[str, str]
    manifests: tuple[Manifest, ...]

    @property
    def target(self) -> str:
        """Its name at the target."""
        return f"mirror/{self.name.rpartition('/')[2]}"

    @property
    def referrers(self) -> tuple[Manifest, ...]:
        """The manifests that no tag leads to."""
        return tuple(manifest for manifest in self.manifests if manifest.subject)

    def blobs(self, *, with_referrers: bool = True) -> dict[str, int]:
        """Sizes in bytes by digest."""
        chosen = (each for each in self.manifests if with_referrers or not each.subject)
        return {digest: size for manifest in chosen for digest, size in manifest.blobs.items()}


@dataclass(frozen=True, slots=True)
class Corpus:
    """All of it."""

    recipe: Recipe
    repositories: tuple[Repository, ...]

    @property
    def tags(self) -> int:
        """How many tags there are, those of signatures left out."""
        return sum(len(repository.tags) for repository in self.repositories)

    def unique_bytes(self, *, with_referrers: bool = True) -> int:
        """Bytes of all blobs, each counted once."""
        return sum(self.blobs(with_referrers=with_referrers).values())

    def repository_bytes(self) -> int:
        """Bytes of all blobs, each counted once a repository: what must be sent where nothing can be mounted."""
        return sum(sum(repository.blobs().values()) for repository in self.repositories)

    def blobs(self, *, with_referrers: bool = True) -> dict[str, int]:
        """Sizes in bytes by digest."""
        found: dict[str, int] = {}
        for repository in self.repositories:
            found |= repository.blobs(with_referrers=with_referrers)
        return found


@dataclass(slots=True)
class Drawing:
    """A repository as it is drawn: its images' layers before there are any bytes; one tuple a platform."""

    name: str
    host: Host
    images: dict[str, tuple[tuple[Layer, ...], ...]]
    alias: str = ""
    signed: str = ""
    real: dict[str, str] = field(default_factory=dict)


def draw(recipe: Recipe, real_tags: Sequence[str] = (), real_bytes: int = 0) -> list[Drawing]:
    """Draw a corpus: which images have which layers, and how large those are."""
    drawings = [_draw_repository(number, tags) for number, tags in enumerate(_tags_of(recipe))]
    for number, tag in enumerate(real_tags):
        # Each into a repository of either source.
        for drawing in drawings[2 * number : 2 * number + 2]:
            first = next(iter(drawing.images))
            drawing.real[first] = tag
            drawing.images[first] = ()
    sizes = _sizes(recipe, drawings, recipe.size - real_bytes)
    for drawing in drawings:
        for tag, platforms in drawing.images.items():
            drawing.images[tag] = tuple(
                tuple(Layer(layer.name, layer.least, sizes[layer.name]) for layer in layers) for layers in platforms
            )
    return drawings


def _tags_of(recipe: Recipe) -> list[int]:
    """How many tags each repository has: 1 to 5, and what is left over or too much from the last ones on."""
    counts = [1 + number % 5 for number in range(recipe.repositories)]
    place = 0
    while (rest := recipe.tags - sum(counts)) != 0:
        place = (place - 1) % len(counts)
        counts[place] = max(1, counts[place] + (1 if rest > 0 else -1))
    return counts


def _draw_repository(number: int, tags: int) -> Drawing:
    platforms = 2 if number % 8 == 3 else 1
    names = [f"1.{tag}" for tag in range(tags)]
    alias = names.pop() if number % 4 == 0 and tags > 1 else ""
    images = {
        tag: tuple(_draw_layers(number, tag, position, platform) for platform in range(platforms))
        for position, tag in enumerate(names)
    }
    return Drawing(
        f"team-{number % 7}/app-{number:02}",
        "emulator" if number % 2 else "registry",
        images,
        alias="latest" if alias else "",
        signed=names[0] if number % 5 == 1 else "",
    )


def _draw_layers(number: int, tag: str, position: int, platform: int) -> tuple[Layer, ...]:
    base, group = f"base-{(number // 2 + platform) % 4}", f"group-{number // 2 % 10}-{platform}"
    own = f"app-{number}-{platform}"
    return (
        Layer(f"{base}-system", 0.9),
        *(Layer(f"{base}-{part}", 0.4) for part in range(2)),
        *(Layer(f"{group}-{part}", 0.3) for part in range(2)),
        *(Layer(f"{own}-{part}", 0.0) for part in range(1 + number % 2)),
        *(Layer(f"{own}-{tag}-{part}", 0.0) for part in range(1 + (number + position) % 2)),
    )


def _sizes(recipe: Recipe, drawings: Sequence[Drawing], total: int) -> dict[str, int]:
    """Sizes of all layers by name, which together have *total* bytes as nearly as the limits of a layer allow."""
    least = {layer.name: layer.least for drawing in drawings for layer in _layers(drawing)}
    chance = random.Random(f"{recipe.seed}/sizes")
    drawn = {name: chance.uniform(low, 1) for name, low in least.items()}
    largest = max(_LEAST * 2, min(recipe.largest, total // 3))

    def scaled(power: float) -> dict[str, int]:
        return {name: int(_LEAST * (largest / _LEAST) ** (share**power)) for name, share in drawn.items()}

    low, high = 0.05, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(scaled(middle).values()) > total else (low, middle)
    return scaled(high)


def _layers(drawing: Drawing) -> Iterator[Layer]:
    for platforms in drawing.images.values():
        for layers in platforms:
            yield from layers
