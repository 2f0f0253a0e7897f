"""Signatures, SBOMs and the like of sources that misbehave: what can be read is carried, the rest is named."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from aiohttp import web

from asyncpush.events import Notice
from asyncpush.migrate.report import Report
from support.events import Events
from support.images import INDEX, Json
from support.migrations import Bench, layer
from support.registry_server import refusal

SIG, ATT, SBOM = ".sig", ".att", ".sbom"


def about(here: Bench, image: Json, words: bytes, tag: str = "unused") -> Json:
    """Something that refers to *image*, which the source holds under a tag that nobody asks for."""
    subject = {"mediaType": image["mediaType"], "digest": image["digest"], "size": image["size"]}
    config = here.layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    document = {"config": config, "layers": [here.layout.blob(words, "text/spdx")], "subject": subject}
    return here.source.hold(here.layout, here.layout.document(str(image["mediaType"]), document), "team/app", tag)


def tag_of(image: Json, ending: str = "") -> str:
    return f"sha256-{str(image['digest'])[7:]}{ending}"


def referrers(report: Report) -> Counter[str]:
    """How what refers to images has ended."""
    return Counter(result.outcome for result in report.results if result.subject)


NO_LIST = [
    pytest.param(200, "<html>login</html>", id="a web page"),
    pytest.param(200, "{}", id="nothing"),
    pytest.param(200, "null", id="null"),
    pytest.param(200, '{"schemaVersion": 2, "manifests": null}', id="null manifests"),
    pytest.param(200, '{"schemaVersion": 2, "config": {}, "layers": []}', id="an image"),
    *(pytest.param(status, "", id=str(status)) for status in (204, 400, 401, 403, 404, 405, 406, 410, 422, 501)),
]


@pytest.mark.parametrize(("status", "body"), NO_LIST)
async def test_where_the_source_lists_no_referrers_their_tags_count(here: Bench, status: int, body: str) -> None:
    image = here.hold("team/app", "1", layer(1))
    sbom = about(here, image, b"an sbom")
    signature = here.hold("team/app", tag_of(image, SIG), layer(9))
    here.source.hold(here.layout, here.layout.index(sbom), "team/app", tag_of(image))

    @here.source.rule("GET", "/referrers/")
    async def none(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type=INDEX)

    events = Events()

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), emit=events)

    assert referrers(report) == {"pushed": 2}
    assert not report.failed
    assert await here.stored("team/app") == {"1": image["digest"], tag_of(image, SIG): signature["digest"]}
    # Other statuses say that the registry has no such lists, and then nothing is left out.
    is_told = [notice for notice in events.of(Notice) if "only those with tags are copied: " in notice.text]
    assert len(is_told) == (status in (200, 401, 403))


@pytest.mark.parametrize("challenge", ['Basic realm="x"', 'Bearer realm="http://127.0.0.1:1/token"', "Negotiate"])
async def test_a_challenge_to_ask_for_referrers_shuts_no_open_registry(here: Bench, challenge: str) -> None:
    image = here.hold("team/app", "1", layer(1))
    sbom = about(here, image, b"an sbom")
    signature = here.hold("team/app", tag_of(image, SIG), layer(9))
    here.source.hold(here.layout, here.layout.index(sbom), "team/app", tag_of(image))

    @here.source.rule("GET", "/referrers/")
    async def none(request: web.Request) -> web.StreamResponse:
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge)

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), retries=0)

    if "127.0.0.1:1" in challenge:  # a service that can't be reached is a failure, though nothing is lost
        assert referrers(report)["pushed"] == 2
        blamed = f"no token for {here.source.host}: 127.0.0.1:1 can't be reached"
        assert all(blamed in str(each.error) for each in report.results if each.outcome == "failed")
    else:
        assert (referrers(report), report.failed) == ({"pushed": 2}, ())
    assert (await here.stored("team/app"))[tag_of(image, SIG)] == signature["digest"]


@pytest.mark.parametrize("how", ["fails", "redirects to itself"])
async def test_where_the_list_of_referrers_fails_their_tag_is_read(here: Bench, how: str) -> None:
    image = here.hold("team/app", "1", layer(1))
    sbom = about(here, image, b"an sbom")
    here.source.hold(here.layout, here.layout.index(sbom), "team/app", tag_of(image))

    @here.source.rule("GET", f"/referrers/{image['digest']}")
    async def broken(request: web.Request) -> web.StreamResponse:
        if how == "fails":
            return web.Response(status=500)
        return web.Response(status=307, headers={"Location": request.path})

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), retries=0)

    assert referrers(report) == ({"pushed": 1, "failed": 1} if how == "fails" else {"pushed": 1})


async def test_what_a_tag_names_counts_beside_a_list(here: Bench) -> None:
    """The tag was pushed before the registry learnt the API, or by who did not know it."""
    image = here.hold("team/app", "1", layer(1))
    old, new = about(here, image, b"an old one"), about(here, image, b"a new one")
    here.source.hold(here.layout, here.layout.index(old, new), "team/app", tag_of(image))
    here.source.referrers = {str(image["digest"]): [new]}

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}))

    assert (referrers(report), report.failed) == ({"pushed": 2}, ())


@pytest.mark.parametrize("status", [404, 400])
async def test_an_unreadable_referrers_tag_is_named_and_costs_no_list(here: Bench, status: int) -> None:
    """A tag for referrers that can't be read is named and costs no list."""
    image = here.hold("team/app", "1", layer(1))
    sbom, events = about(here, image, b"an sbom"), Events()
    here.source.referrers = {str(image["digest"]): [sbom]}
    here.source.tags["team/app"].append(tag_of(image))

    @here.source.rule("GET", f"/manifests/{tag_of(image)}")
    async def gone(request: web.Request) -> web.StreamResponse:
        return refusal(status, "X", "no")

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), emit=events, retries=0)

    assert referrers(report) == ({"pushed": 1} if status == 404 else {"pushed": 1, "failed": 1})
    assert status != 404 or [event for event in events.of(Notice) if "is gone at its source" in event.text]


async def test_a_registry_that_takes_the_tag_for_the_digest_has_no_referrers(here: Bench) -> None:
    index = here.source.hold(here.layout, here.layout.index(here.layout.image(layer(1))), "team/app", "1")
    here.source.hold(here.layout, index, "team/app", tag_of(index))
    here.source.tags["team/app"].remove(tag_of(index))

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}))

    assert (referrers(report), report.failed) == ({}, ())


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500])
async def test_where_tags_are_not_listed_cosigns_are_asked_for(here: Bench, status: int) -> None:
    image = here.hold("team/app", "1", layer(1))
    signature = here.hold("team/app", tag_of(image, SIG), layer(9))
    here.source.referrers, events = {}, Events()

    @here.source.rule("GET", "/tags/list")
    async def refused(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), emit=events)

    assert (referrers(report), report.failed) == ({"pushed": 1}, ())
    assert (await here.stored("team/app"))[tag_of(image, SIG)] == signature["digest"]
    assert [event for event in events.of(Notice) if "can't be listed, so cosign's are tried one by one" in event.text]


@pytest.mark.parametrize("harm", ["denied", "broken", "malformed", "no descriptor", "a child is missing"])
async def test_one_referrer_that_can_not_be_read_costs_itself_only(here: Bench, harm: str) -> None:
    image = here.hold("team/app", "1", layer(1))
    good, bad = about(here, image, b"good"), about(here, image, b"bad")
    signature = here.hold("team/app", tag_of(image, SIG), layer(9))
    events = Events()
    if harm == "a child is missing":
        bad = here.source.hold(here.layout, here.layout.index(here.layout.image(layer(7))), "team/app", "index")
        child = json.loads(here.source.blobs[str(bad["digest"])])["manifests"][0]["digest"]
        del here.source.blobs[child]
    listed: Json = {"mediaType": "x", "digest": "sha512:00"} if harm == "no descriptor" else bad
    here.source.referrers = {str(image["digest"]): [listed, good]}

    @here.source.rule("GET", f"/manifests/{bad['digest']}")
    async def harmed(request: web.Request) -> web.StreamResponse | None:
        status = {"denied": 403, "broken": 400}.get(harm)
        if status is not None:
            return refusal(status, "X", "no")
        return web.Response(text="rubbish") if harm == "malformed" else None

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), emit=events)

    assert referrers(report) == {"pushed": 2, "failed": 1}
    assert (await here.stored("team/app"))[tag_of(image, SIG)] == signature["digest"]
    [failed] = report.failed
    assert (str(bad["digest"]) in failed.copy.source) == (harm != "no descriptor")
    notices = [event.text for event in events.of(Notice) if "was not copied" in event.text]
    assert notices
    assert all("can't be read at its source" in text for text in notices)
    assert "ECR" not in "".join(text.partition("along")[0] for text in notices)


async def test_a_list_of_referrers_that_fails_leaves_cosigns_tags_to_be_carried(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    here.hold("team/app", tag_of(image, SIG), layer(9))

    @here.source.rule("GET", "/referrers/")
    async def broken(request: web.Request) -> web.StreamResponse:
        return refusal(503, "UNAVAILABLE", "not now")

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), retries=1)

    # What refers to the image, and what refers to its signature.
    assert referrers(report) == {"pushed": 1, "failed": 2}
    assert all("status 503" in str(failed.error) for failed in report.failed)


async def test_what_can_be_read_at_the_second_try_has_not_failed(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    sbom = about(here, image, b"an sbom")
    here.source.referrers = {str(image["digest"]): [sbom]}

    @here.source.rule("GET", f"/manifests/{sbom['digest']}", times=2)
    async def broken(request: web.Request) -> web.StreamResponse:
        return refusal(400, "X", "not now")

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}))

    assert (referrers(report), report.failed) == ({"pushed": 1}, ())


async def test_a_referrer_that_is_gone_is_a_note(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    here.source.referrers = {str(image["digest"]): [about(here, image, b"an sbom")]}
    events = Events()

    @here.source.rule("GET", "/referrers/", times=1)
    async def listed(request: web.Request) -> web.StreamResponse | None:
        gone = here.layout.image(layer(8))
        assert here.source.referrers is not None
        here.source.referrers[str(image["digest"])].append(gone)
        return None

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), emit=events)

    assert (referrers(report), report.failed) == ({"pushed": 1}, ())
    assert [event for event in events.of(Notice) if "is gone at its source" in event.text]


@pytest.mark.parametrize("second", ["repeats", "a web page", "is refused"])
async def test_a_list_of_referrers_that_can_not_be_read_to_its_end_is_a_failure(here: Bench, second: str) -> None:
    image = here.hold("team/app", "1", layer(1))
    sbom = about(here, image, b"an sbom")

    @here.source.rule("GET", "/referrers/")
    async def paged(request: web.Request) -> web.StreamResponse:
        if "page" in request.query and second != "repeats":
            return refusal(404, "X", "no") if second == "is refused" else web.Response(text="<html>")
        link = f"<{request.path}?page={len(here.source.seen)}>; rel=next"
        return web.json_response({"manifests": [sbom]}, headers={"Link": link})

    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}), retries=0)

    assert referrers(report) == {"failed": 1}
    assert "can't be listed to the end" in str(report.failed[0].error)
