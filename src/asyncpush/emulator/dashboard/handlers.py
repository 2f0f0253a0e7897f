"""The page itself, and the events that keep it up to date while somebody looks at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files

import anyio
import msgspec
from aiohttp import web

from asyncpush.emulator.dashboard.inventory import Inventory
from asyncpush.emulator.dashboard.traffic import Traffic
from asyncpush.emulator.faults.injector import HitCount
from asyncpush.emulator.faults.rules import FaultConfig
from asyncpush.emulator.store.state import Store
from asyncpush.html_page import content_security_policy

#: Pages that are kept up to date at a time: each of them is a connection.
MAX_PAGES = 32

#: Seconds between two looks at the store.
_INTERVAL = 1.0

#: Seconds of age at which a look is still good for another page.
_FRESH = 0.9

#: Seconds that a page has to take an event.
_STALLED = 30.0

#: A page can't be kept by caches or shown in another site's frame, and runs only its own script.
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Dashboard:
    """The page of one emulator. Creating one blocks while it reads the page's file.

    Args:
        store: repositories and uploads.
        fault_config: returns the current faults.
        hit_counts: returns how often each of them has fired.
    """

    def __init__(
        self, store: Store, fault_config: Callable[[], FaultConfig], hit_counts: Callable[[], tuple[HitCount, ...]]
    ) -> None:
        self.traffic = Traffic()
        self._store = store
        self._fault_config = fault_config
        self._hit_counts = hit_counts
        self._html = files("asyncpush.emulator.dashboard").joinpath("page.html").read_text(encoding="utf-8")
        self._started = time.time()
        self._closing = anyio.Event()
        self._pages = 0
        self._looking = anyio.Lock()
        self._inventory: Inventory | None = None
        self._sections: dict[str, bytes] = {}
        self._looked = 0.0

    def add_to(self, application: web.Application) -> None:
        """Route the page and what it asks for; all of it can only be read."""
        application.router.add_get("/", self._answer_page)
        application.router.add_get("/_emulator/events", self._answer_events)
        application.router.add_get("/_emulator/images", self._answer_images)
        application.on_shutdown.append(self._close)

    async def _answer_page(self, _: web.Request) -> web.Response:
        policy = content_security_policy(self._html, connect_src="'self'", frame_ancestors="'none'")
        headers = {**_HEADERS, "Content-Security-Policy": policy}
        return web.Response(text=self._html, content_type="text/html", charset="utf-8", headers=headers)

    async def _answer_images(self, request: web.Request) -> web.Response:
        """The newest images of the repository with the key in the query; a page that shows it has them counted."""
        key = request.query.get("repository", "")
        async with self._looking:
            is_key = self._inventory is not None and key.isascii() and key.isdecimal() and len(key) < 20
            table = self._inventory.images_of(int(key)) if self._inventory and is_key else None
        if table is None:
            return web.Response(status=404, text="No page shows a repository with this key\n", headers=_HEADERS)
        return web.Response(body=msgspec.json.encode(table), content_type="application/json", headers=_HEADERS)

    async def _answer_events(self, request: web.Request) -> web.StreamResponse:
        """Send each section at first, and again whenever it has changed (server-sent events, HTML standard 9.2)."""
        if self._pages >= MAX_PAGES:
            text = f"{MAX_PAGES} pages are open; close one\n"
            return web.Response(status=503, text=text, headers=_HEADERS)
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        self._pages += 1
        try:
            await response.prepare(request)
            await self._send_changes(response)
        except ConnectionError:
            pass  # The page was closed.
        except TimeoutError:
            if request.transport:
                request.transport.abort()  # A page that reads nothing would keep the stream for ever.
        finally:
            self._pages -= 1
            if not self._pages:
                self._inventory, self._sections, self._looked = None, {}, 0.0
        return response

    async def _send_changes(self, response: web.StreamResponse) -> None:
        sent: dict[str, bytes] = {}
        await response.write(b"retry: 2000\n\n")
        while not self._closing.is_set():
            sections = await self._look()
            changed = {name: data for name, data in sections.items() if sent.get(name) != data}
            sent = sections
            # The time comes last: it tells the page that this is all, and that the emulator is there.
            lines = [b"event: %b\ndata: %b\n\n" % (name.encode(), data) for name, data in changed.items()]
            lines.append(b"event: time\ndata: %.3f\n\n" % time.time())
            with anyio.fail_after(_STALLED):
                await response.write(b"".join(lines))
            with anyio.move_on_after(_INTERVAL):
                await self._closing.wait()

    async def _look(self) -> dict[str, bytes]:
        """All sections as JSON; one look serves all pages."""
        async with self._looking:
            now = time.monotonic()
            if not self._sections or now - self._looked > _FRESH:
                self._looked = now
                inventory, self._inventory = self._inventory or Inventory(self._store), None
                await inventory.update()
                self._inventory = inventory  # not if its update was cancelled halfway
                self._sections = {name: msgspec.json.encode(section) for name, section in self._tell(inventory)}
            return self._sections

    def _tell(self, inventory: Inventory) -> list[tuple[str, object]]:
        return [
            ("totals", {"started": round(self._started), **inventory.totals(), **self.traffic.totals()}),
            ("uploads", inventory.uploads()),
            ("operations", {"rows": self.traffic.operations(), "left": 0}),
            ("faults", {"rows": self._faults(), "left": 0}),
            ("images", inventory.images()),
            ("repositories", inventory.repositories()),
            ("layers", inventory.shared_layers()),
            ("clients", {"rows": self.traffic.clients(), "left": 0}),
        ]

    def _faults(self) -> list[dict[str, object]]:
        """A row for each throttle, the quotas and each rule, in the order of their counts."""
        config = self._fault_config()
        kinds = ["throttle"] * len(config.throttles) + ["quotas"] * bool(config.quotas)
        kinds += ["fault"] * len(config.faults)
        fired = self._hit_counts()
        return [{"kind": kind, "rule": hit.rule, "count": hit.count} for kind, hit in zip(kinds, fired, strict=True)]

    async def _close(self, _: web.Application) -> None:
        self._closing.set()
