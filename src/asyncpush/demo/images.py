"""Makes a few realistic images: shared base layers, an index of two platforms, a docker-archive."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from asyncpush.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

MiB = 1024 * 1024

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"

_Json: TypeAlias = "str | int | Sequence[_Json] | Mapping[str, _Json]"


@dataclass(frozen=True, slots=True)
class _DemoLayer:
    """An uncompressed layer, and its descriptor in a layout."""

    tar: bytes
    descriptor: Mapping[str, _Json]

    @property
    def diff_id(self) -> str:
        return f"sha256:{hashlib.sha256(self.tar).hexdigest()}"


@dataclass(frozen=True, slots=True)
class _DemoLayout:
    """An OCI image layout in a directory."""

    folder: Path
    tagged: list[Mapping[str, _Json]] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str) -> dict[str, _Json]:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, folder: str, size: int) -> _DemoLayer:
        tar = _tar(folder, size)
        # Deflate's fastest level, as a gzip member: the user waits for these images.
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        return _DemoLayer(tar, self.blob(packer.compress(tar) + packer.flush(), _LAYER))

    def image(self, layers: Sequence[_DemoLayer], architecture: str = "amd64") -> dict[str, _Json]:
        config = self.blob(_config(layers, architecture), OCI_CONFIG)
        manifest: dict[str, _Json] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": [layer.descriptor for layer in layers],
        }
        return self.blob(json.dumps(manifest).encode(), OCI_MANIFEST)

    def index(self, images: Mapping[str, dict[str, _Json]]) -> dict[str, _Json]:
        children = [
            {**image, "platform": {"os": "linux", "architecture": architecture}}
            for architecture, image in images.items()
        ]
        index: dict[str, _Json] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
        return self.blob(json.dumps(index).encode(), OCI_INDEX)

    def tag(self, descriptor: dict[str, _Json], repository: str, tag: str) -> None:
        names = {_IMAGE_NAME: f"{repository}:{tag}", _REF_NAME: tag}
        self.tagged.append({**descriptor, "annotations": names})

    def close(self) -> None:
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.tagged}))


def make_images(folder: Path) -> tuple[str, ...]:
    """Make the images in *folder* and return them as sources to push; blocks for some seconds.

    About 120 MiB to send: two versions of ``web`` share a runtime and a base of 28 MiB, which takes several parts;
    ``tools`` is an index of two platforms; ``worker`` is a docker-archive whose layers are not compressed.
    """
    layout = _DemoLayout(folder / "layout")
    base = layout.layer("usr/lib", 28 * MiB)
    runtime = layout.layer("opt/runtime", 12 * MiB)
    layout.tag(layout.image([base, runtime, layout.layer("srv/web-2.1", 2 * MiB)]), "shop/web", "2.1")
    layout.tag(layout.image([base, runtime, layout.layer("srv/web-2.2", 3 * MiB)]), "shop/web", "2.2")
    other = layout.layer("usr/lib-arm64", 22 * MiB)
    tools = {
        "amd64": layout.image([base, layout.layer("opt/tools", 4 * MiB)]),
        "arm64": layout.image([other, layout.layer("opt/tools-arm64", 4 * MiB)], "arm64"),
    }
    layout.tag(layout.index(tools), "ops/tools", "24.04")
    layout.close()
    archive = folder / "worker.tar"
    _docker_archive(archive, [base, layout.layer("srv/worker", 5 * MiB)], "shop/worker:3.0")
    return f"oci:{layout.folder}", f"docker-archive:{archive}"


def _docker_archive(path: Path, layers: Sequence[_DemoLayer], name: str) -> None:
    config = _config(layers, "amd64")
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    names = [f"{layer.diff_id.removeprefix('sha256:')}/layer.tar" for layer in layers]
    item: _Json = {"Config": config_name, "RepoTags": [name], "Layers": names}
    with tarfile.open(path, "w") as archive:
        for entry, layer in zip(names, layers, strict=True):
            _add(archive, entry, layer.tar)
        _add(archive, config_name, config)
        _add(archive, "manifest.json", json.dumps([item]).encode())


def _config(layers: Sequence[_DemoLayer], architecture: str) -> bytes:
    config: dict[str, _Json] = {
        "os": "linux",
        "architecture": architecture,
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    return json.dumps(config).encode()


def _tar(folder: str, size: int) -> bytes:
    """A layer of *size* bytes in files of 1 MiB, mostly noise, which hardly compresses, and some text."""
    noise = random.Random(folder)  # noqa: S311 - the same images on every run
    text = f"{folder}: what a file of this layer says. ".encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(size // MiB):
            half = MiB * 7 // 8
            _add(archive, f"{folder}/{number:03}.so", noise.randbytes(half) + (text * MiB)[: MiB - half])
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
