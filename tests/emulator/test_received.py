"""The bytes of requests' bodies that the emulator tells of: what was kept, what was refused, and what was cut."""

from __future__ import annotations

import base64
import json

import aiohttp
import anyio
from anyio import to_thread

from asyncpush.emulator import Emulator
from support.aws import token
from support.emulator_client import Ecr, digest_of, head, received, request_log


async def test_bodies_are_counted_by_operation_and_status(emulator: Emulator) -> None:
    ecr, part = Ecr(emulator.endpoint_url), bytes(300_000)
    await ecr.call("create_repository", repositoryName="app")
    upload = (await ecr.call("initiate_layer_upload", repositoryName="app"))["uploadId"]
    members = {"repositoryName": "app", "uploadId": upload, "layerPartBlob": part}
    await ecr.call("upload_layer_part", **members, partFirstByte=0, partLastByte=len(part) - 1)
    await ecr.refused("upload_layer_part", **members, partFirstByte=7, partLastByte=len(part) + 6)

    parts = (await received(emulator))["UploadLayerPart"]

    encoded = len(base64.b64encode(part))
    assert set(parts) == {"200", "400"}
    assert all(encoded < size < encoded + 300 for size in parts.values())


async def test_bytes_below_v2_are_counted_as_they_are(emulator: Emulator) -> None:
    await Ecr(emulator.endpoint_url).call("create_repository", repositoryName="app")
    headers = {"Authorization": f"Basic {await to_thread.run_sync(token, emulator.endpoint_url)}"}
    blob = bytes(70_000)
    async with aiohttp.ClientSession(emulator.endpoint_url, headers=headers) as session:
        async with session.post(f"/v2/app/blobs/uploads/?digest={digest_of(blob)}", data=blob) as answer:
            assert answer.status == 201
        async with session.post(f"/v2/app/blobs/uploads/?digest={digest_of(b'')}", data=b"else") as answer:
            assert answer.status == 400

    assert (await received(emulator))["v2:POST-upload"] == {"201": len(blob), "400": 4}


async def test_bytes_of_a_client_that_disconnects_have_no_status(emulator: Emulator) -> None:
    """Bytes that arrive before a client disconnects are under way at first, and then have no status."""
    body = json.dumps({"repositoryName": "app", "imageManifest": "x" * 1000}).encode()
    async with await anyio.connect_tcp(emulator.host, emulator.port) as client:
        await client.send(head("PutImage", 2 * len(body)) + body)
        with anyio.fail_after(10):
            while (await request_log(emulator))["underWay"] != {"PutImage": 2 * len(body)}:
                await anyio.lowlevel.checkpoint()

    with anyio.fail_after(10):
        while not (counts := await received(emulator)):
            await anyio.lowlevel.checkpoint()
    assert counts == {"PutImage": {"0": len(body)}}
    assert (await request_log(emulator))["underWay"] == {}


async def test_bytes_of_operations_that_are_made_up_count_together(emulator: Emulator) -> None:
    async with aiohttp.ClientSession(emulator.endpoint_url) as session:
        for number in range(3):
            async with session.post("/", data=b"{}", headers={"X-Amz-Target": f"Made.Up{number}"}) as answer:
                status = str(answer.status)

    assert await received(emulator) == {"(other)": {status: 6}}
