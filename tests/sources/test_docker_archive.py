"""Laws of docker-archives: tags, links, and layers that are compressed on the way or lie compressed already."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pytest

from asyncpush.engine.compress import zstd
from asyncpush.errors import DigestMismatchError, SourceError
from asyncpush.manifest import DOCKER_MANIFEST, OCI_MANIFEST
from asyncpush.model import Descriptor, Digest
from asyncpush.settings import Settings
from asyncpush.sources import open_source
from support.images import (
    SETTINGS,
    A,
    B,
    C,
    DockerSave,
    Link,
    digest,
    hybrid,
    image_of,
    names_of,
    read,
    saved,
)


async def test_each_tag_of_a_docker_archive_is_an_image(tmp_path):
    """Each tag of a docker-archive is an image, and so is an untagged entry."""
    tags = ["docker.io/library/app:1.0", "registry.example.com:5000/org/app:2"]
    path = saved(tmp_path / "a.tar", DockerSave().image(A, tags=tags).image(B, tags=None).archive())

    assert await names_of(path) == [("app", "1.0"), ("org/app", "2"), (None, None)]
    for reference, tag in (("app:1.0", "1.0"), (tags[0], "1.0"), (tags[1], "2"), ("@1", None)):
        assert (await image_of(f"docker-archive:{path}:{reference}")).tag == tag


async def test_a_docker_archives_tag_may_be_left_out_where_it_is_latest(tmp_path):
    path = saved(tmp_path / "a.tar", DockerSave().image(A, tags=["app:latest"]).image(B, tags=["app:2"]).archive())

    assert (await image_of(f"docker-archive:{path}:app")).tag == "latest"


async def test_a_docker_archives_layers_are_found_through_links(tmp_path):
    archive = DockerSave().image(A, B, tags=["a:1"])
    first, second = archive.items[0]["Layers"]
    archive.entries[f"{digest(A)[7:]}.tar"] = archive.entries[first]
    archive.entries[first] = Link(f"../{digest(A)[7:]}.tar")
    archive.entries["old/hard.tar"] = archive.entries[second]
    archive.entries["old/deep/soft.tar"] = Link("../hard.tar")
    archive.entries[second] = Link("old/deep/soft.tar", hard=True)
    path = saved(tmp_path / "a.tar", archive.archive())

    async with open_source(str(path), SETTINGS) as source:
        root = (await source.image()).root
        assert [gzip.decompress(await read(layer)) for layer in root.layers] == [A, B]


@pytest.mark.parametrize("target", ["a", "../../../../etc/passwd", "/etc/passwd", "nowhere"])
async def test_a_link_that_leads_nowhere_or_round_in_circles_is_refused(tmp_path, target):
    archive = DockerSave().image(A, tags=["a:1"])
    archive.entries[archive.items[0]["Layers"][0]] = Link("../a")
    archive.entries["a"] = Link(target)

    with pytest.raises(SourceError, match=r"leads in a circle|not a regular file there"):
        await image_of(saved(tmp_path / "a.tar", archive.archive()))


@pytest.mark.parametrize(
    ("compression", "media_type", "manifest_type"),
    [
        ("gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip", DOCKER_MANIFEST),
        ("none", "application/vnd.docker.image.rootfs.diff.tar", DOCKER_MANIFEST),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd", OCI_MANIFEST),
    ],
)
async def test_a_docker_archives_manifest_fits_the_way_its_layers_are_compressed(
    tmp_path, compression, media_type, manifest_type
):
    path = saved(tmp_path / "a.tar", DockerSave().image(A, B, tags=["a:1"]).archive())
    async with open_source(str(path), Settings(compression=compression)) as source:
        root = (await source.image()).root
        datas = [await read(layer) for layer in root.layers]

    manifest = await built(root, datas)
    assert manifest.media_type == manifest_type
    assert [layer.media_type for layer in manifest.layers] == [media_type] * 2
    assert [str(layer.digest) for layer in manifest.layers] == [digest(data) for data in datas]
    assert (root.manifest is not None) == (compression == "none")


async def built(root, datas):
    """The manifest, made from what the layers turned out to be where it is not known yet."""
    described = [
        Descriptor(layer.media_type, Digest.of(data), len(data)) for layer, data in zip(root.layers, datas, strict=True)
    ]
    if root.manifest is not None:
        return root.manifest
    return root.build(root.config.descriptor, described)


async def test_compressed_layers_of_a_docker_archive_are_pushed_unchanged(tmp_path):
    """Compressed layers of a docker-archive are pushed unchanged."""
    stored = [gzip.compress(A), zstd.compress(B), C]
    path = saved(tmp_path / "a.tar", DockerSave().image(A, B, C, tags=["a:1"], stored=stored).archive())
    async with open_source(str(path), SETTINGS) as source:
        root = (await source.image()).root
        datas = [await read(layer) for layer in root.layers]

    assert datas[:2] == stored[:2]
    assert gzip.decompress(datas[2]) == C
    manifest = await built(root, datas)
    assert manifest.media_type == OCI_MANIFEST
    assert [layer.media_type.rpartition(".")[2] for layer in manifest.layers] == ["tar+gzip", "tar+zstd", "tar+gzip"]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_layers_in_a_foreign_compression_are_compressed_again(tmp_path, compression):
    """Layers in a compression that no image may have are pushed as if they were uncompressed."""
    settings = Settings(compression=compression)
    plain = saved(tmp_path / "plain.tar", DockerSave().image(A, B, C, tags=["a:1"]).archive())
    stored = [lzma.compress(A), bz2.compress(B), C]
    packed = saved(tmp_path / "packed.tar", DockerSave().image(A, B, C, tags=["a:1"], stored=stored).archive())

    pushed = []
    for path in (plain, packed):
        async with open_source(str(path), settings) as source:
            layers = (await source.image()).root.layers
            pushed.append([(layer.identity, layer.media_type, await read(layer)) for layer in layers])

    assert pushed[0] == pushed[1]


async def test_a_layer_that_no_image_may_hold_is_checked_against_its_diff_id(tmp_path):
    stored = [bz2.compress(B)]
    path = saved(tmp_path / "a.tar", DockerSave().image(A, tags=["a:1"], stored=stored).archive())

    async with open_source(str(path), SETTINGS) as source:
        [layer] = (await source.image()).root.layers
        with pytest.raises(DigestMismatchError):
            await read(layer)


async def test_an_archive_of_both_kinds_is_read_as_the_compressed_one(tmp_path):
    """An archive that is of both kinds is read as the one with compressed layers."""
    raw = saved(tmp_path / "raw.tar", hybrid(A, B, name="app:1.0", packed=False))
    packed = saved(tmp_path / "packed.tar", hybrid(A, B, name="app:1.0", packed=True))
    none = Settings(compression="none")

    kinds = [
        (await image_of(path, settings=settings)).source.partition(":")[0]
        for path in (raw, packed)
        for settings in (SETTINGS, none)
    ]

    assert kinds == ["docker-archive", "oci-archive", "oci-archive", "oci-archive"]
    assert (await image_of(f"oci-archive:{raw}")).root.layers[0].source_size == len(A)
    assert (await image_of(f"docker-archive:{packed}")).root.layers[0].descriptor.digest == Digest.of(
        gzip.compress(A, 1, mtime=0)
    )


def with_config(archive, diff_ids):
    """Put another config into *archive*, and return its name."""
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    archive.entries["config.json"] = json.dumps(config).encode()
    return "config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.items[0]["Layers"].append("x"), "1 diff ids for 2 layers"),
        (lambda a: a.items[0].update(Config="nope.json"), "lacks 'nope.json'"),
        (lambda a: a.entries.pop(a.items[0]["Layers"][0]), "lacks '.*layer.tar', which its manifest.json names"),
        (lambda a: a.entries.update({a.items[0]["Config"]: b'{"os":"linux"}'}), "0 diff ids for 1 layers"),
        (
            lambda a: a.entries.update({a.items[0]["Config"]: b'{"os":"linux",}'}),
            "the config of image @0 .* is malformed",
        ),
        (lambda a: a.items[0].pop("Config"), "manifest.json .* is malformed"),
        (lambda a: a.items[0].update(Layers=None), "image @0 in .* has no layers; ECR refuses"),
        (lambda a: a.items[0].update(Layers=[]), "image @0 in .* has no layers; ECR refuses"),
        (lambda a: a.items[0].pop("Layers"), "image @0 in .* has no layers; ECR refuses"),
        (lambda a: a.items.append(None), "manifest.json .* is malformed"),
        (
            lambda a: a.items[0].update(Config=with_config(a, ["sha512:" + 128 * "0"])),
            "'sha512:0*' is not a sha256 dig",
        ),
        (lambda a: a.items[0].update(Config=with_config(a, [digest(A)] * 2)), "2 diff ids for 1 layers"),
        (lambda a: a.items[0].update(Layers=[5]), "manifest.json .* is malformed"),
        (lambda a: a.entries.update({a.items[0]["Layers"][0]: lzma.compress(A)[:-5]}), "layer.tar' in .* is cut short"),
    ],
)
async def test_a_broken_docker_archive_is_refused_in_one_line(tmp_path, change, message):
    archive = DockerSave().image(A, tags=["a:1"])
    change(archive)

    with pytest.raises(SourceError, match=message) as error:
        await image_of(saved(tmp_path / "a.tar", archive.archive()))

    assert "\n" not in str(error.value)


def renamed(names):
    """Write manifest.json with other keys."""
    return lambda a: a.items.__setitem__(0, {names.get(key, key): value for key, value in a.items[0].items()})


def config_called(name):
    """Call the config by another name than its digest, in the archive and in manifest.json."""

    def change(archive):
        item = archive.items[0]
        archive.entries[name.lstrip("./")] = archive.entries.pop(item["Config"])
        item["Config"] = name

    return change


def layers_called(prefix):
    return lambda a: a.items[0].update(Layers=[f"{prefix}{name}" for name in a.items[0]["Layers"]])


@pytest.mark.parametrize(
    "change",
    [
        renamed({"Config": "config", "Layers": "layers", "RepoTags": "repoTags"}),
        renamed({"Config": "CONFIG", "Layers": "layerS", "RepoTags": "REPOTAGS"}),
        lambda a: a.items[0].update(RepoTags=None, Parent="", LayerSources={"sha256:x": {"mediaType": "y"}}),
        config_called("config.json"),
        config_called(f"{'ab' * 32}.json"),
        config_called(f"./sha256:{'ab' * 32}"),
        config_called(f"/blobs/sha256/{'ab' * 32}"),
        layers_called("./"),
        layers_called("/"),
        layers_called("x/../"),
    ],
)
async def test_other_dialects_of_manifest_json_mean_the_same_image(tmp_path, change):
    plain = DockerSave().image(A, B, tags=["app:1"])
    config = plain.entries[plain.items[0]["Config"]]
    change(plain)

    image = await image_of(saved(tmp_path / "a.tar", plain.archive()))

    assert str(image.root.config.descriptor.digest) == digest(config)
    assert [layer.identity for layer in image.root.layers] == [f"{digest(layer)}+gzip-1" for layer in (A, B)]
    assert image.tag in ("1", None)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_layer_may_be_listed_twice_and_be_a_link(tmp_path, packed):
    archive = DockerSave().image(A, B, A, tags=["app:1"])
    first = archive.items[0]["Layers"][0]
    archive.entries[first] = gzip.compress(A, mtime=0) if packed else A
    archive.entries["link/layer.tar"] = Link(f"../{first}")
    archive.items[0]["Layers"][2] = "link/layer.tar"
    path = saved(tmp_path / "a.tar", archive.archive())

    async with open_source(str(path), SETTINGS) as source:
        root = (await source.image()).root
        assert [gzip.decompress(await read(layer)) for layer in root.layers] == [A, B, A]
        assert root.layers[0].identity == root.layers[2].identity
