"""Long bodies share the emulator's memory: a bounded number at a time, in buffers that are used again."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from asyncpush.emulator import Emulator
from support.emulator_client import Ecr, digest_of
from support.processes import connected, served

MiB = 1024 * 1024

#: More clients than have room at a time, and what one of them sends.
CLIENTS = 40
PART = bytes(10 * MiB)


def request(url: str, upload_id: str, data: bytes) -> bytes:
    """An UploadLayerPart from the first byte on, as botocore signs it, and as it goes over the wire."""
    members = {"repositoryName": "app", "uploadId": upload_id, "partFirstByte": 0, "partLastByte": len(data) - 1}
    body = json.dumps({**members, "layerPartBlob": base64.b64encode(data).decode()}).encode()
    return signed(url, body)


def signed(url: str, body: bytes) -> bytes:
    headers = {
        "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.UploadLayerPart",
        "Content-Type": "application/x-amz-json-1.1",
    }
    made = AWSRequest("POST", url + "/", headers=headers, data=body)
    SigV4Auth(Credentials("test", "test"), "ecr", "us-east-1").add_auth(made)
    lines = [f"{name}: {value}" for name, value in made.headers.items()]
    lines += [f"Host: {urlsplit(url).netloc}", f"Content-Length: {len(body)}"]
    return "\r\n".join(["POST / HTTP/1.1", *lines, "", ""]).encode() + body


async def test_clients_beyond_the_room_wait_and_are_served_in_bounded_memory(tmp_path: Path) -> None:
    with served(tmp_path / "data") as (url, process):
        ecr = Ecr(url)
        await ecr.call("create_repository", repositoryName="app")
        body = request(url, await ecr.begin("app"), PART)
        answers = []

        async def send() -> None:
            async with await connected(url) as client:
                await client.send(body)
                answers.append((await client.receive())[:12])

        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(send)
        peak = re.search(r"VmHWM:\s+(\d+) kB", await anyio.Path(f"/proc/{process}/status").read_text())

    assert sorted(answers) == [b"HTTP/1.1 200", *[b"HTTP/1.1 400"] * (CLIENTS - 1)]  # one upload: the first wins
    assert peak
    assert int(peak[1]) * 1024 < 30 * len(body)


async def test_clients_that_disconnect_in_a_part_free_their_memory(emulator: Emulator) -> None:
    """Clients that disconnect in the middle of a part free the memory that it took."""
    ecr = Ecr(emulator.endpoint_url)
    await ecr.call("create_repository", repositoryName="app")
    unfinished = request(emulator.endpoint_url, await ecr.begin("app"), bytes(2 * MiB))[:-1]
    for _ in range(CLIENTS):
        async with await connected(emulator.endpoint_url) as client:
            await client.send(unfinished)

    layer = bytes(2 * MiB)
    assert await ecr.push_layer("app", layer) == digest_of(layer)


async def test_a_buffer_that_is_used_again_shows_nothing_of_its_last_body(tmp_path: Path) -> None:
    dice = random.Random(1)
    lengths = [2 * MiB, 1, 3 * MiB, 3 * MiB - 1, MiB, 2 * MiB + 1]
    async with Emulator(tmp_path, fsync=False, part_size=1) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        upload_id, sent, whole = await ecr.begin("app"), 0, hashlib.sha256()
        for length in lengths:
            part = dice.randbytes(length)
            refused = await ecr.refused(
                "upload_layer_part",
                repositoryName="app",
                uploadId=upload_id,
                partFirstByte=sent + 1,
                partLastByte=sent + length,
                layerPartBlob=dice.randbytes(length),
            )
            assert refused.code == "InvalidLayerPartException"
            sent = await ecr.send("app", upload_id, sent, part) + 1
            whole.update(part)
        digest = f"sha256:{whole.hexdigest()}"
        assert await ecr.complete("app", upload_id, digest) == digest


async def test_a_part_with_invalid_base64_leaves_the_upload_unchanged(
    emulator: Emulator,
) -> None:
    """A part whose base64 is invalid far behind its beginning leaves the upload unchanged."""
    ecr = Ecr(emulator.endpoint_url)
    await ecr.call("create_repository", repositoryName="app")
    layer = bytes(2 * MiB)
    upload_id = await ecr.begin("app")
    members = {"repositoryName": "app", "uploadId": upload_id, "partFirstByte": 0, "partLastByte": len(layer) - 1}
    text = base64.b64encode(layer).decode()
    for rubbish in ("=", "!", "\xff"):
        spoiled = text[: len(text) // 2] + rubbish + text[len(text) // 2 + 1 :]
        async with await connected(emulator.endpoint_url) as client:
            await client.send(signed(emulator.endpoint_url, json.dumps({**members, "layerPartBlob": spoiled}).encode()))
            assert (await client.receive()).startswith(b"HTTP/1.1 400")
    assert await ecr.send("app", upload_id, 0, layer) == len(layer) - 1
    assert await ecr.complete("app", upload_id, digest_of(layer)) == digest_of(layer)
