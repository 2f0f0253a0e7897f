"""Builders of small container images, byte for byte as tools write them, whole or broken in one place."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from asyncpush.settings import Settings
from asyncpush.sources import open_source

OCI = "application/vnd.oci.image."
MANIFEST = f"{OCI}manifest.v1+json"
INDEX = f"{OCI}index.v1+json"
CONFIG = f"{OCI}config.v1+json"
LAYER = f"{OCI}layer.v1.tar+gzip"
RAW_LAYER = f"{OCI}layer.v1.tar"
FOREIGN_LAYER = f"{OCI}layer.nondistributable.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"

Json = dict[str, "object"]

SETTINGS = Settings()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Link:
    """An entry of a tar archive that leads to another one."""

    target: str
    hard: bool = False


def tar(
    entries: dict[str, bytes | Link] | list[tuple[str, bytes | Link]], *, dialect: int = tarfile.PAX_FORMAT
) -> bytes:
    """A tar archive of these files and links, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, Link):
                info.type, info.linkname = tarfile.LNKTYPE if content.hard else tarfile.SYMTYPE, content.target
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def layer_tar(text: str, size: int = 100) -> bytes:
    """An uncompressed layer: one file of *size* bytes that says *text* again and again."""
    content = (text.encode() * (size // len(text) + 1))[:size]
    return tar({f"srv/{text[:20]}": content})


def config_json(layers: list[bytes], platform: str = "linux/amd64", more: list[str] | None = None) -> bytes:
    """An image's config, for these uncompressed layers; *more* are the diff ids of further ones."""
    os_name, architecture, *variant = platform.split("/")
    document = {"os": os_name, "architecture": architecture, "config": {"Cmd": ["/bin/sh"]}}
    document |= {"variant": variant[0]} if variant else {}
    document["rootfs"] = {"type": "layers", "diff_ids": [digest(layer) for layer in layers] + (more or [])}
    return json.dumps(document).encode()


@dataclass
class Layout:
    """An OCI layout, as its files; change ``files`` or a descriptor to break it."""

    files: dict[str, bytes] = field(default_factory=lambda: {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})
    manifests: list[Json] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str, **more: object) -> Json:
        """Add a blob and return its descriptor."""
        self.files[f"blobs/sha256/{digest(data)[7:]}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def image(self, *layers: bytes, platform: str = "linux/amd64", more: list[Json] | None = None) -> Json:
        """Add an image of these uncompressed layers, gzipped; *more* are descriptors of further layers."""
        further = [str(each["digest"]) for each in more or []]
        config = self.blob(config_json(list(layers), platform, further), CONFIG)
        packed = [self.blob(gzip.compress(layer, 1, mtime=0), LAYER) for layer in layers]
        return self.manifest(config, packed + (more or []))

    def manifest(self, config: Json, layers: list[Json]) -> Json:
        """Add an image manifest."""
        return self.document(MANIFEST, {"config": config, "layers": layers})

    def index(self, *children: Json) -> Json:
        """Add an index."""
        return self.document(INDEX, {"manifests": list(children)})

    def tag(self, descriptor: Json, name: str | None = None, **annotations: str) -> Layout:
        """Name an image in index.json."""
        named = {REF_NAME: name} if name else {}
        self.manifests.append({**descriptor, "annotations": {**named, **annotations}})
        return self

    def all_files(self) -> dict[str, bytes]:
        """The files, index.json among them."""
        index = json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode()
        return {"index.json": index, **self.files}

    def write(self, folder: Path) -> Path:
        """Write the layout as a directory."""
        for name, data in self.all_files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    def archive(self) -> bytes:
        """The layout as a tar archive."""
        return tar(dict(self.all_files()))

    def document(self, media_type: str, document: Json) -> Json:
        raw = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode()
        return self.blob(raw, media_type)


def at(descriptor: Json, platform: str) -> Json:
    """The descriptor with a platform, as an index lists it."""
    os_name, architecture, *variant = platform.split("/")
    words = {"os": os_name, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
    return {**descriptor, "platform": words}


@dataclass
class DockerSave:
    """A docker-archive, as its entries; change ``entries`` or ``items`` to break it."""

    entries: dict[str, bytes | Link] = field(default_factory=dict)
    items: list[Json] = field(default_factory=list)

    def image(self, *layers: bytes, tags: list[str] | None, stored: list[bytes] | None = None) -> DockerSave:
        """Add an image as `docker save` did before version 25; *stored* are its layers where they lie compressed."""
        names = []
        for layer, bytes_there in zip(layers, stored or layers, strict=True):
            names.append(f"{digest(layer)[7:]}/layer.tar")
            self.entries[names[-1]] = bytes_there
        return self.item(config_json(list(layers)), names, tags)

    def item(self, config: bytes, layers: list[str], tags: list[str] | None) -> DockerSave:
        """Add an image whose layers are entries already."""
        name = f"{digest(config)[7:]}.json"
        self.entries[name] = config
        self.items.append({"Config": name, "RepoTags": tags, "Layers": layers})
        return self

    def archive(self) -> bytes:
        """The tar archive."""
        return tar({**self.entries, "manifest.json": json.dumps(self.items).encode()})


def hybrid(*layers: bytes, name: str, packed: bool) -> bytes:
    """What `docker save` has written since version 25: an OCI layout and a manifest.json over the same blobs."""
    layout = Layout()
    config = layout.blob(config_json(list(layers)), CONFIG)
    stored = [gzip.compress(layer, 1, mtime=0) if packed else layer for layer in layers]
    blobs = [layout.blob(data, LAYER if packed else RAW_LAYER) for data in stored]
    layout.tag(layout.manifest(config, blobs), name.rpartition(":")[2], **{IMAGE_NAME: f"docker.io/{name}"})
    paths = [f"blobs/sha256/{digest(data)[7:]}" for data in stored]
    item = {"Config": f"blobs/sha256/{str(config['digest'])[7:]}", "RepoTags": [name], "Layers": paths}
    return tar({**layout.all_files(), "manifest.json": json.dumps([item]).encode()})


def saved_item(layout: Layout, image: Json, *names: str) -> Json:
    """What manifest.json says of an image in a layout."""
    config, *layers = json_digests(layout, image)
    paths = [f"blobs/sha256/{each[7:]}" for each in layers]
    return {"Config": f"blobs/sha256/{config[7:]}", "RepoTags": list(names) or None, "Layers": paths}


def containerd_save(*there: str, platforms: tuple[str, ...], attested: tuple[str, ...] = ()) -> tuple[Layout, Json]:
    """What `docker save app:1.0` writes of Docker's containerd store, and each platform's digest.

    There is an index of all *platforms* and their attestations, the blobs of those that are *there*, the attestations
    of those that are *attested*, and a manifest.json that names the first.
    """
    layout, children, kept, images = Layout(), [], {"oci-layout"}, {}
    for platform in platforms:
        image = layout.image(layer_tar(f"for {platform}"), layer_tar("shared"), platform=platform)
        about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
        config = layout.blob(config_json([], "unknown/unknown").replace(b"unknown", platform.encode(), 1), CONFIG)
        statement = layout.blob(f"{{{platform}}}".encode(), "application/vnd.in-toto+json")
        attestation = layout.manifest(config, [statement])
        children += [at(image, platform), {**at(attestation, "unknown/unknown"), "annotations": about}]
        for each in [image] * (platform in there) + [attestation] * (platform in attested):
            kept |= {f"blobs/sha256/{name[7:]}" for name in [str(each["digest"]), *json_digests(layout, each)]}
        images[platform] = image
    item = saved_item(layout, images[there[0]], "app:1.0")
    layout.files = {name: data for name, data in layout.files.items() if name in kept}
    layout.tag(layout.index(*children), "1.0", **{IMAGE_NAME: "docker.io/library/app:1.0"})
    layout.files["manifest.json"] = json.dumps([item]).encode()
    return layout, {platform: str(image["digest"]) for platform, image in images.items()}


A, B, C = (layer_tar(text, size) for text, size in (("base", 50_000), ("tools", 700_000), ("app", 1)))


def read_blob(blob):
    """All bytes of a blob."""
    out, buffer = bytearray(), memoryview(bytearray(100_000))
    with blob.open() as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
        assert reader.consumed == blob.source_size
    return bytes(out)


async def read(blob):
    """All bytes of a blob, read in a worker thread."""
    return await to_thread.run_sync(read_blob, blob)


async def image_of(reference, *, settings=SETTINGS, platform=None):
    """The image that a reference chooses; its source is closed, so its blobs can't be read."""
    async with open_source(str(reference), settings) as source:
        return await source.image(platform=platform)


async def names_of(reference):
    """The repository and tag of each image of a source."""
    async with open_source(str(reference), SETTINGS) as source:
        return [(image.repository, image.tag) for image in await source.images()]


def saved(path, data):
    """Write a file, and return its path."""
    path.write_bytes(data)
    return path


def app_layout():
    """A layout of one image of three layers."""
    layout = Layout()
    return layout.tag(layout.image(A, B, C), "1.0")


def json_digests(layout, descriptor):
    """The digests that a manifest names: the config's, then the layers'."""
    document = json.loads(layout.files[f"blobs/sha256/{descriptor['digest'][7:]}"])
    return [document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]
