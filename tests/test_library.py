"""The library as programs see it: its names, its types, what its results raise, what its reprs and errors show."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from aiohttp import web

import asyncpush
from asyncpush import Registry, SqliteJournal
from asyncpush.emulator import Emulator
from asyncpush.emulator import KnownCredentials as EmulatorCredentials
from asyncpush.events import Event, Listener
from asyncpush.http.session import Proxies
from asyncpush.sources.registry.docker_config import Account
from support.aws import REGION, aws
from support.images import Layout, digest, layer_tar
from support.places import ROOT
from support.registry_server import RegistryServer, basic, refusal, running


def _types_in(hint: object) -> Iterator[type]:
    if isinstance(hint, list):
        for each in hint:
            yield from _types_in(each)
    elif typing.get_origin(hint) is not None:
        for each in typing.get_args(hint):
            yield from _types_in(each)
    elif isinstance(hint, type):
        yield hint


def _signatures(thing: object) -> Iterator[dict[str, object]]:
    """The hints of a function; of a class, those of its fields and of its public methods and properties."""
    if not inspect.isclass(thing):
        yield typing.get_type_hints(inspect.unwrap(thing))
        return
    yield typing.get_type_hints(thing)
    for name, member in inspect.getmembers_static(thing):
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        is_public = not name.startswith("_") or name == "__call__"
        if isinstance(function, types.FunctionType) and is_public and function.__module__.startswith("asyncpush"):
            yield typing.get_type_hints(function)


def test_every_type_of_a_public_signature_is_public() -> None:
    hidden = set()
    for name in asyncpush.__all__:
        thing = getattr(asyncpush, name)
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            found = _types_in(thing)  # an alias
        else:
            found = (each for hints in _signatures(thing) for hint in hints.values() for each in _types_in(hint))
        for each in found:
            is_ours = each.__module__.partition(".")[0] not in sys.stdlib_module_names
            if is_ours and getattr(asyncpush, each.__name__, None) is not each:
                hidden.add(f"{name}: {each.__module__}.{each.__name__}")

    assert not hidden


def test_public_names_for_type_checkers_are_those_at_run_time() -> None:
    imports = [
        each for each in ast.walk(ast.parse(Path(asyncpush.__file__).read_text())) if isinstance(each, ast.ImportFrom)
    ]
    listed = {
        alias.asname: f"{each.module}".removeprefix("asyncpush.")
        for each in imports
        if f"{each.module}".startswith("asyncpush.")
        for alias in each.names
    }

    assert sorted(listed) == asyncpush.__all__
    for name, module in listed.items():
        assert getattr(asyncpush, name) is getattr(import_module(f"asyncpush.{module}"), name), name


def test_programs_of_users_pass_a_strict_type_check() -> None:
    if not os.environ.get("ASYNCPUSH_REQUIRE_PEERS"):
        pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "tests/typing"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def _app(folder: Path, word: str = "app") -> Path:
    layout = Layout()
    return layout.tag(layout.image(layer_tar(word)), "1.0").write(folder)


async def test_what_programs_see_of_a_connection_is_not_the_engine(registry: Registry) -> None:
    assert {name for name in vars(Registry) | Registry.__annotations__ if not name.startswith("_")} == {
        "account",
        "endpoint_url",
        "name",
        "region",
        "repository",
        "settings",
        "statistics",
    }
    assert "run" not in inspect.signature(asyncpush.connect).parameters
    assert registry.region == REGION


async def test_failures_among_results_are_raised_on_demand(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(b"layer")
    good = await asyncpush.push_layers(registry, [str(tmp_path / "layer")], "team/app")
    good.raise_for_failures()

    mixed = await asyncpush.push_layers(registry, [tmp_path / "layer", tmp_path / "none"], "team/app")

    assert [type(each).__name__ for each in mixed] == ["LayerResult", "LayerFailure"]
    with pytest.raises(asyncpush.FailuresError, match=f"1 failed: {tmp_path / 'none'}: .* does not exist") as raised:
        mixed.raise_for_failures()
    assert [name for name, _ in raised.value.failures] == [str(tmp_path / "none")]


async def test_what_nobody_has_foreseen_fails_its_layer_alone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: SqliteJournal, repository: str, identity: str) -> object:
        if identity == digest(b"bad"):
            raise ZeroDivisionError("no such sum")
        return open_upload(self, repository, identity)

    open_upload = SqliteJournal.open_upload
    monkeypatch.setattr(SqliteJournal, "open_upload", failing)
    for name in ("good", "bad"):
        (tmp_path / name).write_bytes(name.encode())
    async with asyncpush.open_journal(tmp_path / "one.journal") as journal:
        files = [tmp_path / "good", tmp_path / "bad", "no\0name"]
        good, bad, nameless = await asyncpush.push_layers(registry, files, "team/app", journal=journal)

    assert isinstance(good, asyncpush.LayerResult)
    assert isinstance(bad, asyncpush.LayerFailure)
    assert isinstance(bad.error, asyncpush.UnforeseenError)
    assert isinstance(nameless, asyncpush.LayerFailure)
    assert "does not exist" in str(nameless.error)


async def test_an_image_that_is_not_whole_is_raised(registry: Registry, tmp_path: Path) -> None:
    await asyncpush.push(registry, _app(tmp_path / "app"), "team/app:1.0")
    whole = await asyncpush.verify_image(registry, "team/app:1.0")
    missing = await asyncpush.verify_image(registry, "team/app:none")

    whole.raise_for_failures()
    with pytest.raises(asyncpush.FailuresError, match="team/app:none"):
        missing.raise_for_failures()


async def test_an_emit_that_raises_is_called_once_and_the_push_goes_on(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []

    def emit(event: Event) -> None:
        heard.append(event)
        raise LookupError("no such bar")

    settings = asyncpush.Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=emit) as registry:
        result = await asyncpush.push(registry, _app(tmp_path / "app"), "team/app:1.0")

    assert result.outcome == "pushed"
    assert len(heard) == 1
    assert [(each.levelname, "called no more" in each.message) for each in caplog.records] == [("WARNING", True)]


async def test_a_path_is_a_path_whatever_its_name_and_a_push_has_its_own_journal(
    registry: Registry, emulator: Emulator, tmp_path: Path
) -> None:
    folder = _app(tmp_path / "oci:app:1")
    (tmp_path / "layer").write_bytes(b"layer")
    async with asyncpush.open_journal(tmp_path / "one.journal") as journal:
        await asyncpush.push(registry, folder, "team/app:1.0", journal=journal)
        await asyncpush.push_layers(registry, [tmp_path / "layer"], "team/app", journal=journal)
        await asyncpush.push(registry, folder, "team/other:1.0")
        noted = {
            name: await journal.completed(registry.repository(name).address) for name in ("team/app", "team/other")
        }

    assert {name: len(layers) for name, layers in noted.items()} == {"team/app": 3, "team/other": 0}
    assert "000000000000" in registry.repository("team/app").address


SECRETS = [f"S3cr3t-{number}-x/y+z" for number in range(20)]


def test_no_repr_shows_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRETS[0]}@proxy.example:3128")
    monkeypatch.setenv("HUB_TOKEN", SECRETS[1])
    plan = """
version: 1
registries: {docker.io: {credentials: {username: me, password: "${HUB_TOKEN}"}}}
images: [{from: docker.io/library/nginx, to: nginx}]
"""
    (tmp_path / "plan.yaml").write_text(plan)
    access = asyncpush.AwsConfiguration(
        access_key_id=SECRETS[2], secret_access_key=SECRETS[3], endpoint_url=f"http://me:{SECRETS[4]}@127.0.0.1:1"
    )
    login = asyncpush.Credentials("me", SECRETS[5])
    values: list[object] = [
        access,
        login,
        asyncpush.SourceRegistry(host="docker.io", credentials=login, aws=access),
        asyncpush.PlanTarget("eu", aws=access),
        anyio.run(asyncpush.read_plan, tmp_path / "plan.yaml"),
        Account("me", SECRETS[6], SECRETS[7], SECRETS[8]),
        EmulatorCredentials("AKIA", SECRETS[9], session_token=SECRETS[10]),
        Proxies.detect(),
    ]

    assert [secret for secret in SECRETS for value in values if secret in repr(value)] == []
    assert "127.0.0.1:1" in repr(access)


def test_no_error_and_no_event_shows_a_secret_or_drives_a_terminal() -> None:
    heard: list[Event] = []
    asyncpush.Credentials("me", SECRETS[0])
    asyncpush.AwsConfiguration(secret_access_key=SECRETS[1], endpoint_url=f"https://me:{SECRETS[2]}@ecr.example")
    Account("me", SECRETS[3], SECRETS[4], SECRETS[5])
    planted = [
        *SECRETS[:6],
        basic("me", SECRETS[0]),
        quote(SECRETS[1], safe=""),
        f"https://me:{SECRETS[6]}@host.example/x",
        f"http://me:{SECRETS[7]}#{SECRETS[8]}@proxy.example:3128",
        f"https://bucket.example/blob?X-Amz-Signature={SECRETS[9]}&X-Amz-Security-Token={SECRETS[10]}",
        f"The Canonical String should have been host:ecr\nx-amz-security-token:{SECRETS[11]}\n",
        f"Authorization: Bearer {SECRETS[12]}",
    ]
    for text in planted:
        error = asyncpush.ServiceError("PutImage", "Bad", f"\x1b[2J{text}", hint=f"\x9b2J {text}")
        Listener(heard.append)(asyncpush.Notice(f"\x1b]0;{text}\x07"))
        Listener(heard.append)(asyncpush.ImageFailed("team/app:1\x1b[A", str(error)))
        told = [str(error), error.message, repr(error), *map(repr, heard)]

        assert [secret for secret in (*SECRETS, text) if any(secret in each for each in told)] == []
        assert all(letter.isprintable() or letter == "\n" for each in told for letter in each)
    digest = "docker://quay.io/team/app@sha256:" + "a" * 64
    assert digest in str(asyncpush.SourceError(f"{digest} is damaged"))


@pytest.mark.parametrize("before", ["", "\x1b[31m", "2J", "_", "é"])
def test_secrets_that_nobody_registered_are_hidden_after_anything(before: str) -> None:
    secret = "N3v3rS33n/0k+"
    texts = (
        f"https://me:{secret}@host.example/x",
        f"https://{secret.replace('/', '-')}@host.example/x",
        f"Authorization: Bearer {secret}",
        f"Basic {secret}",
        f"X-Amz-Security-Token: {secret}",
        f"Signature={secret}",
    )
    told = [str(asyncpush.ServiceError("PutImage", "Bad", f"{before}{text}")) for text in texts]
    assert [line for line in told if "N3v3rS33n" in line] == []


async def test_pushes_over_one_connection_share_source_tokens(registry: Registry, emulator: Emulator) -> None:
    """Pushes over one connection share the tokens that source registries have granted."""
    layout = Layout()
    server = RegistryServer()

    @server.rule("GET", "/v2/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == basic("me", "s3cret"):
            return None
        return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="x"')

    async with running(server):
        for number in range(5):
            server.hold(layout, layout.image(layer_tar(f"app {number}")), "team/app", str(number))
        login = asyncpush.Credentials("me", "s3cret")
        sources = {server.host: asyncpush.SourceRegistry(host=server.host, plain_http=True, credentials=login)}
        for number in range(5):
            source = f"docker://{server.host}/team/app:{number}"
            await asyncpush.push(registry, source, f"team/app:{number}", sources=sources, referrers=False)

    assert sum(each.authorization is None for each in server.seen) == 1


async def test_pushes_at_once_are_bounded_as_those_of_push_all_are(registry: Registry) -> None:
    server, released, here = RegistryServer(), anyio.Event(), [0]

    async def waits(request: web.Request) -> web.StreamResponse | None:
        here.append(here[-1] + 1)
        # Were there more than 32, they would be on their way already.
        with anyio.move_on_after(0.3 if here[-1] == 32 else 30):
            await released.wait()
        released.set()
        here.append(here[-1] - 1)
        return refusal(404, "MANIFEST_UNKNOWN", "no")

    async def one(number: int) -> None:
        with pytest.raises(asyncpush.SourceNotFoundError):
            await asyncpush.push(registry, f"docker://{server.host}/team/app:{number}", "team/app", sources=sources)

    async with running(server):
        sources = {server.host: asyncpush.SourceRegistry(host=server.host, plain_http=True, connections=100)}
        await one(40)  # the first request to a host goes alone
        server.rule("GET", "/manifests/")(waits)
        async with anyio.create_task_group() as tg:
            for number in range(40):
                tg.start_soon(one, number)

    assert len(server.asked("GET", "/manifests/")) == 41
    assert max(here) == 32
