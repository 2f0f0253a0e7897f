"""The emulator's page for browsers: what it tells, to how many, and what clients can't do to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.dashboard.handlers import MAX_PAGES
from asyncpush.emulator.faults.config import FaultConfigDocument
from support.browser import browser
from support.emulator_client import Ecr, digest_of

Sections = dict[str, Any]

#: A client's name that would end a script, run one, and is no UTF-8.
RUBBISH = b"</script><img src=x onerror=\"document.title='broken'\">&amp;\xff\xfe"


@pytest.fixture
def ecr(emulator: Emulator) -> Ecr:
    return Ecr(emulator.endpoint_url)


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(emulator.endpoint_url, connector=connector) as session:
        yield session


@asynccontextmanager
async def events(http: aiohttp.ClientSession) -> AsyncIterator[Callable[[], Any]]:
    """A page's stream; yields what reads on to the next time, and returns the sections that came."""
    async with http.get("/_emulator/events") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")

        async def until_time() -> Sections:
            came: Sections = {}
            with anyio.fail_after(30):
                while "time" not in came:
                    line = (await stream.content.readline()).decode()
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ").strip()
                        data = (await stream.content.readline()).decode()
                        came[name] = json.loads(data.removeprefix("data: "))
            return came

        yield until_time


async def told(http: aiohttp.ClientSession) -> Sections:
    """All sections, as a page that is opened gets them."""
    async with events(http) as until_time:
        return await until_time()


async def test_a_browser_gets_the_page_without_a_signature(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as response:
        page = await response.text()
    assert (response.status, response.content_type) == (200, "text/html")
    policy = response.headers["Content-Security-Policy"]
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} < set(policy.split("; "))
    assert "unsafe" not in policy
    # One file, without anything from elsewhere.
    assert not [word for word in ('src="', "@import", '<link rel="stylesheet', "https://") if word in page]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_what_the_page_asks_for_can_only_be_read(http: aiohttp.ClientSession, method: str) -> None:
    for path in ("/_emulator/events", "/_emulator/images"):
        async with http.request(method, path) as response:
            assert response.status == 405
    async with http.post("/", data=b"{}") as response:  # still the JSON API
        assert (response.status, (await response.json(content_type=None))["__type"]) == (
            400,
            "MissingAuthenticationTokenException",
        )


async def test_a_page_is_told_of_repositories_images_layers_and_uploads(ecr: Ecr, http: aiohttp.ClientSession) -> None:
    for name in ("team/one", "team/two"):
        await ecr.call("create_repository", repositoryName=name)
    await ecr.push_image("team/one", "1.0", b"{}", b"base" * 100, b"one")
    await ecr.push_image("team/two", "2.0", b"{}", b"base" * 100, b"two")
    upload = await ecr.begin("team/two")
    await ecr.send("team/two", upload, 0, bytes(5 * 1024 * 1024))

    came = await told(http)

    rows = {row["name"]: row for row in came["repositories"]["rows"]}
    assert {name: (row["images"], row["tags"], row["layers"], row["bytes"]) for name, row in rows.items()} == {
        "team/one": (1, 1, 3, 405),
        "team/two": (1, 1, 3, 405),
    }
    assert {(row["repository"], *row["tags"]) for row in came["images"]["rows"]} == {
        ("team/one", "1.0"),
        ("team/two", "2.0"),
    }
    shared = [(row["digest"], row["images"], row["repositories"], row["saved"]) for row in came["layers"]["rows"]]
    assert shared == [(digest_of(b"base" * 100), 2, 2, 400), (digest_of(b"{}"), 2, 2, 2)]
    [under_way] = came["uploads"]["rows"]
    assert (under_way["id"], under_way["repository"], under_way["bytes"], under_way["parts"]) == (
        upload,
        "team/two",
        5 * 1024 * 1024,
        1,
    )
    counts = {row["operation"]: row["requests"] for row in came["operations"]["rows"]}
    assert (counts["CreateRepository"], counts["PutImage"], counts["InitiateLayerUpload"]) == (2, 2, 7)
    totals = {name: came["totals"][name] for name in ("repositories", "images", "layers", "bytes", "saved", "uploads")}
    assert totals == {"repositories": 2, "images": 2, "layers": 4, "bytes": 408, "saved": 402, "uploads": 1}


async def test_what_is_deleted_while_a_page_is_open_leaves_its_tables(ecr: Ecr, http: aiohttp.ClientSession) -> None:
    for name in ("team/one", "team/two"):
        await ecr.call("create_repository", repositoryName=name)
        await ecr.push_image(name, "1.0", b"{}", b"base" * 100)
    async with events(http) as until_time:
        assert len((await until_time())["layers"]["rows"]) == 2
        await ecr.call("batch_delete_image", repositoryName="team/one", imageIds=[{"imageTag": "1.0"}])
        came = await until_time()
        assert (came["layers"]["rows"], came["totals"]["saved"], came["totals"]["bytes"]) == ([], 0, 402)
        await ecr.call("delete_repository", repositoryName="team/two", force=True)
        came = await until_time()
        assert [row["name"] for row in came["repositories"]["rows"]] == ["team/one"]
        assert (came["totals"]["images"], came["totals"]["layers"]) == (0, 2)


async def test_only_sections_that_have_changed_are_sent_again(ecr: Ecr, http: aiohttp.ClientSession) -> None:
    async with events(http) as until_time:
        first = await until_time()
        assert first.keys() > {"totals", "repositories", "images", "layers", "uploads", "operations", "faults"}
        assert (await until_time()).keys() == {"time"}
        await ecr.call("create_repository", repositoryName="app")
        assert (await until_time()).keys() == {"totals", "operations", "repositories", "clients", "time"}


async def test_throttles_and_faults_are_told_with_their_counts(tmp_path: Path) -> None:
    faults: FaultConfig = FaultConfigDocument(
        throttle=("DescribeRepositories=0.001:1",), quotas="aws", fault=("CreateRepository:nth=1:server-error",)
    ).fault_config()
    async with Emulator(tmp_path, fsync=False, fault_config=faults) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("describe_repositories")
        await ecr.refused("describe_repositories")
        await ecr.refused("create_repository", repositoryName="app")
        async with aiohttp.ClientSession(emulator.endpoint_url) as http:
            came = await told(http)
    assert [(row["kind"], row["count"]) for row in came["faults"]["rows"]] == [
        ("throttle", 1),
        ("quotas", 0),
        ("fault", 1),
    ]
    rows = {row["operation"]: (row["requests"], row["throttled"], row["failed"]) for row in came["operations"]["rows"]}
    assert rows == {"DescribeRepositories": (2, 1, 0), "CreateRepository": (1, 0, 1)}


async def test_operations_and_clients_that_are_made_up_take_no_memory(http: aiohttp.ClientSession) -> None:
    for number in range(40):
        headers = {"X-Amz-Target": f"Made.Up{number}", "User-Agent": f"client {number} " + "x" * 1000}
        async with http.post("/", headers=headers):
            pass

    came = await told(http)

    assert [(row["operation"], row["requests"]) for row in came["operations"]["rows"]] == [("(other)", 40)]
    names = [row["name"] for row in came["clients"]["rows"]]
    assert (len(names), names[0][:9], max(map(len, names))) == (32, "client 39", 160)


async def test_a_page_that_is_closed_makes_room_for_another(http: aiohttp.ClientSession) -> None:
    pages = [await http.get("/_emulator/events") for _ in range(MAX_PAGES)]
    assert {page.status for page in pages} == {200}
    async with http.get("/_emulator/events") as refused:
        assert refused.status == 503
    pages.pop().close()
    with anyio.fail_after(30):
        status = 503
        while status != 200:
            async with http.get("/_emulator/events") as again:
                status = again.status
    for page in pages:
        page.close()


async def test_it_closes_in_order_while_pages_are_open(tmp_path: Path) -> None:
    """A stream that is cut, not ended, is one that the server had to wait for."""
    async with aiohttp.ClientSession() as http:
        async with Emulator(tmp_path, fsync=False) as emulator:
            stream = await http.get(f"{emulator.endpoint_url}/_emulator/events")
            await stream.content.readline()
        with anyio.fail_after(30):
            assert (await stream.content.read()).rstrip().splitlines()[-1].startswith(b"data: ")


async def test_images_of_a_repository_are_told_to_open_pages_only(ecr: Ecr, http: aiohttp.ClientSession) -> None:
    await ecr.call("create_repository", repositoryName="app")
    await ecr.push_image("app", "1.0", b"{}", b"layer")
    async with events(http) as until_time:
        [row] = (await until_time())["repositories"]["rows"]
        async with http.get("/_emulator/images", params={"repository": row["key"]}) as response:
            document = await response.json()
        assert ([image["tags"] for image in document["rows"]], document["left"]) == ([["1.0"]], 0)
        for unknown in ("", "-1", "0", "9" * 30, "٣", "<b>"):
            async with http.get("/_emulator/images", params={"repository": unknown}) as response:
                assert response.status == 404


async def rubbish(emulator: Emulator) -> None:
    """Send a request whose client has an evil name."""
    async with await anyio.connect_tcp(emulator.host, emulator.port) as client:
        await client.send(b"GET /v2/ HTTP/1.1\r\nHost: ecr\r\nUser-Agent: %b\r\n\r\n" % RUBBISH)
        assert (await client.receive()).startswith(b"HTTP/1.1 401 ")


async def test_a_browser_shows_a_push_live_and_rubbish_as_text(
    ecr: Ecr, emulator: Emulator, need: Callable[[str], str]
) -> None:
    await rubbish(emulator)
    await ecr.call("create_repository", repositoryName="team/app")
    async with browser(need("chromium")) as page:
        await page.open(f"{emulator.endpoint_url}/")
        await page.wait_for("document.querySelector('#repositories td').innerText === 'team/app'")
        await ecr.push_image("team/app", "1.4", b"{}", b"layer")
        await page.wait_for("document.querySelector('#images .tag').innerText === '1.4'")
        await page.evaluate("document.querySelector('#repositories button').click()")
        await page.wait_for("document.querySelector('#repositories .inner .tag').innerText === '1.4'")
        assert await page.evaluate("document.querySelector('#state').innerText") == "live"
        shown = await page.evaluate("document.querySelector('#clients').innerText")
        assert RUBBISH[:-2].decode() in shown
        assert await page.evaluate("document.title") == "asyncpush emulator"
        assert page.problems == []


async def test_the_page_fits_a_phone_in_the_dark(ecr: Ecr, emulator: Emulator, need: Callable[[str], str]) -> None:
    await rubbish(emulator)
    name = "team/" + "long" * 50
    await ecr.call("create_repository", repositoryName=name)
    for tag in ("t" * 128, "u" * 128):
        await ecr.push_image(name, tag, tag.encode(), b"layer" * 100_000)
    async with browser(need("chromium")) as page:
        await page.open(f"{emulator.endpoint_url}/", width=390, dark=True)
        await page.wait_for("document.querySelector('#images .tag')")
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
        assert await page.evaluate(wide) == 0
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, dark.removeprefix("rgb(").removesuffix(")").split(","))) < 150
