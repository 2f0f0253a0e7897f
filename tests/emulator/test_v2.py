"""What was pushed to the emulator can be pulled through ``/v2/``; skopeo and the distribution-spec are the judges."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import anyio
import pytest
from anyio import to_thread

from asyncpush.emulator import Emulator
from support.aws import password, token
from support.emulator_client import OCI_INDEX, OCI_MANIFEST, Ecr, digest_of, image_manifest, index_manifest

needs_skopeo = pytest.mark.usefixtures("skopeo")

NAME = "team/manifests/app"
LAYER = gzip.compress(bytes(10240), mtime=0)
CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(bytes(10240))]},
    }
).encode()
MANIFEST = image_manifest(CONFIG, LAYER)
INDEX = index_manifest(MANIFEST)


@pytest.fixture
async def ecr(emulator: Emulator) -> Ecr:
    client = Ecr(emulator.endpoint_url)
    await client.call("create_repository", repositoryName=NAME)
    await client.push_image(NAME, "v1", CONFIG, LAYER)
    await client.put(NAME, INDEX, "multi")
    return client


@pytest.fixture
async def http(emulator: Emulator, ecr: Ecr) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Basic {await to_thread.run_sync(token, emulator.endpoint_url)}"}
    async with aiohttp.ClientSession(emulator.endpoint_url, headers=headers) as session:
        yield session


async def test_the_base_says_which_api_this_is(http: aiohttp.ClientSession) -> None:
    async with http.get("/v2/") as response:
        assert response.status == 200
        assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
        assert await response.json() == {}


@pytest.mark.parametrize(
    ("reference", "expected", "media_type"),
    [
        ("v1", MANIFEST, OCI_MANIFEST),
        ("multi", INDEX, OCI_INDEX),
        (digest_of(MANIFEST), MANIFEST, OCI_MANIFEST),
        (digest_of(INDEX), INDEX, OCI_INDEX),
    ],
)
async def test_a_manifest_is_given_by_tag_and_digest_byte_for_byte(
    http: aiohttp.ClientSession, reference: str, expected: bytes, media_type: str
) -> None:
    for method, body in (("GET", expected), ("HEAD", b"")):
        async with http.request(method, f"/v2/{NAME}/manifests/{reference}") as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == media_type
            assert response.headers["Docker-Content-Digest"] == digest_of(expected)
            assert response.headers["Content-Length"] == str(len(expected))
            assert await response.read() == body


async def test_a_blob_is_given_whole(http: aiohttp.ClientSession) -> None:
    for method, body in (("GET", LAYER), ("HEAD", b"")):
        async with http.request(method, f"/v2/{NAME}/blobs/{digest_of(LAYER)}") as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Docker-Content-Digest"] == digest_of(LAYER)
            assert response.headers["Content-Length"] == str(len(LAYER))
            assert "Content-Encoding" not in response.headers
            assert await response.read() == body


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-9", 206, LAYER[:10]),
        ("bytes=10-", 206, LAYER[10:]),
        ("bytes=-5", 206, LAYER[-5:]),
        (f"bytes=5-{len(LAYER) + 100}", 206, LAYER[5:]),
        (f"bytes={len(LAYER)}-", 416, None),
    ],
)
async def test_a_range_of_a_blob_is_given(
    http: aiohttp.ClientSession, asked: str, status: int, expected: bytes | None
) -> None:
    async with http.get(f"/v2/{NAME}/blobs/{digest_of(LAYER)}", headers={"Range": asked}) as response:
        assert response.status == status
        assert expected is None or await response.read() == expected


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "absent/manifests/v1", 404, "NAME_UNKNOWN"),
        ("GET", "absent/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "absent", 404, "NAME_UNKNOWN"),
        ("GET", f"{NAME}/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"{NAME}/manifests/{digest_of(b'')}", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"{NAME}/manifests/{digest_of(LAYER)}", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"{NAME}/blobs/{digest_of(b'')}", 404, "BLOB_UNKNOWN"),
        ("GET", f"{NAME}/blobs/..%2F..%2Findex.json", 404, "NAME_UNKNOWN"),
        ("GET", f"{NAME}/tags/list?n=many", 400, "PAGINATION_NUMBER_INVALID"),
    ],
)
async def test_a_refusal_has_the_specs_code(
    http: aiohttp.ClientSession, method: str, path: str, status: int, code: str
) -> None:
    async with http.request(method, f"/v2/{path}") as response:
        assert response.status == status
        assert [error["code"] for error in (await response.json())["errors"]] == [code]


@pytest.mark.parametrize("size", [1, 2, 4, 100])
async def test_tags_are_listed_in_order_page_by_page(http: aiohttp.ClientSession, ecr: Ecr, size: int) -> None:
    await ecr.put(NAME, MANIFEST, "a")
    await ecr.put(NAME, MANIFEST, "Z")
    async with http.get(f"/v2/{NAME}/tags/list") as response:
        assert await response.json() == {"name": NAME, "tags": ["Z", "a", "multi", "v1"]}
    found: list[str] = []
    path = f"/v2/{NAME}/tags/list?n={size}"
    while path:
        async with http.get(path) as response:
            page = (await response.json())["tags"]
            assert 0 < len(page) <= size
            found += page
            path = str(response.links["next"]["url"].relative()) if response.links else ""
    assert found == ["Z", "a", "multi", "v1"]


async def test_pulls_are_remembered_with_method_and_path(http: aiohttp.ClientSession, emulator: Emulator) -> None:
    emulator.requests.clear()
    async with http.head(f"/v2/{NAME}/manifests/v1"), http.get("/v2/absent/manifests/v1"):
        pass
    assert [(record.operation, record.status) for record in emulator.requests] == [
        (f"HEAD /v2/{NAME}/manifests/v1", 200),
        ("GET /v2/absent/manifests/v1", 404),
    ]


@needs_skopeo
@pytest.mark.parametrize(("tag", "manifest"), [("v1", MANIFEST), ("multi", INDEX)])
async def test_skopeo_pulls_what_was_pushed(
    ecr: Ecr, emulator: Emulator, tmp_path: Path, tag: str, manifest: bytes
) -> None:
    source = f"docker://{emulator.host}:{emulator.port}/{NAME}:{tag}"
    pulled = tmp_path / "pulled"
    credentials = f"--src-creds=AWS:{await to_thread.run_sync(password, emulator.endpoint_url)}"
    command = ["skopeo", "copy", "--all", "--src-tls-verify=false", credentials, source, f"oci:{pulled}:{tag}"]
    await anyio.run_process(command)
    (entry,) = json.loads((pulled / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == digest_of(manifest)
    for blob in (CONFIG, LAYER, MANIFEST, manifest):
        assert (pulled / "blobs/sha256" / digest_of(blob)[7:]).read_bytes() == blob
