"""Laws of OCI layouts: platforms and indexes, and what is refused before anything is sent."""

from __future__ import annotations

import json

import pytest

from asyncpush.errors import ChoiceError, DigestMismatchError, ManifestError, SourceError
from asyncpush.model import Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFESTS, Settings
from support.images import (
    CONFIG,
    FOREIGN_LAYER,
    LAYER,
    A,
    B,
    C,
    DockerSave,
    Layout,
    app_layout,
    at,
    digest,
    image_of,
    json_digests,
    saved,
)

ARM = Platform("linux", "arm64")


def platforms_layout():
    layout = Layout()
    amd, arm = layout.image(A), layout.image(B, platform="linux/arm64/v8")
    attestation = layout.manifest(layout.blob(b"{}", CONFIG), [layout.blob(b"{ }", "application/vnd.in-toto+json")])
    index = layout.index(at(amd, "linux/amd64"), at(arm, "linux/arm64/v8"), at(attestation, "unknown/unknown"))
    return layout, index, arm


async def test_an_index_comes_whole_in_its_order_with_its_exact_bytes(tmp_path):
    layout, index, _ = platforms_layout()
    layout.tag(index, "1").write(tmp_path)

    root = (await image_of(tmp_path)).root

    assert isinstance(root, IndexNode)
    assert root.manifest.raw == layout.files[f"blobs/sha256/{index['digest'][7:]}"]
    assert [child.manifest.digest for child in root.children] == [child.digest for child in root.manifest.children]
    assert len(root.children) == 3


@pytest.mark.parametrize("wrap", [False, True])
async def test_a_platform_picks_its_image_out_of_an_index_also_a_nested_one(tmp_path, wrap):
    layout, index, arm = platforms_layout()
    layout.tag(layout.index(index) if wrap else index, "1").write(tmp_path)

    root = (await image_of(tmp_path, platform=ARM)).root

    assert isinstance(root, ImageNode)
    assert str(root.manifest.digest) == arm["digest"]


async def test_several_platforms_make_a_smaller_index_with_attestations(tmp_path):
    """Several platforms of a layout or archive are a smaller index with their attestations."""
    layout, index, _ = platforms_layout()
    document = json.loads(layout.files[f"blobs/sha256/{index['digest'][7:]}"])
    amd, arm, note = document["manifests"]
    note["annotations"] = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": arm["digest"],
    }
    layout.tag(layout.index(amd, arm, note), "1").write(tmp_path / "dir")
    saved(tmp_path / "app.tar", layout.archive())
    both = [ARM, Platform("linux", "s390x")]

    for source in (tmp_path / "dir", tmp_path / "app.tar"):
        root = (await image_of(source, platform=both)).root
        assert json.loads(root.manifest.raw)["manifests"] == [arm, note]
        assert [str(child.manifest.digest) for child in root.children] == [arm["digest"], note["digest"]]
        whole = (await image_of(source, platform=[ARM, Platform("linux", "amd64")])).root
        assert str(whole.manifest.digest) == layout.manifests[0]["digest"]
        with pytest.raises(ChoiceError, match="no image for linux/s390x or windows/amd64"):
            await image_of(source, platform=[both[1], Platform("windows", "amd64")])


async def test_of_several_fitting_images_the_exact_one_is_picked(tmp_path):
    layout = Layout()
    old, new = layout.image(A, platform="linux/arm/v6"), layout.image(B, platform="linux/arm")
    layout.tag(layout.index(at(old, "linux/arm/v6"), at(new, "linux/arm")), "1").write(tmp_path)

    assert str((await image_of(tmp_path, platform=Platform("linux", "arm"))).root.manifest.digest) == new["digest"]


async def test_only_the_picked_images_blobs_need_be_there(tmp_path):
    layout, index, arm = platforms_layout()
    kept = {arm["digest"], index["digest"], *json_digests(layout, arm)}
    layout.files = {
        name: data for name, data in layout.files.items() if name == "oci-layout" or f"sha256:{name[13:]}" in kept
    }
    layout.tag(index, "1").write(tmp_path)

    assert (await image_of(tmp_path, platform=ARM)).root.layers


async def test_a_platform_that_no_image_is_for_is_refused_with_those_there_are(tmp_path):
    layout, index, _ = platforms_layout()
    layout.tag(index, "1").tag(layout.image(C), "single").write(tmp_path)
    saved(tmp_path / "d.tar", DockerSave().image(A, tags=["a:1"]).archive())

    for reference, there in (("1", ("linux/amd64", "linux/arm64/v8")), ("single", ("linux/amd64",))):
        with pytest.raises(ChoiceError) as error:
            await image_of(f"oci:{tmp_path}:{reference}", platform=Platform("linux", "s390x"))
        assert error.value.choices == there
    with pytest.raises(ChoiceError, match="linux/amd64"):
        await image_of(tmp_path / "d.tar", platform=ARM)


async def test_images_listed_only_by_platform_are_chosen_by_platform(tmp_path):
    """Images that a layout lists only by platform are chosen by platform."""
    layout = Layout()
    layout.tag(at(layout.image(A), "linux/amd64")).tag(at(layout.image(B), "linux/arm64")).write(tmp_path)

    assert (await image_of(tmp_path, platform=ARM)).source == f"oci:{tmp_path}:@1"


async def test_of_several_listed_by_platform_alone_the_exact_one_is_chosen(tmp_path):
    layout = Layout()
    old, new = layout.image(A, platform="linux/arm/v6"), layout.image(B, platform="linux/arm")
    layout.tag(at(old, "linux/arm/v6")).tag(at(new, "linux/arm")).write(tmp_path)

    assert (await image_of(tmp_path, platform=Platform("linux", "arm"))).source == f"oci:{tmp_path}:@1"


async def test_indexes_in_indexes_and_manifests_are_bounded(tmp_path):
    layout = Layout()
    deep = layout.image(A)
    for _ in range(MAX_INDEX_DEPTH):
        deep = layout.index(deep)
    layout.tag(deep, "deep").tag(layout.index(deep), "deeper")
    layout.tag(layout.index(*[layout.image(A)] * (MAX_MANIFESTS + 1)), "wide").write(tmp_path)

    assert await image_of(f"oci:{tmp_path}:deep")
    for tag in ("deeper", "wide"):
        with pytest.raises(ManifestError, match=r"index in an index|more than 1000 manifests"):
            await image_of(f"oci:{tmp_path}:{tag}")


# Blobs that are not what they should be


async def test_every_missing_or_short_blob_is_found_before_anything_is_sent(tmp_path):
    layout = app_layout()
    _, first, second, _ = json_digests(layout, layout.manifests[0])
    del layout.files[f"blobs/sha256/{first[7:]}"]
    layout.files[f"blobs/sha256/{second[7:]}"] += b"x"
    layout.write(tmp_path)

    with pytest.raises(SourceError, match=f"lacks layer {first} .and 1 more problem like this."):
        await image_of(tmp_path)


async def test_a_blob_of_another_size_is_named_with_both_sizes(tmp_path):
    layout = app_layout()
    name = f"blobs/sha256/{json_digests(layout, layout.manifests[0])[1][7:]}"
    size = len(layout.files[name])
    layout.files[name] = layout.files[name][:-1]
    layout.write(tmp_path)

    with pytest.raises(DigestMismatchError, match=f"{size} bytes expected, {size - 1} bytes read"):
        await image_of(tmp_path)


async def test_a_manifest_that_was_changed_is_refused(tmp_path):
    layout = app_layout()
    name = f"blobs/sha256/{layout.manifests[0]['digest'][7:]}"
    layout.files[name] = layout.files[name].replace(b"linux", b"LINUX").replace(b"gzip", b"GZIP")
    layout.write(tmp_path)

    with pytest.raises(DigestMismatchError, match=r"manifest .* is damaged"):
        await image_of(tmp_path)


async def test_an_empty_layer_is_refused_with_advice(tmp_path):
    layout = Layout()
    layout.tag(layout.image(A, more=[layout.blob(b"", LAYER)]), "1").write(tmp_path)

    with pytest.raises(SourceError, match="0 bytes; ECR cannot hold an empty layer"):
        await image_of(tmp_path)


async def test_foreign_layers_are_left_out_unless_they_are_asked_for(tmp_path):
    layout = Layout()
    foreign = {"mediaType": FOREIGN_LAYER, "digest": digest(b"far"), "size": 3, "urls": ["https://example.com/x"]}
    layout.tag(layout.image(A, more=[foreign]), "1").write(tmp_path)

    assert len((await image_of(tmp_path)).root.layers) == 1
    with pytest.raises(SourceError, match=f"lacks layer {digest(b'far')}"):
        await image_of(tmp_path, settings=Settings(push_foreign_layers=True))
    layout.blob(b"far", FOREIGN_LAYER)
    layout.write(tmp_path)
    assert len((await image_of(tmp_path, settings=Settings(push_foreign_layers=True))).root.layers) == 2


async def test_a_layer_listed_twice_stays_twice(tmp_path):
    layout = Layout()
    layout.tag(layout.image(A, A), "1").write(tmp_path)
    archive = saved(tmp_path / "d.tar", DockerSave().image(A, A, tags=["a:1"]).archive())

    for reference in (tmp_path, archive):
        first, second = (await image_of(reference)).root.layers
        assert first.identity == second.identity


@pytest.mark.parametrize("version", ['{"imageLayoutVersion":"2.0.0"}', "[]", "\xff"])
async def test_a_layout_of_another_version_is_refused(tmp_path, version):
    layout = app_layout()
    layout.files["oci-layout"] = version.encode("latin-1")
    layout.write(tmp_path)

    with pytest.raises(ManifestError, match=r"oci-layout|version '2.0.0'"):
        await image_of(tmp_path)


async def test_a_source_without_images_says_so(tmp_path):
    for number, data in enumerate((Layout().archive(), DockerSave().archive())):
        with pytest.raises(SourceError, match="holds no image"):
            await image_of(saved(tmp_path / f"{number}.tar", data))
