"""A program that uses the library, as users write them: it is type-checked, and never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import anyio

import asyncpush


def listen(event: asyncpush.Event) -> None:
    match event:
        case asyncpush.ImageDone(destination=destination, digest=digest):
            print(destination, str(digest))
        case asyncpush.Notice(text=text):
            print(text)
        case _:
            pass


async def push_one(registry: asyncpush.Registry, archive: Path) -> asyncpush.Digest | None:
    result = await asyncpush.push(registry, archive, "team/app:1.4", platform=asyncpush.Platform.parse("linux/arm64"))
    assert_type(result, asyncpush.ImageResult)
    result.raise_for_failures()
    for name, error in result.failures:
        assert_type(error, asyncpush.AsyncpushError)
        print(name, error.hint)
    return result.digest


async def push_a_batch(registry: asyncpush.Registry, sources: list[str]) -> None:
    hub = asyncpush.SourceRegistry(host="docker.io", credentials=asyncpush.Credentials("me", "token"))

    async def one(source: str) -> None:
        try:
            await asyncpush.push(registry, source, "mirror/app", sources={"docker.io": hub}, referrers=False)
        except asyncpush.SourceDeniedError as error:
            print(source, error)

    async with anyio.create_task_group() as tg:
        for source in sources:
            tg.start_soon(one, source)


async def push_an_archive(registry: asyncpush.Registry, archive: Path) -> None:
    async with asyncpush.open_source(archive, registry=registry) as source:
        images = await source.images()
        to = [asyncpush.parse_destination(f"mirror/{image.repository}:{image.tag}") for image in images]
        results = await asyncpush.push_all(registry, list(zip(images, to, strict=True)))
    assert_type(results, asyncpush.Results[asyncpush.ImageResult | asyncpush.ImageFailure])
    for result in results:
        if isinstance(result, asyncpush.ImageFailure):
            print(result.destination, result.error)
        else:
            print(result.destination, result.digest, result.bytes_sent)
    results.raise_for_failures()


async def push_with_a_journal(files: list[Path]) -> None:
    async with (
        asyncpush.open_journal(Path("run.journal")) as journal,
        asyncpush.connect("123456789012.dkr.ecr.eu-west-1.amazonaws.com", emit=listen) as registry,
    ):
        await asyncpush.push(registry, "oci:build/app:1.4", "team/app:1.4", journal=journal)
        layers = await asyncpush.push_layers(registry, files, "team/app", journal=journal)
        layers.raise_for_failures()
        print(await registry.account(), registry.region, registry.endpoint_url, registry.settings.max_layers)


async def migrate() -> None:
    plan = await asyncpush.read_plan("plan.yaml")
    assert_type(plan, asyncpush.Plan)
    for entry in plan.entries:
        print(entry.source, [goal.repository for goal in entry.goals])
    settings = asyncpush.Settings(max_layers=16)
    async with asyncpush.open_journal(Path("plan.journal")) as journal:
        report = await asyncpush.migrate_plan(
            plan, settings=settings, journal=journal, options=asyncpush.Options(dry=True), emit=listen
        )
    assert_type(report, asyncpush.Report)
    for result in report.failed:
        print(result.copy.destination, result.error)
    report.raise_for_failures()
    (await asyncpush.verify_plan(plan, deep=True)).raise_for_failures()


async def verify(registry: asyncpush.Registry) -> bool:
    found = await asyncpush.verify_image(registry, "team/app:1.4", deep=True)
    assert_type(found, asyncpush.Verification)
    return found.is_whole and not [problem.detail for problem in found.problems]


async def main() -> None:
    aws = asyncpush.AwsConfiguration(region="us-east-1", endpoint_url="http://127.0.0.1:4510")
    async with asyncpush.connect(aws=aws, settings=asyncpush.Settings(create_repository=True)) as registry:
        assert_type(registry, asyncpush.Registry)
        await push_one(registry, Path("app.tar"))
        print(registry.run)  # type: ignore[attr-defined] # the engine's own
