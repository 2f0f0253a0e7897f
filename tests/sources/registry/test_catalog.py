"""The list of a registry's repositories: read to its end over all pages, or one line that says what to do instead."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from asyncpush.errors import SourceError
from asyncpush.settings import Credentials, SourceRegistry
from asyncpush.sources.registry.source_registry import SourceRegistryReader
from support.registry_server import QUICK, RegistryServer, basic, open_remote, refusal, running

CATALOG = "/v2/_catalog"
NAMES = [f"team/app{number:04}" for number in range(25)]


@pytest.fixture
async def server() -> AsyncIterator[RegistryServer]:
    async with running() as server:
        yield server


@pytest.fixture
async def remote(server: RegistryServer) -> AsyncIterator[SourceRegistryReader]:
    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    async with open_remote(registry, retry=QUICK) as remote:
        yield remote


@pytest.mark.parametrize("linked", [True, False])
async def test_all_pages_are_read(server: RegistryServer, remote: SourceRegistryReader, linked: bool) -> None:
    """By Link headers; a registry that cuts its page without one is asked for what is behind it."""

    @server.rule("GET", CATALOG)
    async def page(request: web.Request) -> web.StreamResponse:
        rest = [name for name in NAMES if name > request.query.get("last", "")]
        answer = web.json_response({"repositories": rest[:10]})
        if linked and len(rest) > 10:
            answer.headers["Link"] = f'<{CATALOG}?last={rest[9]}&n=10>; rel="next"'
        return answer

    assert await remote.repositories() == tuple(NAMES)


async def test_an_empty_registry_has_none(server: RegistryServer, remote: SourceRegistryReader) -> None:
    @server.rule("GET", CATALOG)
    async def page(_: web.Request) -> web.StreamResponse:
        return web.json_response({"repositories": None})

    assert await remote.repositories() == ()


@pytest.mark.parametrize(
    ("status", "code"), [(404, "UNSUPPORTED"), (401, "UNAUTHORIZED"), (403, "DENIED"), (405, "UNSUPPORTED"), (200, "")]
)
async def test_a_registry_without_a_catalog_is_an_error_that_says_what_to_do(
    server: RegistryServer, remote: SourceRegistryReader, status: int, code: str
) -> None:
    @server.rule("GET", CATALOG)
    async def refuse(_: web.Request) -> web.StreamResponse:
        return refusal(status, code, "no catalog") if code else web.json_response({"message": "hello"})

    with pytest.raises(SourceError) as caught:
        await remote.repositories()
    assert str(caught.value).startswith(f"{server.host} does not list its repositories: ")
    assert "write an entry for each repository in the plan" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_list_that_breaks_off_is_not_taken_for_the_whole(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    @server.rule("GET", CATALOG)
    async def page(request: web.Request) -> web.StreamResponse:
        if "last" in request.query:
            return refusal(403, "DENIED", "no more")
        return web.json_response({"repositories": ["a/b"]}, headers={"Link": f'<{CATALOG}?last=a%2Fb>; rel="next"'})

    with pytest.raises(SourceError, match=r"^the list of repositories of .* can't be listed to the end"):
        await remote.repositories()


async def test_pages_that_never_end_are_an_error(server: RegistryServer, remote: SourceRegistryReader) -> None:
    @server.rule("GET", CATALOG)
    async def page(_: web.Request) -> web.StreamResponse:
        return web.json_response({"repositories": ["a/b"]}, headers={"Link": f'<{CATALOG}?last=a>; rel="next"'})

    with pytest.raises(SourceError, match=r"repeats itself|forms a circle"):
        await remote.repositories()


async def test_a_token_is_asked_for_the_catalog(server: RegistryServer) -> None:
    """Its scope is that of Docker's token specification, whatever the challenge names."""

    @server.rule("GET", CATALOG)
    async def page(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer t0ken":
            challenge = f'Bearer realm="{server.url}/token",service="registry"'
            return web.json_response({}, status=401, headers={"WWW-Authenticate": challenge})
        return web.json_response({"repositories": ["a/b"]})

    @server.rule("GET", "/token")
    async def grant(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == basic("me", "pw")
        assert request.query["scope"] == "registry:catalog:*"
        return web.json_response({"token": "t0ken"})

    registry = SourceRegistry(host=server.host, plain_http=True, credentials=Credentials("me", "pw"))
    async with open_remote(registry, retry=QUICK) as remote:
        assert await remote.repositories() == ("a/b",)
