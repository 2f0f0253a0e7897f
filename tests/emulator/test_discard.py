"""An emulator that discards layers knows all of them, keeps the bytes of none, and says so to whoever asks for them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import aiohttp
import pytest

from asyncpush.emulator import Emulator, Finding
from asyncpush.emulator.store.fsck import FsckResult, check
from asyncpush.errors import UsageError
from support.commands import run_cli
from support.emulator_client import Ecr, digest_of

MiB = 1024 * 1024
LAYER = random.Random(1).randbytes(12 * MiB)
CONFIG = json.dumps({"history": ["x" * 2 * MiB]}).encode()
SMALL = b"a small layer"


def discarding(data: Path) -> Emulator:
    return Emulator(data, fsync=False, discard=True)


async def push(ecr: Ecr, layer: bytes) -> str:
    """In parts of 5 MiB."""
    upload_id = await ecr.begin("app")
    for first in range(0, len(layer), 5 * MiB):
        await ecr.send("app", upload_id, first, layer[first : first + 5 * MiB])
    return await ecr.complete("app", upload_id, digest_of(layer))


def used(data: Path) -> int:
    """Bytes of disk that blobs and uploads take."""
    files = [*data.glob("uploads/*"), *data.glob("repositories/**/sha256/*")]
    return sum(file.stat().st_blocks * 512 for file in files)


async def checked(data: Path) -> tuple[FsckResult, list[Finding]]:
    findings: list[Finding] = []
    return await check(data, findings.append), findings


async def test_a_discarding_emulator_keeps_manifest_config_and_small_layers(
    tmp_path: Path,
) -> None:
    """Of a pushed image, only the manifest, the config and small layers take up space."""
    async with discarding(tmp_path) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        assert await push(ecr, LAYER) == digest_of(LAYER)
        manifest = await ecr.push_image("app", "1", CONFIG, LAYER, SMALL)
        assert await ecr.tags("app") == {digest_of(manifest): ["1"]}
        for kept in (CONFIG, SMALL):
            answer = await ecr.call("get_download_url_for_layer", repositoryName="app", layerDigest=digest_of(kept))
            async with aiohttp.ClientSession() as session, session.get(answer["downloadUrl"]) as response:
                assert await response.read() == kept
    assert used(tmp_path) < len(LAYER) // 2
    done, findings = await checked(tmp_path)
    assert done.is_clean
    assert not findings


async def test_a_pull_of_a_discarded_layer_is_told_why_it_fails(tmp_path: Path) -> None:
    async with discarding(tmp_path) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        await push(ecr, LAYER)
        await ecr.push_image("app", "1", CONFIG, LAYER)
        refused = await ecr.refused("get_download_url_for_layer", repositoryName="app", layerDigest=digest_of(LAYER))
        assert refused.code == "LayerInaccessibleException"
        assert "discarded" in refused.message
        url = f"{emulator.endpoint_url}/v2/app/blobs/{digest_of(LAYER)}"
        [granted] = (await ecr.call("get_authorization_token"))["authorizationData"]
        headers = {"Authorization": f"Basic {granted['authorizationToken']}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.get(url) as response:
                [error] = (await response.json())["errors"]
                assert (response.status, error["code"]) == (404, "BLOB_UNKNOWN")
                assert "discarded" in error["message"]
            async with session.head(url) as response:
                assert (response.status, response.content_length) == (200, len(LAYER))


async def test_what_comes_through_v2_is_discarded_too(tmp_path: Path) -> None:
    async with discarding(tmp_path) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        [granted] = (await ecr.call("get_authorization_token"))["authorizationData"]
        headers = {"Authorization": f"Basic {granted['authorizationToken']}"}
        async with aiohttp.ClientSession(emulator.endpoint_url, headers=headers) as session:
            async with session.post("/v2/app/blobs/uploads/") as response:
                location = response.headers["Location"]
            async with session.put(location, params={"digest": digest_of(LAYER)}, data=LAYER) as response:
                assert response.status == 201, await response.text()
        assert await ecr.available("app", digest_of(LAYER)) == {digest_of(LAYER)}
    assert used(tmp_path) < len(LAYER) // 2
    assert (await checked(tmp_path))[0].is_clean


async def test_a_directory_stays_as_it_was_made(tmp_path: Path) -> None:
    for first in (True, False):
        data = tmp_path / str(first)
        async with Emulator(data, fsync=False, discard=first) as emulator:
            await Ecr(emulator.endpoint_url).call("create_repository", repositoryName="app")
        with pytest.raises(UsageError, match="discard"):
            async with Emulator(data, fsync=False, discard=not first):
                pass
        async with Emulator(data, fsync=False, discard=first):
            pass
    refused = run_cli("serve", "--port", "0", "--data", str(tmp_path / "True"))
    assert refused.status == 2
    assert len(refused.err.strip().splitlines()) <= 2
    assert "--discard" in refused.err


async def test_after_a_restart_unfinished_discarded_layers_start_over(tmp_path: Path) -> None:
    """After a restart, discarded layers exist, and unfinished ones start over."""
    async with discarding(tmp_path) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        await push(ecr, LAYER)
        unfinished, short = await ecr.begin("app"), await ecr.begin("app")
        await ecr.send("app", unfinished, 0, LAYER[: 5 * MiB])
        await ecr.send("app", short, 0, SMALL)
    assert (await checked(tmp_path))[0].leftover == 1
    async with discarding(tmp_path) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        assert await ecr.available("app", digest_of(LAYER)) == {digest_of(LAYER)}
        assert await ecr.complete("app", short, digest_of(SMALL)) == digest_of(SMALL)
        members = {"uploadId": unfinished, "layerDigests": [digest_of(LAYER)]}
        refused = await ecr.refused("complete_layer_upload", repositoryName="app", **members)
        assert refused.code == "UploadNotFoundException"
    done, findings = await checked(tmp_path)
    assert done.is_clean
    assert not findings
