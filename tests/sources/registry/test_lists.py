"""Lists of a registry: read to their end, however it writes where they go on, or an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.errors import ManifestError, SourceDeniedError, SourceError, SourceNotFoundError, SourceUnavailableError
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.listing import parse_links
from asyncpush.sources.registry.source_registry import SourceRegistryReader
from support.registry_server import QUICK, RegistryServer, open_remote, refusal, running

LIST = "/v2/team/app/tags/list"
NAMES = [f"t{number:04}" for number in range(25)]

Write = Callable[[str], Sequence[str]]


@pytest.fixture
async def server() -> AsyncIterator[RegistryServer]:
    async with running() as server:
        yield server


@pytest.fixture
async def remote(server: RegistryServer) -> AsyncIterator[SourceRegistryReader]:
    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    async with open_remote(registry, retry=QUICK) as remote:
        yield remote


def pages(server: RegistryServer, names: Sequence[str], size: int, write: Write) -> None:
    """Let *server* list *names* in pages of *size*, with Link headers that *write* makes of the next page's query."""

    @server.rule("GET", "/list")
    async def page(request: web.Request) -> web.StreamResponse:
        last = request.query.get("last", "")
        left = [name for name in names if name > last]
        answer = web.json_response({"name": "team/app", "tags": left[:size]})
        for link in write(f"n={size}&last={left[size - 1]}") if len(left) > size else ():
            answer.headers.add("Link", link)
        return answer


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda query: [f'<{LIST}?{query}>; rel="next"'], id="as the RFC has it"),
        pytest.param(lambda query: [f'{LIST}?{query}; rel="next"'], id="no brackets"),
        pytest.param(lambda query: [f"{LIST}?{query}"], id="nothing but the target"),
        pytest.param(lambda query: [f"<{LIST}?{query}>"], id="no rel"),
        pytest.param(lambda query: [f"<{LIST}?{query}>; rel='next'"], id="single quotes"),
        pytest.param(lambda query: [f'<{LIST}?{query}>; crossorigin; rel="next"'], id="a flag"),
        pytest.param(lambda query: [f'<{LIST}?{query}>;title="a, b; rel=prev";REL=NEXT'], id="other parameters"),
        pytest.param(lambda query: [f'<{LIST}?{query}>; rel="last next"'], id="two relations"),
        pytest.param(lambda query: [f'</>; rel=first, <{LIST}?{query}>; rel="next"'], id="the second link"),
        pytest.param(lambda query: ["</>; rel=first", f'<{LIST}?{query}>; rel="next"'], id="a second header"),
        pytest.param(
            lambda query: [f'<http://registry.internal:5000{LIST}?{query}>; rel="next"'], id="an inner host name"
        ),
        pytest.param(
            lambda query: [f'<https://127.0.0.1/artifactory/api/docker/x{LIST}?{query}>; rel="next"'],
            id="an inner path",
        ),
        pytest.param(lambda query: [f'<?{query.partition("&")[2]}>; rel="next"'], id="last only"),
        pytest.param(lambda query: [f'<list?{query}>; rel="next"'], id="beside it"),
        pytest.param(lambda query: [f'<{LIST[1:]}?{query}>; rel="next"'], id="no slash"),
    ],
)
async def test_a_list_is_read_to_its_end_however_its_links_look(
    server: RegistryServer, remote: SourceRegistryReader, write: Write
) -> None:
    pages(server, NAMES, 10, write)

    assert await remote.tags("team/app") == tuple(NAMES)
    assert all(seen.path == LIST for seen in server.seen)
    assert len(server.seen) == 3


@pytest.mark.parametrize("size", [1000, 100, 64, 25, 10])
@pytest.mark.parametrize("more", [0, 1])
async def test_a_full_page_without_a_link_is_not_the_last_one(
    server: RegistryServer, remote: SourceRegistryReader, size: int, more: int
) -> None:
    names = [f"t{number:04}" for number in range(2 * size + more)]
    pages(server, names, size, lambda query: ())

    assert await remote.tags("team/app") == tuple(names)


async def test_a_full_page_that_links_led_to_is_not_the_last_one(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    pages(server, NAMES, 7, lambda query: [] if "t0013" in query else [f"<?{query}>; rel=next"])

    assert await remote.tags("team/app") == tuple(NAMES)


@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("how", ["ignored", 400, 404, 500])
async def test_a_registry_that_knows_no_last_has_listed_all(
    server: RegistryServer, remote: SourceRegistryReader, count: int, how: int | str
) -> None:
    names = [f"t{number:04}" for number in range(count)]

    @server.rule("GET", "/list")
    async def page(request: web.Request) -> web.StreamResponse:
        if "last" in request.query and isinstance(how, int):
            return web.Response(status=how)
        return web.json_response({"tags": names})

    assert await remote.tags("team/app") == tuple(names)
    assert len(server.seen) == (1 + QUICK.attempts if how == 500 else 2)


@pytest.mark.parametrize("size", [7, 100])
async def test_a_list_that_breaks_off_is_an_error(
    server: RegistryServer, remote: SourceRegistryReader, size: int
) -> None:
    names = [f"t{number:04}" for number in range(2 * size)]

    @server.rule("GET", "/list")
    async def down(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503) if "last" in request.query else None

    pages(server, names, size, lambda query: [f"<{LIST}?{query}>; rel=next"] if size == 7 else [])

    with pytest.raises(SourceUnavailableError):
        await remote.tags("team/app")


@pytest.mark.parametrize("status", [400, 403, 404, 406, 422, 500])
async def test_a_registry_that_takes_no_length_of_a_page_gives_its_own(
    server: RegistryServer, remote: SourceRegistryReader, status: int
) -> None:
    @server.rule("GET", "/list")
    async def picky(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if request.query.get("n") == "1000" else None

    pages(server, NAMES, 10, lambda query: [f"<{LIST}?{query}>; rel=next"])

    assert await remote.tags("team/app") == tuple(NAMES)


async def test_a_repository_that_is_not_there_is_asked_for_once(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    with pytest.raises(SourceNotFoundError):
        await remote.tags("team/app")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("body", "link"),
    [
        ('{"tags": ["a"]}', f"<{LIST}?n=1000>; rel=next"),
        ('{"tags": ["a"]}', f"<{LIST}?page=2>; rel=next"),
        ('{"tags": ["a"]}', f"<{LIST}?page={{count}}>; rel=next"),
    ],
)
async def test_a_list_that_repeats_itself_is_an_error(
    server: RegistryServer, remote: SourceRegistryReader, body: str, link: str
) -> None:
    @server.rule("GET", "/list")
    async def again(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, headers={"Link": link.format(count=len(server.seen))})

    with pytest.raises(SourceError, match=r"forms a circle|repeats itself"):
        await remote.tags("team/app")
    assert len(server.seen) <= 3


async def test_empty_pages_without_end_are_an_error(server: RegistryServer, remote: SourceRegistryReader) -> None:
    @server.rule("GET", "/list")
    async def empty(_: web.Request) -> web.StreamResponse:
        return web.json_response({"tags": []}, headers={"Link": f"<{LIST}?page={len(server.seen)}>; rel=next"})

    with pytest.raises(SourceError, match="one page again and again"):
        await remote.tags("team/app")
    assert len(server.seen) < 250


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_page_that_is_refused_is_an_error(
    server: RegistryServer, remote: SourceRegistryReader, status: int
) -> None:
    @server.rule("GET", "/list")
    async def ends(request: web.Request) -> web.StreamResponse | None:
        return refusal(status, "X", "no") if "last" in request.query else None

    pages(server, NAMES, 10, lambda query: [f"<{LIST}?{query}>; rel=next"])

    with pytest.raises(
        SourceError,
        match=r"status 500" if status == 500 else r"can't be listed to the end: .*run the same command again",
    ):
        await remote.tags("team/app")


@pytest.mark.parametrize("body", ["{}", "null", "[]", '{"tags": {}}', '{"tags": ["a", null]}', '{"errors": []}'])
async def test_what_is_no_list_is_an_error(server: RegistryServer, remote: SourceRegistryReader, body: str) -> None:
    @server.rule("GET", "/list")
    async def other(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    with pytest.raises(ManifestError, match="repository team/app of"):
        await remote.tags("team/app")


@pytest.mark.parametrize("body", ['{"name": "team/app"}', '{"name": "team/app", "tags": null}', '{"tags": []}'])
async def test_an_empty_repository_has_no_tags(server: RegistryServer, remote: SourceRegistryReader, body: str) -> None:
    @server.rule("GET", "/list")
    async def empty(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    assert await remote.tags("team/app") == ()


async def test_credentials_go_to_no_host_that_a_link_names(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    async with running() as other:
        pages(server, NAMES, 10, lambda query: [f"<http://localhost:{other.port}{LIST}?{query}>; rel=next"])

        assert await remote.tags("team/app") == tuple(NAMES)
        assert not other.seen


async def test_a_refusal_of_somebody_who_is_not_logged_in_says_so(server: RegistryServer) -> None:
    @server.rule("GET", "/token")
    async def token(request: web.Request) -> web.StreamResponse:
        return web.json_response({"token": "anonymous"})

    @server.rule("GET", "/list")
    async def denied(request: web.Request) -> web.StreamResponse:
        challenge = f'Bearer realm="{server.url}/token",service="r",scope="repository:team/app:pull"'
        return refusal(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=challenge)

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    async with open_remote(registry, retry=QUICK) as remote:
        with pytest.raises(SourceDeniedError, match=r"log in \(docker login"):
            await remote.tags("team/app")


# Links

_TARGETS = st.text(
    st.characters(codec="ascii", exclude_characters=" \t\r\n\f\v<>,;\"'", exclude_categories=["Cc"]), min_size=1
)
_NAMES = st.text("abcdefghijklmnopqrstuvwxyz*-", min_size=1).filter(lambda name: name != "rel")
_VALUES = st.one_of(
    st.none(),
    st.text("abcXYZ019.-_/=?&", min_size=1),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters='"\\')).map(
        lambda text: f'"{text}"'
    ),
)
_RELATION = st.sampled_from(
    ["rel=next", 'rel="next"', "rel='next'", 'REL="Next"', 'rel = "prev next"', 'rel="next last"']
)


@st.composite
def _links(draw: st.DrawFn) -> tuple[str, str]:
    """A link to the next page, and its target."""
    target = draw(_TARGETS)
    parameters = [
        name if value is None else f"{name}={value}" for name, value in draw(st.lists(st.tuples(_NAMES, _VALUES)))
    ]
    parameters.insert(draw(st.integers(0, len(parameters))), draw(_RELATION))
    blank = draw(st.sampled_from(["", " ", "\t "]))
    written = f"<{target}>" if draw(st.booleans()) else target
    return f"{blank};{blank}".join([written, *parameters]), target


@settings(max_examples=40, deadline=None)
@given(links=st.lists(_links(), min_size=1, max_size=4), headers=st.integers(1, 3))
def test_links_are_read_as_they_were_written(links: list[tuple[str, str]], headers: int) -> None:
    values = [", ".join(text for text, _ in links[at::headers]) for at in range(headers)]

    found = parse_links(values)

    assert sorted(link.target for link in found) == sorted(target for _, target in links)
    assert all("next" in link.relations for link in found)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("<>;,=\"' \\relnxt/?&a"), max_size=200))
def test_rubbish_is_read_without_an_error(text: str) -> None:
    for link in parse_links([text]):
        assert link.target in text
