"""The images that benchmarks push: those in a folder, or some that are made on the spot; and in a registry."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import Plan, oci_layout
from endpoints import Certificate, UnavailableError, docker_registry
from v2 import Registry

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

    @property
    def kind(self) -> str:
        """``oci``, ``oci-archive``, ``docker-archive`` or ``docker``, which is a registry."""
        return self.source.partition(":")[0]

    @property
    def reference(self) -> str:
        """The source without its kind: ``DIR:TAG``, ``FILE`` or ``HOST/REPOSITORY:TAG``."""
        return self.source.partition(":")[2].removeprefix("//")

    @property
    def path(self) -> Path:
        """Where the source lies, if it is no registry."""
        return Path(self.reference.rpartition(":")[0] if self.kind == "oci" else self.reference)


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


def synthetic(folder: Path, size: int, *, layers: int = 8) -> Case:
    """Make an image of *size* random bytes in so many layers."""
    source = oci_layout(folder, [Plan("synthetic", "1", (size // layers,) * layers)])
    return Case("synthetic", f"{source}:1", size)


def alone(case: Case, folder: Path) -> Case:
    """The image in a layout of its own, copied to *folder* if there are others: crane pushes a layout of one only."""
    if case.kind != "oci":
        return case
    index = json.loads((case.path / "index.json").read_bytes())
    tag = case.reference.rpartition(":")[2]
    if len(index["manifests"]) == 1:
        return case
    [descriptor] = index["manifests"] = [each for each in index["manifests"] if _tag(each) == tag]
    for each in (descriptor, *_blobs(case.path, descriptor)):
        copy = _blob(folder, each)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_blob(case.path, each), copy)
    shutil.copyfile(case.path / "oci-layout", folder / "oci-layout")
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return Case(case.name, f"oci:{folder}:{tag}", case.size)


@contextmanager
def in_registry(case: Case, folder: Path, tls: Certificate | None = None) -> Iterator[Case]:
    """Serve the image of a layout from docker-registry, without a password.

    Raises:
        UnavailableError: docker-registry is not installed.
    """
    repository = "bench/source"
    with docker_registry(folder) as plain:
        registry = Registry(plain.url)
        [descriptor] = json.loads((case.path / "index.json").read_bytes())["manifests"]
        for each in _blobs(case.path, descriptor):
            registry.put_blob(repository, _blob(case.path, each).read_bytes())
        registry.put_manifest(repository, "1", _blob(case.path, descriptor).read_bytes(), descriptor["mediaType"])
    with docker_registry(folder, tls) as served:
        yield Case(f"{case.name} in a registry", f"docker://{served.host}/{repository}:1", case.size)


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
    return sum(layer["size"] for layer in _blobs(layout, descriptor)[1:])


def _blobs(layout: Path, descriptor: dict[str, Any]) -> list[dict[str, Any]]:
    """The descriptors of an image's config and layers."""
    manifest = json.loads(_blob(layout, descriptor).read_bytes())
    return [manifest["config"], *manifest["layers"]]


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    return layout / "blobs" / "sha256" / str(descriptor["digest"]).partition(":")[2]
