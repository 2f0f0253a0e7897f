"""Headless Chromium, driven by its DevTools protocol: what a page shows, and what goes wrong in it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import aiohttp
import anyio
from anyio.streams.text import TextReceiveStream

#: Seconds that the browser has to start, and a page to show what a test waits for.
_PATIENCE = 60

_FLAGS = ("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-port=0")


class Page:
    """One page of the browser.

    Attributes:
        problems: exceptions of scripts, and messages of errors in the console, such as refusals by the page's policy.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.problems: list[str] = []
        self._socket = socket
        self._ids = count(1)

    async def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page, on a screen of this size in CSS pixels."""
        for domain in ("Page", "Runtime", "Log"):
            await self.command(f"{domain}.enable")
        phone = width < 600
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.command("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])
        await self.command("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """The value of a JavaScript expression, as soon as it is true; it may fail until then."""
        poll = (
            "new Promise(found => { const look = () => { let value; try { value = (%s) } catch {} "
            "if (value) found(value); else setTimeout(look, 20) }; look() })"
        )
        return await self.evaluate(poll % expression)

    async def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        answer = await self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await anyio.Path(path).write_bytes(base64.b64decode(answer["data"]))

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol, and wait for its answer."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        with anyio.fail_after(_PATIENCE):
            while True:
                message = json.loads(await self._socket.receive_str())
                if message.get("id") == number:
                    assert "error" not in message, message["error"]
                    return message["result"]
                self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])


@asynccontextmanager
async def browser(chromium: str) -> AsyncIterator[Page]:
    """Run Chromium until the block is left, with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="asyncpush-", ignore_cleanup_errors=True) as profile:
        # The sandbox does not start as root, nor in many containers; the only pages are the tests' own.
        command = [chromium, *_FLAGS, "--no-sandbox", f"--user-data-dir={profile}", "about:blank"]
        async with await anyio.open_process(
            command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env={**os.environ, "HOME": profile}
        ) as process:
            try:
                port = await _port(process)
                async with aiohttp.ClientSession() as session:
                    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                        [target] = [each for each in await answer.json() if each["type"] == "page"]
                    async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                        yield Page(socket)
            finally:
                with anyio.CancelScope(shield=True):
                    process.terminate()
                    await process.wait()
                    await anyio.to_thread.run_sync(lambda: shutil.rmtree(profile, ignore_errors=True))


async def _port(process: anyio.abc.Process) -> int:
    assert process.stderr is not None
    text = ""
    with anyio.fail_after(_PATIENCE):
        async for piece in TextReceiveStream(process.stderr, errors="replace"):
            text += piece
            _, found, rest = text.partition("DevTools listening on ws://127.0.0.1:")
            if found and "/" in rest:
                return int(rest.partition("/")[0])
    raise AssertionError(text)
