"""No secret and nothing that drives a terminal in what a command leaves behind: streams, events, journals, lists."""

from __future__ import annotations

import io
import json
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web

import asyncpush
from asyncpush.cli.streams import standard_streams
from asyncpush.emulator import Emulator
from asyncpush.model import Upload
from support.aws import REGION
from support.commands import Ran, run_beside
from support.images import Layout, layer_tar
from support.registry_server import RegistryServer, basic, refusal, running

ROOT = Path(asyncpush.__file__).parent


@dataclass
class Place:
    """A folder, a source that tells what it was asked with, an ECR that does, and one that works."""

    folder: Path
    source: RegistryServer
    telling: RegistryServer
    emulator: Emulator
    environment: dict[str, str]
    number: int = 0
    secrets: list[str] = field(default_factory=list)

    def secret(self) -> str:
        """Another secret, as no other has been."""
        self.secrets.append(f"Pw{len(self.secrets)}{self.number}-Kq7/x+Zt9{self.folder.name[-5:]}")
        return self.secrets[-1]

    def log_in(self, entry: dict[str, str], **members: object) -> None:
        """Store a login for the source, as docker does."""
        (self.folder / "docker").mkdir(exist_ok=True)
        config = {"auths": {self.source.host: entry}, **members}
        (self.folder / "docker" / "config.json").write_text(json.dumps(config))

    def helper(self, script: str) -> None:
        """Install the credential helper ``docker-credential-leaky``."""
        path = self.folder / "docker-credential-leaky"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.environment["PATH"] = f"{self.folder}:/usr/bin:/bin"

    def plan(self, **entry: object) -> Path:
        """Write a plan of one image of the source."""
        document = {
            "version": 1,
            "registries": {self.source.host: {"plain_http": True}},
            "defaults": {"repository": {"create": True}},
            "images": [{"from": f"{self.source.host}/team/app", "to": "team/app", "tags": ["1"], **entry}],
        }
        path = self.folder / "plan.json"
        path.write_text(json.dumps(document))
        return path

    async def run(self, *words: str | Path, **environment: str) -> Ran:
        """Run a command."""
        return await run_beside(*words, **{**self.environment, **environment})

    async def push(self, **environment: str) -> Ran:
        """Push the source's image into ECR, as loud as it gets."""
        words = ("--src-plain-http", "--create-repository", "--output", "json", "--progress", "json", "-v")
        return await self.run("push", f"docker://{self.source.host}/team/app:1", "team/app:1", *words, **environment)

    async def migrate(self, **environment: str) -> Ran:
        """Migrate it, with a journal, a report, a list of failures and figures."""
        words = ("--output", "json", "--progress", "json", "--failed-out", self.folder / "failed.txt", "-v")
        return await self.run("migrate", self.plan(), *words, "--metrics-out", self.folder / "figures", **environment)

    def left(self, runs: Sequence[Ran]) -> Iterator[str]:
        """All texts that anybody can read now."""
        for ran in runs:
            yield ran.out
            yield ran.err
        for name in ("plan.journal", "plan.journal-wal", "failed.txt", "figures"):
            if (path := self.folder / name).exists():
                yield path.read_bytes().decode(errors="replace")
        yield repr(list(self.emulator.requests))


@pytest.fixture
async def place(tmp_path: Path, emulator: Emulator) -> AsyncIterator[Place]:
    """Where all of it happens; nothing is retried for long, since nothing is there to be waited for."""
    layout = Layout()
    async with running() as source, running() as telling:
        source.hold(layout, layout.image(layer_tar("secrets")), "team/app", "1")

        @telling.rule("POST", "/")
        async def tells(request: web.Request) -> web.StreamResponse:
            headers = "\n".join(f"{name.lower()}:{value}" for name, value in request.headers.items())
            text = f"The Canonical String for this request should have been 'POST\n/\n\n{headers}\n'\x1b[2J"
            error = {"__type": "InvalidSignatureException", "message": text}
            return web.json_response(error, status=400, headers={"x-amzn-ErrorType": "InvalidSignatureException"})

        environment = {
            "AWS_ENDPOINT_URL_ECR": emulator.endpoint_url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_MAX_ATTEMPTS": "1",
            "DOCKER_CONFIG": str(tmp_path / "docker"),
            "REGISTRY_AUTH_FILE": "",
            "XDG_RUNTIME_DIR": "",
            "HOME": str(tmp_path),
        }
        yield Place(tmp_path, source, telling, emulator, environment)


def told(request: web.Request, status: int = 403) -> web.Response:
    """A refusal that tells how the request was authorized."""
    return refusal(status, "DENIED", f"\x1b]0;no\x07 you sent {request.headers.get('Authorization')} \x9b2J")


async def a_proxy(place: Place) -> list[Ran]:
    address = f"http://me:{place.secret()}#{place.secret()}@127.0.0.1:9"
    plain = f"http://{place.secret()}@127.0.0.1:9"
    return [
        await place.run(
            "push", "docker://registry.example/team/app:1", "team/a:1", "--output", "json", "-v", HTTPS_PROXY=address
        ),
        await place.run("ecr", "describe-repositories", AWS_ENDPOINT_URL_ECR="https://a.example", HTTPS_PROXY=plain),
        await place.run("ecr", "describe-repositories", AWS_ENDPOINT_URL_ECR="https://a.example", HTTPS_PROXY=address),
    ]


async def an_endpoint(place: Place) -> list[Ran]:
    endpoint = f"http://me:{place.secret()}@127.0.0.1:9"
    encoded = f"http://me:{quote(place.secret(), safe='')}@127.0.0.1:9/"
    return [
        await place.run("push", "oci:nowhere", "team/a:1", "-v", AWS_ENDPOINT_URL_ECR=encoded),
        await place.run("ecr", "describe-repositories", "--endpoint-url", endpoint),
        await place.run("layers", Path(__file__), "--repository-name", "team/a", "-v", AWS_ENDPOINT_URL_ECR=endpoint),
    ]


async def a_session_token(place: Place) -> list[Ran]:
    keys = {"AWS_SECRET_ACCESS_KEY": place.secret(), "AWS_SESSION_TOKEN": place.secret()}
    return [
        await call
        for call in (
            place.push(AWS_ENDPOINT_URL_ECR=place.telling.url, **keys),
            place.migrate(AWS_ENDPOINT_URL_ECR=place.telling.url, **keys),
            place.run("ecr", "describe-repositories", AWS_ENDPOINT_URL_ECR=place.telling.url, **keys),
        )
    ]


async def a_debug_log(place: Place) -> list[Ran]:
    secret = place.secret()
    endpoint = place.telling.url.replace("://", f"://me:{quote(place.secret(), safe='')}@")
    keys = {"AWS_SESSION_TOKEN": secret, "HTTP_PROXY": f"http://me:{place.secret()}@127.0.0.1:9"}
    ran = await place.run("ecr", "describe-repositories", "--debug", AWS_ENDPOINT_URL_ECR=endpoint, **keys)
    assert "DescribeRepositories" in ran.err
    return [ran]


async def an_answer_of_ecr(place: Place) -> list[Ran]:
    name = {"repositoryName": f"team/{place.emulator.endpoint_url}?X-Amz-Signature=1234567890"}

    @place.telling.rule("POST", "/")
    async def describes(_: web.Request) -> web.StreamResponse:
        return web.json_response({"repositories": [name]})

    place.telling.rules.reverse()
    place.secret()
    ran = await place.run("ecr", "describe-repositories", AWS_ENDPOINT_URL_ECR=place.telling.url)
    assert json.loads(ran.out) == {"repositories": [name]}, "what is asked for is shown as it is"
    return [ran]


async def a_bug(place: Place) -> list[Ran]:
    text = f"X-Amz-Signature={place.secret()} https://me:{place.secret()}@registry.example \x1b[2J"

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncpush.sources.registry.blob.RegistryBlob.stream", fails)
        return [await place.migrate()]


async def a_bug_of_a_command(place: Place) -> list[Ran]:
    text = f"X-Amz-Signature={place.secret()} \x1b[2J"

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncpush.cli.journal.run", fails)
        return [await place.run("journal", "show", "nothing")]


async def names_of_files(place: Place) -> list[Ran]:
    keys = {"AWS_SECRET_ACCESS_KEY": "test", "ASYNCPUSH_SRC_CREDS": ""}
    path = place.folder / f"a\x1b[2J\x9b\nb\udcff sig=1 X-Amz-Signature={place.secret().replace('/', '')}"
    path.write_bytes(layer_tar("a file"))
    words = ("layers", path, "--repository-name", "team/a", "--create-repository", "--progress", "json")
    return [await place.run(*words, **keys), await place.run(*words, "--output", "json", **keys)]


async def an_older_journal(place: Place) -> list[Ran]:
    path = place.folder / "older.journal"
    async with asyncpush.open_journal(path) as journal:
        await journal.begin_run("plan", fresh=True)
        await journal.image_failed("a -> b:c", "why")
        await journal.upload_begun(f"https://me:{place.secret()}@host/a\x1b[2J", "id\x9b", Upload("u", 1, 1), 1)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE image SET reason = ?", (f"Authorization: Bearer {place.secret()}".encode(),))
    return [
        await place.run("journal", "export", path),
        await place.run("journal", "show", path),
        await place.run("journal", "show", path, "--output", "json"),
    ]


async def a_listener_of_the_log(place: Place) -> list[Ran]:
    secret, said = place.secret(), io.StringIO()
    asyncpush.Credentials("me", secret)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.setattr(logging.getLogger(), "handlers", [])
        with standard_streams():
            logging.getLogger("asyncpush").warning("it sent %s \x1b[2J", secret)
    assert "it sent ***" in said.getvalue()
    return [Ran(0, "", said.getvalue())]


async def a_redirect(place: Place) -> list[Ran]:
    nowhere = f"{place.telling.url}/v2/nothing"
    signed = f"{nowhere}?X-Amz-Signature={place.secret()}&X-Amz-Security-Token={place.secret()}"
    azure = f"{nowhere}?sv=2020&sig={place.secret()}"

    @place.source.rule("GET", "/blobs/")
    async def moved(_: web.Request) -> web.StreamResponse:
        place.number += 1
        return web.Response(status=307, headers={"Location": azure if place.number % 2 else signed})

    @place.telling.rule("POST", "/")
    async def moves(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": signed})

    place.telling.rules.reverse()
    return [
        await place.push(),
        await place.run("ecr", "describe-repositories", AWS_ENDPOINT_URL_ECR=place.telling.url),
    ]


async def a_helper_that_fails(place: Place) -> list[Ran]:
    first, second = place.secret(), place.secret()
    place.helper(f'echo \'login for me: {first}\'; echo \'{{"Username":"me","Secret":"{second}"}}\'; exit 1')
    place.log_in({}, credHelpers={place.source.host: "leaky"})
    place.source.rule("GET", "/v2/")(lambda request: answer(told(request, 401)))
    return [await place.push(), await place.migrate()]


async def answer(response: web.Response) -> web.StreamResponse:
    return response


async def a_stored_login(place: Place) -> list[Ran]:
    secret = place.secret()
    place.secrets.append(basic("me", secret).removeprefix("Basic "))
    place.log_in({"auth": place.secrets[-1]})
    place.source.rule("GET", "/")(lambda request: answer(challenged(request, "Basic realm=x")))
    return [await place.push(), await place.migrate()]


def challenged(request: web.Request, challenge: str) -> web.Response:
    if "Authorization" in request.headers:
        return told(request)
    return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge)


async def tokens(place: Place) -> list[Ran]:
    login, bearer = place.secret(), place.secret()
    place.log_in({"identitytoken": login})
    challenge = f'Bearer realm="{place.telling.url}/token",service="x"'
    place.source.rule("GET", "/v2/")(lambda request: answer(challenged(request, challenge)))

    async def grants(request: web.Request) -> web.StreamResponse:
        return web.json_response({"token": bearer, "access_token": bearer})

    place.telling.rules.insert(0, grants)
    granted = [await place.push(), await place.migrate()]

    async def refuses(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "invalid", "details": (await request.read()).decode()}, status=400)

    place.telling.rules.insert(0, refuses)
    return [*granted, await place.push()]


async def src_creds(place: Place) -> list[Ran]:
    place.source.rule("GET", "/")(lambda request: answer(challenged(request, "Basic realm=x")))
    source = f"docker://{place.source.host}/team/app:1"
    return [
        await place.push(ASYNCPUSH_SRC_CREDS=f"me:{place.secret()}"),
        await place.run("push", source, "team/a:1", "--src-plain-http", f"--src-creds=me:{place.secret()}"),
        await place.run("push", source, "team/a:1", "--src-plain-http", f"--src-creds={place.secret()}"),
        await place.run("push", f"docker://me:{place.secret()}@{place.source.host}/team/app:1", "team/a:1"),
    ]


async def a_variable_of_a_plan(place: Place) -> list[Ran]:
    wrong = {"tags": {"semver": "${WORD}"}, "to": "UPPER ${WORD}", "platforms": ["${WORD}"]}
    url = {"from": f"docker://me:{place.secret()}@{place.source.host}/team/app"}
    return [
        await place.run("plan", "check", place.plan(**wrong), "-v", WORD=place.secret()),
        await place.run("plan", "check", place.plan(**url), "-v"),
    ]


async def another_tools_file(place: Place) -> list[Ran]:
    path = place.folder / "regsync.yml"
    path.write_text(
        "version: 1\n"
        f"creds: [{{registry: {place.source.host}, user: me, pass: '{place.secret()}'}}]\n"
        f"sync: [{{source: 'https://me:{place.secret()}@{place.source.host}/a', target: b, type: image}}]\n"
    )
    return [await place.run("plan", "import", path, "-v")]


@pytest.mark.parametrize(
    "scenario",
    [
        a_proxy,
        an_endpoint,
        a_session_token,
        a_debug_log,
        a_redirect,
        an_answer_of_ecr,
        a_bug,
        a_bug_of_a_command,
        names_of_files,
        an_older_journal,
        a_listener_of_the_log,
        a_helper_that_fails,
        a_stored_login,
        tokens,
        src_creds,
        a_variable_of_a_plan,
        another_tools_file,
    ],
)
async def test_a_command_leaves_no_secret_and_nothing_that_drives_a_terminal(place: Place, scenario: object) -> None:
    assert callable(scenario)
    runs: list[Ran] = await scenario(place)
    texts = list(place.left(runs))

    assert place.secrets
    for secret in place.secrets:
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.partition("/")[2] or secret}:
            assert [text for text in texts if form in text] == []
    driving = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
    assert [text for ran in runs for text in (ran.out, ran.err) if driving.search(text)] == []
    assert ("this is a bug" in "".join(texts)) == (scenario in (a_bug, a_bug_of_a_command))


def test_each_stream_has_one_door() -> None:
    """Who writes to the streams, and who writes what no filter may change."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.py")}
    writes = re.compile(r"sys\.std(out|err)\.(write|buffer\.write)|(?<![\w.])print\(|getLogger\(\)|basicConfig")
    direct = {name for name, text in texts.items() if writes.search(text)}
    raw = {name for name, text in texts.items() if "write_as_it_is" in text}

    # The version, an example, a question, and a line of figures that is painted over.
    assert direct == {"__main__.py", "__init__.py", "cli/streams.py", "cli/bench.py", "cli/ecr.py"}
    # ECR's own answer, a script, a page of the manual, or a table that has its colours and nothing of others.
    tables = {"cli/bench.py", "cli/demo.py"}
    assert raw == {"cli/streams.py", "cli/ecr.py", "cli/completion.py", "cli/help.py", *tables}
