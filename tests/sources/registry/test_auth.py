"""Who is asking: challenges answered, tokens got and renewed, credentials found, and the pace that a registry wants."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.errors import (
    AsyncpushError,
    ConfigurationError,
    RegistryError,
    SourceDeniedError,
    SourceError,
    SourceLimitedError,
    SourceUnavailableError,
)
from asyncpush.events import Event, Notice, Retrying
from asyncpush.protocols import Login
from asyncpush.settings import AwsConfiguration, Credentials, RetryPolicy, SourceRegistry
from asyncpush.sources.registry import credentials
from asyncpush.sources.registry import docker_config as stored
from asyncpush.sources.registry.docker_config import AuthFile, auth_files
from support.events import Events
from support.images import A, Layout, app_layout
from support.registry_server import QUICK, RegistryServer, basic, open_remote, refusal, running

CREDENTIALS = Credentials("user", "se:cret")
BASIC = basic("user", "se:cret")


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees this machine's logins; the folder that is docker's."""
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stored, "RUN_FOLDER", tmp_path / "containers")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "docker").mkdir()
    (tmp_path / "run" / "containers").mkdir(parents=True)
    return tmp_path / "docker"


@pytest.fixture
async def server() -> AsyncIterator[RegistryServer]:
    async with running(RegistryServer(tags={"team/app": ["1"], "team/other": ["2"]})) as server:
        yield server


def reads(server: RegistryServer, **more: object) -> SourceRegistry:
    return SourceRegistry(host=server.host, plain_http=True, **more)  # type: ignore[arg-type]


async def tags(registry: SourceRegistry, repository: str = "team/app", **more: object) -> tuple[str, ...]:
    async with open_remote(registry, **{"retry": QUICK, **more}) as remote:  # type: ignore[arg-type]
        return await remote.tags(repository)


def wants_basic(server: RegistryServer, *accepted: str) -> None:
    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") in accepted:
            return None
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')


class Tokens:
    """A token service, and a registry that takes its tokens."""

    def __init__(self, server: RegistryServer, *accounts: str | None, lifetime: float = 3600, **extra: object) -> None:
        self.valid: set[str] = set()
        self.issued = 0
        self.server = server

        @server.rule("GET", "/token")
        async def issue(request: web.Request) -> web.StreamResponse:
            if accounts and request.headers.get("Authorization") not in accounts:
                return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
            return self._issue(lifetime, extra)

        @server.rule("POST", "/token")
        async def refresh(request: web.Request) -> web.StreamResponse:
            form = await request.post()
            if form["refresh_token"] not in accounts:
                return web.Response(status=401)
            return self._issue(lifetime, extra)

        @server.rule("GET", "/v2/")
        async def guarded(request: web.Request) -> web.StreamResponse | None:
            if request.headers.get("Authorization", "").removeprefix("Bearer ") in self.valid:
                return None
            repository = "/".join(request.path.split("/")[2:4])
            challenge = f'Bearer realm="{server.url}/token",service="the registry",scope="repository:{repository}:pull"'
            return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge)

    def _issue(self, lifetime: float, extra: dict[str, object]) -> web.Response:
        self.issued += 1
        token = f"token-{self.issued}"
        self.valid.add(token)
        return web.json_response({"token": token, "expires_in": lifetime, **extra})


async def test_credentials_are_kept_back_until_they_are_asked_for(server: RegistryServer) -> None:
    assert await tags(reads(server, credentials=CREDENTIALS)) == ("1",)
    assert [(seen.path, seen.authorization) for seen in server.seen] == [
        ("/v2/", None),
        ("/v2/team/app/tags/list", None),
    ]


async def test_credentials_go_to_a_registry_that_asks_for_them_at_its_api_alone(server: RegistryServer) -> None:
    """It shows everybody what is everybody's, and asks for nothing."""

    @server.rule("GET", "/v2/")
    async def partly_open(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == BASIC:
            return None
        if request.path == "/v2/":
            return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')
        return web.json_response({"name": "team/app", "tags": []})

    assert await tags(reads(server)) == ()
    assert [seen.path for seen in server.seen] == ["/v2/team/app/tags/list"]  # nobody asks /v2/ without an account
    assert await tags(reads(server, credentials=CREDENTIALS)) == ("1",)
    assert len(server.asked("GET", "/tags/")) == 2


async def test_an_api_that_says_nothing_decides_nothing(server: RegistryServer) -> None:
    @server.rule("GET", "/v2/")
    async def fails(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500) if request.path == "/v2/" else None

    assert await tags(reads(server, credentials=CREDENTIALS)) == ("1",)
    assert [seen.path for seen in server.seen] == ["/v2/", "/v2/team/app/tags/list"]


async def test_who_has_credentials_that_nobody_asks_for_is_not_told_to_log_in(server: RegistryServer) -> None:
    @server.rule("GET", "/tags/")
    async def refuses(request: web.Request) -> web.StreamResponse:
        return refusal(403, "DENIED", "no")

    with pytest.raises(SourceDeniedError) as caught:
        await tags(reads(server, credentials=CREDENTIALS))
    assert caught.value.hint is not None
    assert "asks for no credentials" in caught.value.hint
    assert "log in" not in caught.value.hint


async def test_basic_is_answered_once_and_kept(server: RegistryServer) -> None:
    wants_basic(server, BASIC)

    async with open_remote(reads(server, credentials=CREDENTIALS), retry=QUICK) as remote:
        assert await remote.tags("team/app") == ("1",)
        assert await remote.tags("team/other") == ("2",)
    assert [seen.authorization for seen in server.seen] == [None, BASIC, BASIC]


async def test_what_is_everybodys_is_read_after_what_is_not_was_refused(server: RegistryServer) -> None:
    @server.rule("GET", "/private/")
    async def guarded(request: web.Request) -> web.StreamResponse:
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')

    async with open_remote(reads(server), retry=QUICK) as remote:
        with pytest.raises(SourceDeniedError):
            await remote.tags("private/app")
        assert await remote.tags("team/app") == ("1",)


async def test_wrong_credentials_are_refused_in_words_that_do_not_hold_them(server: RegistryServer) -> None:
    wants_basic(server, "nobody")

    with pytest.raises(SourceDeniedError, match="refuses the credentials of 'user'; check user and") as caught:
        await tags(reads(server, credentials=CREDENTIALS))
    assert "se:cret" not in str(caught.value) + repr(caught.value)
    assert len(server.seen) == 2


async def test_without_credentials_the_error_says_how_to_log_in(server: RegistryServer) -> None:
    wants_basic(server, BASIC)

    with pytest.raises(SourceDeniedError, match=f"there are none for it; log in .docker login {server.host}"):
        await tags(reads(server))


async def test_tokens_are_got_for_each_repository_and_kept(server: RegistryServer) -> None:
    tokens = Tokens(server, BASIC)

    async with open_remote(reads(server, credentials=CREDENTIALS), retry=QUICK) as remote:
        for _ in range(3):
            assert await remote.tags("team/app") == ("1",)
        assert await remote.tags("team/other") == ("2",)
        assert remote.requests == {"ping": 1, "GET tags": 4, "token": 2}

    asked = [parse_qs(urlsplit(seen.target).query) for seen in server.asked("GET", "/token")]
    assert asked == [
        {"service": ["the registry"], "scope": [f"repository:team/{name}:pull"]} for name in ("app", "other")
    ]
    assert tokens.issued == 2
    assert {seen.authorization for seen in server.asked("GET", "/v2/")} == {None, "Bearer token-1", "Bearer token-2"}


async def test_tokens_for_everybody_need_no_credentials(server: RegistryServer) -> None:
    Tokens(server)

    assert await tags(reads(server)) == ("1",)
    assert [seen.authorization for seen in server.asked("GET", "/token")] == [None]


@pytest.mark.parametrize("issued", ["new", "old", "rubbish"])
async def test_a_token_is_renewed_before_it_expires(server: RegistryServer, issued: str) -> None:
    # A token of a thousandth of a second has expired when it is there; an hour's is good, however the clocks differ.
    when = {"new": None, "old": "2001-01-01T00:00:00Z", "rubbish": "yesterday"}[issued]
    Tokens(server, lifetime=3600 if when else 0.001, issued_at=when)

    async with open_remote(reads(server), retry=QUICK) as remote:
        for _ in range(3):
            await anyio.sleep(0.002)
            await remote.tags("team/app")
        assert remote.requests["token"] == (1 if when else 3)
        assert remote.requests["GET tags"] == 4  # none of them was refused but the first


async def test_a_token_that_is_refused_early_is_renewed_once_for_all_who_wait(server: RegistryServer) -> None:
    tokens = Tokens(server)

    async with open_remote(reads(server, connections=20), retry=QUICK) as remote:
        await remote.tags("team/app")
        tokens.valid.clear()
        async with anyio.create_task_group() as tg:
            for _ in range(20):
                tg.start_soon(remote.tags, "team/app")
        assert remote.requests["token"] == 2


async def test_a_refused_token_is_asked_for_once_by_all_who_wait(server: RegistryServer) -> None:
    Tokens(server, "nobody")
    failures: list[AsyncpushError] = []

    async def one() -> None:
        try:
            await remote.tags("team/app")
        except SourceDeniedError as error:
            failures.append(error)

    async with open_remote(reads(server, credentials=CREDENTIALS), retry=QUICK) as remote:
        async with anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(one)
        # Who comes to the door later, asks again.
        assert 1 <= remote.requests["token"] < 10
    assert len(failures) == 10
    assert "refuses the credentials of 'user' (status 401)" in str(failures[0])
    assert "se:cret" not in str(failures[0])


async def test_a_token_that_does_not_open_the_door_is_an_error(server: RegistryServer) -> None:
    tokens = Tokens(server)
    tokens.valid = type("Never", (set,), {"add": lambda self, token: None})()

    with pytest.raises(SourceDeniedError, match="refuses repository team/app"):
        await tags(reads(server))
    assert tokens.issued <= 3


@pytest.mark.parametrize("answer", [{}, {"token": ""}, {"token": "a\nb"}, [], "rubbish", {"token": 5}])
async def test_what_is_no_token_is_an_error_that_does_not_show_it(server: RegistryServer, answer: object) -> None:
    Tokens(server)

    async def bad(request: web.Request) -> web.StreamResponse | None:
        return web.json_response(answer) if request.path == "/token" else None

    server.rules.insert(0, bad)

    with pytest.raises(SourceError, match=r"returned no (readable )?token"):
        await tags(reads(server))


@pytest.mark.parametrize("status", [200, 403])
async def test_a_token_service_that_shows_a_web_page_is_not_one(server: RegistryServer, status: int) -> None:
    """Nobody's credentials are to blame."""
    Tokens(server)

    async def page(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status, text="<html>Log in</html>") if request.path == "/token" else None

    server.rules.insert(0, page)

    with pytest.raises(SourceUnavailableError, match=rf"no token for .* status {status} and a web page; .*firewall"):
        await tags(reads(server, credentials=CREDENTIALS))


async def test_access_token_will_do(server: RegistryServer) -> None:
    tokens = Tokens(server, token=None, access_token="token-1")

    assert await tags(reads(server)) == ("1",)
    assert tokens.issued == 1


async def test_the_token_service_may_have_a_bad_moment(server: RegistryServer) -> None:
    Tokens(server)
    moments = [503, 429, 408, 500]

    async def bad(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=moments.pop()) if request.path == "/token" and moments else None

    server.rules.insert(0, bad)
    events = Events()

    # The wait for a throttle begins with a second, and is random.
    assert await tags(reads(server), emit=events) == ("1",)
    assert {event.operation for event in events.of(Retrying)} == {"token"}


async def test_an_identity_token_is_exchanged_by_oauth2(server: RegistryServer, nobody_is_logged_in: Path) -> None:
    Tokens(server, "identity", "identity-2", refresh_token="identity-2", lifetime=0.001)
    document = {"auths": {server.host: {"auth": base64.b64encode(b"x:y").decode(), "identitytoken": "identity"}}}
    (nobody_is_logged_in / "config.json").write_text(json.dumps(document))

    async with open_remote(reads(server), retry=QUICK) as remote:
        await remote.tags("team/app")
        await anyio.sleep(0.002)
        await remote.tags("team/app")

    forms = [parse_qs(seen.body.decode()) for seen in server.asked("POST", "/token")]
    assert forms[0] == {
        "grant_type": ["refresh_token"],
        "client_id": ["asyncpush"],
        "service": ["the registry"],
        "scope": ["repository:team/app:pull"],
        "refresh_token": ["identity"],
    }
    assert forms[1]["refresh_token"] == ["identity-2"]


@pytest.mark.parametrize("realm", ["127.0.0.1", "127.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254"])
async def test_a_local_realm_gets_nothing_for_a_remote_registry(
    server: RegistryServer, realm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token realm on this machine gets no credentials for a registry elsewhere."""

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse:
        where = f"http://{realm}:{server.port}/token"
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=f'Bearer realm="{where}"')

    monkeypatch.setenv("HTTP_PROXY", server.url)  # registry.example is behind it
    elsewhere = SourceRegistry(host="registry.example", plain_http=True, credentials=CREDENTIALS)

    with pytest.raises(SourceError, match="this machine or on its local network"):
        await tags(elsewhere)
    assert not server.asked("GET", "/token")
    assert all(each.authorization is None for each in server.seen)


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("Negotiate", "asks for negotiate"),
        ("", "without a challenge"),
        ('Bearer service="x"', "asks for bearer"),
        ('Bearer realm="/token"', "names no valid address"),
        ('Bearer realm="ftp://x/"', "names no valid address"),
    ],
)
async def test_challenges_that_lead_nowhere(server: RegistryServer, challenge: str, words: str) -> None:
    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse:
        return refusal(401, "UNAUTHORIZED", "who?", **({"WWW_Authenticate": challenge} if challenge else {}))

    with pytest.raises(SourceError, match=words):
        await tags(reads(server))
    assert len(server.seen) == 1


async def test_bearer_goes_before_basic_where_both_will_do(server: RegistryServer) -> None:
    Tokens(server)

    async def both(request: web.Request) -> web.StreamResponse | None:
        if request.path.startswith("/v2/") and "Authorization" not in request.headers:
            challenge = f'Basic realm="x, y", Bearer realm="{server.url}/token"'
            return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge)
        return None

    server.rules.insert(0, both)

    assert await tags(reads(server)) == ("1",)


# Where credentials come from


def docker_config(folder: Path, **content: object) -> None:
    (folder / "config.json").write_text(json.dumps(content))


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("key", ["{}", "https://{}", "http://{}/v1/", "https://{}/v2/", "{}/"])
async def test_dockers_logins_are_found(server: RegistryServer, nobody_is_logged_in: Path, key: str) -> None:
    wants_basic(server, BASIC)
    docker_config(
        nobody_is_logged_in,
        auths={"other.example": encoded("a", "b"), key.format(server.host): encoded("user", "se:cret")},
    )

    assert await tags(reads(server)) == ("1",)


async def test_nothing_found_is_used_where_none_is_wanted(server: RegistryServer, nobody_is_logged_in: Path) -> None:
    wants_basic(server, BASIC)
    docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "se:cret")})

    with pytest.raises(SourceDeniedError, match="there are none"):
        await tags(reads(server, anonymous=True))


#: Where docker and podman look, in the order that counts, and the variables that say so; ``{}`` is the test's folder.
PLACES = {
    "REGISTRY_AUTH_FILE": ("my.json", {"REGISTRY_AUTH_FILE": "{}/my.json"}),
    "XDG_RUNTIME_DIR": ("run/containers/auth.json", {}),
    "/run/containers/UID": (f"containers/{os.getuid()}/auth.json", {}),
    "XDG_CONFIG_HOME": ("config/containers/auth.json", {"XDG_CONFIG_HOME": "{}/config"}),
    "~/.config": ("home/.config/containers/auth.json", {}),
    "DOCKER_CONFIG": ("docker/config.json", {}),
    "~/.docker": ("home/.docker/config.json", {"DOCKER_CONFIG": ""}),
    "~/.dockercfg": ("home/.dockercfg", {}),
}


def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """The file of one of ``PLACES``."""
    written, variables = PLACES[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(tmp_path))
    path = tmp_path / written
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("name", PLACES)
async def test_logins_are_found_where_docker_and_podman_look(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    wants_basic(server, BASIC)
    entries = {server.host: encoded("user", "se:cret")}
    content = entries if name == "~/.dockercfg" else {"auths": entries}
    place(tmp_path, monkeypatch, name).write_text(json.dumps(content))

    assert await tags(reads(server)) == ("1",)


def test_the_order_of_the_places_is_podmans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", "{}")
    paths = []
    for name in PLACES:
        if name not in ("XDG_CONFIG_HOME", "~/.docker"):
            paths.append(place(tmp_path, monkeypatch, name))
            paths[-1].write_text("{}")
    paths[1].write_text("")  # an empty file is none

    names = [file.name for file in auth_files() if isinstance(file, AuthFile)]
    assert names == ["DOCKER_AUTH_CONFIG", *[str(path) for path in paths if path != paths[1]]]


async def test_a_login_in_the_environment_goes_before_the_files(
    server: RegistryServer, nobody_is_logged_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wants_basic(server, BASIC)
    docker_config(nobody_is_logged_in, auths={server.host: encoded("wrong", "x")})
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {server.host: encoded("user", "se:cret")}}))

    assert await tags(reads(server)) == ("1",)


@pytest.mark.parametrize("by", ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"])
async def test_podmans_logins_are_found_the_closest_first(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    wants_basic(server, BASIC)
    path = place(tmp_path, monkeypatch, by)
    wrong = encoded("wrong", "x")
    keys = {server.host: wrong, f"{server.host}/team/app": encoded("user", "se:cret"), f"{server.host}/team": wrong,
            f"{server.host}/team/oth": encoded("worse", "x"), f"{server.host}/team/app/sub": wrong}  # fmt: skip
    path.write_text(json.dumps({"auths": keys}))

    assert await tags(reads(server)) == ("1",)
    with pytest.raises(SourceDeniedError, match="'wrong'"):
        await tags(reads(server), "team/other")


def test_docker_hubs_key(nobody_is_logged_in: Path) -> None:
    docker_config(nobody_is_logged_in, auths={"https://index.docker.io/v1/": encoded("me", "pw")})

    [file] = auth_files()
    assert isinstance(file, AuthFile)
    account = file.account("docker.io", "library/debian")
    assert account is not None
    assert (account.username, account.password) == ("me", "pw")
    assert file.account("quay.io", "library/debian") is None
    assert "pw" not in repr(account) + repr(file)


@pytest.mark.parametrize(
    "content", ["{", '{"auths": []}', '{"auths": {"HOST": {"auth": "?"}}}', '{"auths": {"HOST": {"auth": "/w=="}}}']
)
async def test_a_file_that_is_broken_is_named(server: RegistryServer, nobody_is_logged_in: Path, content: str) -> None:
    wants_basic(server, BASIC)
    (nobody_is_logged_in / "config.json").write_text(content.replace("HOST", server.host))

    with pytest.raises(SourceDeniedError, match=r"there are none for it \(.*config\.json (is malformed|holds no)"):
        await tags(reads(server))


@pytest.mark.parametrize("place", ["a file", "a folder", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE"])
async def test_what_cant_be_read_is_passed_over_where_it_is_not_needed(
    server: RegistryServer, nobody_is_logged_in: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    path = nobody_is_logged_in / "config.json"
    if place == "a file":
        path.write_text("{")
    elif place == "a folder":  # docker makes one, where what it is to mount is not there
        path.mkdir()
    else:
        monkeypatch.setenv(place, str(path := tmp_path / "missing.json"))
    Tokens(server)

    assert await tags(reads(server)) == ("1",)
    server.rules.clear()
    wants_basic(server, BASIC)
    with pytest.raises(SourceDeniedError, match=place if place == "DOCKER_AUTH_CONFIG" else str(path)):
        await tags(reads(server))
    (tmp_path / "run" / "containers" / "auth.json").write_text(
        json.dumps({"auths": {server.host: encoded("user", "se:cret")}})
    )
    assert await tags(reads(server)) == ("1",)


async def test_a_bad_entry_costs_itself_only(server: RegistryServer, nobody_is_logged_in: Path) -> None:
    wants_basic(server, BASIC)
    bad = {
        "bad.example": 5,
        "worse.example": {"auth": ["x"]},
        "": {},
        f"{server.host}/team/app": {"auth": "bm9jb2xvbg=="},
    }
    docker_config(nobody_is_logged_in, auths={**bad, server.host: encoded("user", "se:cret")})

    assert await tags(reads(server)) == ("1",)


def wrapped(text: str) -> str:
    return "\n".join(text[at : at + 7] for at in range(0, len(text), 7)) + "\n"


def padded(text: str) -> str:
    return base64.b64encode(base64.b64decode(text) + bytes(3)).decode()


LETTERS = 'aZ9 :/+-_.@\u00e9\u20ac\n"'


@settings(max_examples=50)
@given(
    user=st.text(LETTERS.replace(":", ""), min_size=1, max_size=20),
    password=st.text(LETTERS, min_size=1, max_size=60),
    form=st.sampled_from([str, wrapped, padded, lambda text: text.rstrip("="), lambda text: f" {text}\r\n"]),
    escaped=st.booleans(),
)
def test_a_password_is_read_however_it_is_wrapped(user: str, password: str, form: object, escaped: bool) -> None:
    text = form(encoded(user, password)["auth"])  # type: ignore[operator]
    document = (
        f'{{"auths": {{"registry.example": {{"auth": {json.dumps(text) if escaped else chr(34) + text + chr(34)}}}}}}}'
    )

    account = AuthFile.parse("file", document.encode()).account("registry.example", "team/app")

    assert account is not None
    assert (account.username, account.password) == (user, password)


NAMES = ["auths", "auth", "h", "h/a", "credHelpers", "credsStore", "username", "password", "identitytoken"]
RUBBISH = st.none() | st.sampled_from(["", "YTpi", "h", "\ud800"]) | st.integers()


@settings(max_examples=50)
@given(st.recursive(RUBBISH, lambda each: st.lists(each) | st.dictionaries(st.sampled_from(NAMES), each), max_leaves=8))
def test_no_rubbish_in_a_file_is_more_than_malformed(document: object) -> None:
    with suppress(ConfigurationError):
        file = AuthFile.parse("file", json.dumps({"auths": {"h": document}}).encode())
        file.account("h", "a/b")
        file = AuthFile.parse("file", json.dumps(document).encode())
        file.helper("h")


@pytest.mark.parametrize(
    ("host", "keys"),
    [
        # The closest first: each goes before those that follow.
        ("quay.io", ["quay.io/team/app", "quay.io/team", "quay.io", "https://quay.io", "http://quay.io/any/thing"]),
        ("quay.io", ["quay.io:443/team/app", "https://quay.io:443/v1/"]),
        ("quay.io:443", ["QUAY.io/v2/"]),
        (
            "docker.io",
            ["docker.io/team/app", "index.docker.io/team", "registry-1.docker.io", "https://index.docker.io/v1/"],
        ),
        ("[::1]:5000", ["[::1]:5000/team", "https://[::1]:5000"]),
    ],
)
def test_the_closest_key_counts(host: str, keys: list[str]) -> None:
    others = ["quay.io:5000", "quay.io/team/ap", "quay.io/team/app/sub", "quay.i", "a.quay.io", "?", "docker.io:5000"]
    while keys:
        users = {key: encoded(key.replace(":", ";"), "x") for key in [*reversed(keys), *others]}
        account = AuthFile.parse("file", json.dumps({"auths": users}).encode()).account(host, "team/app")
        assert account is not None
        assert account.username == keys.pop(0).replace(":", ";")
    nothing = {key: encoded("u", "p") for key in others}
    assert AuthFile.parse("file", json.dumps({"auths": nothing}).encode()).account(host, "team/app") is None


@pytest.mark.parametrize("challenge", ["basic", "bearer"])
async def test_a_token_for_the_registry_itself_is_said_as_it_is(
    server: RegistryServer, nobody_is_logged_in: Path, challenge: str
) -> None:
    if challenge == "basic":
        wants_basic(server, "Bearer t0ken")
    else:
        Tokens(server).valid.add("t0ken")
    docker_config(nobody_is_logged_in, auths={server.host: {**encoded("a", "b"), "registrytoken": "t0ken"}})

    assert await tags(reads(server)) == ("1",)
    assert {seen.authorization for seen in server.seen} == {None, "Bearer t0ken"}

    docker_config(nobody_is_logged_in, auths={server.host: {"registrytoken": "0ld"}})
    server.rules.clear()
    Tokens(server, "nobody")
    with pytest.raises(
        SourceDeniedError, match=r"refuses the login of 'the registry token' in .*config\.json"
    ) as caught:
        await tags(reads(server))
    assert "0ld" not in str(caught.value)


@pytest.mark.parametrize("how", ["basic", "bearer", "denied"])
@pytest.mark.parametrize("everybodys", [True, False])
async def test_a_refused_stored_login_does_not_block_public_images(
    server: RegistryServer, nobody_is_logged_in: Path, how: str, everybodys: bool
) -> None:
    """Each request goes without the login, too, before it fails; a note says once which login that is."""
    docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "old")})
    challenge = 'Basic realm="here"' if how == "basic" else f'Bearer realm="{server.url}/token",service="it"'

    @server.rule("GET", "/token")
    async def token(request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers and how == "bearer":
            return refusal(401, "UNAUTHORIZED", "no")
        return web.json_response({"token": "user" if "Authorization" in request.headers else "nobody"})

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        said = request.headers.get("Authorization", "")
        if said == "Bearer user":
            return refusal(403, "DENIED", "not yours") if request.path != "/v2/" else None
        if said == ("" if how == "basic" else "Bearer nobody") and everybodys and request.path != "/v2/":
            return None
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge)

    events = Events()
    login = rf"login of 'user' in {nobody_is_logged_in}/config\.json"
    async with open_remote(reads(server), emit=events, retry=QUICK) as remote:
        if not everybodys:
            with pytest.raises(SourceDeniedError, match=login):
                await remote.tags("team/app")
            return
        assert await remote.tags("team/app") == ("1",)
        assert await remote.tags("team/app") == ("1",)
        assert await remote.tags("team/other") == ("2",)
    [note] = [event.text for event in events if isinstance(event, Notice)]
    assert re.search(f"refuses the {login}, .*log in again", note)
    assert sum("Basic" in (seen.authorization or "") for seen in server.seen) == (2 if how == "denied" else 1)


async def test_what_everybody_may_read_after_all_not_is_read_with_the_login(
    server: RegistryServer, nobody_is_logged_in: Path
) -> None:
    """A login that one request is refused with is the one that another needs."""
    docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "se:cret")})

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        logged_in = request.headers.get("Authorization") == BASIC
        if request.path.endswith("/tags/list") and request.path != "/v2/":
            return refusal(403, "DENIED", "not yours") if logged_in else None
        return None if logged_in else refusal(401, "UNAUTHORIZED", "?", WWW_Authenticate='Basic realm="x"')

    layout = Layout()
    image = server.hold(layout, layout.image(A), "team/app", "1")
    async with open_remote(reads(server), retry=QUICK) as remote:
        for _ in range(2):
            assert await remote.tags("team/app") == ("1",)
            assert str((await remote.resolve("team/app", "1")).digest) == image["digest"]


async def test_a_password_in_another_encoding_goes_as_its_bytes(
    server: RegistryServer, nobody_is_logged_in: Path
) -> None:
    """As docker sends it."""
    value = base64.b64encode("user:p\u00e4ss".encode("latin-1")).decode()
    wants_basic(server, f"Basic {value}")
    docker_config(nobody_is_logged_in, auths={server.host: {"auth": value}})

    assert await tags(reads(server)) == ("1",)


async def test_a_docker_config_that_is_a_file_is_named(
    server: RegistryServer, nobody_is_logged_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "se:cret")})
    monkeypatch.setenv("DOCKER_CONFIG", str(nobody_is_logged_in / "config.json"))

    assert await tags(reads(server)) == ("1",)
    wants_basic(server, BASIC)
    with pytest.raises(SourceDeniedError, match=r"DOCKER_CONFIG names .*config\.json, which is not a folder.*name the"):
        await tags(reads(server))


async def test_who_logs_in_anew_in_the_meantime_is_let_in(server: RegistryServer, nobody_is_logged_in: Path) -> None:
    accepted = [basic("user", "1")]

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") in accepted:
            return None
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')

    docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "1")})
    async with open_remote(reads(server), retry=QUICK) as remote:
        assert await remote.tags("team/app") == ("1",)
        docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "2")})
        accepted[:] = [basic("user", "2")]
        assert await remote.tags("team/app") == ("1",)


async def test_a_login_without_a_password_is_none(server: RegistryServer, nobody_is_logged_in: Path) -> None:
    wants_basic(server, BASIC)
    docker_config(nobody_is_logged_in, auths={server.host: {}})

    with pytest.raises(SourceDeniedError, match="there are none"):
        await tags(reads(server))


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper named ``test``, in PATH; its script is to be written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "docker-credential-test"


def script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", "read host || true", 'echo "$1 $host" >> "$0.log"', *lines]) + "\n")
    path.chmod(0o755)


FOUND = 'printf \'{"ServerURL":"x","Username":"user","Secret":"se:cret"}\''


@pytest.mark.parametrize("how", ["given", "credHelpers", "credsStore"])
async def test_a_helper_is_asked_once(
    server: RegistryServer, nobody_is_logged_in: Path, helper: Path, how: str
) -> None:
    wants_basic(server, BASIC)
    script(helper, FOUND)
    auths = {server.host: encoded("wrong", "x")}
    if how == "credHelpers":
        docker_config(nobody_is_logged_in, auths=auths, credsStore="missing", credHelpers={server.host: "test"})
    elif how == "credsStore":
        docker_config(nobody_is_logged_in, auths=auths, credsStore="test")
    registry = reads(server, credential_helper="test" if how == "given" else None)

    async with open_remote(registry, retry=QUICK) as remote:
        assert await remote.tags("team/app") == ("1",)
        assert await remote.tags("team/other") == ("2",)
    assert (await anyio.Path(f"{helper}.log").read_text()).splitlines() == [f"get {server.host}"]


async def test_what_a_helper_said_is_asked_for_again_once_it_has_expired(server: RegistryServer, helper: Path) -> None:
    accepted = [basic("user", "1")]

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") in accepted:
            return None
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')

    script(helper, 'count=$(wc -l < "$0.log")', 'printf \'{"Username":"user","Secret":"%d"}\' "$count"')
    async with open_remote(reads(server, credential_helper="test"), retry=QUICK) as remote:
        assert await remote.tags("team/app") == ("1",)
        accepted[:] = [basic("user", "2")]
        assert await remote.tags("team/app") == ("1",)


async def test_a_helper_that_has_nothing_leaves_it_to_the_files(
    server: RegistryServer, nobody_is_logged_in: Path, helper: Path
) -> None:
    wants_basic(server, BASIC)
    script(helper, 'echo "credentials not found in native keychain"', "exit 1")
    docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "se:cret")}, credsStore="test")

    assert await tags(reads(server)) == ("1",)


async def test_a_helpers_token_user_means_an_identity_token(server: RegistryServer, helper: Path) -> None:
    Tokens(server, "se:cret")
    script(helper, 'printf \'{"Username":"<token>","Secret":"se:cret"}\'')

    assert await tags(reads(server, credential_helper="test")) == ("1",)
    assert len(server.asked("POST", "/token")) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["echo the keychain is locked", "exit 2"], "the keychain is locked"),
        (["exit 3"], "exit status 3"),
        (["echo se:cret"], "returned no readable credentials"),
        (["exec sleep 30"], "did not answer within 0.5 seconds"),
        (['echo \'can not unlock: {"Secret": "se:cret"}\'', "exit 2"], "can not unlock:"),
        (["echo the token AbCd1234efgh is old", "exit 2"], r"the token \*\*\* is old"),
    ],
)
async def test_a_helper_that_fails_is_named(server: RegistryServer, helper: Path, lines: list[str], words: str) -> None:
    wants_basic(server, BASIC)
    script(helper, *lines)

    with anyio.fail_after(10), pytest.raises(ConfigurationError, match=words) as caught:
        await tags(reads(server, credential_helper="test"), retry=RetryPolicy(helper=0.5))
    assert "docker-credential-test" in str(caught.value)
    assert not {"se:cret", "AbCd1234efgh"} & set(str(caught.value).split())


#: What helpers do that are of no use, and what is said of it where the registry wants to know who asks.
USELESS = {
    "missing": (None, "docker-credential-test can't be run: No such file"),
    "locked": (["echo the keychain is locked", "exit 2"], "the keychain is locked"),
    "rubbish": (["echo '<html>'"], "returned no readable credentials"),
    "endless": (["exec yes se:cret"], "returned no credentials"),
    "deaf": (["sleep 30"], "did not answer within 0.5 seconds"),
}


@pytest.mark.parametrize(
    ("fault", "store"), [*((fault, "credsStore") for fault in USELESS), ("missing", "credHelpers")]
)
async def test_a_useless_helper_is_named_only_where_the_registry_refuses(
    server: RegistryServer, nobody_is_logged_in: Path, helper: Path, fault: str, store: str
) -> None:
    lines, words = USELESS[fault]
    if lines is not None:
        script(helper, *lines)
    helpers = {store: "test" if store == "credsStore" else {server.host: "test"}}
    retry = RetryPolicy(helper=0.5, first_wait=0.001)
    Tokens(server)
    docker_config(nobody_is_logged_in, **helpers)
    with anyio.fail_after(20):
        # For everybody: no credentials are needed.
        async with open_remote(reads(server), retry=retry) as remote:
            assert await remote.tags("team/app") == ("1",)
            assert await remote.tags("team/other") == ("2",)
        if lines is not None:
            assert len((await anyio.Path(f"{helper}.log").read_text()).splitlines()) == 1

        # Wanted, and there are none.
        server.rules.clear()
        wants_basic(server, BASIC)
        with pytest.raises(SourceDeniedError, match=words) as caught:
            await tags(reads(server), retry=retry)
        assert "there are none for it (docker-credential-test " in str(caught.value)
        assert "config.json names it" in str(caught.value)
        assert "se:cret" not in str(caught.value)
        assert "docker login" in str(caught.value)

        # Wanted, and in the file.
        docker_config(nobody_is_logged_in, auths={server.host: encoded("user", "se:cret")}, **helpers)
        assert await tags(reads(server), retry=retry) == ("1",)


async def test_a_helper_without_a_name_leaves_it_to_the_file(
    server: RegistryServer, nobody_is_logged_in: Path, helper: Path
) -> None:
    wants_basic(server, BASIC)
    script(helper, 'printf \'{"Username":"wrong","Secret":"x"}\'')
    auths = {server.host: encoded("user", "se:cret")}
    docker_config(nobody_is_logged_in, auths=auths, credsStore="test", credHelpers={server.host: ""})

    assert await tags(reads(server)) == ("1",)


async def test_a_helper_that_does_not_read_its_question_may_answer(server: RegistryServer, helper: Path) -> None:
    wants_basic(server, BASIC)
    await anyio.Path(helper).write_text(f"#!/bin/sh\nexec <&-\n{FOUND}\n")
    await anyio.Path(helper).chmod(0o755)

    assert await tags(reads(server, credential_helper="test")) == ("1",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "docker-credential-missing can't be run"),
        ("../bin/test", "is not a valid name of"),
        ("", "is not a valid name of"),
    ],
)
async def test_a_helper_that_is_missing_is_named(server: RegistryServer, helper: Path, name: str, words: str) -> None:
    wants_basic(server, BASIC)
    script(helper, FOUND)

    with pytest.raises(ConfigurationError, match=words):
        await tags(reads(server, credential_helper=name))


class AwsLogin:
    """A ``Login`` that gives what it is told to."""

    def __init__(self, *results: Credentials | AsyncpushError) -> None:
        self.results = list(results)

    async def __call__(self) -> Credentials:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, AsyncpushError):
            raise result
        return result


async def test_aws_credentials_open_a_registry_and_are_renewed(server: RegistryServer) -> None:
    accepted = [basic("AWS", "1")]

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") in accepted:
            return None
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')

    login = AwsLogin(Credentials("AWS", "1"), Credentials("AWS", "2"))
    given: list[SourceRegistry] = []

    def logins(registry: SourceRegistry) -> Login:
        given.append(registry)
        return login

    registry = reads(server, aws=AwsConfiguration(region="eu-west-1"))
    async with open_remote(registry, logins=logins, retry=QUICK) as remote:
        assert await remote.tags("team/app") == ("1",)
        accepted[:] = [basic("AWS", "2")]
        assert await remote.tags("team/app") == ("1",)
    assert given == [registry]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ConfigurationError("no AWS credentials"), ConfigurationError), (RegistryError("denied"), SourceDeniedError)],
)
async def test_where_aws_refuses_the_error_says_so(
    server: RegistryServer, error: AsyncpushError, kind: type[AsyncpushError]
) -> None:
    wants_basic(server, BASIC)

    with pytest.raises(kind, match=str(error)):
        await tags(reads(server, aws=AwsConfiguration()), logins=lambda registry: AwsLogin(error))
    with pytest.raises(ConfigurationError, match="is configured for AWS credentials"):
        await tags(reads(server, aws=AwsConfiguration()))


ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.fixture
def as_proxy(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> RegistryServer:
    """The registry stands for every other one that is spoken to in plain HTTP: as their proxy."""
    monkeypatch.setenv("http_proxy", server.url)
    return server


async def test_a_registry_of_ecr_is_opened_by_aws_credentials_unasked(as_proxy: RegistryServer) -> None:
    wants_basic(as_proxy, basic("AWS", "1"))
    registry = SourceRegistry(host=ECR, plain_http=True)

    assert await tags(registry, logins=lambda given: AwsLogin(Credentials("AWS", "1"))) == ("1",)
    assert as_proxy.seen[0].headers["Host"] == ECR


async def test_without_aws_credentials_another_login_will_do_for_ecr(
    as_proxy: RegistryServer, nobody_is_logged_in: Path
) -> None:
    wants_basic(as_proxy, basic("AWS", "1"))
    registry = SourceRegistry(host=ECR, plain_http=True)
    without = AwsLogin(ConfigurationError("there are no AWS credentials"))

    with pytest.raises(ConfigurationError, match="there are no AWS credentials"):
        await tags(registry, logins=lambda given: without)
    docker_config(nobody_is_logged_in, auths={ECR: encoded("AWS", "1")})
    assert await tags(registry, logins=lambda given: without) == ("1",)


@pytest.mark.parametrize("by", ["file", "docker's helper", "podman's helper"])
async def test_docker_hub_is_where_docker_says(
    as_proxy: RegistryServer, nobody_is_logged_in: Path, helper: Path, by: str
) -> None:
    wants_basic(as_proxy, BASIC)
    as_proxy.tags["library/debian"] = ["12"]
    key = "https://index.docker.io/v1/"
    if by == "docker's helper":
        script(helper, f'test "$host" = {key} && {FOUND}')
        docker_config(nobody_is_logged_in, credsStore="test")
    elif by == "podman's helper":
        script(helper, f'test "$host" = docker.io && {FOUND}')
        docker_config(nobody_is_logged_in, credHelpers={"docker.io": "test"})
    else:
        docker_config(nobody_is_logged_in, auths={key: encoded("user", "se:cret")})

    found = await tags(SourceRegistry(host="index.docker.io", plain_http=True), "library/debian")

    assert found == ("12",)
    assert {seen.headers["Host"] for seen in as_proxy.seen} == {"registry-1.docker.io"}


# Pace


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_pause_that_is_asked_for_is_kept_by_all(server: RegistryServer, form: str) -> None:
    refused_at = 0.0

    @server.rule("GET", "/v2/", times=1)
    async def slow_down(request: web.Request) -> web.StreamResponse:
        nonlocal refused_at
        refused_at = time.monotonic()
        after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return refusal(429, "TOOMANYREQUESTS", "slow down", Retry_After=after)

    arrived: list[float] = []

    @server.rule("GET", "/v2/")
    async def noted(request: web.Request) -> None:
        arrived.append(time.monotonic())

    told, events = anyio.Event(), Events()

    def emit(event: Event) -> None:
        events(event)
        told.set()

    async with open_remote(reads(server), emit=emit, retry=QUICK) as remote, anyio.create_task_group() as tg:
        tg.start_soon(remote.tags, "team/app")
        await told.wait()
        for _ in range(5):
            tg.start_soon(remote.tags, "team/other")
    assert len(arrived) == 6
    assert min(arrived) - refused_at >= 0.99
    [event] = events.of(Retrying)
    assert event.operation == "GET tags"
    assert event.delay >= 0.9


@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit_Remaining": "0;w=21600"},
        {"Retry_After": "3600"},
        {"RateLimit_Remaining": "0", "RateLimit_Reset": "3600"},
    ],
)
async def test_a_limit_that_is_used_up_for_long_is_named_at_once(
    server: RegistryServer, headers: dict[str, str]
) -> None:
    @server.rule("GET", "/v2/")
    async def limited(request: web.Request) -> web.StreamResponse:
        return refusal(429, "TOOMANYREQUESTS", "no more", RateLimit_Limit="100;w=21600", **headers)

    with pytest.raises(SourceLimitedError, match=r"allows 100 requests in 6 hours.*; log in \(docker login") as caught:
        await tags(reads(server))
    assert len(server.seen) == 1
    error, seconds = caught.value, caught.value.until - time.time()
    assert (error.host, error.is_guess) == (server.host, len(headers) == 1 and "Retry_After" not in headers)
    assert 0 <= (21600 if error.is_guess else 3600) - seconds < 60


async def test_errors_in_a_row_are_final_at_last(server: RegistryServer) -> None:
    @server.rule("GET", "/v2/")
    async def down(request: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<html>")

    with pytest.raises(SourceUnavailableError, match=r"repository team/app: 127.* answers with status 502"):
        await tags(reads(server))
    assert len(server.seen) == 6


async def test_nobody_there_is_said_at_once() -> None:
    async with running() as server:
        pass
    events = Events()

    with pytest.raises(SourceUnavailableError, match=r"can't be reached.*; check the address"):
        await tags(reads(server), emit=events)
    assert not events


async def test_a_registry_that_goes_away_and_comes_back_is_waited_for(server: RegistryServer) -> None:
    events = Events()

    @server.rule("GET", "/other/", times=3)
    async def gone(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with open_remote(reads(server), emit=events, retry=QUICK) as remote:
        await remote.tags("team/app")
        assert await remote.tags("team/other") == ("2",)
    assert events.of(Retrying)  # for one of them aiohttp itself takes another connection


async def test_what_does_not_speak_http_is_named() -> None:
    async def speak(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"SSH-2.0-x\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, speak)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        registry = SourceRegistry(host=f"127.0.0.1:{port}", plain_http=True, anonymous=True)
        with pytest.raises(SourceUnavailableError, match="does not respond as a registry does") as caught:
            await tags(registry)
        assert "/v2/" not in str(caught.value)
        tg.cancel_scope.cancel()


async def test_who_comes_first_learns_whether_credentials_are_wanted(tmp_path: Path) -> None:
    async with running() as server:
        layout = app_layout()
        server.hold(layout, layout.manifests[0], "team/app", "1")

        @server.rule("GET", "/manifests/")
        async def _(request: web.Request) -> web.StreamResponse | None:
            if request.headers.get("Authorization") == basic("user", "password"):
                return None
            return refusal(401, "UNAUTHORIZED", "who are you", WWW_Authenticate='Basic realm="here"')

        registry = SourceRegistry(host=server.host, plain_http=True, credentials=Credentials("user", "password"))
        async with open_remote(registry, retry=QUICK) as remote, anyio.create_task_group() as tg:
            for _ in range(10):
                tg.start_soon(remote.resolve, "team/app", "1")

        assert [seen.authorization is None for seen in server.asked("GET", "/manifests/")].count(True) == 1
        assert len(server.asked("GET", "/manifests/")) == 11


@pytest.mark.parametrize("status", [429, 503])
async def test_a_pause_without_end_is_not_waited_for(server: RegistryServer, status: int) -> None:
    @server.rule("GET", "/v2/")
    async def later(request: web.Request) -> web.StreamResponse:
        return refusal(status, "UNAVAILABLE", "come back in thirty years", Retry_After="1000000000")

    with pytest.raises(SourceUnavailableError, match="thirty years"):
        await tags(reads(server))
    assert len(server.seen) == 1


async def test_a_registry_that_asks_for_no_pause_gets_one_when_it_refuses_again(server: RegistryServer) -> None:
    @server.rule("GET", "/v2/", times=4)
    async def at_once(request: web.Request) -> web.StreamResponse:
        return refusal(429, "TOOMANYREQUESTS", "slow down", Retry_After="0")

    events = Events()
    retry = RetryPolicy(stall=5.0, first_wait=0.001, longest_wait=0.05)
    assert await tags(reads(server), emit=events, retry=retry) == ("1",)
    first, *others = [event.delay for event in events.of(Retrying)]
    assert first <= 0.001
    assert len(others) == 3
    assert min(others) >= 0.005


@pytest.mark.parametrize("where", ["/v2/", "/token"])
async def test_an_answer_that_trickles_without_end_is_given_up(server: RegistryServer, where: str) -> None:
    Tokens(server)

    async def trickle(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b" ")
                await anyio.sleep(0.01)
        except ConnectionError:
            return answer

    server.rule("GET", where)(trickle)
    server.rules.insert(0, server.rules.pop())
    retry = RetryPolicy(stall=5.0, answer=0.1, attempts=2, first_wait=0.001)
    with pytest.raises(SourceUnavailableError, match=r"127\.0\.0\.1 did not complete its response within 0\.1 seconds"):
        await tags(reads(server), retry=retry)
    assert len(server.asked("GET", where)) == 2


async def test_a_proxy_that_is_no_address_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://me:s3cret@proxy:port")
    with pytest.raises(ConfigurationError, match="the proxy for http is not an address") as caught:
        await tags(SourceRegistry(host="registry.example", plain_http=True))
    assert "s3cret" not in str(caught.value)


# Tokens that expire, and odd answers


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("times", [1, 1_000])
async def test_a_token_that_has_expired_is_renewed_once(server: RegistryServer, status: int, times: int) -> None:
    issued: list[str] = []
    server.tags["team/app"] = ["1"]

    @server.rule("GET", "/token")
    async def token(request: web.Request) -> web.StreamResponse:
        issued.append(f"t{len(issued)}")
        return web.json_response({"token": issued[-1], "expires_in": 3600})

    @server.rule("GET", "/v2/")
    async def expired(request: web.Request) -> web.StreamResponse | None:
        sent = request.headers.get("Authorization")
        if sent is None:
            return refusal(401, "X", "who?", WWW_Authenticate=f'Bearer realm="{server.url}/token",service="public"')
        if sent in [f"Bearer t{number}" for number in range(times)]:
            return refusal(status, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")
        return None

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    if times == 1:
        assert await tags(registry) == ("1",)
    else:
        with pytest.raises(SourceError, match=r"token has expired.*log in again \(docker login") as caught:
            await tags(registry)
        assert "plain" not in str(caught.value)
    # Once for a request; a list that is refused is asked for again, without the length of a page.
    assert len(issued) == (2 if times == 1 else 3)


@pytest.mark.parametrize(
    "members",
    [
        {"expires_in": "3600"},
        {"expires_in": None, "issued_at": None, "access_token": None, "refresh_token": None},
        {"expires_in": {}, "issued_at": 5},
        {"expires_in": 300, "issued_at": "2026-11-28 19:00:00 +0000 UTC"},
    ],
)
@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="{url}/token",service="r",scope="repository:team/app:pull"',
        "bearer realm={url}/token, service=r",
        'Bearer realm="{url}/token",scope=""',
        'Bearer realm="{url}/token",service="r",scope="repository::pull"',
    ],
)
async def test_odd_tokens_and_challenges_are_taken(
    server: RegistryServer, members: dict[str, object], challenge: str
) -> None:
    server.tags["team/app"] = ["1"]

    @server.rule("GET", "/token")
    async def token(request: web.Request) -> web.StreamResponse:
        if request.query.get("scope") != "repository:team/app:pull":
            return refusal(400, "X", "no such scope")
        return web.json_response({"token": "t", **members})

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == "Bearer t":
            return None
        return refusal(401, "X", "who?", WWW_Authenticate=challenge.format(url=server.url))

    assert await tags(SourceRegistry(host=server.host, plain_http=True, anonymous=True)) == ("1",)


async def test_https_is_named_only_where_the_server_wants_it(server: RegistryServer) -> None:
    @server.rule("GET", "/v2/")
    async def confused(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400, text="Client sent an HTTP request to an HTTPS server.\n")

    with pytest.raises(SourceError, match="remove --src-plain-http"):
        await tags(reads(server))


async def test_a_pipe_or_device_in_the_place_of_a_login_file_holds_nobody_up(
    server: RegistryServer, nobody_is_logged_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncpush.files.PIPE_TIMEOUT", 0.2)
    os.mkfifo(nobody_is_logged_in / "config.json")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/dev/zero")
    wants_basic(server, BASIC)

    with anyio.fail_after(10), pytest.raises(SourceError, match="/dev/zero can't be read: it is not a file"):
        await tags(reads(server))


async def test_who_logs_in_while_a_connection_is_open_is_seen(
    server: RegistryServer, nobody_is_logged_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "RETRY_PAUSE", 0.0)
    wants_basic(server, BASIC)
    async with open_remote(reads(server), retry=QUICK) as remote:
        with pytest.raises(SourceDeniedError):
            await remote.tags("team/app")
        docker_config(nobody_is_logged_in, auths={server.host: {"auth": BASIC.removeprefix("Basic ")}})
        assert await remote.tags("team/app") == ("1",)
