"""Laws of what describes the images of an archive: index.json, manifest.json, or both; and of what is not an image."""

from __future__ import annotations

import json

import pytest

from asyncpush.errors import ChoiceError, ManifestError, SourceError
from asyncpush.events import Notice
from asyncpush.model import Platform
from asyncpush.protocols import Image, ImageNode
from asyncpush.settings import Settings
from asyncpush.sources import UnreadImage, open_source
from support.images import (
    CONFIG,
    IMAGE_NAME,
    LAYER,
    RAW_LAYER,
    REF_NAME,
    A,
    B,
    C,
    DockerSave,
    Layout,
    app_layout,
    at,
    config_json,
    hybrid,
    image_of,
    names_of,
    saved,
    saved_item,
)

SOCI = "application/vnd.oci.artifact.manifest.v1+json"


def raw_image(layout, layer, platform="linux/amd64"):
    """An image of an uncompressed layer."""
    config = layout.blob(config_json([layer], platform), CONFIG)
    return layout.manifest(config, [layout.blob(layer, RAW_LAYER)])


def both(layout, *items):
    """The layout with these items in a manifest.json, as an archive."""
    layout.files["manifest.json"] = json.dumps(items).encode()
    return layout.archive()


async def everything(reference, platform=None):
    """All images of a source, and the notices that came with them."""
    events = []
    async with open_source(str(reference), Settings(), emit=events.append) as source:
        images = await source.all_images(platform=platform)
    return images, [event.text for event in events if isinstance(event, Notice)]


# Two descriptions


@pytest.mark.parametrize("said", ["index", "pulled", "built", "half"])
async def test_index_json_is_the_truth_for_what_has_an_identity(tmp_path, said):
    layout = Layout()
    image = root = raw_image(layout, A)
    annotations = {REF_NAME: "1.0", IMAGE_NAME: "docker.io/library/app:1.0"}
    match said:
        case "index":
            root = layout.index(at(image, "linux/amd64"), at(raw_image(layout, B, "linux/arm64"), "linux/arm64"))
        case "pulled":
            annotations["containerd.io/distribution.source.quay.io"] = "team/app"
        case "built":
            annotations["org.opencontainers.image.created"] = "2026-01-01T00:00:00Z"
        case "half":
            image = root = layout.image(B, more=[layout.blob(A, RAW_LAYER)])
    layout.tag(root, **annotations)
    path = saved(tmp_path / "app.tar", both(layout, saved_item(layout, image, "app:1.0")))

    for reference in (path, f"oci-archive:{path}"):
        found = await image_of(reference)
        assert (str(found.root.manifest.digest), found.source) == (root["digest"], f"oci-archive:{path}:1.0")
    assert await names_of(path) == [("app", "1.0")]


async def test_an_index_json_made_up_at_saving_gives_way(tmp_path):
    """Docker's classic store makes up manifests of uncompressed layers, which no registry knows."""
    archive = saved(tmp_path / "app.tar", hybrid(A, B, name="app:1.0", packed=False))
    tagged = Layout()
    image, other = raw_image(tagged, A), raw_image(tagged, B)
    tagged.tag(image, "1.0", **{IMAGE_NAME: "docker.io/library/app:1.0"})
    untagged = both(tagged, saved_item(tagged, image, "app:1.0"), saved_item(tagged, other))

    assert (await image_of(archive)).source == f"docker-archive:{archive}:app:1.0"
    assert await names_of(saved(archive, untagged)) == [("app", "1.0"), (None, None)]


async def test_index_json_counts_where_it_has_the_compressed_layers(tmp_path):
    """The image of index.json counts where it has compressed layers and manifest.json uncompressed ones."""
    layout = Layout()
    image = layout.image(A)
    layout.tag(image, "1", **{IMAGE_NAME: "docker.io/library/app:1"})
    other = saved_item(layout, raw_image(layout, A), "app:1", "app:one")
    path = saved(tmp_path / "a.tar", both(layout, other))

    assert await names_of(path) == [("app", "1"), ("app", "one")]
    for choice in ("1", "app:1", "app:one"):
        assert str((await image_of(f"{path}:{choice}")).root.manifest.digest) == image["digest"]


async def test_images_that_only_manifest_json_names_can_be_chosen(tmp_path):
    """Images that only manifest.json names are listed too, and must be chosen from."""
    layout = app_layout()
    image, more, nameless = layout.manifests[0], layout.image(B), layout.image(C)
    items = [saved_item(layout, each, *names) for each, *names in ((image, "x:1.0"), (more, "tool:2"), (nameless,))]
    path = saved(tmp_path / "app.tar", both(layout, *items))

    with pytest.raises(ChoiceError) as error:
        await image_of(path)
    assert error.value.choices == (f"oci-archive:{path}:1.0", f"{path}:tool:2", f"{path}:@2")
    for choice, image in zip(error.value.choices, (*items[:1], *items[1:]), strict=True):
        root = (await image_of(choice)).root
        assert f"blobs/sha256/{root.config.descriptor.digest.hex}" == image["Config"]
    assert await names_of(path) == [("x", "1.0"), ("tool", "2"), (None, None)]


@pytest.mark.parametrize(
    ("annotations", "names", "expected"),
    [
        ({}, ["app:1", "app:2"], [("app", "1"), ("app", "2")]),
        ({REF_NAME: "1"}, ["app:1"], [("app", "1")]),
        ({REF_NAME: "1"}, ["team/app:1", "app:2"], [("team/app", "1"), ("app", "2")]),
        ({REF_NAME: "1", IMAGE_NAME: "docker.io/library/app:1"}, ["app:1", "app:2"], [("app", "1"), ("app", "2")]),
        ({REF_NAME: "1", IMAGE_NAME: "docker.io/library/app:1"}, ["b:1"], [("app", "1"), ("b", "1")]),
        ({REF_NAME: "1"}, [], [("stem", "1")]),
    ],
)
async def test_names_that_only_manifest_json_knows_count(tmp_path, annotations, names, expected):
    layout = Layout()
    image = layout.image(A)
    layout.tag(layout.index(at(image, "linux/amd64")), **annotations)
    path = saved(tmp_path / "stem.tar", both(layout, saved_item(layout, image, *names)))

    images, _ = await everything(path)
    assert [(image.repository, image.tag) for image in images] == expected
    for image in images:
        again = await image_of(image.source)
        assert (again.source, again.content) == (image.source, image.content)
    assert len({image.content for image in images}) == 1


async def test_a_kind_reads_its_own_description_and_says_what_the_other_has(tmp_path):
    layout = app_layout()
    image, more = layout.manifests[0], layout.image(B)
    items = [saved_item(layout, image, "x:1.0"), saved_item(layout, more, "tool:2")]
    path = saved(tmp_path / "app.tar", both(layout, *items))
    images, notices = await everything(f"oci-archive:{path}")
    assert ([image.tag for image in images], notices) == (
        ["1.0"],
        [f"manifest.json in {path} names images that index.json lacks (tool:2): docker-archive:{path} reads them"],
    )

    layout.tag(layout.image(C), "3.0")
    images, notices = await everything(f"docker-archive:{saved(path, both(layout, *items))}")
    assert ([image.tag for image in images], notices) == (
        ["1.0", "2"],
        [f"index.json in {path} names images that manifest.json lacks (3.0): oci-archive:{path} reads them"],
    )


@pytest.mark.parametrize("packed", [True, False])
async def test_an_unpacked_docker_save_holds_the_images_that_the_archive_holds(tmp_path, packed):
    layout = Layout()
    image, more = (
        layout.image(A) if packed else raw_image(layout, A),
        layout.image(B) if packed else raw_image(layout, B),
    )
    layout.tag(image, "1", **{IMAGE_NAME: "docker.io/p/x:1"})
    path = saved(
        tmp_path / "a.tar", both(layout, saved_item(layout, image, "p/x:1", "p/y:2"), saved_item(layout, more, "p/z:3"))
    )
    folder = layout.write(tmp_path / "a")

    (packed_images, _), (images, notices) = await everything(path), await everything(folder)
    # What index.json names keeps its digest in a directory; of an archive, uncompressed layers are compressed.
    assert packed == ([image.content for image in images] == [image.content for image in packed_images])
    assert str(images[0].content) == image["digest"]
    assert ([f"{image.repository}:{image.tag}" for image in images], notices) == (["p/x:1", "p/y:2", "p/z:3"], [])
    for image in images:
        assert (await image_of(image.source)).content == image.content
    images, notices = await everything(f"oci:{folder}")
    missed = f"manifest.json in {folder} names images that index.json lacks (p/z:3): {folder} reads them"
    assert ([image.tag for image in images], notices) == (["1"], [missed])


@pytest.mark.parametrize("name", ["../secret", "/secret", "inside/../../secret", "link", "blobs/sha256/link", "\0"])
async def test_a_manifest_json_in_a_directory_names_nothing_outside_of_it(tmp_path, name):
    layout = app_layout()
    more = layout.image(B)
    item = {**saved_item(layout, more, "tool:2"), "Layers": [name]}
    both(layout, saved_item(layout, layout.manifests[0], "app:1.0"), item)
    folder, secret = layout.write(tmp_path / "a"), saved(tmp_path / "secret", B)
    for link in ("link", "blobs/sha256/link"):
        (folder / link).symlink_to(secret)

    with pytest.raises(SourceError, match="leads out of it" if "link" in name else "lacks"):
        await image_of(f"{folder}:tool:2")


@pytest.mark.parametrize("name", ["blob", "blobs"])
async def test_a_link_of_a_layout_leads_nowhere_else(tmp_path, name):
    layout = app_layout()
    folder, other = layout.write(tmp_path / "a"), layout.write(tmp_path / "b")
    if name == "blob":
        name = f"blobs/sha256/{layout.manifests[0]['digest'][7:]}"
    (folder / name).rename(tmp_path / "moved")
    (folder / name).symlink_to(other / name)

    with pytest.raises(SourceError, match="leads out of it"):
        await image_of(folder)


async def test_a_layout_may_be_links_to_another_one(tmp_path):
    layout = app_layout()
    files = layout.write(tmp_path / "a")
    for name in layout.all_files():
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).symlink_to(files / name)

    assert (await image_of(tmp_path / "b")).tag == "1.0"


@pytest.mark.parametrize("foreign", [b'{"name": "a web app"}', b"[1]", b"no", b'[{"name": "x"}]'])
async def test_a_manifest_json_of_something_else_is_not_read(tmp_path, foreign):
    layout = app_layout()
    layout.files["manifest.json"] = foreign
    path = saved(tmp_path / "app.tar", layout.archive())

    images, notices = await everything(path)
    assert str(images[0].root.manifest.digest) == layout.manifests[0]["digest"]
    assert notices == [f"manifest.json in {path} is not a list of images, and is not read"]
    with pytest.raises(SourceError, match=r"manifest\.json in .* is malformed"):
        await image_of(f"docker-archive:{path}")


async def test_an_index_json_of_something_else_leaves_a_docker_archive_as_it_is(tmp_path):
    archive = DockerSave({"index.json": b'{"name": "a web app"}'}).image(A, tags=["app:1.0"]).archive()

    assert await names_of(saved(tmp_path / "app.tar", archive)) == [("app", "1.0")]


async def test_a_malformed_index_json_is_an_error_unless_it_is_not_used(tmp_path):
    """A malformed index.json is an error, unless manifest.json is the description that counts."""
    for packed in (True, False):
        broken = hybrid(A, name="app:1.0", packed=packed).replace(b'"manifests"', b'"manifestX"')
        archive = saved(tmp_path / "app.tar", broken)

        assert (await image_of(f"docker-archive:{archive}")).tag == "1.0"
        if packed:
            with pytest.raises(ManifestError, match=r"index\.json .* is malformed"):
                await image_of(archive)
        else:
            images, notices = await everything(archive)
            assert ([image.tag for image in images], "manifest.json is read instead" in notices[0]) == (["1.0"], True)


# What index.json may look like


async def test_a_layout_without_oci_layout_is_read(tmp_path):
    layout = app_layout()
    del layout.files["oci-layout"]
    for reference in (layout.write(tmp_path / "app"), saved(tmp_path / "app.tar", layout.archive())):
        for kind in ("", "oci:" if reference.is_dir() else "oci-archive:"):
            assert str((await image_of(f"{kind}{reference}")).root.manifest.digest) == layout.manifests[0]["digest"]

    (tmp_path / "app" / "index.json").unlink()
    with pytest.raises(SourceError, match=r"is not an OCI layout: it has no index\.json"):
        await image_of(tmp_path / "app")


@pytest.mark.parametrize("said", [b"", b"\n", b"{}", b'{"imageLayoutVersion": null}'])
async def test_an_oci_layout_file_that_says_nothing_is_as_none(tmp_path, said):
    layout = app_layout()
    layout.files["oci-layout"] = said
    for reference in (layout.write(tmp_path / "app"), saved(tmp_path / "app.tar", layout.archive())):
        assert (await image_of(reference)).tag == "1.0"


async def test_null_in_index_json_is_nothing(tmp_path):
    layout = app_layout()
    layout.manifests[0]["annotations"]["org.example.note"] = None
    layout.manifests[0] |= {"platform": None, "urls": None, "data": None, "unknown": [1]}
    assert (await image_of(layout.write(tmp_path))).tag == "1.0"

    (tmp_path / "index.json").write_text('{"schemaVersion": 2, "manifests": null}')
    with pytest.raises(SourceError, match="holds no image"):
        await image_of(tmp_path)


@pytest.mark.parametrize("form", ["layout", "archive"])
async def test_an_image_without_layers_is_refused_before_anything_is_sent(tmp_path, form):
    layout = Layout()
    image = layout.manifest(layout.blob(config_json([]), CONFIG), [])
    path = {
        "layout": lambda: layout.tag(image, "1").write(tmp_path / "a"),
        "archive": lambda: saved(tmp_path / "a.tar", DockerSave().image(tags=["app:1"]).archive()),
    }[form]()

    with pytest.raises(ManifestError, match="has no layers; ECR refuses images without layers"):
        await image_of(path)


# What is not an image


async def test_entries_that_are_no_images_are_named_and_cost_themselves_only(tmp_path):
    layout = Layout()
    layout.manifests.append({"mediaType": SOCI, "digest": "sha512:0", "size": 1, "annotations": {REF_NAME: "1-soci"}})
    layout.tag(layout.image(A), "1").tag({"mediaType": LAYER, "digest": "x", "size": 1})
    layout.manifests.append({**layout.image(B), "digest": "sha512:1", "annotations": {REF_NAME: "2"}})
    layout.tag(layout.image(C), "3").write(tmp_path)

    images, _ = await everything(f"oci:{tmp_path}")
    assert [(type(image), image.source.rpartition(":")[2]) for image in images] == [
        (UnreadImage, "1-soci"),
        (Image, "1"),
        (UnreadImage, "@2"),
        (UnreadImage, "2"),
        (Image, "3"),
    ]
    for choice, message in (("1-soci", f"entry 0 .*{SOCI}', no image; ECR takes"), ("@2", "entry 2"), ("@3", "sha512")):
        with pytest.raises(ManifestError, match=message.replace("+", r"\+")):
            await image_of(f"oci:{tmp_path}:{choice}")
    assert (await image_of(f"oci:{tmp_path}:@4")).tag == "3"


@pytest.mark.parametrize("lost", ["mediaType", "digest", "size"])
async def test_a_malformed_entry_costs_itself_only(tmp_path, lost):
    layout = app_layout()
    layout.tag({key: value for key, value in layout.image(B).items() if key != lost}, "2")
    layout.write(tmp_path)

    images, _ = await everything(tmp_path)
    assert [(type(image), image.tag) for image in images] == [(Image, "1.0"), (UnreadImage, "2")]
    assert (await image_of(f"oci:{tmp_path}:1.0")).tag == "1.0"
    with pytest.raises(ManifestError, match=f"entry 1 of index.json in {tmp_path} is malformed: .* `{lost}`"):
        await image_of(f"oci:{tmp_path}:2")


async def test_the_only_image_beside_other_entries_is_taken_and_they_are_named(tmp_path):
    layout = app_layout().tag({"mediaType": SOCI, "digest": "sha256:0", "size": 1})
    events = []
    async with open_source(str(layout.write(tmp_path)), Settings(), emit=events.append) as source:
        image = await source.image()
        assert [(each.name, each.reason) for each in image.left_out] == [
            (f"oci:{tmp_path}:@1", f"it is '{SOCI}', no image")
        ]
        assert image.tag == "1.0"
        with pytest.raises(ManifestError):
            await source.images()

    assert [event.text for event in events] == [f"oci:{tmp_path}:@1 is left out: it is '{SOCI}', no image"]


async def test_an_unreadable_unnamed_entry_is_no_choice_beside_an_image(tmp_path):
    """An unreadable entry that nothing names is no choice beside an image."""
    layout = app_layout()
    for bad in (layout.image(B), layout.image(C)):
        layout.tag(bad)
        layout.files[f"blobs/sha256/{bad['digest'][7:]}"] = b'{"schema'
    layout.manifests[2].pop("size")
    events = []
    async with open_source(str(layout.write(tmp_path)), Settings(), emit=events.append) as source:
        chosen = await source.image()
        assert chosen.tag == "1.0"
        [one] = await source.all_images()  # whichever door it is
    assert chosen.left_out == one.left_out
    assert [(each.name, each.digest is None) for each in one.left_out] == [
        (f"oci:{tmp_path}:@1", False),
        (f"oci:{tmp_path}:@2", True),
    ]
    left_out = "is left out: its manifest is malformed, or not there"
    assert [event.text for event in events] == [f"oci:{tmp_path}:@{at} {left_out}" for at in (1, 2)] * 2
    async with open_source(f"oci:{tmp_path}:@1", Settings()) as source:
        [asked_for] = await source.all_images()
        assert isinstance(asked_for, UnreadImage)
    layout.manifests[1]["annotations"] = {REF_NAME: "2.0"}
    layout.write(tmp_path)
    with pytest.raises(ChoiceError, match="holds 2 images"):
        await image_of(tmp_path)


async def test_a_damaged_image_costs_itself_only(tmp_path):
    layout = Layout()
    bad = layout.image(A)
    layout.tag(bad, "bad").tag(layout.image(B), "good")
    del layout.files[f"blobs/sha256/{bad['digest'][7:]}"]

    images, _ = await everything(layout.write(tmp_path))
    assert [(type(image), image.tag) for image in images] == [(UnreadImage, "bad"), (Image, "good")]


async def test_images_of_other_platforms_than_the_chosen_one_are_named(tmp_path):
    """A list that tells images apart by their platforms alone is there to choose from; another image is not."""
    layout = Layout()
    amd, arm = at(layout.image(A), "linux/amd64"), at(layout.image(B, platform="linux/arm64"), "linux/arm64")
    layout.tag(amd, "app").tag(arm, "app").tag(amd, "tool").write(tmp_path)

    images, _ = await everything(tmp_path, Platform.parse("linux/arm64"))
    assert [(type(image), image.tag) for image in images] == [(Image, "app"), (UnreadImage, "tool")]
    assert isinstance(images[0].root, ImageNode)
