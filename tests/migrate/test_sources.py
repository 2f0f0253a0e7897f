"""Migrations from registries that misbehave: what recovers does, what can't fails alone, and nothing wrong arrives."""

from __future__ import annotations

import gzip
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
import trustme
from aiohttp import web
from anyio import to_thread

from asyncpush.errors import (
    AsyncpushError,
    DigestMismatchError,
    ManifestError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from asyncpush.events import Retrying
from asyncpush.migrate.report import CopyResult, Report
from asyncpush.settings import RetryPolicy
from support.aws import judge
from support.commands import Ran, run_beside
from support.events import Events
from support.images import LAYER, Json, json_digests
from support.migrations import Bench, layer, only, outcomes, reasons
from support.registry_server import QUICK, RegistryServer, cut, manifest, refusal, running

SIZE = 2_000_000
APP, GOOD = "team/app:1", "team/good:1"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@pytest.fixture(autouse=True)
def _no_logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's logins."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@dataclass
class Two:
    """An image that something happens to, and one beside it; both in one registry."""

    here: Bench
    app: Json
    good: Json

    @property
    def layer(self) -> str:
        """The digest of the large layer of the first."""
        return json_digests(self.here.layout, self.app)[1]

    @property
    def data(self) -> bytes:
        """The bytes of that layer."""
        return self.here.source.blobs[self.layer]

    def plan(self, *, listed: bool = False, **members: object) -> Path:
        """Both images, by their tags or by a list of them."""
        tags = {} if listed else {"tags": ["1"]}
        return self.here.plan({"from": "team/app", **tags}, {"from": "team/good", **tags}, **members)

    async def have_arrived(self, report: Report) -> None:
        """See that both are there, whole."""
        assert outcomes(report) == {APP: "pushed", GOOD: "pushed"}, [str(each.error) for each in report.failed]
        assert await self.here.stored("team/app") == {"1": self.app["digest"]}
        assert await self.here.stored("team/good") == {"1": self.good["digest"]}

    async def only_good(self, report: Report, *named: str) -> AsyncpushError:
        """See that the first has failed in a line that has *named* in it, and nothing of it counts as there."""
        assert {place: how for place, how in outcomes(report).items() if how != "failed"} == {GOOD: "pushed"}
        assert await self.here.stored("team/good") == {"1": self.good["digest"]}
        assert await self.here.stored("team/app") == {}
        [failed] = report.failed
        return says(failed, *named)


def says(failed: CopyResult, *named: str) -> AsyncpushError:
    """The error of what failed: one line, which names these."""
    error = failed.error
    assert error is not None
    assert error.hint, error
    for word in (*named,):
        assert word in str(error)
    assert "\n" not in str(error)
    return error


async def availability(here: Bench, repository: str, digest: str) -> str:
    """What boto3 learns of a layer."""
    ask = judge(here.emulator.endpoint_url).batch_check_layer_availability
    answer = await to_thread.run_sync(lambda: ask(repositoryName=repository, layerDigests=[digest]))
    return answer["layers"][0]["layerAvailability"]


@pytest.fixture
def two(here: Bench) -> Two:
    return Two(here, here.hold("team/app", "1", layer(1, SIZE)), here.hold("team/good", "1", layer(2)))


# Blobs


@pytest.mark.parametrize("times", [1, 1_000])
async def test_wrong_bytes_are_never_completed(two: Two, times: int) -> None:
    @two.here.source.rule("GET", two.layer, times=times)
    async def wrong(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(len(two.data)))

    report = await two.here.run(two.plan())

    if times == 1:
        await two.have_arrived(report)
        assert await availability(two.here, "team/app", two.layer) == "AVAILABLE"
        result = only(report, APP)
        assert result.attempts == 2
        assert result.bytes_sent >= len(two.data)
        assert result.bytes_present < 1000, "the config, if it arrived at the first try"
    else:
        error = await two.only_good(report, "layer", two.layer[:19])
        assert isinstance(error, DigestMismatchError)
        assert await availability(two.here, "team/app", two.layer) == "UNAVAILABLE"


@pytest.mark.parametrize("times", [1, 1_000])
async def test_a_short_body_is_made_good_by_a_range(two: Two, times: int) -> None:
    half = len(two.data) // 2

    @two.here.source.rule("GET", two.layer, times=times)
    async def short(request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        return await cut(request, two.data[start:half], len(two.data) - start, start=start)

    report = await two.here.run(two.plan(), retries=1)

    ranges = [seen.headers.get("Range") for seen in two.here.source.asked("GET", two.layer)]
    assert ranges[0] is None
    assert 0 < int((ranges[1] or "").removeprefix("bytes=").rstrip("-")) <= half
    if times == 1:
        await two.have_arrived(report)
        assert len(ranges) == 2
    else:
        error = await two.only_good(report, two.here.source.host)
        assert isinstance(error, SourceUnavailableError)
        assert await availability(two.here, "team/app", two.layer) == "UNAVAILABLE"


async def test_a_stall_in_mid_blob_is_broken_off_and_made_good(two: Two) -> None:
    over = anyio.Event()

    @two.here.source.rule("GET", two.layer, times=1)
    async def stalled(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(two.data)
        await response.prepare(request)
        await response.write(two.data[:500_000])
        await over.wait()
        return response

    report = await two.here.run(two.plan(), retry=RetryPolicy(stall=0.3, first_wait=0.001))
    over.set()

    await two.have_arrived(report)
    assert [seen.headers.get("Range") for seen in two.here.source.asked("GET", two.layer)] == [None, "bytes=500000-"]


async def test_a_redirect_in_a_circle_ends_and_says_where(two: Two) -> None:
    @two.here.source.rule("GET", two.layer)
    async def circle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": request.path})

    report = await two.here.run(two.plan(), retries=1)

    await two.only_good(report, "redirects in a circle", two.layer[:19])
    assert await availability(two.here, "team/app", two.layer) == "UNAVAILABLE"


async def test_blobs_of_another_host_are_read_without_the_registrys_credentials(two: Two) -> None:
    async with running() as store:
        wants_tokens(two.here.source)

        @two.here.source.rule("GET", "/blobs/")
        async def elsewhere(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=307, headers={"Location": f"http://localhost:{store.port}{request.path}?sig=1"})

        store.blobs = two.here.source.blobs
        report = await two.here.run(two.plan())

        await two.have_arrived(report)
        assert len(store.asked("GET")) == len({*json_digests(two.here.layout, two.app)}) * 2
        assert all(seen.authorization is None for seen in store.seen)
        assert any(seen.authorization for seen in two.here.source.asked("GET", "/blobs/"))


async def test_a_layer_of_no_bytes_fails_before_anything_is_sent(two: Two) -> None:
    layout = two.here.layout
    empty = layout.blob(b"", LAYER)
    two.app = two.here.source.hold(layout, layout.image(layer(3), more=[empty]), "team/app", "1")

    report = await two.here.run(two.plan())

    await two.only_good(report, "0 bytes", "team/app", "build the image without it")
    assert only(report, "team/app:1").attempts == 1, "another try is in vain"
    assert await availability(two.here, "team/app", json_digests(layout, two.app)[1]) == "UNAVAILABLE"


@pytest.mark.parametrize("mounting", [False, True])
async def test_a_layer_that_one_registry_has_wrong_comes_from_another_one(here: Bench, mounting: bool) -> None:
    if mounting:
        await here.mounting()
    base = layer(1, SIZE)
    right = [here.hold("team/right", tag, base, layer(number)) for number, tag in enumerate(("1", "2"), 10)]
    shared = json_digests(here.layout, right[0])[1]
    async with running() as other:
        images = [here.layout.image(base, layer(number)) for number in (20, 21)]
        for number, image in enumerate(images):
            other.hold(here.layout, image, f"team/wrong-{number}", "1")
        other.blobs[shared] = bytes(len(here.source.blobs[shared]))
        path = here.plan({"from": "team/right", "to": "all/app"})
        document = json.loads(path.read_text())
        document["registries"][other.host] = {"plain_http": True}
        places = ["all/app:3", "all/else:1"]
        document["images"] = [
            *({"from": f"{other.host}/team/wrong-{n}", "tags": ["1"], "to": to} for n, to in enumerate(places)),
            *document["images"],
        ]
        path.write_text(json.dumps(document))
        report = await here.run(path)

    # One that goes where the layer is already, or can be mounted, needs no other; and one reading of the right source
    # serves both repositories, if it comes first.
    found = outcomes(report)
    alone = found.pop("all/else:1")
    assert found == {"all/app:1": "pushed", "all/app:2": "pushed", "all/app:3": "pushed"}
    assert alone == "pushed" or (alone == "failed" and not mounting)
    assert await here.stored("all/app") == {
        "1": right[0]["digest"],
        "2": right[1]["digest"],
        "3": images[0]["digest"],
    }
    assert await availability(here, "all/app", shared) == "AVAILABLE"
    if alone == "failed":
        assert isinstance(report.failed[0].error, DigestMismatchError)
    assert await availability(here, "all/else", shared) == ("AVAILABLE" if alone == "pushed" else "UNAVAILABLE")


# Refusals on the way


@dataclass
class Tokens:
    """Those that a registry has issued, in order, and those of them that have expired."""

    issued: list[str] = field(default_factory=list)
    expired: set[str] = field(default_factory=set)

    def expire(self) -> None:
        """Let none of those that were issued so far count any more."""
        self.expired.update(self.issued)

    @property
    def valid(self) -> set[str]:
        """What a request may say of who it is."""
        return {f"Bearer {token}" for token in self.issued if token not in self.expired}


def wants_tokens(server: RegistryServer, *, only: str = "/v2/") -> Tokens:
    """Let *server* want a token, which counts until the test lets it expire, however many others are issued."""
    tokens = Tokens()

    @server.rule("GET", "/token")
    async def issue(request: web.Request) -> web.StreamResponse:
        tokens.issued.append(f"token-{len(tokens.issued)}")
        return web.json_response({"token": tokens.issued[-1], "expires_in": 3600})

    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") in tokens.valid:
            return None
        challenge = f'Bearer realm="{server.url}/token",service="it"'
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge)

    for method in ("GET", "HEAD"):
        server.rule(method, only)(guarded)
    return tokens


async def test_a_token_that_expires_in_mid_blob_is_renewed(two: Two) -> None:
    source = two.here.source
    tokens = wants_tokens(source)

    @source.rule("GET", two.layer, times=1)
    async def expires(request: web.Request) -> web.StreamResponse:
        tokens.expire()
        return await cut(request, two.data[:700_000], len(two.data))

    path = two.plan(registries={source.host: {"plain_http": True}})
    report = await two.here.run(path)

    await two.have_arrived(report)
    ranges = [seen.headers.get("Range") for seen in source.asked("GET", two.layer)]
    assert ranges[-1] == "bytes=700000-"
    assert tokens.expired
    assert tokens.valid, "one was issued after those had expired"


async def test_a_registry_that_wants_a_pause_gets_it_and_the_other_one_goes_on(two: Two) -> None:
    source, events = two.here.source, Events()

    @source.rule("GET", "/team/app/", times=2)
    async def busy(request: web.Request) -> web.StreamResponse:
        return refusal(429, "TOOMANYREQUESTS", "slow down", Retry_After="1")

    async with running() as other:
        image = other.hold(two.here.layout, two.here.layout.image(layer(9)), "team/third", "1")
        path = two.plan()
        document = json.loads(path.read_text())
        document["registries"][other.host] = {"plain_http": True}
        document["images"].append({"from": f"{other.host}/team/third", "tags": ["1"]})
        path.write_text(json.dumps(document))
        report = await two.here.run(path, emit=events)

    assert outcomes(report) == {APP: "pushed", GOOD: "pushed", "team/third:1": "pushed"}
    assert {result.attempts for result in report.results} == {1}
    assert await two.here.stored("team/app") == {"1": two.app["digest"]}
    assert await two.here.stored("team/third") == {"1": image["digest"]}
    waits = [event.delay for event in events.of(Retrying) if "no more requests" in event.reason]
    assert len(waits) == 2
    assert min(waits) >= 1


# Manifests


async def test_a_manifest_of_five_megabytes_is_not_even_read(two: Two) -> None:
    raw = json.dumps({"schemaVersion": 2, "padding": "x" * 5_000_000}).encode()

    @two.here.source.rule("GET", "/team/app/manifests/")
    async def huge(request: web.Request) -> web.StreamResponse:
        return manifest("application/vnd.oci.image.manifest.v1+json", raw)

    report = await two.here.run(two.plan())

    error = await two.only_good(report, "manifest team/app", "4194304")
    assert isinstance(error, ManifestError)
    assert not two.here.source.asked("GET", "/team/app/blobs/")
    assert await availability(two.here, "team/app", two.layer) == "UNAVAILABLE"


async def test_a_tag_that_is_deleted_meanwhile_fails_alone(two: Two) -> None:
    @two.here.source.rule("GET", "/team/app/manifests/")
    async def deleted(request: web.Request) -> web.StreamResponse:
        return refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")

    report = await two.here.run(two.plan(listed=True))

    error = await two.only_good(report, "has no manifest team/app")
    assert isinstance(error, SourceNotFoundError)
    assert report.failed[0].attempts == 1


async def test_an_index_with_a_missing_child_leaves_no_tag(two: Two) -> None:
    layout, source = two.here.layout, two.here.source
    missing = layout.image(layer(3))
    two.app = source.hold(layout, layout.index(layout.image(layer(1, SIZE)), missing), "team/app", "1")
    del source.blobs[str(missing["digest"])]

    report = await two.here.run(two.plan())

    await two.only_good(report, f"has no manifest team/app@{missing['digest']}")
    assert not source.asked("GET", "/team/app/blobs/")


async def test_a_manifest_of_schema_1_is_named_as_such(two: Two) -> None:
    raw = json.dumps({"schemaVersion": 1, "name": "team/app", "tag": "1", "fsLayers": [], "history": []}).encode()
    two.here.source.manifests["team/app:1"] = (SCHEMA_1, raw)

    report = await two.here.run(two.plan())

    error = await two.only_good(report, "manifest team/app", "schema version 1")
    assert isinstance(error, ManifestError)


async def test_other_bytes_than_a_manifests_digest_are_refused(two: Two) -> None:
    @two.here.source.rule("GET", "/team/app/manifests/")
    async def other(request: web.Request) -> web.StreamResponse:
        raw = two.here.source.blobs[str(two.good["digest"])]
        return manifest(str(two.good["mediaType"]), raw, str(two.app["digest"]))

    report = await two.here.run(two.plan(), retries=1)

    assert isinstance(await two.only_good(report, "manifest"), DigestMismatchError)


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_every_run_succeeds_where_head_fails(two: Two, status: int) -> None:
    @two.here.source.rule("HEAD", "/manifests/")
    async def failing(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    await two.have_arrived(await two.here.run(two.plan()))
    again = await two.here.run(two.plan())

    assert outcomes(again) == {APP: "present", GOOD: "present"}


async def test_an_index_that_gives_a_child_a_wrong_size_is_blamed_itself(two: Two) -> None:
    layout = two.here.layout
    child = layout.image(layer(3))
    wrong = {**child, "size": int(str(child["size"])) + 7}
    two.app = two.here.source.hold(layout, layout.index(wrong), "team/app", "1")

    error = await two.only_good(await two.here.run(two.plan()), "but its descriptor says", "the index that names it")
    assert "proxy" not in str(error)


@pytest.mark.parametrize("beside", [False, True])
async def test_a_layer_of_a_wrong_size_is_refused_alone_and_beside_the_right_one(here: Bench, beside: bool) -> None:
    right = here.hold("team/app", "right", layer(1))
    document = json.loads(here.source.blobs[str(right["digest"])])
    document["layers"][0]["size"] += 5
    wrong = here.layout.blob(json.dumps(document).encode(), str(right["mediaType"]))
    here.source.hold(here.layout, wrong, "team/app", "wrong")

    report = await here.run(here.plan({"from": "team/app", "tags": ["right", "wrong"] if beside else ["wrong"]}))

    assert outcomes(report).pop("team/app:wrong") == "failed"
    assert await here.stored("team/app") == ({"right": right["digest"]} if beside else {})
    assert "archive" not in str(report.failed[0].error)
    if beside:
        says(report.failed[0], "its manifest says", "the manifest is wrong")


# Registries


@pytest.mark.parametrize("listed", [False, True])
async def test_a_registry_that_is_gone_costs_its_own_images_only(here: Bench, listed: bool) -> None:
    good = here.hold("team/good", "1", layer(2))
    async with running() as other:
        gone = other.host
    path = here.plan({"from": "team/good"})
    document = json.loads(path.read_text())
    document["registries"][gone] = {"plain_http": True}
    document["images"].append({"from": f"{gone}/team/app", **({} if listed else {"tags": ["1", "2"]})})
    path.write_text(json.dumps(document))
    report = await here.run(path)

    assert await here.stored("team/good") == {"1": good["digest"]}
    errors = reasons(report)
    assert len(errors) == (1 if listed else 2)
    assert all(f"{gone} can't be reached" in line and "check the address" in line for line in errors), errors


async def test_a_list_of_tags_that_fails_for_a_while_is_asked_for_again(two: Two) -> None:
    @two.here.source.rule("GET", "/team/app/tags/", times=QUICK.attempts)
    async def busy(request: web.Request) -> web.StreamResponse:
        return refusal(503, "UNAVAILABLE", "not now")

    await two.have_arrived(await two.here.run(two.plan(listed=True)))


async def test_a_list_of_tags_that_fails_for_good_is_what_the_error_is_about(two: Two) -> None:
    @two.here.source.rule("GET", "/team/app/tags/")
    async def broken(request: web.Request) -> web.StreamResponse:
        return refusal(503, "UNAVAILABLE", "not now")

    report = await two.here.run(two.plan(listed=True))

    await two.only_good(report, "repository team/app", "status 503", "not now")
    assert not two.here.source.asked("GET", "/team/app/manifests/")


@pytest.mark.parametrize("listed", [False, True])
async def test_pages_for_people_are_no_registrys_answers(two: Two, listed: bool) -> None:
    for method in ("GET", "HEAD"):

        @two.here.source.rule(method, "/team/app/")
        async def page(request: web.Request) -> web.StreamResponse:
            return web.Response(text="<html>Welcome</html>", content_type="text/html")

    report = await two.here.run(two.plan(listed=listed))

    await two.only_good(report, "team/app")


async def test_an_authority_that_nobody_knows_is_named_with_the_remedy(two: Two) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    async with running(tls=context) as secret:
        image = secret.hold(two.here.layout, two.here.layout.image(layer(5)), "team/secret", "1")
        path = two.plan()
        document = json.loads(path.read_text())
        document["images"] = [*document["images"][1:], {"from": f"{secret.host}/team/secret", "tags": ["1"]}]
        path.write_text(json.dumps(document))
        report = await two.here.run(path)

        assert outcomes(report) == {GOOD: "pushed", "team/secret:1": "failed"}
        says(report.failed[0], secret.host, "is not trusted", "--src-ca-bundle")
        assert not secret.seen

        await to_thread.run_sync(ca.cert_pem.write_to_path, two.here.folder / "ca.pem")
        document["registries"][secret.host] = {"tls": {"ca": "ca.pem"}}
        path.write_text(json.dumps(document))
        report = await two.here.run(path)
        assert outcomes(report) == {GOOD: "present", "team/secret:1": "pushed"}
        assert await two.here.stored("team/secret") == {"1": image["digest"]}


async def test_what_the_command_says_of_it_and_how_what_failed_is_done_later(two: Two) -> None:
    source, kept = two.here.source, two.data

    @source.rule("GET", two.layer)
    async def circle(request: web.Request) -> web.StreamResponse | None:
        return None if source.blobs[two.layer] is kept else web.Response(status=302, headers={"Location": request.path})

    source.blobs[two.layer] = b"nothing of it"
    failed = two.here.folder / "failed.txt"
    path = two.here.plan({"from": "team/app", "tags": ["1", "2"]}, {"from": "team/good"})
    done = await cli("migrate", path, "--progress", "plain", "--failed-out", failed)
    source.blobs[two.layer] = kept
    source.hold(two.here.layout, two.app, "team/app", "2")
    options = ("--src-plain-http", "--endpoint-url", two.here.emulator.endpoint_url, "--region", "eu-west-1")
    later = await cli("migrate", failed, *options)

    assert (done.status, done.references) == (1, f"{GOOD}@{two.good['digest']}\n")
    errors = [line for line in done.err.splitlines() if line.startswith("asyncpush: error: ")]
    assert len(errors) == 2
    assert any(f"{APP}: " in line and two.layer in line and "in a circle; check" in line for line in errors)
    assert any("team/app:2: " in line and "has no manifest team/app:2" in line for line in errors)
    assert "Traceback" not in done.err
    assert (later.status, len(later.out.splitlines())) == (0, 2), later.err
    assert await two.here.stored("team/app") == {"1": two.app["digest"], "2": two.app["digest"]}


# Archives


@pytest.mark.parametrize("harm", ["missing", "garbage", "truncated", "damaged"])
async def test_an_archive_that_can_not_be_read_fails_alone(here: Bench, tmp_path: Path, harm: str) -> None:
    good = here.hold("team/good", "1", layer(2))
    layout = type(here.layout)()
    image = layout.image(layer(4, 300_000))
    [_, blob] = json_digests(layout, image)
    if harm == "damaged":
        name = f"blobs/sha256/{blob[7:]}"
        layout.files[name] = gzip.compress(bytes(len(layout.files[name])))[:200].ljust(len(layout.files[name]), b"x")
    whole = layout.tag(image, "1").archive()
    archive = tmp_path / "app.tar"
    if harm != "missing":
        archive.write_bytes({"garbage": b"no archive" * 5_000, "truncated": whole[:100_000]}.get(harm, whole))
    path = here.plan({"from": "team/good"})
    document = json.loads(path.read_text())
    document["images"].append({"from": f"oci-archive:{archive}", "to": "team/app"})
    path.write_text(json.dumps(document))
    done = await cli("migrate", path, "--progress", "none")

    if harm == "missing":
        assert done.status == 2, "known before anything was asked"
    else:
        assert done.status == 1
        assert done.references == f"{GOOD}@{good['digest']}\n"
        assert await here.stored("team/good") == {"1": good["digest"]}
        assert await here.stored("team/app") == {}
        assert await availability(here, "team/app", blob) == "UNAVAILABLE"
    [line] = [line for line in done.err.splitlines() if "error:" in line]
    assert "app.tar" in line or blob[:19] in line


async def cli(*words: str | Path, **environment: str) -> Ran:
    """Run the command, while servers of this process answer it."""
    return await run_beside(*words, **environment)
