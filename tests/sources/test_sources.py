"""What a source is called, and which of its images is chosen."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import re
from pathlib import Path

import pytest
from anyio import to_thread

from asyncpush.engine.compress import zstd
from asyncpush.errors import ChoiceError, InvalidReferenceError, SourceError, UsageError
from asyncpush.model import Digest, Platform
from asyncpush.settings import Settings
from asyncpush.sources import file_blob, open_source
from support.images import (
    IMAGE_NAME,
    LAYER,
    SETTINGS,
    A,
    B,
    C,
    DockerSave,
    Layout,
    app_layout,
    config_json,
    digest,
    image_of,
    layer_tar,
    names_of,
    read,
    saved,
)

ARM = Platform("linux", "arm64")


async def test_an_archive_on_a_redirected_file_or_in_memory_is_read_too(tmp_path):
    path = saved(tmp_path / "app.tar", app_layout().archive())
    with path.open("rb") as file:
        for stdin in (file, io.BytesIO(path.read_bytes())):
            async with open_source("-", SETTINGS, stdin=stdin) as source:
                image = await source.image()

            assert (image.source, image.repository, image.tag) == ("oci-archive:-:1.0", None, "1.0")


async def test_several_images_must_be_chosen_from_and_the_choices_listed(tmp_path):
    """Of several images one must be chosen; the error lists the choices."""
    layout = Layout()
    layout.tag(layout.image(A), "1.0").tag(layout.image(B), "2.0").tag(layout.image(C)).write(tmp_path)

    with pytest.raises(ChoiceError) as error:
        await image_of(tmp_path)

    assert error.value.choices == (f"oci:{tmp_path}:1.0", f"oci:{tmp_path}:2.0", f"oci:{tmp_path}:@2")
    for reference, layer in zip(error.value.choices, (A, B, C), strict=True):
        image = await image_of(reference)
        assert image.root.layers[0].descriptor.digest == Digest.of(gzip.compress(layer, 1, mtime=0))


async def test_an_image_can_be_chosen_by_its_place_and_its_digest(tmp_path):
    layout = Layout()
    first, second = layout.image(A), layout.image(B)
    layout.tag(first, "1.0").tag(second, "2.0").write(tmp_path)

    for choice in ("@1", f"@{second['digest']}"):
        assert (await image_of(f"oci:{tmp_path}:{choice}")).tag == "2.0"


async def test_two_names_of_one_image_need_no_choice(tmp_path):
    layout = Layout()
    one = layout.image(A)
    layout.tag(one, "1.0").tag(one, "latest").write(tmp_path)

    assert (await image_of(tmp_path)).tag == "1.0"
    assert await names_of(tmp_path) == [(tmp_path.name, "1.0"), (tmp_path.name, "latest")]


@pytest.mark.parametrize("choice", ["3.0", "@7", "@-1", "@", "@x", f"@{Digest.of(b'')}"])
async def test_what_is_not_there_is_refused_with_what_is(tmp_path, choice):
    app_layout().write(tmp_path)

    with pytest.raises(ChoiceError) as error:
        await image_of(f"oci:{tmp_path}:{choice}")

    assert error.value.choices == (f"oci:{tmp_path}:1.0",)


async def test_a_path_that_exists_wins_over_a_choice_the_longest_first(tmp_path):
    layout = Layout()
    layout.tag(layout.image(A), "b").write(tmp_path / "a")
    other = Layout()
    other.tag(other.image(B), "c").write(tmp_path / "a:b")

    assert (await image_of(f"oci:{tmp_path}/a:b")).tag == "c"
    assert (await image_of(f"{tmp_path}/a:b:c")).tag == "c"
    assert (await image_of(f"oci:{tmp_path}/a:@0")).tag == "b"


@pytest.mark.parametrize("reference", ["docker:alpine:3", "", "oci:", "dir:x", "nginx:1.25"])
async def test_an_unknown_kind_of_source_is_refused_with_the_known_ones(reference):
    with pytest.raises(InvalidReferenceError, match=r"oci:DIR.*oci-archive:FILE.*docker-archive:FILE.*standard input"):
        await image_of(reference)


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("docker.io/library/nginx:1.27", "docker://docker.io/library/nginx:1.27"),
        ("nginx:1.27", "docker://docker.io/library/nginx:1.27"),
        ("bitnami/redis:7", "docker://docker.io/bitnami/redis:7"),
        ("ghcr.io/team/app", "docker://ghcr.io/team/app"),
        ("localhost:5000/app:1", "docker://localhost:5000/app:1"),
    ],
)
async def test_what_looks_like_an_image_elsewhere_is_asked_about(reference, meant):
    with pytest.raises(UsageError, match=re.escape(f"did you mean {meant}?")):
        await image_of(reference)


@pytest.mark.parametrize("reference", ["dir:x", "app.tar:1", "build/app", "docker:alpine:3", "app"])
async def test_what_looks_like_a_path_is_not_taken_for_an_image(reference):
    with pytest.raises(UsageError) as error:
        await image_of(reference)

    assert "did you mean" not in str(error.value)


async def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SourceError, match=f"{tmp_path}/nope does not exist"):
        await image_of(f"docker-archive:{tmp_path}/nope:app:1.0")


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, ("stem", None)),
        ({"org.opencontainers.image.ref.name": "1.0"}, ("stem", "1.0")),
        ({"org.opencontainers.image.ref.name": "localhost:5000/org/app:1.0"}, ("org/app", "1.0")),
        ({IMAGE_NAME: "docker.io/library/app:1.0", "org.opencontainers.image.ref.name": "1.0"}, ("app", "1.0")),
        ({IMAGE_NAME: "ghcr.io/org/app:2"}, ("org/app", "2")),
        ({IMAGE_NAME: f"ghcr.io/org/app:2@{Digest.of(b'')}"}, ("org/app", "2")),
        ({"org.opencontainers.image.ref.name": "bad\x1b[31mname"}, ("stem", None)),
    ],
)
async def test_an_oci_image_is_named_by_its_annotations_and_else_by_its_file(tmp_path, annotations, expected):
    layout = Layout()
    layout.tag(layout.image(A), **annotations)

    assert await names_of(saved(tmp_path / "Stem.oci.tar.gz", layout.archive())) == [expected]


async def test_a_file_becomes_a_blob_with_its_digest(tmp_path):
    blob = await file_blob(saved(tmp_path / "layer.tgz", A), LAYER)

    assert (str(blob.descriptor.digest), blob.descriptor.size, blob.media_type) == (digest(A), len(A), LAYER)
    assert await read(blob) == A


async def test_a_file_that_is_missing_empty_or_special_is_no_layer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    saved(tmp_path / "empty", b"")

    for name, message in (
        ("nope", "does not exist"),
        ("empty", "has 0 bytes"),
        ("pipe", "regular file"),
        (".", "regular file"),
    ):
        with pytest.raises(SourceError, match=message):
            await file_blob(tmp_path / name, LAYER)


async def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    """A file that shrinks while it is read is an error, not a shorter layer."""
    path = saved(tmp_path / "layer", A)
    blob = await file_blob(path, LAYER)
    path.write_bytes(A[:-10])

    with pytest.raises(SourceError, match="ends 10 bytes early"):
        await read(blob)


async def test_real_images_of_other_tools_hold_the_same_layers_in_every_form(real_images):
    found = set()
    for name in ("busybox", "busybox.zstd", "busybox.oci.tar", "busybox.docker.tar"):
        async with open_source(str(real_images / name), SETTINGS) as source:
            root = (await source.image()).root
            diff_ids = json.loads(await read(root.config))["rootfs"]["diff_ids"]
            for layer, diff_id in zip(root.layers, diff_ids, strict=True):
                data = await read(layer)
                unpacked = zstd.decompress(data) if "zstd" in layer.media_type else gzip.decompress(data)
                assert f"sha256:{hashlib.sha256(unpacked).hexdigest()}" == diff_id
            found.add(tuple(diff_ids))

    assert len(found) == 1


@pytest.mark.parametrize("form", ["layout", "archive"])
async def test_where_a_list_tells_no_platforms_the_configs_do(tmp_path, form):
    if form == "layout":
        layout = Layout()
        layout.tag(layout.image(A), "1").tag(layout.image(B, platform="linux/arm64"), "2")
        path = layout.write(tmp_path / "a")
    else:
        archive = DockerSave().image(A, tags=["app:1"])
        name = f"{digest(B)[7:]}/layer.tar"
        archive.entries[name] = B
        archive.item(config_json([B], "linux/arm64"), [name], ["app:2"])
        path = saved(tmp_path / "a.tar", archive.archive())

    assert (await image_of(path, platform=ARM)).tag == "2"
    with pytest.raises(ChoiceError, match="holds no image for linux/s390x") as error:
        await image_of(path, platform=Platform("linux", "s390x"))
    assert error.value.choices == ("linux/amd64", "linux/arm64")


@pytest.mark.parametrize("kind", ["archive", "layer"])
async def test_what_is_decompressed_has_a_bound(tmp_path, kind):
    layer = layer_tar("zeros", 200_000)
    stored = [lzma.compress(layer) if kind == "layer" else layer]
    data = DockerSave().image(layer, tags=["app:1.0"], stored=stored).archive()
    path = saved(tmp_path / "app.tar", gzip.compress(data) if kind == "archive" else data)

    async with open_source(str(path), Settings(max_unpacked=300_000)) as source:
        await source.image()
    with pytest.raises(SourceError, match=rf"{path}.* takes more than 100000 bytes in the temporary directory"):
        async with open_source(str(path), Settings(max_unpacked=100_000)) as source:
            await source.image()


@pytest.mark.parametrize("written", ["{}", "oci:{}", "oci-archive:{}", "docker-archive:{}:1\n2"])
@pytest.mark.parametrize("kind", ["nothing", "text", "folder"])
async def test_a_path_with_a_line_end_makes_an_error_of_one_line(written: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[2J"
    if kind == "text":
        await to_thread.run_sync(path.write_text, "no archive")
    elif kind == "folder":
        await to_thread.run_sync(path.mkdir)
    with pytest.raises(SourceError) as caught:
        async with open_source(written.format(path), Settings()):
            pass
    assert "a\\nb\\x1b[2J" in str(caught.value)
    assert str(caught.value).isprintable()
