"""Killed at any instant and started again, the emulator has everything that it acknowledged, and nothing half."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncpush.emulator import Finding
from asyncpush.emulator.store.fsck import FsckResult, check
from support.emulator_client import OCI_MANIFEST, digest_of, image_manifest

ROUNDS = int(os.environ.get("ASYNCPUSH_KILL_ROUNDS", "3"))
PUSHERS = 6
PART = 4096

SERVER = """
import anyio, pathlib, sys
from asyncpush.emulator import Emulator
async def main():
    async with Emulator(pathlib.Path(sys.argv[1]), part_size=int(sys.argv[2]), verify_signatures=False) as emulator:
        print(emulator.endpoint_url, flush=True)
        await emulator.serve_forever()
anyio.run(main)
"""


class RefusedError(Exception):
    """ECR's code, and its answer."""


class Client:
    """The JSON API, without retries: a lost answer is a lost answer."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(self, operation: str, **members: Any) -> dict[str, Any]:
        headers = {"X-Amz-Target": f"AmazonEC2ContainerRegistry_V20150921.{operation}"}
        async with self._session.post("/", headers=headers, data=json.dumps(members)) as response:
            document = json.loads(await response.read())
            if response.status != 200:
                raise RefusedError(document["__type"], document)
            return document


@dataclass
class Pusher:
    """One client that goes on where its last answer left it, and knows what was acknowledged to it."""

    name: str
    random: random.Random
    upload: str | None = None
    data: bytes = b""
    sent: int = 0
    sending: int = 0
    layers: dict[str, int] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    putting: bytes = b""

    async def push(self, call: Client) -> None:
        """Push images of one layer each, until something breaks."""
        while True:
            if self.upload is None:
                self.data = self.random.randbytes(self.random.randint(1, 6 * PART))
                self.sent = 0
                self.upload = (await call("InitiateLayerUpload", repositoryName=self.name))["uploadId"]
            while self.sent < len(self.data):
                await self.send(call)
            await self.complete(call)
            await self.put(call)

    async def send(self, call: Client) -> None:
        part = self.data[self.sent : self.sent + PART]
        self.sending = len(part)
        await call(
            "UploadLayerPart",
            repositoryName=self.name,
            uploadId=self.upload,
            partFirstByte=self.sent,
            partLastByte=self.sent + len(part) - 1,
            layerPartBlob=base64.b64encode(part).decode(),
        )
        self.sent, self.sending = self.sent + len(part), 0

    async def complete(self, call: Client) -> None:
        digest = digest_of(self.data)
        await call("CompleteLayerUpload", repositoryName=self.name, uploadId=self.upload, layerDigests=[digest])
        self.completed(digest)

    def completed(self, digest: str) -> None:
        self.layers[digest] = len(self.data)
        self.upload = None
        self.putting = image_manifest(self.data, self.data)

    async def put(self, call: Client) -> None:
        tag = digest_of(self.putting)[7:]
        members = {"repositoryName": self.name, "imageManifest": self.putting.decode(), "imageTag": tag}
        with suppress(RefusedError):  # it is there already: the answer to an earlier attempt was lost
            await call("PutImage", **members, imageManifestMediaType=OCI_MANIFEST)
        self.images[tag], self.putting = self.putting, b""

    async def resume(self, call: Client) -> None:
        """Prove that all that was acknowledged is there, and find out what became of the last request."""
        if self.upload is not None:
            await self.find_cursor(call)
        digests = list(self.layers)
        for first in range(0, len(digests), 100):
            asked = digests[first : first + 100]
            answer = await call("BatchCheckLayerAvailability", repositoryName=self.name, layerDigests=asked)
            assert {each["layerDigest"]: each.get("layerSize") for each in answer["layers"]} == {
                digest: self.layers[digest] for digest in asked
            }
        for tag, manifest in self.images.items():
            answer = await call("BatchGetImage", repositoryName=self.name, imageIds=[{"imageTag": tag}])
            assert [image["imageManifest"].encode() for image in answer["images"]] == [manifest]
        if self.putting:
            await self.put(call)

    async def find_cursor(self, call: Client) -> None:
        beyond = len(self.data) + 1
        try:
            await call(
                "UploadLayerPart",
                repositoryName=self.name,
                uploadId=self.upload,
                partFirstByte=beyond,
                partLastByte=beyond,
                layerPartBlob="AA==",
            )
        except RefusedError as refusal:
            code, document = refusal.args
        if code == "UploadNotFoundException":
            assert self.sent == len(self.data), "an upload is gone that was not being completed"
            self.completed(digest_of(self.data))
            return
        received = int(re.search(r"instead of (\d+)", document["message"])[1])
        assert received in {self.sent, self.sent + self.sending}
        self.sent, self.sending = received, 0


@asynccontextmanager
async def serving(data: Path) -> AsyncIterator[Process]:
    """The emulator in a process of its own, killed at the end of the block."""
    async with await anyio.open_process([sys.executable, "-c", SERVER, str(data), str(PART)], stderr=None) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()


async def url_of(process: Process) -> str:
    assert process.stdout is not None
    return (await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 200)).decode()


async def push_until_killed(process: Process, pushers: list[Pusher], seconds: float) -> None:
    async with aiohttp.ClientSession(await url_of(process)) as session, anyio.create_task_group() as group:
        call = Client(session)
        for pusher in pushers:
            await pusher.resume(call)

        async def work(pusher: Pusher) -> None:
            with suppress(aiohttp.ClientError, ConnectionError):
                await pusher.push(call)

        for pusher in pushers:
            group.start_soon(work, pusher)
        await anyio.sleep(seconds)
        process.kill()


async def checked(data: Path) -> tuple[FsckResult, list[Finding]]:
    findings: list[Finding] = []
    return await check(data, findings.append), findings


async def test_what_was_acknowledged_outlives_a_kill_at_any_instant(tmp_path: Path) -> None:
    dice = random.Random(os.environ.get("ASYNCPUSH_KILL_SEED"))
    pushers = [Pusher(f"app-{number}", random.Random(number)) for number in range(PUSHERS)]
    async with serving(tmp_path) as process, aiohttp.ClientSession(await url_of(process)) as session:
        for pusher in pushers:
            await Client(session)("CreateRepository", repositoryName=pusher.name)
    for number in range(ROUNDS):
        if number % 3 == 2:  # killed while it starts, too: what it makes right then is not a safer
            async with serving(tmp_path):
                await anyio.sleep(dice.uniform(0.2, 1))
        async with serving(tmp_path) as process:
            await push_until_killed(process, pushers, dice.uniform(0, 0.5))
        result, findings = await checked(tmp_path)
        assert result.is_clean, findings

    async with serving(tmp_path) as process, aiohttp.ClientSession(await url_of(process)) as session:
        for pusher in pushers:
            await pusher.resume(Client(session))
    result, findings = await checked(tmp_path)
    assert findings == []
    assert result.images == sum(len(pusher.images) for pusher in pushers) > 0
