"""The demonstration's steps, in order: images, emulator, push, push again, verify."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
from anyio import to_thread

from asyncpush.api import connect, push_all
from asyncpush.demo.images import make_images
from asyncpush.emulator.process import local_ecr
from asyncpush.events import Emit
from asyncpush.protocols import Image
from asyncpush.reference import Destination, parse_prefix
from asyncpush.results import ImageResult, Results
from asyncpush.settings import AwsConfiguration, Settings
from asyncpush.sources import open_source
from asyncpush.verify import Verification, expected_targets, verify_all

#: Shows the progress of a push of so many images.
Display = Callable[[int], AbstractAsyncContextManager[Emit]]


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One image of the demonstration: pushed, pushed again, verified byte for byte."""

    name: str
    first: ImageResult
    second: ImageResult
    verification: Verification


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The demonstration's results.

    Attributes:
        images: each image's results.
        first_requests: requests of the first push, by operation.
        second_requests: those of the second push.
        first_seconds: how long the first push took.
        second_seconds: how long the second push took.
    """

    images: tuple[DemoImage, ...]
    first_requests: Counter[str]
    second_requests: Counter[str]
    first_seconds: float
    second_seconds: float


async def demonstrate(display: Display, say: Callable[[str], None]) -> DemoReport:
    """Run the demonstration; it reads no AWS configuration and leaves nothing behind.

    Args:
        display: shows the progress of a push of so many images.
        say: tells the user what happens next.

    Raises:
        AsyncpushError: a step failed.
    """
    with tempfile.TemporaryDirectory(prefix="asyncpush-demo-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        say("Making four images: two versions that share layers, an index of two platforms, a docker-archive ...")
        sources = await to_thread.run_sync(make_images, folder)
        async with local_ecr(folder / "ecr") as aws, AsyncExitStack() as stack:
            url = str(aws.endpoint_url)
            say(f"A local ECR runs at {url}. Pushing ...")
            images = await _open(stack, sources)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            first, first_seconds = await _push(aws, images, display)
            first_requests = await _requests(session, url)
            say("Pushing all of it again ...")
            second, second_seconds = await _push(aws, images, display)
            second_requests = await _requests(session, url) - first_requests
            say("Reading every image back, and checking each digest ...")
            verifications = await _verify(aws, images, first)
    rows = zip(images, first, second, verifications, strict=True)
    return DemoReport(
        tuple(DemoImage(str(to), one, two, verification) for (_, to), one, two, verification in rows),
        first_requests,
        second_requests,
        first_seconds,
        second_seconds,
    )


async def _open(stack: AsyncExitStack, sources: tuple[str, ...]) -> list[tuple[Image, Destination]]:
    prefix = parse_prefix("demo")
    images = []
    for source in sources:
        opened = await stack.enter_async_context(open_source(source, Settings()))
        images += [(image, prefix.join(image.repository or "image", image.tag)) for image in await opened.images()]
    return images


async def _push(
    aws: AwsConfiguration, images: list[tuple[Image, Destination]], display: Display
) -> tuple[list[ImageResult], float]:
    started = time.monotonic()
    async with (
        display(len(images)) as emit,
        connect(aws=aws, settings=Settings(create_repository=True), emit=emit) as registry,
    ):
        results = await push_all(registry, images)
    seconds = time.monotonic() - started
    results.raise_for_failures()
    return [result for result in results if isinstance(result, ImageResult)], seconds


async def _verify(
    aws: AwsConfiguration, images: list[tuple[Image, Destination]], pushed: list[ImageResult]
) -> list[Verification]:
    """Read every image back: it must be what its source has, and have the digest that it was pushed with."""
    targets = [
        replace(target, digest=result.digest)
        for (image, to), result in zip(images, pushed, strict=True)
        for target in expected_targets(image, to)
    ]
    async with connect(aws=aws) as registry:
        results = Results(await verify_all(registry, targets, deep=True))
    results.raise_for_failures()
    return [result for result in results if isinstance(result, Verification)]


async def _requests(session: aiohttp.ClientSession, url: str) -> Counter[str]:
    async with session.get(f"{url}/_emulator/requests") as answer:
        document = json.loads(await answer.read())
    return Counter({name: count for name, count in document["counts"].items() if name.isalnum()})
