"""Laws of indexes that are only partly in their archive or layout: what is there goes, and what is not is named."""

from __future__ import annotations

import json

import pytest

from asyncpush.errors import ChoiceError, SourceError
from asyncpush.events import Notice
from asyncpush.model import Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import Settings
from asyncpush.sources import open_source
from support.commands import run_here
from support.images import A, B, C, Layout, at, containerd_save, image_of, json_digests, saved
from support.migrations import bench, keys

AMD, ARM, S390X = PLATFORMS = ("linux/amd64", "linux/arm64/v8", "linux/s390x")
AVAILABLE = Settings(available_platforms=True)


def written(layout, place):
    """The layout, as an archive or a directory."""
    return saved(place, layout.archive()) if place.suffix == ".tar" else layout.write(place)


def left_out(image):
    return {each.name: each.reason.partition(" in ")[0] for each in image.left_out}


async def read(reference, platform=None, settings=None):
    """The image, and the notices that came with it."""
    events = []
    async with open_source(str(reference), settings or Settings(), emit=events.append) as source:
        image = await source.image(platform=platform)
    return image, [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("name", ["app.tar", "app"])
@pytest.mark.parametrize("kind", ["", "oci"])
async def test_the_only_platform_that_is_there_goes_as_the_image_it_is(tmp_path, name, kind):
    layout, digests = containerd_save(AMD, platforms=PLATFORMS, attested=(AMD,))
    if kind:
        del layout.files["manifest.json"]
    image, notices = await read(written(layout, tmp_path / name))

    assert isinstance(image.root, ImageNode)
    assert str(image.root.manifest.digest) == digests[AMD]
    assert left_out(image) == {ARM: "not", S390X: "not", f"attestation of {AMD}": "has no place beside a single image"}
    assert str(image.left_out[0].digest) == digests[ARM]
    assert [f"1.0 is pushed without {ARM}, {S390X} (not in " in notice for notice in notices] == [True]


async def test_of_several_that_are_there_a_choice_must_be_made(tmp_path):
    layout, digests = containerd_save(AMD, ARM, platforms=PLATFORMS, attested=(ARM,))
    path = written(layout, tmp_path / "app.tar")

    with pytest.raises(ChoiceError, match=f"holds {AMD}, {ARM} of an image, but not {S390X}") as error:
        await read(path)
    assert error.value.choices == (f"--platform {AMD}", f"--platform {ARM}", "--available-platforms")

    image, _ = await read(path, Platform.parse("linux/arm64"))
    assert (str(image.root.manifest.digest), image.left_out) == (digests[ARM], ())


async def test_an_index_of_present_platforms_keeps_attestations_and_order(tmp_path):
    """An index of the platforms that are present keeps their attestations and order."""
    layout, _ = containerd_save(AMD, ARM, platforms=PLATFORMS, attested=(ARM, S390X))
    path = written(layout, tmp_path / "app.tar")
    image, _ = await read(path, settings=AVAILABLE)
    whole = json.loads(layout.files[f"blobs/sha256/{layout.manifests[0]['digest'][7:]}"])

    assert isinstance(image.root, IndexNode)
    kept = [child for at, child in enumerate(whole["manifests"]) if at in (0, 2, 3)]
    assert json.loads(image.root.manifest.raw) == {**whole, "manifests": kept}
    assert [str(child.manifest.digest) for child in image.root.children] == [child["digest"] for child in kept]
    assert left_out(image) == {S390X: "not", f"attestation of {AMD}": "not"}
    assert (await read(path, settings=AVAILABLE))[0].root.manifest.digest == image.root.manifest.digest


async def test_a_platform_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    layout, _ = containerd_save(AMD, ARM, platforms=PLATFORMS)
    path = written(layout, tmp_path / "app.tar")

    with pytest.raises(SourceError, match=f"names an image for {S390X}, but does not hold all of it; it holds {AMD}"):
        await read(path, Platform.parse(S390X))
    with pytest.raises(ChoiceError) as error:
        await read(path, Platform.parse("linux/ppc64le"))
    assert error.value.choices == (AMD, ARM)


async def test_of_fitting_platforms_one_that_is_there_is_taken(tmp_path):
    layout, digests = containerd_save("linux/arm/v7", platforms=("linux/arm/v6", "linux/arm/v7", "linux/arm"))

    image, _ = await read(written(layout, tmp_path / "app.tar"), Platform.parse("linux/arm"))
    assert str(image.root.manifest.digest) == digests["linux/arm/v7"]


async def test_a_manifest_without_its_blobs_is_a_platform_that_is_not_there(tmp_path):
    layout, digests = containerd_save(AMD, platforms=PLATFORMS)
    whole, _ = containerd_save(*PLATFORMS, platforms=PLATFORMS)
    name = f"blobs/sha256/{digests[ARM][7:]}"
    layout.files[name] = whole.files[name]

    for place in ("app.tar", "app"):
        image, _ = await read(written(layout, tmp_path / place))
        assert (str(image.root.manifest.digest), left_out(image)[ARM]) == (digests[AMD], "incomplete")


async def test_blobs_that_were_lost_are_no_platforms_left_out(tmp_path):
    """Some layers of a platform without the others: no tool writes that, unless manifest.json says what it wrote."""
    layout, digests = containerd_save(AMD, ARM, platforms=PLATFORMS)
    _, lost, _ = json_digests(layout, {"digest": digests[ARM]})
    manifest = json.loads(layout.files[f"blobs/sha256/{digests[ARM][7:]}"])
    manifest["layers"].append(layout.blob(b"another layer", manifest["layers"][0]["mediaType"]))
    del layout.files[f"blobs/sha256/{lost[7:]}"]
    changed = layout.manifest(manifest["config"], manifest["layers"])
    listed = json.loads(layout.files[f"blobs/sha256/{layout.manifests[0]['digest'][7:]}"])["manifests"]
    listed[2] = at(changed, ARM)
    layout.manifests.clear()
    layout.tag(layout.index(*listed), "1.0")

    image, _ = await read(written(layout, tmp_path / "app.tar"))
    assert (str(image.root.manifest.digest), left_out(image)[ARM]) == (digests[AMD], "incomplete")
    del layout.files["manifest.json"]
    with pytest.raises(SourceError, match=r"lacks .*copy the image with all its platforms"):
        await read(written(layout, tmp_path / "layout"))


@pytest.mark.parametrize("there", [(AMD,), (AMD, ARM)])
@pytest.mark.parametrize("blob", [0, 1])
async def test_an_image_that_manifest_json_names_must_be_whole(tmp_path, there, blob):
    layout, digests = containerd_save(*there, platforms=PLATFORMS)
    lost = json_digests(layout, {"digest": digests[AMD]})[blob]
    del layout.files[f"blobs/sha256/{lost[7:]}"]

    with pytest.raises(SourceError, match=f"lacks {lost} of {AMD}, which its manifest.json names; save the image"):
        await image_of(written(layout, tmp_path / "app.tar"))


async def test_a_platform_that_is_there_is_had_whatever_manifest_json_lacks(tmp_path):
    layout, digests = containerd_save(AMD, ARM, platforms=PLATFORMS)
    del layout.files[f"blobs/sha256/{json_digests(layout, {'digest': digests[AMD]})[1][7:]}"]
    path = written(layout, tmp_path / "app.tar")

    assert str((await image_of(path, platform=Platform.parse(ARM))).root.manifest.digest) == digests[ARM]


async def test_an_artifact_beside_an_image_is_no_platform_of_its_own(tmp_path):
    layout = Layout()
    image = at(layout.image(A), AMD)
    config = layout.blob(b"{ }", "application/vnd.amazon.soci.index.v2+json")
    soci = at(layout.manifest(config, [layout.blob(b"ztoc", "application/octet-stream")]), AMD)
    lost = {**soci, "digest": "sha256:" + "1" * 64}
    layout.tag(layout.index(image, soci, lost, at(lost, ARM)), "1").write(tmp_path)

    found, _ = await read(tmp_path)
    assert str(found.root.manifest.digest) == image["digest"]
    assert left_out(found) == {
        f"manifest {soci['digest'][7:19]}": "has no place beside a single image",
        f"manifest {'1' * 12}": "not",
        ARM: "not",
    }


async def test_an_index_that_is_there_goes_whole_and_one_that_is_not_is_refused(tmp_path):
    layout, _ = containerd_save(*PLATFORMS, platforms=PLATFORMS, attested=PLATFORMS)
    index = layout.manifests[0]["digest"]
    image, notices = await read(written(layout, tmp_path / "all.tar"))
    assert (str(image.root.manifest.digest), image.left_out, notices) == (index, (), [])

    layout.files = {name: data for name, data in layout.files.items() if name.endswith(index[7:])}
    with pytest.raises(SourceError, match=r"lacks manifest sha256:.*and 5 more problems"):
        await image_of(written(layout, tmp_path / "none"))


async def test_a_platform_in_a_nested_index_is_found_there_too(tmp_path):
    layout = Layout()
    amd, arm = layout.image(A), layout.image(B, platform="linux/arm64")
    nested = layout.index(at(amd, AMD), at(arm, "linux/arm64"))
    layout.tag(layout.index(nested), "1").tag(layout.index(nested, at(layout.image(C), "linux/arm/v7")), "2")
    del layout.files[f"blobs/sha256/{arm['digest'][7:]}"]
    layout.write(tmp_path)

    image, _ = await read(f"{tmp_path}:1")
    assert (str(image.root.manifest.digest), left_out(image)) == (amd["digest"], {"linux/arm64": "not"})
    assert str((await read(f"{tmp_path}:2", Platform.parse(AMD)))[0].root.manifest.digest) == amd["digest"]


# The commands


def test_docker_save_of_containerd_is_pushed_and_its_gaps_are_named(server, tmp_path):
    """What `docker save` writes of the containerd store is pushed, and what it lacks is named."""
    layout, digests = containerd_save(AMD, platforms=PLATFORMS)
    path = written(layout, tmp_path / "app.tar")
    environment = server.environment
    words = ("push", path, "sparse/app:1.0", "--create-repository")
    ran = run_here(*words, "--output", "json", "--progress", "none", **environment)
    events = run_here(*words, "--progress", "json", **environment)
    quiet = run_here(*words, "--quiet", **environment)

    [image] = json.loads(ran.out)["images"]
    assert (ran.status, image["digest"]) == (0, digests[AMD]), ran.err
    assert image["leftOut"][0] == {"name": ARM, "digest": digests[ARM], "reason": f"not in {path}"}
    assert ran.err.startswith(f"asyncpush: note: oci-archive:{path}:1.0 is pushed without {ARM}, {S390X}")
    assert any(ARM in json.loads(line).get("text", "") for line in events.err.splitlines())
    assert (quiet.references, quiet.err) == (f"sparse/app:1.0@{digests[AMD]}\n", "")


async def test_a_migration_takes_what_is_there_and_says_the_rest(tmp_path, emulator, monkeypatch):
    keys(monkeypatch)
    layout, digests = containerd_save(AMD, platforms=PLATFORMS)
    soci = {"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "digest": digests[ARM], "size": 5}
    path = written(layout.tag(soci, "1.0-soci"), tmp_path / "app.tar")
    events = []
    async with bench(tmp_path, emulator) as here:
        plan = here.plan()
        document = json.loads(plan.read_text())
        document["images"] = [{"from": f"oci-archive:{path}", "to": "team/app"}]
        plan.write_text(json.dumps(document))
        report = await here.run(plan, emit=events.append)

        assert await here.stored("team/app") == {"1.0": digests[AMD]}
    [failed] = report.failed
    assert (failed.copy.tag, "artifact.manifest.v1+json', no image" in str(failed.error)) == ("1.0-soci", True)
    assert any(ARM in event.text for event in events if isinstance(event, Notice))
