"""A plain client of the emulator's ``/v2/``."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from anyio import to_thread

from asyncpush.emulator import Emulator
from support.aws import token
from support.emulator_client import OCI_MANIFEST, digest_of

NAME = "team/app"


class Door:
    """``/v2/`` of an emulator."""

    def __init__(self, http: aiohttp.ClientSession, name: str = NAME) -> None:
        self.http = http
        self.name = name

    async def ask(self, method: str, path: str, data: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        url = path if path.startswith("/") else f"/v2/{self.name}/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, url, data=data, headers=named) as response:
            return response.status, response.headers, await response.read()

    async def begin(self) -> str:
        status, headers, _ = await self.ask("POST", "blobs/uploads/")
        assert status == 202
        return str(headers["Location"])

    async def push(self, *blobs: bytes) -> None:
        for blob in blobs:
            status, _, body = await self.ask("PUT", f"{await self.begin()}?digest={digest_of(blob)}", blob)
            assert status == 201, body

    async def put(self, manifest: bytes, reference: str) -> tuple[int, list[str]]:
        """Push a manifest: the status and the codes of its errors."""
        status, _, body = await self.ask("PUT", f"manifests/{reference}", manifest, Content_Type=OCI_MANIFEST)
        return status, [error["code"] for error in json.loads(body)["errors"]] if body else []

    async def received(self, location: str) -> int:
        status, headers, _ = await self.ask("GET", location)
        assert status == 204
        last = int(headers["Range"].removeprefix("0-"))
        return last + 1 if last else 0


async def session_with_token(emulator: Emulator) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Basic {await to_thread.run_sync(token, emulator.endpoint_url)}"}
    return aiohttp.ClientSession(emulator.endpoint_url, headers=headers)
