"""What contenders push: files of random bytes, sparse files, and OCI layouts of images of any number and size."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from endpoints import UnavailableError

MiB = 1024 * 1024
GiB = 1024 * MiB

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Descriptor = dict[str, str | int]


def random_files(folder: Path, count: int, size: int) -> list[dict[str, str | int]]:
    """Make *count* files of *size* random bytes, which stay in the page cache; as ``clients/job.py`` names layers.

    Raises:
        UnavailableError: there is no room.
    """
    _need_room(folder, count * size)
    layers: list[dict[str, str | int]] = []
    for number in range(count):
        path = folder / f"random-{count}-{number}"
        with path.open("wb") as file:
            for start in range(0, size, 8 * MiB):
                file.write(os.urandom(min(8 * MiB, size - start)))
        layers.append({"path": str(path), "size": size})
    return layers


def sparse_files(folder: Path, count: int, size: int) -> list[dict[str, str | int]]:
    """Make *count* files of *size* zero bytes, each with a last line of its own, that take no room on disk."""
    layers: list[dict[str, str | int]] = []
    for number in range(count):
        path = folder / f"sparse-{count}-{size}-{number}"
        name = path.name.encode()
        with path.open("wb") as file:
            file.seek(size - len(name))
            file.write(name)
        layers.append({"path": str(path), "size": size})
    return layers


@dataclass(frozen=True, slots=True)
class Plan:
    """An image to make: its name and tag, and the sizes of its layers in bytes."""

    repository: str
    tag: str
    layers: tuple[int, ...]


def oci_layout(folder: Path, plans: Sequence[Plan]) -> str:
    """Make an OCI layout of images whose layers are random files in a tar, gzipped without being compressed.

    Stored, not deflated: it takes no time to make, and a client that looks for gzip's mark finds it.

    Raises:
        UnavailableError: there is no room.
    """
    _need_room(folder, sum(sum(plan.layers) for plan in plans))
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifests: list[dict[str, object]] = []
    for plan in plans:
        names = {
            "io.containerd.image.name": f"{plan.repository}:{plan.tag}",
            "org.opencontainers.image.ref.name": plan.tag,
        }
        manifests.append({**_image(blobs, plan), "annotations": names})
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}), encoding="utf-8")
    return f"oci:{folder}"


def _image(blobs: Path, plan: Plan) -> Descriptor:
    layers, diff_ids = [], []
    for size in plan.layers:
        tar = _tar(size)
        layers.append(_blob(blobs, gzip.compress(tar, compresslevel=0, mtime=0), _LAYER))
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"os": "linux", "architecture": "amd64", "config": {"Labels": {"tag": plan.tag}}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _blob(blobs, json.dumps(config).encode(), _CONFIG),
        "layers": layers,
    }
    return _blob(blobs, json.dumps(manifest).encode(), _MANIFEST)


def _tar(size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("data")
        entry.size = size
        archive.addfile(entry, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def _blob(blobs: Path, data: bytes, media_type: str) -> Descriptor:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < size * 1.1 + 256 * MiB:
        raise UnavailableError(
            f"{folder.parent} has {free // MiB} MiB free, {size // MiB} are needed; point TMPDIR at a larger disk"
        )
