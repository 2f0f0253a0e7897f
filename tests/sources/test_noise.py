"""Whatever bytes a source holds, an image or an error for users comes out."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncpush.errors import AsyncpushError, SourceError
from asyncpush.sources import open_source
from support.images import SETTINGS, A, C, DockerSave, Layout, app_layout, hybrid, image_of, names_of, read, saved, tar

KEYS = st.sampled_from(
    ["manifests", "mediaType", "digest", "size", "annotations", "platform", "os", "architecture", "urls", "layers"]
) | st.sampled_from(["Config", "Layers", "RepoTags", "schemaVersion", "imageLayoutVersion", "rootfs", "diff_ids"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def survives(data):
    """Whatever *data* is, only errors for users come out."""
    try:
        async with open_source("-", SETTINGS, stdin=io.BytesIO(data)) as source:
            for image in await source.images():
                if hasattr(image.root, "layers"):
                    for blob in (image.root.config, *image.root.layers):
                        await read(blob)
    except AsyncpushError as error:
        assert_one_line(error)


@FUZZ
@given(
    document=JSON | st.lists(st.fixed_dictionaries({"Config": st.just("c"), "Layers": JSON, "RepoTags": JSON})),
    config=JSON,
)
async def test_any_docker_archive_ends_in_an_image_or_one_line(document, config):
    files = {"manifest.json": json.dumps(document).encode(), "c": json.dumps(config).encode(), "l": A}

    await survives(tar(files))


@FUZZ
@given(index=JSON, layout=JSON, manifest=JSON)
async def test_any_oci_archive_ends_in_an_image_or_one_line(index, layout, manifest):
    built = Layout()
    built.tag(built.blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json"), "1")
    await survives(built.archive())

    await survives(tar({"index.json": json.dumps(index).encode(), "oci-layout": json.dumps(layout).encode()}))
    built.files["index.json"] = json.dumps({"manifests": [index]}).encode()
    await survives(built.archive())


WHOLE = [
    app_layout().archive(),
    DockerSave().image(A, C, tags=["app:1.0"]).archive(),
    hybrid(C, name="app:1.0", packed=True),
]


@FUZZ
@given(
    whole=st.sampled_from(WHOLE),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
async def test_flipped_bytes_end_in_an_image_or_one_line(whole, flips):
    broken = bytearray(whole)
    for place, mask in flips:
        broken[int(place * len(broken))] ^= mask

    await survives(bytes(broken))


@FUZZ
@given(whole=st.sampled_from(WHOLE), data=st.data())
async def test_flipped_bytes_in_headers_end_in_an_image_or_one_line(whole, data):
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        header = data.draw(st.sampled_from([member.offset for member in archive]))
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[header + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    checksum = sum(broken[header : header + 148]) + 8 * 32 + sum(broken[header + 156 : header + 512])
    broken[header + 148 : header + 156] = b"%06o\0 " % (checksum % 0o1000000)

    await survives(bytes(broken))


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"manifests":' + b"[" * 100_000, b'{"x":' + b"[" * 100_000])
async def test_deeply_nested_json_ends_in_one_line(deep):
    for name in ("manifest.json", "index.json"):
        await survives(tar({name: deep, "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}))
    layout = Layout()
    layout.tag(layout.blob(deep, "application/vnd.oci.image.manifest.v1+json"), "1")
    await survives(layout.archive())


def assert_one_line(error):
    assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["", "oci:", "docker-archive:"])
async def test_an_unpacked_docker_archive_is_told_by_its_list_and_how_to_push_it(tmp_path, kind):
    archive = DockerSave().image(A, tags=["app:1"])
    layout = Layout({**archive.entries, "manifest.json": json.dumps(archive.items).encode()})
    (layout.write(tmp_path / "a") / "index.json").unlink()

    with pytest.raises(SourceError, match="is an unpacked docker-archive") as error:
        await image_of(f"{kind}{tmp_path}/a")
    assert error.value.hint == f"tar it: `tar -C {tmp_path}/a -c . | asyncpush push - DESTINATION`"


async def test_what_skopeo_writes_as_dir_is_called_so(tmp_path):
    files = {"version": b"Directory Transport Version: 1.1\n", "manifest.json": b'{"schemaVersion": 2}'}
    (Layout(files).write(tmp_path / "a") / "index.json").unlink()

    for path in (tmp_path / "a", saved(tmp_path / "a.tar", tar(files))):
        with pytest.raises(SourceError, match=f"{path} is a `dir:` of skopeo") as error:
            await image_of(path)
        assert "skopeo copy dir:DIR oci:" in error.value.hint
    (tmp_path / "a" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(SourceError, match="is not an OCI layout"):
        await image_of(tmp_path / "a")


async def test_null_among_the_names_of_an_image_is_nothing(tmp_path):
    archive = DockerSave().image(A, tags=["app:1", None])

    assert await names_of(saved(tmp_path / "a.tar", archive.archive())) == [("app", "1")]
