"""Make a corpus and fill two registries with it, once; or find it where an earlier run has left it."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from corpus import Corpus, Drawing, Host, Layer, Manifest, Recipe, Repository, draw
from documents import (
    config,
    cosign_signature,
    image,
    index,
    read_blob,
    real_images,
    real_manifest,
    referrer,
    signature_tag,
    simple_signing,
)
from endpoints import UnavailableError
from v2 import Registry, digest_of

#: Blobs that are pushed at a time: as many as make a machine of two cores busy.
_AT_A_TIME = 4

_ARCHITECTURES = ("amd64", "arm64")
_SBOM_SIZE = 150_000


def place_of(folder: Path, recipe: Recipe) -> Path:
    """Where in *folder* the corpus of *recipe* is, or is to be: other recipes' are beside it."""
    layout = (Path(recipe.images) / "index.json").read_bytes() if recipe.images else b""
    return folder / digest_of(msgspec.json.encode(recipe) + layout).partition(":")[2][:16]


def find_corpus(place: Path) -> Corpus | None:
    """The corpus that is there, if all of it is."""
    try:
        return msgspec.json.decode((place / "corpus.json").read_bytes(), type=Corpus)
    except (OSError, msgspec.DecodeError):
        return None


def write_corpus(place: Path, corpus: Corpus) -> None:
    """Note that all of a corpus is there; the last thing to do."""
    (place / "corpus.json").write_bytes(msgspec.json.encode(corpus))


def find_layout(images: Path | None) -> str:
    """The OCI layout in a folder of real images, or the folder itself; empty where there is none to take.

    Raises:
        UnavailableError: *images* holds no layout.
    """
    if images is None:
        return ""
    for place in (images, images / "layout", *sorted(images.iterdir() if images.is_dir() else ())):
        if (place / "index.json").is_file():
            return str(place.resolve())
    raise UnavailableError(f"{images} holds no OCI layout; ../shared/make-images DIR makes one")


def fill(recipe: Recipe, registries: Mapping[Host, Registry], scratch: Path) -> Corpus:
    """Make all images and push them; *scratch* holds each layer while that takes."""
    layout = Path(recipe.images)
    real = real_images(layout) if recipe.images else {}
    real_blobs = {digest: size for raw in real.values() for digest, size in real_manifest(raw).blobs.items()}
    drawings = draw(recipe, list(real), sum(real_blobs.values()))
    layers = Layers(scratch, recipe.seed)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        places: dict[Host, dict[str, str]] = {"registry": {}, "emulator": {}}
        made = []
        for drawing in drawings:
            filling = Filling(drawing, registries[drawing.host], layers, places[drawing.host], pool, layout, real)
            made.append(filling.fill())
    shutil.rmtree(scratch)
    return Corpus(recipe, tuple(made))


@dataclass(frozen=True, slots=True)
class Made:
    """A layer that was made: digest and size as it is sent, and the digest of its tar."""

    digest: str
    size: int
    diff_id: str


class Layers:
    """Makes layers, each once: a tar of one file of random bytes, gzipped without being compressed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._made: dict[str, Made] = {}
        folder.mkdir(parents=True)

    def make(self, layer: Layer) -> Made:
        """Make a layer; the same bytes for the same seed, name and size."""
        if layer.name not in self._made:
            tar = _tar(random.Random(f"{self._seed}/{layer.name}").randbytes(layer.size))
            data = _stored(tar)
            made = Made(digest_of(data), len(data), f"sha256:{hashlib.sha256(tar).hexdigest()}")
            self.keep(data)
            self._made[layer.name] = made
        return self._made[layer.name]

    def keep(self, data: bytes) -> str:
        """Keep any blob until it is pushed; returns its digest."""
        digest = digest_of(data)
        (self._folder / digest.partition(":")[2]).write_bytes(data)
        return digest

    def read(self, digest: str) -> bytes:
        """The bytes of a blob that was made or kept."""
        return (self._folder / digest.partition(":")[2]).read_bytes()


@dataclass(slots=True)
class Filling:
    """One repository on its way into its registry.

    Attributes:
        drawing: what it is to be.
        registry: where it goes.
        layers: makes layers.
        places: by digest, a repository of the same registry that has the blob, in an image.
        pool: where blobs are pushed.
        layout: the layout of real images.
        real: their manifests by tag.
    """

    drawing: Drawing
    registry: Registry
    layers: Layers
    places: dict[str, str]
    pool: ThreadPoolExecutor
    layout: Path
    real: Mapping[str, bytes]
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    _raw: dict[str, bytes] = field(default_factory=dict)

    def fill(self) -> Repository:
        """Make and push all of it, blobs first and tags last."""
        name, drawing = self.drawing.name, self.drawing
        tags = {tag: self._image(tag) for tag in drawing.images}
        if drawing.alias:
            tags[drawing.alias] = list(tags.values())[-1]
        signatures = self._sign(tags[drawing.signed]) if drawing.signed else {}
        blobs = {digest for manifest in self._manifests.values() for digest in manifest.blobs}
        for _ in self.pool.map(self._push, blobs):
            pass
        # In the order in which they were made: children before their index, images before what refers to them.
        for digest, manifest in self._manifests.items():
            self.registry.put_manifest(name, digest, self._raw[digest], manifest.media_type)
        for tag, digest in {**tags, **signatures}.items():
            self.registry.put_manifest(name, tag, self._raw[digest], self._manifests[digest].media_type)
        self.places.update(dict.fromkeys(blobs, name))
        return Repository(name, drawing.host, tags, signatures, tuple(self._manifests.values()))

    def _push(self, digest: str) -> None:
        self.registry.put_blob(self.drawing.name, self.layers.read(digest), mount_from=self.places.get(digest))

    def _note(self, raw: bytes, manifest: Manifest) -> str:
        self._raw[manifest.digest] = raw
        self._manifests[manifest.digest] = manifest
        return manifest.digest

    def _image(self, tag: str) -> str:
        if tag in self.drawing.real:
            raw = self.real[self.drawing.real[tag]]
            manifest = real_manifest(raw)
            for digest in manifest.blobs:
                self.layers.keep(read_blob(self.layout, digest))
            return self._note(raw, manifest)
        children = list(self._platforms(tag))
        if len(children) == 1:
            return digest_of(children[0][0])
        return self._note(*index(children))

    def _platforms(self, tag: str) -> Iterator[tuple[bytes, str]]:
        for layers, architecture in zip(self.drawing.images[tag], _ARCHITECTURES, strict=False):
            made = list(self.pool.map(self.layers.make, layers))
            of_config = config([layer.diff_id for layer in made], f"{self.drawing.name}:{tag}", architecture)
            self.layers.keep(of_config)
            raw, manifest = image(of_config, [(layer.digest, layer.size) for layer in made])
            self._note(raw, manifest)
            yield raw, architecture

    def _sign(self, digest: str) -> dict[str, str]:
        payload = simple_signing(digest)
        self.layers.keep(payload)
        if self.drawing.host == "registry":
            of_config, raw, manifest = cosign_signature(payload)
            self.layers.keep(of_config)
            return {signature_tag(digest): self._note(raw, manifest)}
        subject = {"mediaType": self._manifests[digest].media_type, "digest": digest, "size": len(self._raw[digest])}
        sbom = random.Random(f"sbom/{digest}").randbytes(_SBOM_SIZE // 2).hex().encode()
        self.layers.keep(b"{}")
        self.layers.keep(sbom)
        self._note(*referrer(subject, "signature", payload))
        self._note(*referrer(subject, "sbom", sbom))
        return {}


def _tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("srv/data")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _stored(tar: bytes) -> bytes:
    """The tar as gzip, stored: the bytes do not depend on the compressor's version."""
    packer = zlib.compressobj(0, zlib.DEFLATED, 31)
    return packer.compress(tar) + packer.flush()
