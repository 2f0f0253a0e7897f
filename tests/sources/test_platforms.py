"""Laws of platforms: however one is written, it means the same; what is exactly meant goes before what will do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.errors import ChoiceError
from asyncpush.model import Digest, Platform
from support.commands import Server
from support.images import A, B, C, DockerSave, Layout, at, image_of, saved, tar
from support.registry_server import QUICK, open_remote, reads, running

SPELLINGS = (
    *("amd64", "AMD64", "x86_64", "x86-64", "arm64", "aarch64", "arm", "armhf", "armel", "386", "i386", "s390x"),
    *("macos", "darwin", "linux", "v1", "v2", "v6", "v7", "v8", "v9", "1", "2", "6", "7", "8", "9", "V8"),
)
WORDS = st.sampled_from(SPELLINGS) | st.from_regex(r"[A-Za-z0-9._+-]{1,8}", fullmatch=True)
PLATFORMS = st.builds(Platform, WORDS, WORDS, st.none() | WORDS | st.just(""))


@given(PLATFORMS)
def test_normalizing_twice_is_normalizing_once(platform: Platform) -> None:
    assert platform.normalized.normalized == platform.normalized


@given(PLATFORMS)
def test_every_platform_satisfies_itself_in_each_of_its_spellings(platform: Platform) -> None:
    assert platform.satisfies(platform)
    assert platform.normalized.satisfies(platform)
    assert platform.satisfies(platform.normalized)
    assert platform.distance(platform) == 0


@given(PLATFORMS, PLATFORMS)
def test_what_is_exact_satisfies_and_both_are_the_same_for_every_spelling(one: Platform, other: Platform) -> None:
    if one.distance(other) < 2:
        assert one.satisfies(other)
        assert other.satisfies(one)
    assert one.satisfies(other) == one.normalized.satisfies(other)


@pytest.mark.parametrize(
    "spellings",
    [
        "linux/arm64 linux/arm64/v8 linux/aarch64 Linux/ARM64/8 linux/aarch64/v8",
        "linux/amd64 linux/x86_64 linux/x86-64 linux/amd64/v1 linux/AMD64",
        "linux/arm linux/arm/v7 linux/arm/7 linux/armhf",
        "linux/arm/v6 linux/armel linux/arm/6",
        "linux/386 linux/i386 linux/i686",
        "darwin/arm64 macos/arm64 macOS/aarch64",
        "linux/amd64/v3 linux/x86_64/v3",
    ],
)
def test_all_spellings_of_a_platform_mean_the_same(spellings: str) -> None:
    platforms = [Platform.parse(text) for text in spellings.split()]

    for one in platforms:
        assert all(one.satisfies(other) for other in platforms)
        assert all(one.distance(other) < 2 for other in platforms)


@pytest.mark.parametrize(
    ("image", "wanted", "will_do"),
    [
        ("linux/arm/v6", "linux/arm", True),
        ("linux/arm64/v9", "linux/arm64", True),
        ("linux/arm64/v9", "linux/arm64/v8", False),
        ("linux/arm64", "linux/arm64/v9", False),
        ("linux/amd64/v3", "linux/amd64", True),
        ("linux/amd64", "linux/amd64/v2", False),
        ("linux/amd64/v3", "linux/amd64/v2", False),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm/v6", "linux/armhf", False),
        ("linux/arm64", "linux/arm", False),
        ("windows/amd64", "linux/amd64", False),
    ],
)
def test_another_variant_will_do_only_where_none_is_asked_for(image: str, wanted: str, *, will_do: bool) -> None:
    assert Platform.parse(image).satisfies(Platform.parse(wanted)) is will_do
    assert Platform.parse(image).distance(Platform.parse(wanted)) == 2


@pytest.mark.parametrize(
    ("wanted", "picked"),
    [
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/x86_64", "linux/amd64/v1"),
        ("linux/amd64/v3", "linux/amd64/v3"),
    ],
)
async def test_stores_of_every_kind_pick_the_same_image(tmp_path: Path, wanted: str, picked: str) -> None:
    layout, there = Layout(), {}
    for name in ("linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64/v3", "linux/amd64/v1"):
        there[name] = layout.image(A, f"for {name}".encode() * 200, platform=name)
    index = layout.index(*(at(image, name) for name, image in there.items()))
    layout.tag(index, "1").write(tmp_path)

    local = await image_of(tmp_path, platform=Platform.parse(wanted))
    async with running() as server, open_remote(reads(server), retry=QUICK) as remote:
        server.hold(layout, index, "team/app", "1")
        root = await remote.load("team/app", await remote.resolve("team/app", "1"), [Platform.parse(wanted)])

    assert local.root.manifest
    assert root.manifest
    assert str(local.root.manifest.digest) == str(root.manifest.digest) == there[picked]["digest"]


async def test_a_config_says_its_platform_in_any_spelling(tmp_path: Path) -> None:
    layout = Layout()
    layout.tag(layout.index(layout.image(B, platform="linux/aarch64"), layout.image(C)), "1").write(tmp_path)

    assert (await image_of(tmp_path, platform=Platform.parse("linux/arm64/v8"))).root
    with pytest.raises(ChoiceError, match="linux/aarch64"):
        await image_of(tmp_path, platform=Platform.parse("linux/s390x"))
    flat = Layout()
    flat.tag(at(flat.image(A), "linux/amd64")).tag(at(flat.image(B), "linux/arm64/v8")).write(tmp_path / "flat")
    chosen = await image_of(tmp_path / "flat", platform=Platform.parse("linux/aarch64"))
    assert chosen.source.endswith(":@1")


def test_the_command_takes_every_spelling(server: Server, tmp_path: Path) -> None:
    layout = Layout()
    amd, arm = layout.image(A), layout.image(B, platform="linux/arm64")
    layout.tag(layout.index(at(amd, "linux/amd64"), at(arm, "linux/arm64")), "1").write(tmp_path / "app")

    ran = server.run(
        "push", f"oci:{tmp_path}/app", "spellings:1", "--create-repository", "--platform", "linux/arm64/v8"
    )

    assert ran.status == 0, ran.err
    assert ran.out.strip().endswith(f"@{arm['digest']}")


async def test_several_platforms_make_the_same_index_of_every_store(server: Server, tmp_path: Path) -> None:
    """A layout, an archive of it and a registry give one digest, and the command takes the platforms with commas."""
    layout, images = Layout(), {}
    for name in ("linux/amd64", "linux/arm64", "linux/s390x"):
        images[name] = layout.image(A, f"for {name}".encode() * 200, platform=name)
    index = layout.index(*(at(image, name) for name, image in images.items()))
    layout.tag(index, "1").write(tmp_path / "app")
    archive = saved(tmp_path / "app.tar", tar(layout.all_files()))
    wanted = [Platform.parse("linux/arm64"), Platform.parse("linux/amd64")]

    local = [await image_of(path, platform=wanted) for path in (tmp_path / "app", archive)]
    async with running() as registry, open_remote(reads(registry), retry=QUICK) as remote:
        registry.hold(layout, index, "team/app", "1")
        root = await remote.load("team/app", await remote.resolve("team/app", "1"), wanted)
    ran = [
        server.run("push", path, f"several:{number}", "--create-repository", "--platform", "linux/amd64, linux/arm64")
        for number, path in enumerate((tmp_path / "app", archive))
    ]

    assert root.manifest
    assert [child.digest for child in root.manifest.children] == [
        Digest.parse(images[name]["digest"]) for name in ("linux/amd64", "linux/arm64")
    ]
    assert {image.root.manifest.digest for image in local} == {root.manifest.digest}
    assert all(each.out.strip().endswith(f"@{root.manifest.digest}") for each in ran), ran[0].err


def test_an_image_for_one_of_several_platforms_is_taken_from_docker_save(server: Server, tmp_path: Path) -> None:
    archive = saved(tmp_path / "app.tar", DockerSave().image(A, tags=["app:1"]).archive())

    one = server.run("push", archive, "saved:1", "--create-repository", "--platform", "linux/amd64,linux/arm64")
    none = server.run("push", archive, "saved:2", "--create-repository", "--platform", "linux/s390x,linux/arm64")

    assert one.status == 0, one.err
    assert none.status == 2
    assert "holds no image for linux/s390x or linux/arm64" in none.err
