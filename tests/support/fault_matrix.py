"""The outcome of every fault in every operation of a push and of a source, in one process with short waits."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
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
from support.fault_proxy import FAULTS, Proxy, spoiling
from support.images import Layout
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

#: Seconds after which nothing more will come of a cell; all waits are a fraction of it.
_LIMIT = 60.0
_STALL = 1.0
#: How long a host may be silent: as many of those as 5 minutes have.
_OUTAGE = 5.0
_AT_ONCE = 4
#: Everything that takes minutes takes a moment.
_TO_ECR = replace(NO_WAITS, read=_STALL, answer=1.5 * _STALL, throttled=1.0, lag_waits=(0.001, 0.001, 0.001))
_FROM_SOURCE = RetryPolicy(
    stall=_STALL,
    answer=2 * _STALL,
    outage=_OUTAGE,
    first_wait=0.001,
    longest_wait=0.002,
    throttled=0.05,
    first_throttled_wait=0.001,
)


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
    path = layout.tag(image, "1.0").write(folder / "image")
    async with (
        Emulator(folder / "ecr", fsync=False) as emulator,
        running(source),
        aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        ecr = await to_thread.run_sync(judge, emulator.endpoint_url)
        yield Ground(emulator, source, path, str(image["digest"]), ecr, session)


async def _with_token(request: web.Request) -> web.StreamResponse | None:
    """A registry that wants a token of its own for everything."""
    if request.path == "/token":
        return web.json_response({"token": "good"})
    if request.headers.get("Authorization") == "Bearer good":
        return None
    challenge = f'Bearer realm="http://{request.headers["Host"]}/token",service="registry",scope="repository:app:pull"'
    return web.json_response({"errors": []}, status=401, headers={"WWW-Authenticate": challenge})


async def outcomes(place: Ground, cells: Iterable[Cell]) -> dict[Cell, str]:
    """What comes of each."""
    found: dict[Cell, str] = {}
    busy, waiting = anyio.CapacityLimiter(_AT_ONCE), anyio.CapacityLimiter(2 * _AT_ONCE)

    async def one(cell: Cell) -> None:
        async with waiting if cell.fault in ("stall", "drip") else busy:
            found[cell] = await outcome(place, cell)

    async with anyio.create_task_group() as group:
        for cell in cells:
            group.start_soon(one, cell)
    return found


async def outcome(place: Ground, cell: Cell) -> str:
    """Push an image while that happens: ``pushed``, or the first words of the error."""
    repository = f"cell/{next(place.numbers)}"
    target = place.emulator.endpoint_url if cell.operation in PUSH else place.source.url
    said = HANGS
    async with spoiling(place.session, target, cell.operation, cell.fault, TIMES[cell.times]) as proxy:
        with anyio.move_on_after(_LIMIT):
            said = await _said(place, proxy, cell, repository)
        if said == PUSHED and proxy.seen[cell.operation] == 0:
            return "was never asked"
    is_pushed = said.startswith(PUSHED)
    stored = await to_thread.run_sync(partial(_stored, place.judge, repository))
    if stored not in ([place.digest], []) or (is_pushed and not stored):
        return f"{said}, and the tag names {stored}"
    return said


async def _said(place: Ground, proxy: Proxy, cell: Cell, repository: str) -> str:
    def heard(event: Event) -> None:
        if isinstance(event, Retrying):
            proxy.retried()

    try:
        result = await _push(place, proxy, cell, repository, heard)
    except AsyncpushError as error:
        return words(error.message, proxy.host, repository)
    except Exception as error:  # noqa: BLE001 - that is what the matrix looks for
        return f"a bug: {type(error).__name__}: {words(str(error), proxy.host, repository)}"
    behind = [words(each.error.message, proxy.host, repository) for each in result.referrers if each.error]
    return f"{result.outcome}, but not its signatures: {behind[0]}" if behind else result.outcome


async def _push(place: Ground, proxy: Proxy, cell: Cell, repository: str, heard: Any) -> ImageResult:
    settings = Settings(create_repository=True, max_outage=_OUTAGE, retry=_TO_ECR)
    if cell.operation in PUSH:
        async with asyncpush.connect(aws=aws(f"http://{proxy.host}"), settings=settings, emit=heard) as registry:
            return await asyncpush.push(registry, f"oci:{place.folder}", f"{repository}:1.0")
    from_proxy = SourceRegistry(host=proxy.host, plain_http=True, anonymous=True)
    async with (
        asyncpush.connect(aws=aws(place.emulator.endpoint_url), settings=settings) as registry,
        open_pool({proxy.host: from_proxy}, emit=heard, retry=_FROM_SOURCE) as remotes,
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
