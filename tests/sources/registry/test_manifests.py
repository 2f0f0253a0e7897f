"""What a registry says of its images: tags resolved, manifests checked, lists and referrers, platforms chosen."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator

import anyio
import pytest
from aiohttp import web

from asyncpush.errors import (
    ChoiceError,
    DigestMismatchError,
    ManifestError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
)
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import MAX_MANIFEST_SIZE, RetryPolicy
from asyncpush.sources import open_source
from asyncpush.sources.registry import open_pool
from asyncpush.sources.registry.source_registry import SourceRegistryReader
from support.images import CONFIG, INDEX, LAYER, MANIFEST, SETTINGS, Json, Layout, at, digest, layer_tar
from support.registry_server import QUICK, RegistryServer, manifest, open_remote, reads, refusal, running

AMD, ARM, WINDOWS = Platform("linux", "amd64"), Platform("linux", "arm64", "v8"), Platform("windows", "amd64")


def likely(there: Json) -> list[Digest]:
    """What a tag is expected to name."""
    return [Digest.parse(str(there["digest"]))]


@pytest.fixture
async def server() -> AsyncIterator[RegistryServer]:
    async with running() as server:
        yield server


@pytest.fixture
async def remote(server: RegistryServer) -> AsyncIterator[SourceRegistryReader]:
    async with open_remote(reads(server), retry=QUICK) as remote:
        yield remote


def multi(layout: Layout) -> Json:
    """An index of two platforms, an attestation of each, and one for who knows what."""
    amd = layout.image(layer_tar("amd"), platform="linux/amd64")
    arm = layout.image(layer_tar("arm"), platform="linux/arm64/v8")
    notes = []
    for image in (amd, arm):
        blob = layout.blob(json.dumps({"about": image["digest"]}).encode(), "application/vnd.in-toto+json")
        note = layout.manifest(layout.blob(b'{"for":"%s"}' % str(image["digest"]).encode(), CONFIG), [blob])
        marks = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
        notes.append({**at(note, "unknown/unknown"), "annotations": marks})
    return layout.index(at(amd, "linux/amd64"), at(arm, "linux/arm64/v8"), *notes)


async def test_a_tag_is_resolved_by_its_headers_and_read_by_its_digest(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")

    descriptor = await remote.resolve("team/app", "1.0", likely(there))
    read = await remote.manifest("team/app", descriptor)
    again = await remote.manifest("team/app", descriptor.digest)

    assert (str(descriptor.digest), descriptor.media_type) == (there["digest"], MANIFEST)
    assert descriptor.size == len(read.raw) == there["size"]
    assert read.raw == server.blobs[str(there["digest"])]
    assert again is read
    assert remote.requests == {"HEAD manifest": 1, "GET manifest": 1}
    assert INDEX in server.seen[0].headers["Accept"]
    assert MANIFEST in server.seen[1].headers["Accept"]


@pytest.mark.parametrize("lacking", ["Docker-Content-Digest", "Content-Type", "length", "everything"])
async def test_where_head_tells_too_little_the_manifest_is_read(
    server: RegistryServer, remote: SourceRegistryReader, lacking: str
) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")

    @server.rule("HEAD", "/manifests/")
    async def poor(request: web.Request) -> web.StreamResponse:
        if lacking == "everything":
            return web.Response(status=405)
        if lacking == "length":
            answer = manifest(MANIFEST, b"", str(there["digest"]))
            answer.headers["Content-Length"] = "0"
            return answer
        answer = manifest(MANIFEST, server.blobs[str(there["digest"])])
        del answer.headers[lacking]
        return answer

    descriptor = await remote.resolve("team/app", "1.0", likely(there))

    assert str(descriptor.digest) == there["digest"]
    assert remote.requests == {"HEAD manifest": 1, "GET manifest": 1}


@pytest.mark.parametrize("how", [400, 401, 403, 404, 405, 429, 500, 503, "reset", "stall", "astray"])
async def test_a_head_that_fails_is_not_believed_and_not_sent_again(server: RegistryServer, how: int | str) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    over = anyio.Event()

    @server.rule("HEAD", "/manifests/")
    async def failing(request: web.Request) -> web.StreamResponse:
        if how == "stall":
            await over.wait()
        elif how == "reset":
            assert request.transport is not None
            request.transport.close()
        elif how == "astray":
            return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/nobody"})
        return web.Response(status=how if isinstance(how, int) else 200)

    async with open_remote(reads(server), retry=RetryPolicy(stall=0.2, first_wait=0.001)) as remote:
        for _ in range(4):
            assert str((await remote.resolve("team/app", "1.0", likely(there))).digest) == there["digest"]
        over.set()
        # What may pass is tried once more; no failure is waited out.
        heads = 2 if how in (429, 500, 503, "reset", "stall", "astray") else 1
        assert remote.requests == {"HEAD manifest": heads, "GET manifest": 4}


async def test_a_head_of_what_is_not_there_says_nothing_of_other_heads(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")

    with pytest.raises(SourceNotFoundError):
        await remote.resolve("team/app", "2.0", likely(there))
    await remote.resolve("team/app", "1.0", likely(there))

    assert remote.requests == {"HEAD manifest": 2, "GET manifest": 1}


@pytest.mark.parametrize("lie", ["size", "digest"])
async def test_get_decides_where_head_lies(server: RegistryServer, remote: SourceRegistryReader, lie: str) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    raw = server.blobs[str(there["digest"])]

    @server.rule("HEAD", "/manifests/")
    async def lies(request: web.Request) -> web.StreamResponse:
        return manifest(MANIFEST, raw + b" " * (lie == "size"), digest(b"other") if lie == "digest" else digest(raw))

    descriptor = await remote.resolve("team/app", "1.0", [Digest("c" * 64)])

    assert (str(descriptor.digest), descriptor.size) == (there["digest"], len(raw))
    assert await remote.load("team/app", descriptor)


async def test_a_wrong_digest_header_costs_no_image(server: RegistryServer, remote: SourceRegistryReader) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    raw = server.blobs[str(there["digest"])]

    @server.rule("GET", "/manifests/")
    async def wrong(request: web.Request) -> web.StreamResponse | None:
        known = request.path.rpartition("/")[2] in ("1.0", there["digest"])
        return manifest(MANIFEST, raw, f"sha256:{'1' * 64}") if known else None

    assert (await remote.manifest("team/app", "1.0")).raw == raw


async def test_bytes_that_were_changed_on_the_way_are_read_by_their_digest(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    raw = server.blobs[str(there["digest"])]

    @server.rule("GET", "/manifests/1.0")
    async def changed(request: web.Request) -> web.StreamResponse:
        return manifest(MANIFEST, raw + b" ", str(there["digest"]))

    assert (await remote.manifest("team/app", "1.0")).raw == raw


@pytest.mark.parametrize("status", [400, 406, 415])
async def test_a_registry_that_chokes_on_young_types_is_asked_for_dockers(
    server: RegistryServer, remote: SourceRegistryReader, status: int
) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")

    @server.rule("GET", "/manifests/")
    async def picky(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if "oci" in request.headers["Accept"] else None

    assert str((await remote.manifest("team/app", "1.0")).digest) == there["digest"]


@pytest.mark.parametrize("signed", [True, False])
async def test_a_schema_1_image_is_called_so(
    server: RegistryServer, remote: SourceRegistryReader, signed: bool
) -> None:
    payload = json.dumps({"schemaVersion": 1, "name": "a", "fsLayers": [], "history": []}, indent=3).encode()
    raw = payload[:-2] + b',\n   "signatures": []\n}' if signed else payload

    @server.rule("GET", "/manifests/")
    async def old(request: web.Request) -> web.StreamResponse:
        return manifest("application/vnd.docker.distribution.manifest.v1+prettyjws", raw, digest(payload))

    references: list[str | Digest] = ["1.0", Digest.parse(digest(payload))]
    for reference in references:
        with pytest.raises(ManifestError, match=r"is a schema 1 image.*405 UNSUPPORTED.*; convert it"):
            await remote.manifest("team/app", reference)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "raw deflate", "a lie", "no label"])
@pytest.mark.parametrize("kind", ["manifests", "tags"])
async def test_documents_that_come_compressed_are_decompressed(
    server: RegistryServer, remote: SourceRegistryReader, encoding: str, kind: str
) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")

    @server.rule("GET", f"/{kind}/")
    async def packed(request: web.Request) -> web.StreamResponse:
        answer = server.regular(request)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        body = answer.body
        pack = {"deflate": zlib.compress, "raw deflate": lambda data: zlib.compress(data)[2:-4], "a lie": bytes}
        answer.body = pack.get(encoding, gzip.compress)(body)
        if encoding != "no label":
            answer.headers["Content-Encoding"] = {"raw deflate": "deflate", "a lie": "gzip"}.get(encoding, encoding)
        return answer

    assert str((await remote.manifest("team/app", "1.0")).digest) == there["digest"]
    assert await remote.tags("team/app") == ("1.0",)


async def test_a_document_that_decompresses_without_end_is_refused(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    """A document that decompresses without end is refused."""
    bomb = gzip.compress(b" " * (MAX_MANIFEST_SIZE + 1))

    @server.rule("GET", "/manifests/")
    async def packed(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": MANIFEST})

    with pytest.raises(ManifestError, match=f"more than {MAX_MANIFEST_SIZE} bytes"):
        await remote.manifest("team/app", "1.0")


async def test_a_tag_deleted_meanwhile_is_still_read_by_its_digest(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    """An image whose tag is deleted meanwhile is still read by its digest, and then named."""
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    descriptor = await remote.resolve("team/app", "1.0")
    del server.manifests["team/app:1.0"]

    assert (await remote.manifest("team/app", descriptor)).digest == descriptor.digest
    with pytest.raises(SourceNotFoundError, match=r"no manifest team/app:1\.0"):
        await remote.resolve("team/app", "1.0")

    del server.blobs[str(there["digest"])]
    async with open_remote(reads(server), retry=QUICK) as other:
        with pytest.raises(SourceNotFoundError, match=f"no manifest team/app@{descriptor.digest}.*MANIFEST_UNKNOWN"):
            await other.manifest("team/app", descriptor)


@pytest.mark.parametrize("by", ["digest", "descriptor", "tag"])
async def test_a_manifest_that_is_not_what_was_asked_for_is_refused(
    server: RegistryServer, remote: SourceRegistryReader, by: str
) -> None:
    layout = Layout()
    there = layout.image(layer_tar("x"))
    raw = layout.files[f"blobs/sha256/{str(there['digest'])[7:]}"]

    @server.rule("GET", "/manifests/")
    async def changed(request: web.Request) -> web.StreamResponse:
        return manifest(MANIFEST, raw + b" ", str(there["digest"]))

    named = Digest.parse(str(there["digest"]))
    reference = {"digest": named, "descriptor": Descriptor(MANIFEST, named, len(raw)), "tag": "1.0"}[by]

    with pytest.raises(DigestMismatchError, match="manifest team/app"):
        await remote.manifest("team/app", reference)


async def test_a_manifest_with_a_wrong_size_or_type_is_refused(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    """A manifest of another size or type than its descriptor says is refused."""
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    named = Digest.parse(str(there["digest"]))

    with pytest.raises(ManifestError, match=r"its descriptor says 1; the index that names it is wrong"):
        await remote.manifest("team/app", Descriptor(MANIFEST, named, 1))
    with pytest.raises(ManifestError, match="its descriptor says"):
        await remote.manifest("team/app", Descriptor(INDEX, named, int(str(there["size"]))))
    server.manifests["team/app:1.0"] = (INDEX, server.blobs[str(there["digest"])])
    with pytest.raises(ManifestError, match=f"but the registry's Content-Type says {re.escape(INDEX)}"):
        await remote.manifest("team/app", "1.0")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_manifest_that_is_too_long_is_not_read_to_its_end(
    server: RegistryServer, remote: SourceRegistryReader, chunked: bool
) -> None:
    written = 0

    @server.rule("GET", "/manifests/")
    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": MANIFEST})
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = 500 * 2**20
        await response.prepare(request)
        try:
            for _ in range(500):
                await response.write(bytes(2**20))
                written += 1
        except ConnectionError:
            pass
        return response

    with pytest.raises(ManifestError, match=f"more than {MAX_MANIFEST_SIZE} bytes; ECR takes no such manifest"):
        await remote.manifest("team/app", "huge")
    assert written < 100


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "malformed"),
        (b'{"schemaVersion": 1}', "schema version 1"),
        (b"<html>login</html>", "malformed"),
        (b'{"schemaVersion": 2, "mediaType": "text/plain"}', "text/plain"),
    ],
)
async def test_what_is_no_manifest_is_an_error(
    server: RegistryServer, remote: SourceRegistryReader, raw: bytes, words: str
) -> None:
    server.manifests["team/app:1"] = ("application/json; charset=utf-8", raw)

    with pytest.raises(ManifestError, match=words):
        await remote.resolve("team/app", "1")


@pytest.mark.parametrize("before", [b"", b" \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
async def test_a_web_page_is_no_registry(server: RegistryServer, remote: SourceRegistryReader, before: bytes) -> None:
    server.manifests["team/app:1"] = ("text/html; charset=utf-8", before + b"<html>login</html>")

    with pytest.raises(SourceError, match="web page"):
        await remote.resolve("team/app", "1")


async def test_denied_and_missing_are_told_apart(server: RegistryServer, remote: SourceRegistryReader) -> None:
    @server.rule("GET", "/private/")
    async def denied(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403)

    with pytest.raises(SourceDeniedError, match="docker login"):
        await remote.resolve("private/app", "1")
    with pytest.raises(SourceNotFoundError, match="missing/app:1"):
        await remote.resolve("missing/app", "1")


async def test_a_refusal_has_the_words_of_the_registry(server: RegistryServer, remote: SourceRegistryReader) -> None:
    @server.rule("GET", "/private/")
    async def denied(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text="blocked by\n policy 7")

    with pytest.raises(SourceDeniedError, match=r"status 403\): blocked by policy 7; log in"):
        await remote.resolve("private/app", "1")


@pytest.mark.parametrize("before", ["", "\n", "\ufeff "])
async def test_a_refusal_that_is_a_web_page_blames_what_stands_between(
    server: RegistryServer, remote: SourceRegistryReader, before: str
) -> None:
    @server.rule("GET", "/manifests/")
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text=f"{before}<!DOCTYPE html><title>Blocked</title>", content_type="text/html")

    with pytest.raises(SourceDeniedError, match=r"status 403 and a web page; .*not from the registry.* firewall"):
        await remote.resolve("team/app", "1")


async def test_a_child_that_is_missing_is_no_wrong_name(server: RegistryServer, remote: SourceRegistryReader) -> None:
    layout = Layout()
    descriptor = server.hold(layout, multi(layout), "team/app", "1")
    index = json.loads(server.blobs[str(descriptor["digest"])])
    gone = index["manifests"][0]["digest"]
    del server.blobs[gone]
    root = await remote.resolve("team/app", "1")

    with pytest.raises(SourceNotFoundError, match=rf"{gone}.*incomplete at its source.*--platform"):
        await remote.load("team/app", root)
    with pytest.raises(SourceNotFoundError, match="check the name"):
        await remote.load("team/app", Descriptor(root.media_type, Digest("d" * 64), 5))


# Lists


@pytest.mark.parametrize("absolute", [False, True])
async def test_tags_come_in_pages(server: RegistryServer, remote: SourceRegistryReader, absolute: bool) -> None:
    names = [f"t{number}" for number in range(25)]

    @server.rule("GET", "/tags/list")
    async def paged(request: web.Request) -> web.StreamResponse:
        last = request.query.get("last")
        start = names.index(last) + 1 if last else 0
        page = names[start : start + 10]
        more = f"/v2/team/app/tags/list?n=10&last={page[-1]}"
        # As a registry writes it that does not know of the TLS before it.
        link = f'<https://127.0.0.1{more}>; rel="next"' if absolute else f"<{more}>; rel=next"
        headers = {"Link": link} if start + 10 < len(names) else {}
        return web.json_response({"name": "team/app", "tags": page}, headers=headers)

    assert await remote.tags("team/app") == tuple(names)
    assert [seen.target.partition("?")[2] for seen in server.seen] == ["n=1000", "n=10&last=t9", "n=10&last=t19"]
    assert remote.requests == {"GET tags": 3}


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("</v2/team/app/tags/list?n=1000>; rel=next", "forms a circle"),
        ("<http://elsewhere.example/v2/x>; rel=next", "another host"),
        ("<//elsewhere.example/v2/x>; rel=next", "another host"),
    ],
)
async def test_a_list_leads_nowhere_else(
    server: RegistryServer, remote: SourceRegistryReader, link: str, words: str
) -> None:
    @server.rule("GET", "/tags/list")
    async def wrong(request: web.Request) -> web.StreamResponse:
        return web.json_response({"tags": ["a"]}, headers={"Link": link})

    with pytest.raises(SourceError, match=words):
        await remote.tags("team/app")
    assert len(server.seen) <= 2


@pytest.mark.parametrize("link", ["</x>; rel=prev", '</x>; rel="nextish"', "rubbish", "", "</x>"])
async def test_other_links_are_no_next_page(server: RegistryServer, remote: SourceRegistryReader, link: str) -> None:
    @server.rule("GET", "/tags/list")
    async def page(request: web.Request) -> web.StreamResponse:
        return web.json_response({"tags": ["a", "b", "a", "../x", "", "c\n"]}, headers={"Link": link})

    assert await remote.tags("team/app") == ("a", "b")


async def test_a_repository_without_tags_and_one_that_is_missing(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    @server.rule("GET", "/empty/")
    async def empty(request: web.Request) -> web.StreamResponse:
        return web.json_response({"name": "empty", "tags": None})

    assert await remote.tags("team/empty/empty") == ()
    with pytest.raises(SourceNotFoundError, match="repository missing"):
        await remote.tags("missing")


# Referrers


async def test_referrers_by_their_api(server: RegistryServer, remote: SourceRegistryReader) -> None:
    subject = Digest("c" * 64)
    signature = {"mediaType": MANIFEST, "digest": digest(b"sig"), "size": 3, "annotations": {"a": "b"}}
    server.referrers = {str(subject): [signature]}

    [found] = (await remote.referrers("team/app", subject)).descriptors

    assert (str(found.digest), found.annotation("a")) == (signature["digest"], "b")
    assert (await remote.referrers("team/app", Digest("d" * 64))).descriptors == ()
    assert remote.requests == {"GET referrers": 2}


async def test_referrers_come_by_their_tag_where_there_is_no_api(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    """Referrers come by their tag where there is no referrers API, which is asked for once."""
    layout = Layout()
    image = layout.image(layer_tar("x"))
    subject = Digest.parse(str(image["digest"]))
    server.hold(layout, layout.index({"mediaType": MANIFEST, "digest": digest(b"s"), "size": 1}), "team/app", "x")
    server.manifests[f"team/app:sha256-{subject.hex}"] = server.manifests["team/app:x"]

    @server.rule("GET", "/referrers/")
    async def unknown(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404, text="404 page not found")

    found = await remote.referrers("team/app", subject)
    assert [str(each.digest) for each in found.descriptors] == [digest(b"s")]
    assert (await remote.referrers("team/app", Digest("d" * 64))).descriptors == ()
    assert remote.requests == {"GET referrers": 1, "GET manifest": 2}


async def test_a_missing_repository_says_nothing_about_the_api(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    server.referrers = {}

    @server.rule("GET", "/missing/referrers/")
    async def unknown(request: web.Request) -> web.StreamResponse:
        return refusal(404, "NAME_UNKNOWN", "no such repository")

    assert (await remote.referrers("missing", Digest("d" * 64))).descriptors == ()
    assert (await remote.referrers("team/app", Digest("d" * 64))).descriptors == ()
    assert remote.requests["GET referrers"] == 2


# Images


async def test_an_index_is_loaded_with_all_that_it_names(server: RegistryServer, remote: SourceRegistryReader) -> None:
    layout = Layout()
    there = server.hold(layout, multi(layout), "team/app", "1")

    root = await remote.load("team/app", await remote.resolve("team/app", "1"))

    assert isinstance(root, IndexNode)
    assert str(root.manifest.digest) == there["digest"]
    assert [child.manifest.digest for child in root.children if child.manifest] == [
        each.digest for each in root.manifest.children
    ]
    assert [type(child) for child in root.children] == [ImageNode] * 4
    assert not server.asked("GET", "/blobs/")


@pytest.mark.parametrize(("wanted", "place"), [("linux/amd64", 0), ("linux/arm64", 1), ("linux/arm64/v8", 1)])
async def test_one_platform_is_its_image(
    server: RegistryServer, remote: SourceRegistryReader, wanted: str, place: int
) -> None:
    layout = Layout()
    there = server.hold(layout, multi(layout), "team/app", "1")
    index = json.loads(server.blobs[str(there["digest"])])

    root = await remote.load("team/app", await remote.resolve("team/app", "1"), [Platform.parse(wanted)])

    assert isinstance(root, ImageNode)
    assert root.manifest is not None
    assert str(root.manifest.digest) == index["manifests"][place]["digest"]
    assert root.config.name.startswith("config ")
    assert remote.requests["GET manifest"] == 2


async def test_several_platforms_are_a_smaller_index_with_their_attestations(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    layout = Layout()
    whole = multi(layout)
    document = json.loads(layout.files[f"blobs/sha256/{str(whole['digest'])[7:]}"])
    document |= {"annotations": {"é": "ü"}, "x-more": [1, 2.5, None]}
    there = server.hold(layout, layout.blob(json.dumps(document).encode(), INDEX), "team/app", "1")
    descriptor = Descriptor(INDEX, Digest.parse(str(there["digest"])), int(str(there["size"])))

    once = await remote.load("team/app", descriptor, [WINDOWS, ARM])
    again = await remote.load("team/app", descriptor, [ARM, WINDOWS])
    everything = await remote.load("team/app", descriptor, [ARM, AMD])

    assert isinstance(once, IndexNode)
    assert isinstance(again, IndexNode)
    smaller = json.loads(once.manifest.raw)
    assert smaller == {**document, "manifests": [document["manifests"][1], document["manifests"][3]]}
    assert list(smaller) == list(document)
    assert once.manifest.raw == again.manifest.raw
    assert once.manifest.media_type == INDEX
    assert len(once.children) == 2
    assert everything.manifest is not None
    assert everything.manifest.digest == descriptor.digest


@pytest.mark.parametrize("platforms", [[WINDOWS], [WINDOWS, Platform("linux", "s390x")]])
async def test_a_platform_that_is_not_there_is_an_error_that_lists_what_is(
    server: RegistryServer, remote: SourceRegistryReader, platforms: list[Platform]
) -> None:
    layout = Layout()
    server.hold(layout, multi(layout), "team/app", "1")

    with pytest.raises(ChoiceError) as caught:
        await remote.load("team/app", await remote.resolve("team/app", "1"), platforms)
    assert caught.value.choices == ("linux/amd64", "linux/arm64/v8")


@pytest.mark.parametrize("several", [(), (WINDOWS,)])
async def test_a_single_image_is_checked_against_its_config(
    server: RegistryServer, remote: SourceRegistryReader, several: tuple[Platform, ...]
) -> None:
    layout = Layout()
    server.hold(layout, layout.image(layer_tar("x"), platform="linux/amd64"), "team/app", "1")
    descriptor = await remote.resolve("team/app", "1")

    root = await remote.load("team/app", descriptor, [AMD, *several])

    assert root.manifest is not None
    assert root.manifest.digest == descriptor.digest
    assert remote.requests["GET blob"] == 1
    with pytest.raises(ChoiceError, match=r"no image for linux/arm64/v8.*linux/amd64"):
        await remote.load("team/app", descriptor, [ARM, *several])


async def test_an_empty_blob_is_refused(server: RegistryServer, remote: SourceRegistryReader) -> None:
    layout = Layout()
    config = layout.blob(b"{}", CONFIG)
    server.hold(layout, layout.manifest(config, [layout.blob(b"", LAYER)]), "team/app", "1")

    with pytest.raises(SourceError, match="has 0 bytes; ECR cannot hold an empty layer"):
        await remote.load("team/app", await remote.resolve("team/app", "1"))


async def test_indexes_are_not_read_without_end(server: RegistryServer, remote: SourceRegistryReader) -> None:
    layout = Layout()
    nested = layout.index(layout.image(layer_tar("x")))
    for _ in range(4):
        nested = layout.index(nested)
    server.hold(layout, nested, "team/app", "deep")
    wide = layout.index(layout.image(layer_tar("x")))
    for _ in range(4):
        wide = layout.index(*[wide] * 100)
    server.hold(layout, wide, "team/app", "wide")

    with pytest.raises(ManifestError, match="5 times over"):
        await remote.load("team/app", await remote.resolve("team/app", "deep"))
    with anyio.fail_after(20), pytest.raises(ManifestError, match="more than 1000 manifests"):
        await remote.load("team/app", await remote.resolve("team/app", "wide"))


async def test_as_a_source_it_names_its_repository_and_tag(server: RegistryServer) -> None:
    layout = Layout()
    there = server.hold(layout, layout.image(layer_tar("x")), "team/app", "1.0")
    async with open_pool({server.host: reads(server)}, retry=QUICK) as remotes:
        async with open_source(f"docker://{server.host}/team/app:1.0", SETTINGS, remotes=remotes) as source:
            [image] = await source.images()
        pinned = f"docker://{server.host}/team/app@{there['digest']}"
        async with open_source(pinned, SETTINGS, remotes=remotes) as source:
            same = await source.image(platform=AMD)

    assert (image.source, image.repository, image.tag) == (f"docker://{server.host}/team/app:1.0", "team/app", "1.0")
    assert (same.source, same.repository, same.tag) == (pinned, "team/app", None)
    assert remotes.at(server.host) is remotes.at(server.host.upper())


async def test_a_list_does_not_grow_without_end(
    server: RegistryServer, remote: SourceRegistryReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncpush.sources.registry.listing.MAX_LIST_SIZE", 1000)

    @server.rule("GET", "/tags/list")
    async def endless(request: web.Request) -> web.StreamResponse:
        page = len(server.seen)
        return web.json_response({"tags": [f"{page}.{'x' * 90}"]}, headers={"Link": f"<?page={page}>; rel=next"})

    with pytest.raises(SourceError, match=r"the list of .* has more than"):
        await remote.tags("team/app")
    assert len(server.seen) < 12


async def test_an_index_that_can_not_be_written_anew_is_an_error(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    layout = Layout()
    raw = layout.files[f"blobs/sha256/{str(multi(layout)['digest'])[7:]}"]
    long = raw.rstrip()[:-1] + b',"x":' + b"1" * 5000 + b"}"
    server.hold(layout, layout.blob(long, INDEX), "team/app", "1")
    root = await remote.resolve("team/app", "1")

    with pytest.raises(ManifestError, match="can't be rewritten"):
        await remote.load("team/app", root, [AMD, Platform("linux", "s390x")])
    assert isinstance(await remote.load("team/app", root), IndexNode)
