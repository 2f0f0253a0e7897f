"""crane, oras, regctl and regsync at ``/v2/``: clients that nobody here wrote, by themselves and beside asyncpush."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import yaml
from anyio import to_thread

import asyncpush
from asyncpush import Registry, Settings
from asyncpush.emulator import Emulator
from support.aws import QUIRKS, aws, password, token
from support.commands import run_beside
from support.emulator_client import Ecr
from support.images import RAW_LAYER, Layout, at, layer_tar, tar

MiB = 1024 * 1024

#: The words of each tool's commands.
TOOLS = {
    "crane": {
        "push": "crane push --insecure {folder} {image}",
        "pull": "crane pull --insecure --format oci {image} {folder}",
        "copy": "crane copy --insecure {image} {target}",
        "tag": "crane tag --insecure {image} {tag}",
        "list": "crane ls --insecure {repository}",
        "untag": "crane delete --insecure {image}",
        "delete": "crane delete --insecure {repository}@{digest}",
    },
    "oras": {
        "push": "oras cp --from-oci-layout --to-plain-http {folder}:1 {image}",
        "pull": "oras cp --from-plain-http --to-oci-layout {image} {folder}:1",
        "copy": "oras cp --from-plain-http --to-plain-http {image} {target}",
        "tag": "oras tag --plain-http {image} {tag}",
        "list": "oras repo tags --plain-http {repository}",
        "delete": "oras manifest delete --plain-http --force {repository}@{digest}",
    },
    "regctl": {
        "push": "regctl --host reg={host},tls=disabled image copy ocidir://{folder}:1 {image}",
        "pull": "regctl --host reg={host},tls=disabled image copy {image} ocidir://{folder}:1",
        "copy": "regctl --host reg={host},tls=disabled image copy {image} {target}",
        "tag": "regctl --host reg={host},tls=disabled image copy {image} {repository}:{tag}",
        "list": "regctl --host reg={host},tls=disabled tag ls {repository}",
        "untag": "regctl --host reg={host},tls=disabled tag delete {image}",
        "delete": "regctl --host reg={host},tls=disabled manifest delete {repository}@{digest}",
    },
}

#: Where ``/v2/`` of an address without a region leads.
REGION = "us-east-1"

#: Runs a command of a tool against the emulator, on ``app:1``; returns what it prints.
Run = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A layout with an index of two images that share a layer, as ``:1``, and its digest; one layer is two chunks."""
    made = Layout()
    large = made.blob(tar({"large": random.Random(1).randbytes(6 * MiB)}), RAW_LAYER)
    images = [
        at(made.image(layer_tar(platform), layer_tar("shared"), platform=platform, more=more), platform)
        for platform, more in (("linux/amd64", [large]), ("linux/arm64", []))
    ]
    index = made.index(*images)
    return made.tag(index, "1").write(tmp_path_factory.mktemp("tools") / "layout"), str(index["digest"])


@pytest.fixture
async def registry(emulator: Emulator) -> AsyncIterator[Registry]:
    """asyncpush's connection to the repositories that are behind ``/v2/``."""
    at_v2, settings = replace(aws(emulator.endpoint_url), region=REGION), Settings(create_repository=True)
    async with asyncpush.connect(aws=at_v2, settings=settings) as connected:
        yield connected


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest, need: Callable[[str], str]) -> str:
    """Each tool, where it is installed."""
    need(request.param)
    return str(request.param)


@pytest.fixture
async def run(tool: str, emulator: Emulator, need: Callable[[str], str], tmp_path: Path) -> Run:
    """The tool, logged in as docker would be, with the repositories ``app`` and ``copy``."""
    program, host = need(tool), f"{emulator.host}:{emulator.port}"
    for name in ("app", "copy"):
        await Ecr(emulator.endpoint_url).call("create_repository", repositoryName=name)
    login = {"auths": {host: {"auth": await to_thread.run_sync(token, emulator.endpoint_url)}}}
    (tmp_path / "config.json").write_text(json.dumps(login))
    words = {"host": host, "repository": f"{host}/app", "image": f"{host}/app:1", "target": f"{host}/copy:1"}

    async def ran(command: str, **more: object) -> str:
        line = TOOLS[tool][command].split()[1:]
        done = await anyio.run_process(
            [program, *(word.format(**{**words, **more}) for word in line)],
            env={**os.environ, "DOCKER_CONFIG": str(tmp_path)},
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return ran


def blobs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "blobs" / "sha256").iterdir()}


async def test_asyncpush_finds_all_that_a_tool_pushes(
    emulator: Emulator, registry: Registry, run: Run, layout: tuple[Path, str]
) -> None:
    folder, digest = layout
    await run("push", folder=folder)

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}
    verified = await run_beside("verify", "--deep", "app:1", "--endpoint-url", emulator.endpoint_url, **keys)
    assert (verified.status, digest in verified.out) == (0, True), verified
    result = await asyncpush.push(registry, f"oci:{folder}:1", "app:1")
    assert (str(result.digest), result.outcome, result.bytes_sent) == (digest, "present", 0)


async def test_a_tool_pulls_byte_for_byte_what_asyncpush_pushes(
    registry: Registry, run: Run, layout: tuple[Path, str], tmp_path: Path
) -> None:
    pushed = await asyncpush.push(registry, f"oci:{layout[0]}:1", "app:1")

    await run("pull", image=pushed.reference, folder=tmp_path / "pulled")

    assert blobs(tmp_path / "pulled") == blobs(layout[0])


async def test_a_tool_copies_between_repositories_by_mounting(
    emulator: Emulator, run: Run, layout: tuple[Path, str]
) -> None:
    ecr = Ecr(emulator.endpoint_url)
    await ecr.call("put_account_setting", name="BLOB_MOUNTING", value="ENABLED")
    await run("push", folder=layout[0])
    emulator.requests.clear()

    await run("copy")

    uploads = [record for record in emulator.requests if "/blobs/uploads/" in record.operation]
    assert [(record.operation, record.status) for record in uploads] == [("POST /v2/copy/blobs/uploads/", 201)] * 6
    assert await ecr.tags("copy") == await ecr.tags("app")


async def test_a_tool_tags_lists_and_deletes(emulator: Emulator, tool: str, run: Run, layout: tuple[Path, str]) -> None:
    ecr, digest = Ecr(emulator.endpoint_url), layout[1]
    await run("push", folder=layout[0])
    await run("tag", tag="2.0")
    assert (await run("list")).split() == (await ecr.tags("app"))[digest] == ["1", "2.0"]

    if "untag" in TOOLS[tool]:
        await run("untag")
        assert (await run("list")).split() == (await ecr.tags("app"))[digest] == ["2.0"]

    await run("delete", digest=digest)
    assert (await run("list")).split() == []
    assert digest not in await ecr.tags("app")


async def test_regsync_copies_the_tags_of_a_repository_once(
    emulator: Emulator, registry: Registry, need: Callable[[str], str], layout: tuple[Path, str], tmp_path: Path
) -> None:
    regsync, hosts = need("regsync"), {"here": emulator}
    for tag in ("1.0", "1.1", "test"):
        await asyncpush.push(registry, f"oci:{layout[0]}:1", f"app:{tag}")
    async with Emulator(tmp_path / "target", fsync=False, quirks=QUIRKS) as hosts["target"]:
        target = Ecr(hosts["target"].endpoint_url)
        await target.call("create_repository", repositoryName="mirror/app")
        addresses = {name: f"{each.host}:{each.port}" for name, each in hosts.items()}
        sync = {"source": f"{addresses['here']}/app", "target": f"{addresses['target']}/mirror/app"}
        job = {
            "version": 1,
            "creds": [
                {
                    "registry": addresses[name],
                    "user": "AWS",
                    "pass": await to_thread.run_sync(password, each.endpoint_url),
                    "tls": "disabled",
                }
                for name, each in hosts.items()
            ],
            "sync": [{**sync, "type": "repository", "tags": {"allow": [r"1\..*"]}}],
        }
        (tmp_path / "regsync.yaml").write_text(yaml.safe_dump(job))
        once = [regsync, "once", "--config", str(tmp_path / "regsync.yaml")]

        done = await anyio.run_process(once, check=False)

        assert done.returncode == 0, done.stderr.decode()
        assert (await target.tags("mirror/app"))[layout[1]] == ["1.0", "1.1"]
        hosts["target"].requests.clear()
        await anyio.run_process(once)
        assert {record.operation.split()[0] for record in hosts["target"].requests} <= {"GET", "HEAD"}
