"""The OCI distribution-spec v1.1, section by section, of the emulator's ``/v2/``; Debian's docker-registry agrees."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import aiohttp
import anyio
import pytest
from anyio import to_thread

from asyncpush.emulator import Emulator, Quirks
from support.aws import password, token
from support.emulator_client import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Ecr,
    descriptor,
    digest_of,
    image_manifest,
    index_manifest,
)
from support.processes import wait_until_it_listens

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER = bytes(range(256)) * 40
MANIFEST = image_manifest(CONFIG, LAYER)
ABSENT = digest_of(b"absent")


@dataclass
class Answer:
    """An answer, read to its end."""

    status: int
    headers: Any
    body: bytes

    @property
    def codes(self) -> list[str]:
        return [error["code"] for error in json.loads(self.body)["errors"]]


@dataclass
class Spec:
    """A registry under test, with a repository and a second one of the same registry."""

    http: aiohttp.ClientSession
    kind: str
    name: str
    other: str

    async def __call__(self, method: str, path: str, data: bytes | None = None, **headers: str) -> Answer:
        """One request; *path* is behind ``/v2/NAME/``, or absolute."""
        url = path if path.startswith(("/", "http")) else f"/v2/{self.name}/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, url, data=data, headers=named) as response:
            return Answer(response.status, response.headers, await response.read())

    async def begin(self, name: str = "") -> str:
        """Open an upload: its location."""
        begun = await self("POST", f"/v2/{name or self.name}/blobs/uploads/")
        assert begun.status == 202, begun
        return begun.headers["Location"]

    async def push(self, *blobs: bytes, name: str = "") -> None:
        for blob in blobs:
            done = await self("PUT", with_digest(await self.begin(name), digest_of(blob)), blob)
            assert done.status == 201, done

    async def put(self, manifest: bytes, reference: str, media_type: str = OCI_MANIFEST) -> Answer:
        return await self("PUT", f"manifests/{reference}", manifest, Content_Type=media_type)

    async def push_image(self, reference: str = "v1") -> None:
        await self.push(CONFIG, LAYER)
        assert (await self.put(MANIFEST, reference)).status == 201


def with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Starts Debian's docker-registry when it is first asked for, and tells its address."""
    data = tmp_path_factory.mktemp("docker-registry")
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(program: str) -> str:
        if not running:
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = f"127.0.0.1:{free.getsockname()[1]}"
            (data / "config.yml").write_text(
                f"version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {data}/held}}\n  delete: {{enabled: true}}\n"
                f"http:\n  addr: {address}\n  relativeurls: true\n"
            )
            command = [program, "serve", str(data / "config.yml")]
            running[address] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until_it_listens(address)
        return f"http://{next(iter(running))}"

    yield start
    for process in running.values():
        process.terminate()
        process.wait(timeout=10)


def opened(url: str, kind: str, basic: str = "") -> Spec:
    mark = uuid.uuid4().hex[:12]
    headers = {"Authorization": f"Basic {basic}"} if basic else {}
    return Spec(aiohttp.ClientSession(url, headers=headers), kind, f"spec/{mark}", f"spec/{mark}-other")


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """A local ECR that takes all that the specification wants taken."""
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=Quirks(oci_conformance="yes")) as running:
        yield running


async def opened_emulator(emulator: Emulator) -> Spec:
    basic = await to_thread.run_sync(token, emulator.endpoint_url)
    opening = opened(emulator.endpoint_url, "emulator", basic)
    ecr = Ecr(emulator.endpoint_url)
    for name in opening.name, opening.other:
        await ecr.call("create_repository", repositoryName=name)
    return opening


@pytest.fixture
async def spec(emulator: Emulator) -> AsyncIterator[Spec]:
    """The emulator only: what docker-registry 2.8 does not have, or does otherwise."""
    opening = await opened_emulator(emulator)
    async with opening.http:
        yield opening


@pytest.fixture(params=["emulator", "docker-registry"])
async def either(
    request: pytest.FixtureRequest,
    emulator: Emulator,
    need: Callable[[str], str],
    docker_registry: Callable[[str], str],
) -> AsyncIterator[Spec]:
    """The emulator, and docker-registry by the same test."""
    if request.param == "emulator":
        opening = await opened_emulator(emulator)
    else:
        opening = opened(await to_thread.run_sync(docker_registry, need("docker-registry")), request.param)
    async with opening.http:
        yield opening


# Determining Support (end-1)


async def test_end_1_the_base_answers_200(either: Spec) -> None:
    assert (await either("GET", "/v2/")).status == 200


# Pull: Pulling manifests, Pulling blobs, Checking if content exists in the registry (end-2, end-3)


@pytest.mark.parametrize("reference", ["v1", digest_of(MANIFEST)])
async def test_end_3_a_manifest_is_pulled_as_it_was_pushed(either: Spec, reference: str) -> None:
    await either.push_image()
    for method, body in (("GET", MANIFEST), ("HEAD", b"")):
        found = await either(method, f"manifests/{reference}", Accept=OCI_MANIFEST)
        assert (found.status, found.body) == (200, body)
        assert found.headers["Content-Type"] == OCI_MANIFEST
        assert found.headers["Content-Length"] == str(len(MANIFEST))
        assert found.headers["Docker-Content-Digest"] == digest_of(MANIFEST)


async def test_end_2_a_blob_is_pulled_as_it_was_pushed(either: Spec) -> None:
    await either.push(LAYER)
    for method, body in (("GET", LAYER), ("HEAD", b"")):
        found = await either(method, f"blobs/{digest_of(LAYER)}")
        assert (found.status, found.body) == (200, body)
        assert found.headers["Content-Length"] == str(len(LAYER))
        assert found.headers["Docker-Content-Digest"] == digest_of(LAYER)


async def test_end_2_a_range_of_a_blob_is_pulled(either: Spec) -> None:
    await either.push(LAYER)
    found = await either("GET", f"blobs/{digest_of(LAYER)}", Range="bytes=5-99")
    assert (found.status, found.body) == (206, LAYER[5:100])


@pytest.mark.parametrize("path", [f"blobs/{ABSENT}", f"manifests/{ABSENT}", "manifests/absent"])
async def test_end_2_and_3_what_is_not_there_is_404(either: Spec, path: str) -> None:
    await either.push_image()
    assert (await either("HEAD", path)).status == 404
    found = await either("GET", path)
    assert (found.status, found.codes) == (404, ["BLOB_UNKNOWN" if "blobs" in path else "MANIFEST_UNKNOWN"])


async def test_a_repository_has_its_own_blobs_and_manifests_only(spec: Spec) -> None:
    await spec.push_image()
    for path in (f"blobs/{digest_of(LAYER)}", f"manifests/{digest_of(MANIFEST)}", "manifests/v1"):
        assert (await spec("GET", path)).status == 200
        assert (await spec("GET", f"/v2/{spec.other}/{path}")).status == 404


# Push: Pushing a blob monolithically (end-4a, end-4b, end-6)


async def test_end_4a_and_6_a_blob_is_pushed_by_post_then_put(either: Spec) -> None:
    done = await either("PUT", with_digest(await either.begin(), digest_of(LAYER)), LAYER)
    assert done.status == 201
    assert (await either("GET", done.headers["Location"])).body == LAYER


async def test_end_4b_a_blob_is_pushed_by_a_single_post(spec: Spec) -> None:
    done = await spec("POST", f"blobs/uploads/?digest={digest_of(LAYER)}", LAYER)
    assert done.status == 201
    assert (await spec("GET", done.headers["Location"])).body == LAYER


async def test_end_6_bytes_of_another_digest_are_refused_and_not_kept(either: Spec) -> None:
    done = await either("PUT", with_digest(await either.begin(), ABSENT), LAYER)
    assert (done.status, done.codes) == (400, ["DIGEST_INVALID"])
    for digest in (ABSENT, digest_of(LAYER)):
        assert (await either("HEAD", f"blobs/{digest}")).status == 404


@pytest.mark.parametrize("digest", ["", "sha256:short", "nonsense"])
async def test_end_6_a_digest_that_is_none_is_refused(either: Spec, digest: str) -> None:
    done = await either("PUT", with_digest(await either.begin(), digest), LAYER)
    assert (done.status, done.codes) == (400, ["DIGEST_INVALID"])


async def test_end_6_a_blob_may_be_empty(either: Spec) -> None:
    await either.push(b"")
    found = await either("GET", f"blobs/{digest_of(b'')}")
    assert (found.status, found.body) == (200, b"")


async def test_end_6_a_blob_may_be_pushed_again(either: Spec) -> None:
    await either.push(LAYER, LAYER)
    assert (await either("GET", f"blobs/{digest_of(LAYER)}")).body == LAYER


# Push: Pushing a blob in chunks (end-5, end-6, end-13)


@pytest.mark.parametrize("last_in_put", [True, False])
async def test_end_5_a_blob_is_pushed_in_chunks_of_which_put_may_bring_the_last(
    either: Spec, last_in_put: bool
) -> None:
    location, sizes = await either.begin(), (1, 5000, len(LAYER))
    first = 0
    for end in sizes[:2] if last_in_put else sizes:
        chunk = LAYER[first:end]
        done = await either(
            "PATCH", location, chunk, Content_Range=f"{first}-{end - 1}", Content_Type="application/octet-stream"
        )
        assert done.status == 202
        assert done.headers["Range"] == f"0-{end - 1}"
        location, first = done.headers["Location"], end
    done = await either("PUT", with_digest(location, digest_of(LAYER)), LAYER[first:])
    assert done.status == 201
    assert (await either("GET", f"blobs/{digest_of(LAYER)}")).body == LAYER


async def test_end_5_a_body_without_a_range_follows_what_is_there(either: Spec) -> None:
    location = await either.begin()
    for piece in (LAYER[:100], LAYER[100:]):
        location = (await either("PATCH", location, piece)).headers["Location"]
    assert (await either("PUT", with_digest(location, digest_of(LAYER)))).status == 201


@pytest.mark.parametrize("asked", ["0-99", "150-249"])
async def test_end_5_a_chunk_out_of_order_is_416(spec: Spec, asked: str) -> None:
    location = await spec.begin()
    location = (await spec("PATCH", location, LAYER[:100], Content_Range="0-99")).headers["Location"]
    assert (await spec("PATCH", location, LAYER[:100], Content_Range=asked)).status == 416
    status = await spec("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-99")


async def test_end_5_and_6_a_refused_chunk_says_where_to_go_on(spec: Spec) -> None:
    location = await spec.begin()
    await spec("PATCH", location, LAYER[:100])
    for refused in (
        await spec("PATCH", location, LAYER[:100], Content_Range="0-99"),
        await spec("PATCH", location, LAYER[:100], Content_Range="rubbish"),
        await spec("PUT", with_digest(location, digest_of(LAYER)), LAYER[200:], Content_Range="200-10239"),
    ):
        assert (refused.status, refused.codes) == (416, ["BLOB_UPLOAD_INVALID"])
        assert refused.headers["Range"] == "0-99"
    done = await spec("PUT", with_digest(refused.headers["Location"], digest_of(LAYER)), LAYER[100:])
    assert done.status == 201


async def test_end_5_a_body_that_is_not_as_long_as_its_range_is_refused(spec: Spec) -> None:
    location = await spec.begin()
    refused = await spec("PATCH", location, LAYER[:100], Content_Range="0-98")
    assert (refused.status, refused.codes) == (400, ["SIZE_INVALID"])
    assert (await spec("GET", location)).headers["Range"] == "0-0"


async def test_end_13_the_status_says_how_much_there_is(either: Spec) -> None:
    location = (await either("PATCH", await either.begin(), LAYER)).headers["Location"]
    status = await either("GET", location)
    assert (status.status, status.headers["Range"]) == (204, f"0-{len(LAYER) - 1}")
    assert status.headers["Location"]


async def test_end_14_an_upload_that_is_cancelled_or_unknown_is_404(either: Spec) -> None:
    location = await either.begin()
    assert (await either("DELETE", location)).status == 204
    for method, path in (
        ("GET", location),
        ("DELETE", location),
        ("PATCH", location),
        ("PUT", with_digest(location, ABSENT)),
    ):
        refused = await either(method, path)
        assert refused.status == 404
        assert refused.codes == ["BLOB_UPLOAD_UNKNOWN"]


# Push: Mounting a blob from another repository (end-11)


@pytest.mark.parametrize("origin", ["", "&from=absent/repository"])
async def test_end_11_a_mount_that_can_not_be_done_opens_an_upload(either: Spec, origin: str) -> None:
    begun = await either("POST", f"blobs/uploads/?mount={digest_of(LAYER)}{origin}")
    assert begun.status == 202
    assert (await either("PUT", with_digest(begun.headers["Location"], digest_of(LAYER)), LAYER)).status == 201


async def test_end_11_a_mounted_blob_is_there(either: Spec) -> None:
    await either.push_image()
    if either.kind == "emulator":
        ecr = Ecr(str(either.http._base_url).rstrip("/"))
        await ecr.call("put_account_setting", name="BLOB_MOUNTING", value="ENABLED")
    path = f"/v2/{either.other}/blobs/uploads/?mount={digest_of(LAYER)}&from={either.name}"
    mounted = await either("POST", path)
    assert mounted.status == 201
    assert (await either("GET", mounted.headers["Location"])).body == LAYER


# Push: Pushing Manifests (end-7), and with a subject


@pytest.mark.parametrize("reference", ["v1", "A_b.c-9", "x" * 128, digest_of(MANIFEST)])
async def test_end_7_a_manifest_is_pushed_by_tag_or_digest(either: Spec, reference: str) -> None:
    await either.push(CONFIG, LAYER)
    for _ in range(2):
        done = await either.put(MANIFEST, reference)
        assert done.status == 201
        assert done.headers["Docker-Content-Digest"] == digest_of(MANIFEST)
        assert (await either("GET", done.headers["Location"], Accept=OCI_MANIFEST)).body == MANIFEST


async def test_end_7_a_manifest_of_missing_blobs_is_refused(either: Spec) -> None:
    await either.push(CONFIG)
    refused = await either.put(MANIFEST, "v1")
    assert refused.status in (400, 404)
    assert set(refused.codes) == {"MANIFEST_BLOB_UNKNOWN"}
    assert (await either("GET", "manifests/v1")).status == 404


async def test_end_7_a_manifest_with_another_digest_is_refused(either: Spec) -> None:
    await either.push(CONFIG, LAYER)
    refused = await either.put(MANIFEST, ABSENT)
    assert (refused.status, refused.codes) == (400, ["DIGEST_INVALID"])


@pytest.mark.parametrize(
    ("manifest", "media_type"),
    [
        (b"{", OCI_MANIFEST),
        (b"\xff", OCI_MANIFEST),
        (MANIFEST, OCI_INDEX),
        (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"),
    ],
)
async def test_end_7_what_is_no_manifest_of_its_type_is_refused(either: Spec, manifest: bytes, media_type: str) -> None:
    await either.push(CONFIG, LAYER)
    refused = await either.put(manifest, "v1", media_type)
    invalid = (400, ["MANIFEST_INVALID"])
    assert (refused.status, refused.codes) in (
        [invalid, (405, ["UNSUPPORTED"])] if either.kind == "emulator" else [invalid]
    )


async def test_end_7_a_manifest_that_is_too_large_is_413(spec: Spec) -> None:
    await spec.push(CONFIG, LAYER)
    large = image_manifest(CONFIG, LAYER, annotations={"padding": "x" * 4 * 1024 * 1024})
    refused = await spec.put(large, "v1")
    assert (refused.status, refused.codes) == (413, ["MANIFEST_INVALID"])


@pytest.mark.parametrize("tag", ["-x", "a b", "x" * 129])
async def test_end_7_a_tag_that_is_none_is_refused(spec: Spec, tag: str) -> None:
    await spec.push(CONFIG, LAYER)
    refused = await spec.put(MANIFEST, tag)
    assert (refused.status, refused.codes) == (400, ["TAG_INVALID"])


async def test_end_7_an_image_may_have_no_layers(either: Spec) -> None:
    await either.push(CONFIG)
    bare = image_manifest(CONFIG)
    assert (await either.put(bare, "bare")).status == 201
    assert (await either("GET", "manifests/bare", Accept=OCI_MANIFEST)).body == bare


async def test_end_7_an_index_is_pushed_once_its_manifests_are_there(either: Spec) -> None:
    await either.push_image(digest_of(MANIFEST))
    index = index_manifest(MANIFEST)
    assert (await either.put(index, "multi", OCI_INDEX)).status == 201
    found = await either("GET", "manifests/multi", Accept=OCI_INDEX)
    assert (found.body, found.headers["Content-Type"]) == (index, OCI_INDEX)


async def test_end_7_a_subject_is_acknowledged_be_it_there_or_not(spec: Spec) -> None:
    await spec.push_image()
    for subject in (descriptor(OCI_MANIFEST, MANIFEST), descriptor(OCI_MANIFEST, b"absent")):
        done = await spec.put(referrer("one", subject), "signed")
        assert (done.status, done.headers["OCI-Subject"]) == (201, subject["digest"])
    assert "OCI-Subject" not in (await spec.put(MANIFEST, "v2")).headers


# Content Discovery: Listing Tags (end-8), Listing Referrers (end-12)


async def test_end_8_tags_are_listed_in_order_and_by_page(spec: Spec) -> None:
    tags = ["a", "b", "c", "d"]
    await spec.push(CONFIG, LAYER)
    for tag in reversed(tags):
        await spec.put(MANIFEST, tag)
    assert json.loads((await spec("GET", "tags/list")).body) == {"name": spec.name, "tags": tags}
    for query, shown in {"n=0": [], "n=2": tags[:2], "n=2&last=b": tags[2:], "last=c": ["d"], "last=d": []}.items():
        assert json.loads((await spec("GET", f"tags/list?{query}")).body)["tags"] == shown


def referrer(kind: str, subject: dict[str, Any]) -> bytes:
    return image_manifest(CONFIG, subject=subject, artifactType=f"application/vnd.{kind}", annotations={"kind": kind})


async def test_end_12_referrers_are_an_index_of_those_that_name_the_digest(spec: Spec) -> None:
    subject = descriptor(OCI_MANIFEST, MANIFEST)
    await spec.push(CONFIG, LAYER)
    ones = {kind: referrer(kind, subject) for kind in ("one", "two")}
    for kind, raw in ones.items():
        await spec.put(raw, kind)
    await spec.put(image_manifest(CONFIG, subject=subject), "plain")
    await spec.put(referrer("else", descriptor(OCI_MANIFEST, b"absent")), "else")
    found = await spec("GET", f"referrers/{subject['digest']}")
    assert (found.status, found.headers["Content-Type"]) == (200, OCI_INDEX)
    assert "OCI-Filters-Applied" not in found.headers
    index = json.loads(found.body)
    assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
    kinds = {entry["digest"]: (entry["artifactType"], entry.get("annotations")) for entry in index["manifests"]}
    assert kinds == {
        digest_of(ones["one"]): ("application/vnd.one", {"kind": "one"}),
        digest_of(ones["two"]): ("application/vnd.two", {"kind": "two"}),
        digest_of(image_manifest(CONFIG, subject=subject)): (OCI_CONFIG, None),
    }


async def test_end_12_referrers_are_filtered_by_artifact_type(spec: Spec) -> None:
    subject = descriptor(OCI_MANIFEST, MANIFEST)
    await spec.push(CONFIG, LAYER)
    for kind in ("one", "two"):
        await spec.put(referrer(kind, subject), kind)
    found = await spec("GET", f"referrers/{subject['digest']}?artifactType=application/vnd.two")
    assert found.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["digest"] for entry in json.loads(found.body)["manifests"]] == [digest_of(referrer("two", subject))]


async def test_end_12_a_digest_without_referrers_has_an_empty_index(spec: Spec) -> None:
    found = await spec("GET", f"referrers/{ABSENT}")
    assert (found.status, json.loads(found.body)["manifests"]) == (200, [])
    refused = await spec("GET", "referrers/sha256:short")
    assert (refused.status, refused.codes) == (400, ["DIGEST_INVALID"])


# Content Management: Deleting tags, Deleting Manifests (end-9), Deleting Blobs (end-10)


async def test_end_9_a_manifest_is_deleted_by_its_digest_with_all_its_tags(either: Spec) -> None:
    await either.push_image()
    await either.put(MANIFEST, "v2")
    assert (await either("DELETE", f"manifests/{digest_of(MANIFEST)}")).status == 202
    for reference in ("v1", "v2", digest_of(MANIFEST)):
        assert (await either("GET", f"manifests/{reference}")).status == 404
    assert (await either("DELETE", f"manifests/{digest_of(MANIFEST)}")).status == 404


async def test_end_9_a_tag_is_deleted_and_the_manifest_stays_under_others(spec: Spec) -> None:
    await spec.push_image()
    await spec.put(MANIFEST, "v2")
    assert (await spec("DELETE", "manifests/v1")).status == 202
    assert [(await spec("GET", f"manifests/{tag}")).status for tag in ("v1", "v2", digest_of(MANIFEST))] == [
        404,
        200,
        200,
    ]


async def test_end_9_a_manifest_that_an_index_names_stays(spec: Spec) -> None:
    await spec.push_image()
    await spec.put(index_manifest(MANIFEST), "multi", OCI_INDEX)
    refused = await spec("DELETE", f"manifests/{digest_of(MANIFEST)}")
    assert (refused.status, refused.codes) == (403, ["DENIED"])
    assert (await spec("GET", f"manifests/{digest_of(MANIFEST)}")).status == 200


async def test_end_10_a_registry_may_refuse_to_delete_blobs(spec: Spec) -> None:
    await spec.push(LAYER)
    refused = await spec("DELETE", f"blobs/{digest_of(LAYER)}")
    assert (refused.status, refused.codes, refused.headers["Allow"]) == (405, ["UNSUPPORTED"], "GET")


# Error Codes


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v2/absent/blobs/uploads/", 404, "NAME_UNKNOWN"),
        ("PUT", "/v2/absent/manifests/v1", 404, "NAME_UNKNOWN"),
        ("PATCH", "/v2/absent/blobs/uploads/0b2e1c9a-3a38-4b43-9b4f-5a3c2a6f7e10", 404, "NAME_UNKNOWN"),
        ("GET", f"/v2/absent/referrers/{ABSENT}", 404, "NAME_UNKNOWN"),
        ("DELETE", "/v2/absent/manifests/v1", 404, "NAME_UNKNOWN"),
        ("POST", "/v2/Not-A-Name/blobs/uploads/", 400, "NAME_INVALID"),
        ("POST", "/v2/a%2F..%2F..%2Fb/blobs/uploads/", 400, "NAME_INVALID"),
        ("PUT", "/v2/absent/tags/list", 405, "UNSUPPORTED"),
        ("POST", "/v2/", 405, "UNSUPPORTED"),
    ],
)
async def test_errors_have_the_codes_of_the_specification(
    spec: Spec, method: str, path: str, status: int, code: str
) -> None:
    refused = await spec(method, path)
    assert (refused.status, refused.codes) == (status, [code])


# The specification's own suite

#: What the suite may fail in, by the first word of its tests' names, and why.
ALLOWED_FAILURES = {
    "sha512": "ECR's API knows layers and manifests by sha256 only, and so does the emulator",
    "sha512 blobs": "likewise",
}

#: What the suite may skip, by the last word of its tests' names, and why.
ALLOWED_SKIPS = {
    "blob-delete": "ECR deletes no layer by request",
    "blob-mount": "ECR mounts a layer only once a manifest of the source repository names it",
    "blob-mount-anonymous": "ECR mounts from a repository that the request names",
}


async def test_the_conformance_suite_fails_in_sha512_only(
    emulator: Emulator, need: Callable[[str], str], tmp_path: Path
) -> None:
    """Beyond what the suite does by default, it cancels uploads, and each answer must tell the digest."""
    suite = need("oci-conformance")
    async with (opening := await opened_emulator(emulator)).http:
        environment = {
            "PATH": os.environ["PATH"],
            "OCI_RESULTS_DIR": str(tmp_path / "results"),
            "OCI_REGISTRY": f"{emulator.host}:{emulator.port}",
            "OCI_TLS": "disabled",
            "OCI_REPO1": opening.name,
            "OCI_REPO2": opening.other,
            "OCI_USERNAME": "AWS",
            "OCI_PASSWORD": await to_thread.run_sync(password, emulator.endpoint_url),
            "OCI_API_BLOBS_DELETE": "false",
            "OCI_API_BLOBS_DIGEST_HEADER": "true",
            "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
            "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
        }
        await anyio.run_process([suite], env=environment, cwd=tmp_path, check=False)

    by_status: dict[str, list[str]] = {}
    for case in ET.parse(tmp_path / "results/junit.xml").iter("testcase"):
        by_status.setdefault(case.attrib["status"], []).append(case.attrib["name"].partition("/")[2])
    assert set(by_status) == {"passed", "failure", "skipped"}
    assert {name.partition("/")[0] for name in by_status["failure"]} == ALLOWED_FAILURES.keys()
    assert {name.rpartition("/")[2] for name in by_status["skipped"]} == ALLOWED_SKIPS.keys()
    assert len(by_status["passed"]) > 500
