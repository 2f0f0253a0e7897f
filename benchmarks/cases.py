"""The images that ``peers`` and ``warm`` push: those in a folder, or some that are made on the spot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import Plan, oci_layout
from endpoints import UnavailableError

from asyncpush.demo.images import make_images

_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")


@dataclass(frozen=True, slots=True)
class Case:
    """An image to push.

    Attributes:
        name: what tables call it.
        source: as asyncpush and skopeo write it.
        size: bytes of its layers, as they lie there.
    """

    name: str
    source: str
    size: int


def find_images(folder: Path) -> list[Case]:
    """The images in *folder*: of each OCI layout the largest, and each OCI archive and docker-archive (``*.tar``).

    Raises:
        UnavailableError: there are none.
    """
    found = [case for path in sorted(folder.iterdir()) for case in _cases(path)]
    if not found:
        raise UnavailableError(f"{folder} holds neither OCI layouts nor *.tar archives of images")
    return found


def make_cases(folder: Path, *, small: bool) -> list[Case]:
    """Make images: those of ``asyncpush demo``, of 120 MiB, or one *small* one."""
    folder.mkdir()
    if small:
        oci_layout(folder / "layout", [Plan("small", "1", (64 * 1024, 64 * 1024))])
    else:
        make_images(folder)
    return find_images(folder)


def synthetic(folder: Path, size: int) -> Case:
    """Make an image of *size* bytes of random bytes in 8 layers."""
    source = oci_layout(folder, [Plan("synthetic", "1", (size // 8,) * 8)])
    return Case("synthetic", f"{source}:1", size)


def _cases(path: Path) -> Iterator[Case]:
    if (path / "index.json").is_file():
        manifests = json.loads((path / "index.json").read_bytes())["manifests"]
        sizes = {_tag(each): _size(path, each) for each in manifests if each["mediaType"] in _MANIFESTS}
        if sizes:
            tag = max(sizes, key=lambda name: sizes[name])
            label = f"{path.name}:{tag}" if len(sizes) > 1 else path.name
            yield Case(label, f"oci:{path}:{tag}", sizes[tag])
    elif path.suffix == ".tar" and path.is_file():
        with tarfile.open(path) as archive:
            names = set(archive.getnames())
        if names & {"manifest.json", "index.json"}:
            kind = "docker-archive" if "manifest.json" in names else "oci-archive"
            yield Case(path.name, f"{kind}:{path}", path.stat().st_size)


def _tag(descriptor: dict[str, Any]) -> str:
    return str(descriptor["annotations"]["org.opencontainers.image.ref.name"])


def _size(layout: Path, descriptor: dict[str, Any]) -> int:
    blob = layout / "blobs" / "sha256" / descriptor["digest"].partition(":")[2]
    return sum(layer["size"] for layer in json.loads(blob.read_bytes())["layers"])
