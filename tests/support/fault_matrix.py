"""The outcome of every fault in every operation of a push and of a source, in one process whose clock is put ahead."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from threading import Timer
from typing import Any, Literal, get_args

import aiohttp
import anyio
import botocore.loaders
import pytest
from aiohttp import web
from anyio import to_thread

import asyncpush
from asyncpush import ImageResult, Settings
from asyncpush.emulator import Emulator
from asyncpush.errors import AsyncpushError
from asyncpush.events import Event, Retrying
from asyncpush.reference import Destination
from asyncpush.settings import RetryPolicy, SourceRegistry
from asyncpush.sources import open_source
from asyncpush.sources.registry import open_pool
from support.aws import aws, judge
from support.fault_proxy import FAULTS, Clock, Proxy, relaying
from support.images import Layout, json_digests
from support.registry_server import RegistryServer, running
from support.relay import NO_WAITS

Times = Literal["once", "three times", "for ever"]
TIMES: dict[Times, int | None] = {"once": 1, "three times": 3, "for ever": None}

#: What a push of an image into a repository that is missing asks of ECR.
PUSH = (
    "CreateRepository",
    "BatchGetImage",
    "BatchCheckLayerAvailability",
    "InitiateLayerUpload",
    "UploadLayerPart",
    "CompleteLayerUpload",
    "PutImage",
)

#: What reading an image from a registry that wants a token asks of it.
SOURCE = ("GET token", "GET manifest", "GET blob", "GET referrers")

#: Faults that make no sense of a source: nobody signs requests to it.
_SIGNED = ("skewed clock",)

PUSHED = "pushed"
HANGS = "never ends"

#: Seconds of the real clock after which nothing more will come of a cell, however busy the machine is.
_LIMIT = 60.0
#: Seconds that pass with each new try: a host that never answers is given up after a few dozen.
_PER_TRY = 10.0
#: Time-outs are the defaults: on a busy machine, nothing but the faults reaches them.
_TO_ECR = replace(NO_WAITS, lag_waits=(0.001, 0.001, 0.001))
_FROM_SOURCE = RetryPolicy(first_wait=0.001, longest_wait=0.002, first_throttled_wait=0.001)
#: Throttles without end are given up after so many real seconds.
_ENDLESS_TO_ECR, _ENDLESS_FROM_SOURCE = replace(_TO_ECR, throttled=0.5), replace(_FROM_SOURCE, throttled=0.05)


@dataclass(frozen=True, order=True)
class Cell:
    operation: str
    fault: str
    times: Times

    def __str__(self) -> str:
        return f"{self.operation}: {self.fault}, {self.times}"


def all_cells() -> list[Cell]:
    """Every cell, in the manual's order."""
    every = map(Cell, *zip(*product((*PUSH, *SOURCE), FAULTS, get_args(Times)), strict=True))
    return [cell for cell in every if cell.operation in PUSH or cell.fault not in _SIGNED]


def sample(known: Mapping[Cell, str]) -> list[Cell]:
    """Cells of which each operation, each fault and each number of times has one at the least."""
    chosen = []
    operations = (*PUSH, *SOURCE)
    for row, (fault, times) in enumerate(zip(FAULTS, cycle(TIMES))):
        turn = row + row // len(operations)
        cells = [Cell(operations[(turn + more) % len(operations)], fault, times) for more in range(len(operations))]
        # What never ends takes its time to be known: that is for a run of all cells.
        chosen += [cell for cell in cells if known.get(cell, HANGS) != HANGS][:1]
    return chosen


def read_models_once(patch: pytest.MonkeyPatch) -> None:
    """Let all clients share botocore's models: reading them takes most of a cell's time."""
    loader = botocore.loaders.create_loader()
    patch.setattr("botocore.session.create_loader", lambda *_: loader)


@dataclass
class Ground:
    """What all cells share: an emulator, a registry to read from, and an image."""

    emulator: Emulator
    source: RegistryServer
    folder: Path
    digest: str
    config: str
    judge: Any
    session: aiohttp.ClientSession
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))


@asynccontextmanager
async def ground(folder: Path) -> AsyncIterator[Ground]:
    layout = Layout()
    image = layout.image(b"a layer of a few bytes" * 100)
    source = RegistryServer(referrers={})
    source.hold(layout, image, "app", "1.0")
    source.rules.append(_with_token)
    config, _ = json_digests(layout, image)
    path = layout.tag(image, "1.0").write(folder / "image")
    async with (
        Emulator(folder / "ecr", fsync=False) as emulator,
        running(source),
        # No connection grows old, whatever time passes.
        aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        ecr = await to_thread.run_sync(judge, emulator.endpoint_url)
        yield Ground(emulator, source, path, str(image["digest"]), config, ecr, session)


async def _with_token(request: web.Request) -> web.StreamResponse | None:
    """A registry that wants a token of its own for everything."""
    if request.path == "/token":
        return web.json_response({"token": "good"})
    if request.headers.get("Authorization") == "Bearer good":
        return None
    challenge = f'Bearer realm="http://{request.headers["Host"]}/token",service="registry",scope="repository:app:pull"'
    return web.json_response({"errors": []}, status=401, headers={"WWW-Authenticate": challenge})


async def outcomes(place: Ground, cells: Iterable[Cell]) -> dict[Cell, str]:
    """What comes of each, one after the other: they share a clock that jumps."""
    return {cell: await outcome(place, cell) for cell in cells}


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    """Cancel the block after so many seconds, whatever the event loop's clock says."""
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:
        timer = Timer(seconds, loop.call_soon_threadsafe, [scope.cancel])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


async def outcome(place: Ground, cell: Cell) -> str:
    """Push an image while that happens: ``pushed``, or the first words of the error."""
    repository = f"cell/{next(place.numbers)}"
    clock, ecr = Clock(), place.emulator.endpoint_url
    target = ecr if cell.operation in PUSH else place.source.url
    spoiling = Proxy(target, place.session, clock, cell.operation, cell.fault, TIMES[cell.times])
    spoiling.spared = f"/v2/app/blobs/{place.config}"  # GET blob is that of the layer
    said = HANGS
    async with relaying(spoiling) as proxy, relaying(Proxy(ecr, place.session, clock)) as sound:
        with _watchdog(_LIMIT):
            said = await _said(place, proxy, sound, cell, repository)
        if said == PUSHED and proxy.seen[cell.operation] == 0:
            return "was never asked"
    is_pushed = said.startswith(PUSHED)
    stored = await to_thread.run_sync(partial(_stored, place.judge, repository))
    if stored not in ([place.digest], []) or (is_pushed and not stored):
        return f"{said}, and the tag names {stored}"
    return said


async def _said(place: Ground, proxy: Proxy, sound: Proxy, cell: Cell, repository: str) -> str:
    def heard(event: Event) -> None:
        if isinstance(event, Retrying):
            proxy.retried()
            proxy.clock.put_ahead(_PER_TRY)

    try:
        result = await _push(place, proxy, sound, cell, repository, heard)
    except AsyncpushError as error:
        return words(error.message, proxy.host, repository)
    except Exception as error:  # noqa: BLE001 - that is what the matrix looks for
        return f"a bug: {type(error).__name__}: {words(str(error), proxy.host, repository)}"
    behind = [words(each.error.message, proxy.host, repository) for each in result.referrers if each.error]
    return f"{result.outcome}, but not its signatures: {behind[0]}" if behind else result.outcome


async def _push(place: Ground, proxy: Proxy, sound: Proxy, cell: Cell, repository: str, heard: Any) -> ImageResult:
    is_endless = TIMES[cell.times] is None
    # One layer after the other: of requests in a row, each is a new try of the one before.
    retry = _ENDLESS_TO_ECR if is_endless else _TO_ECR
    settings = Settings(create_repository=True, max_layers=1, retry=retry)
    if cell.operation in PUSH:
        async with asyncpush.connect(aws=aws(f"http://{proxy.host}"), settings=settings, emit=heard) as registry:
            return await asyncpush.push(registry, f"oci:{place.folder}", f"{repository}:1.0")
    from_proxy = SourceRegistry(host=proxy.host, plain_http=True, anonymous=True)
    from_source = _ENDLESS_FROM_SOURCE if is_endless else _FROM_SOURCE
    async with (
        asyncpush.connect(aws=aws(f"http://{sound.host}"), settings=settings) as registry,
        open_pool({proxy.host: from_proxy}, emit=heard, retry=from_source) as remotes,
        open_source(f"docker://{proxy.host}/app:1.0", settings, remotes=remotes, emit=heard) as source,
    ):
        images = [(await source.image(), Destination(registry.name, repository, "1.0"))]
        [result] = await asyncpush.push_all(registry, images)
    if isinstance(result, ImageResult):
        return result
    raise result.error


def _stored(ecr: Any, repository: str) -> list[str]:
    """What the tag names, as boto3 finds it."""
    try:
        answer = ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": "1.0"}])
    except ecr.exceptions.RepositoryNotFoundException:
        return []
    return [image["imageId"]["imageDigest"] for image in answer["images"]]


#: Letters of a message that are its first words.
_WORDS = 64

_VOLATILE = {
    r"\('127\.0\.0\.1', [0-9]+\)": "HOST",
    r"(https?://)?127\.0\.0\.1(:[0-9]+)?": "HOST",
    r"sha256:[0-9a-f]{64}": "DIGEST",
    r"[0-9a-f]{8}-[0-9a-f-]{27}": "UPLOAD",
    r"[0-9]{8}T[0-9]{6}Z": "TIME",
    r"\b[0-9a-f]{12}\b": "DIGEST",
    r"cell/[0-9]+": "REPOSITORY",
    r"[0-9.]+ (seconds|bytes)": r"N \1",
    r" \([0-9]+ tries in [0-9]+ s\)": "",
    r"(config|layer) DIGEST": "blob DIGEST",  # whichever is first
}


def words(message: str, host: str, repository: str) -> str:
    """The first words of a message, without what differs from run to run."""
    for pattern, name in _VOLATILE.items():
        message = re.sub(pattern, name, message)
    message = " ".join(message.replace("|", "/").split())
    return message if len(message) <= _WORDS else message[:_WORDS].rpartition(" ")[0] + " ..."
