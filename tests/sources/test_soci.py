"""Laws of SOCI indexes (version 2) and other artifacts beside images: never taken for the image, never left behind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from anyio import to_thread

import asyncpush
from asyncpush import Platform, Registry
from asyncpush.emulator import Emulator
from asyncpush.errors import ChoiceError
from asyncpush.model import Digest
from asyncpush.protocols import ImageNode, IndexNode
from support.aws import judge
from support.images import CONFIG, INDEX, LAYER, MANIFEST, A, B, Json, Layout, at, config_json, image_of
from support.migrations import Bench
from support.registry_server import QUICK, open_remote, reads, running

SOCI = "application/vnd.amazon.soci.index.v2+json"
AMD, ARM = "linux/amd64", "linux/arm64"


def soci_index(layout: Layout, platform: str, **more: object) -> Json:
    """A SOCI index of an image for *platform*."""
    config = layout.blob(b"{}", SOCI)
    tables = [layout.blob(f"table of contents, {platform}".encode(), "application/octet-stream")]
    return layout.document(MANIFEST, {"config": config, "layers": tables, **more})


def image_with(layout: Layout, soci: Json, platform: str, *layers: bytes) -> Json:
    """An image that refers to its SOCI index."""
    config = layout.blob(config_json(list(layers), platform), CONFIG)
    packed = [layout.blob(gzip.compress(layer, 1, mtime=0), LAYER) for layer in layers]
    marks = {"com.amazon.soci.index-digest": soci["digest"]}
    return layout.document(MANIFEST, {"config": config, "layers": packed, "annotations": marks})


def converted(layout: Layout, *, told_by: str = "descriptor", first: bool = False) -> tuple[Json, dict[str, Json]]:
    """An index as `soci convert` writes it, and its members: an image and a SOCI index for each of two platforms."""
    members: dict[str, Json] = {}
    for platform, layer in ((AMD, A), (ARM, B)):
        more: dict[str, object] = {"artifactType": SOCI} if told_by == "manifest" else {}
        soci = soci_index(layout, platform, **more)
        image = image_with(layout, soci, platform, layer)
        entry = {**at(soci, platform), "annotations": {"com.amazon.soci.image-manifest-digest": image["digest"]}}
        entry |= {"artifactType": SOCI} if told_by == "descriptor" else {}
        pair = [(f"{platform} image", at(image, platform)), (f"{platform} soci", entry)]
        members |= dict(reversed(pair) if first else pair)
    return layout.index(*members.values()), members


def digests(*roots: object) -> list[str]:
    return [str(root.manifest.digest) for root in roots]


async def stored(emulator: Emulator, repository: str) -> dict[str, list[str]]:
    """Each manifest of a repository, with its tags."""
    client = judge(emulator.endpoint_url)
    details = await to_thread.run_sync(lambda: client.describe_images(repositoryName=repository)["imageDetails"])
    return {each["imageDigest"]: each.get("imageTags", []) for each in details}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("told_by", ["descriptor", "manifest", "config"])
async def test_every_store_picks_the_image_and_takes_its_soci_index_along(
    tmp_path: Path, told_by: str, first: bool
) -> None:
    layout = Layout()
    index, members = converted(layout, told_by=told_by, first=first)
    layout.tag(index, "1").write(tmp_path)

    picked = [(await image_of(tmp_path, platform=Platform.parse(ARM))).root]
    several = [(await image_of(tmp_path, platform=[Platform.parse(ARM), Platform("linux", "s390x")])).root]
    async with running() as server, open_remote(reads(server), retry=QUICK) as remote:
        server.hold(layout, index, "app", "1")
        there = await remote.resolve("app", "1")
        picked.append(await remote.load("app", there, [Platform.parse(ARM)]))
        several.append(await remote.load("app", there, [Platform.parse(ARM), Platform("linux", "s390x")]))
        whole = await remote.load("app", there)

    image, soci = members[f"{ARM} image"]["digest"], members[f"{ARM} soci"]["digest"]
    for root in picked:
        assert isinstance(root, ImageNode)
        assert (digests(root), digests(*root.companions)) == ([image], [soci])
    for root in several:
        assert isinstance(root, IndexNode)
        assert digests(*root.children) == ([soci, image] if first else [image, soci])
        assert not any(child.companions for child in root.children if isinstance(child, ImageNode))
    assert isinstance(whole, IndexNode)
    assert digests(whole) == [index["digest"]]


async def test_a_soci_index_is_no_image_for_its_platform(tmp_path: Path) -> None:
    layout = Layout()
    soci = {**at(soci_index(layout, AMD), AMD), "artifactType": SOCI}
    layout.tag(layout.index(soci, at(layout.image(B, platform=ARM), ARM)), "1").write(tmp_path)

    for wanted in (Platform.parse(AMD), [Platform.parse(AMD), Platform("linux", "s390x")]):
        with pytest.raises(ChoiceError, match="holds no image for linux/amd64"):
            await image_of(tmp_path, platform=wanted)


async def test_an_index_of_artifacts_alone_is_chosen_from_as_before(tmp_path: Path) -> None:
    layout = Layout()
    tool = "application/vnd.example.tool"
    children = [
        {
            **at(layout.manifest(layout.blob(b"{}", tool), [layout.blob(name.encode(), tool)]), name),
            "artifactType": tool,
        }
        for name in (AMD, ARM)
    ]
    layout.tag(layout.index(*children), "1").write(tmp_path)

    assert digests((await image_of(tmp_path, platform=Platform.parse(ARM))).root) == [children[1]["digest"]]


async def test_a_single_image_takes_its_soci_index_along(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    """A single image without an index takes its SOCI index along, where the source holds it."""
    layout = Layout()
    soci = soci_index(layout, AMD)
    layout.tag(image_with(layout, soci, AMD, A), "1").write(tmp_path / "with")
    name = f"blobs/sha256/{str(soci['digest'])[7:]}"
    del layout.files[name]
    layout.write(tmp_path / "without")

    assert len((await image_of(tmp_path / "with")).root.companions) == 1
    assert not (await image_of(tmp_path / "without")).root.companions


async def test_push_puts_the_soci_index_before_the_tag(emulator: Emulator, registry: Registry, tmp_path: Path) -> None:
    """Push puts the SOCI index before the tag, and again where it is missing."""
    layout = Layout()
    index, members = converted(layout)
    folder = layout.tag(index, "1").write(tmp_path / "app")
    image, soci = (str(members[f"{AMD} {kind}"]["digest"]) for kind in ("image", "soci"))

    result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1", platform=Platform.parse(AMD))

    assert str(result.digest) == image
    assert await stored(emulator, "team/app") == {image: ["1"], soci: []}
    again = await asyncpush.push(registry, f"oci:{folder}", "team/app:1", platform=Platform.parse(AMD))
    assert (again.outcome, again.layers_sent) == ("present", 0)

    client = judge(emulator.endpoint_url)
    gone = [{"imageDigest": soci}]
    await to_thread.run_sync(lambda: client.batch_delete_image(repositoryName="team/app", imageIds=gone))
    await asyncpush.push(registry, f"oci:{folder}", "team/app:1", platform=Platform.parse(AMD))
    assert await stored(emulator, "team/app") == {image: ["1"], soci: []}


async def test_migrations_take_soci_indexes_along(here: Bench) -> None:
    layout = here.layout
    index, members = converted(layout)
    here.source.hold(layout, index, "team/app", "1")
    path = here.plan(
        {"from": "team/app", "to": "team/one", "tags": ["1"], "platforms": [AMD]},
        {"from": "team/app", "to": "team/two", "tags": ["1"], "platforms": [AMD, "linux/s390x"]},
    )

    await here.run(path)

    image, soci = (str(members[f"{AMD} {kind}"]["digest"]) for kind in ("image", "soci"))
    assert await stored(here.emulator, "team/one") == {image: ["1"], soci: []}
    two = await stored(here.emulator, "team/two")
    [smaller] = two.keys() - {image, soci}
    client = judge(here.emulator.endpoint_url)
    asked = {"repositoryName": "team/two", "imageIds": [{"imageDigest": smaller}]}
    [found] = (await to_thread.run_sync(lambda: client.batch_get_image(**asked)))["images"]
    assert [each["digest"] for each in json.loads(found["imageManifest"])["manifests"]] == [image, soci]
    assert found["imageManifestMediaType"] == INDEX
    assert Digest.parse(smaller)
