"""Images of Docker and podman: what they save is pushed, and what they lack or refuse is said."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

import anyio
import pytest
import trustme
from aiohttp import web
from anyio import to_thread

import asyncpush
from asyncpush import Registry
from asyncpush.errors import (
    AsyncpushError,
    ConfigurationError,
    InvalidReferenceError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from support.certificates import plain_authority
from support.images import A, B, DockerSave, digest, saved
from support.servers import serving_http
from support.stalled_answer import StalledAnswer

SAVED = DockerSave().image(A, B, tags=["team/app:1.0"]).archive()

#: What Docker saves of an image that is named by its digest.
UNNAMED = DockerSave().image(A, B, tags=None).archive()

#: Docker's own socket is the first that is looked for.
HAS_DOCKER = Path("/var/run/docker.sock").is_socket()

Rule = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees this machine's daemons; the folder that is docker's."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


@pytest.fixture
async def podman(need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Path]:
    """A storage of podman's with ``team/app:1.0``, and the service over it; DOCKER_HOST leads there."""
    need("podman")
    settings = tmp_path / "storage.conf"
    settings.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n', encoding="utf-8"
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
    archive, address = saved(tmp_path / "app.tar", SAVED), f"unix://{tmp_path}/podman.sock"
    await anyio.run_process(["podman", "load", "--quiet", "--input", str(archive)])
    async with await anyio.open_process(
        ["podman", "system", "service", "--time=0", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as service:
        monkeypatch.setenv("DOCKER_HOST", address)
        with anyio.fail_after(20):
            while not (tmp_path / "podman.sock").exists():  # noqa: ASYNC110 - podman tells nobody
                await anyio.sleep(0.02)
        yield archive
        service.terminate()


async def test_podmans_images_are_pushed_as_what_it_saves(podman: Path, registry: Registry, tmp_path: Path) -> None:
    await anyio.run_process(["podman", "save", "--quiet", "-o", str(tmp_path / "saved.tar"), "localhost/team/app:1.0"])
    expected = await asyncpush.push(registry, tmp_path / "saved.tar", "piped/app:1")
    identity = json.loads((await anyio.run_process(["podman", "image", "inspect", "team/app:1.0"])).stdout)[0]["Id"]

    for source in (
        "docker-daemon:team/app:1.0",
        "docker-daemon:localhost/team/app:1.0",
        f"docker-daemon:sha256:{identity}",
        "containers-storage:localhost/team/app:1.0",
        f"containers-storage:{identity[:12]}",
    ):
        result = await asyncpush.push(registry, source, "engine/app:1")
        assert (result.digest, result.source) == (expected.digest, source)
        async with asyncpush.open_source(source) as opened:
            [image] = await opened.images()
        assert (image.repository, image.tag) == ((None, None) if identity[:12] in source else ("team/app", "1.0"))

    for source, words in (
        ("docker-daemon:team/app", r"the Docker daemon at unix:///\S+/podman.sock has no image team/app:latest; "),
        ("containers-storage:nope", "podman has no image nope:latest; "),
    ):
        with pytest.raises(SourceNotFoundError, match=words):
            await asyncpush.push(registry, source, "engine/app:1")


class Daemon:
    """A Docker daemon that has ``team/app:1.0`` and one digest; ``rule`` answers instead of what saves it."""

    rule: Rule | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        name, _, action = request.path.removeprefix("/images/").rpartition("/")
        if name not in ("team/app:1.0", f"team/app@{digest(b'')}"):
            return web.json_response({"message": f"No such image: {name}"}, status=404)
        if action == "json":
            return web.json_response({"Id": digest(A)})
        return await self.rule(request) if self.rule else web.Response(body=UNNAMED if "@" in name else SAVED)


@asynccontextmanager
async def daemon(path: Path | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Daemon, str]]:
    """A daemon at a socket, or at a port; its address."""
    made = Daemon()
    async with serving_http(made.serve, tls=tls, at=path, cancels=True) as port:
        yield made, f"unix://{path}" if path else f"tcp://localhost:{port}"


async def read(source: str = "docker-daemon:team/app:1.0") -> tuple[str | None, str | None]:
    async with asyncpush.open_source(source) as opened:
        image = await opened.image()
        return image.repository, image.tag


async def test_the_daemon_is_found_where_docker_finds_it(
    no_docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rootless Docker's socket, the current context, DOCKER_CONTEXT, DOCKER_HOST with TLS: the later, the stronger."""
    async with AsyncExitStack() as stack:
        if not HAS_DOCKER:
            await stack.enter_async_context(daemon(tmp_path / "docker.sock"))
            assert await read() == ("team/app", "1.0")

        _, elsewhere = await stack.enter_async_context(daemon(tmp_path / "elsewhere.sock"))
        for name, host in (("near", elsewhere), ("far", "tcp://127.0.0.1:1")):
            meta = no_docker / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
            meta.mkdir(parents=True)
            (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
        (no_docker / "config.json").write_text('{"currentContext": "near"}')
        assert await read(f"docker-daemon:team/app@{digest(b'')}") == ("team/app", None)
        monkeypatch.setenv("DOCKER_CONTEXT", "far")
        with pytest.raises(SourceUnavailableError, match=r"at tcp://127\.0\.0\.1:1 can't be reached"):
            await read()

        authority, context = plain_authority(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        authority.issue_cert("localhost").configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        own = authority.issue_cert("me@example.com")
        authority.cert_pem.write_to_path(no_docker / "ca.pem")
        own.cert_chain_pems[0].write_to_path(no_docker / "cert.pem")
        own.private_key_pem.write_to_path(no_docker / "key.pem")
        _, secure = await stack.enter_async_context(daemon(tls=context))
        monkeypatch.setenv("DOCKER_HOST", secure)
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        assert await read() == ("team/app", "1.0")
        trustme.CA().cert_pem.write_to_path(no_docker / "ca.pem")
        with pytest.raises(SourceUnavailableError, match="check the certificates in DOCKER_CERT_PATH"):
            await read()


async def test_a_daemon_that_is_not_there_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "no space left on device"}, status=500)

    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(SAVED[:100_000])
        assert request.transport is not None
        request.transport.close()
        return response

    async def fail(kind: type[AsyncpushError], words: str) -> None:
        with pytest.raises(kind, match=words):
            await read()

    path = tmp_path / "d.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    await fail(SourceUnavailableError, r"d\.sock can't be reached: No such file or directory; start the daemon, or set")
    async with daemon(path) as (made, _):
        made.rule = refuse
        await fail(SourceError, r"d\.sock refuses image team/app:1\.0 \(status 500\): no space left on device$")
        made.rule = break_off
        await fail(SourceUnavailableError, r"d\.sock broke off in the middle of team/app:1\.0; see the daemon's log")
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@far")
    await fail(ConfigurationError, r"far' is not the address of a Docker daemon; pipe the image instead: docker save")


async def test_a_cancelled_copy_leaves_neither_connection_nor_podman(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = StalledAnswer(SAVED[:1000])

    async def cancelled(source: str, begun: Callable[[], Awaitable[object]]) -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, source)
                await begun()
                tasks.cancel_scope.cancel()

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/d.sock")
    async with daemon(tmp_path / "d.sock") as (made, _):
        made.rule = stalled
        await cancelled("docker-daemon:team/app:1.0", stalled.begun.wait)
        with anyio.fail_after(20):
            await stalled.gone.wait()

    os.mkfifo(tmp_path / "life")
    program(tmp_path, monkeypatch, f"exec 3> {tmp_path}/life; echo begun >&3; head -c 1000 /dev/zero; exec sleep 1000")
    lives: list[IO[str]] = []

    async def begun() -> None:
        lives.append(await to_thread.run_sync((tmp_path / "life").open))
        assert await to_thread.run_sync(lives[0].readline) == "begun\n"

    await cancelled("containers-storage:team/app:1.0", begun)
    with lives[0] as life:
        assert await to_thread.run_sync(life.read) == "", "it ends with the program"


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a podman that runs *script* before all other programs."""
    (folder / "podman").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_what_podman_says_when_it_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path,
        monkeypatch,
        f"head -c 9000 {saved(tmp_path / 'a.tar', SAVED)}; echo 'Error: a\nError: disk' >&2; exit 125",
    )
    with pytest.raises(SourceError, match=r"podman can't save app:1: disk$"):
        await read("containers-storage:app:1")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SourceUnavailableError, match=r"podman, which reads .*:app:1, is not installed; install"):
        await read("containers-storage:app:1")


@pytest.mark.parametrize(
    "source",
    ["docker-daemon:", "docker-daemon:App", "docker-daemon:a b", "containers-storage:--help", "containers-storage:[x]a",
     "s3://", "s3://bucket", "s3://bucket/folder/"],
)  # fmt: skip
async def test_what_names_no_image_or_object_is_refused(source: str) -> None:
    with pytest.raises(InvalidReferenceError, match="names no"):
        await read(source)
