"""``asyncpush push``: images from layouts, archives and registries into ECR."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeAlias

import anyio
from cyclopts import Parameter

from asyncpush.api import connect, open_logins, push_all
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    LimitOptions,
    OutputOptions,
    SourceOptions,
    command,
    make_aws,
    make_settings,
    make_source_registries,
    parse_platforms,
)
from asyncpush.cli.report import print_images
from asyncpush.cli.run import DONE, FAILED, USAGE, run, say_error, say_lost
from asyncpush.cli.streams import STANDARD_INPUT, say, say_notice
from asyncpush.engine.image import ImageResult
from asyncpush.errors import (
    CREDENTIALS_LOST,
    ChoiceError,
    InvalidReferenceError,
    SourceError,
    UnforeseenError,
    UsageError,
    foreseen,
    only_cause,
)
from asyncpush.events import Emit, Event, ImageFailed, Listener, Notice
from asyncpush.journal import open_journal
from asyncpush.model import Platform
from asyncpush.progress import progress
from asyncpush.protocols import Image
from asyncpush.reference import Destination, Prefix, parse_destination, parse_prefix
from asyncpush.results import ImageFailure
from asyncpush.settings import AwsConfiguration, RetryPolicy, Settings
from asyncpush.sources import UnreadImage, open_source
from asyncpush.sources.registry import RegistryPool, is_ecr, is_remote, open_pool, parse_remote

app = command(
    "push",
    usage="asyncpush push [OPTIONS] SOURCE DESTINATION\n       asyncpush push [OPTIONS] SOURCE... --to REGISTRY/PREFIX",
    epilogue="""
SOURCE is one of
  oci:DIR[:TAG]              an OCI image layout
  oci-archive:FILE[:TAG]     the same in a tar archive
  docker-archive:FILE[:REF]  what docker save writes
  docker://HOST/REPO[:TAG|@DIGEST]
                             an image in another registry
  PATH                       one of these, told from its content
  -                          an archive on standard input
Of several images, :REF or :@N chooses one.

DESTINATION is one of
  ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY[:TAG]
  public.ecr.aws/ALIAS/REPOSITORY[:TAG]
  REPOSITORY[:TAG]           in your own registry
Without a TAG it is latest. With --to, names and tags are the images' own.

Examples
  docker save app:1.4 | asyncpush push - team/app:1.4
  asyncpush push images/*.tar --to mirror --create-repository
  asyncpush push docker://quay.io/team/app:1.4 team/app:1.4
""",
)


@app.default
def push(
    *paths: Annotated[str, Parameter(show=False)],
    to: Annotated[str | None, Parameter(name="--to")] = None,
    create_repository: bool = False,
    dry_run: bool = False,
    no_referrers: bool = False,
    journal: Path | None = None,
    layers: LayerOptions | None = None,
    limits: LimitOptions | None = None,
    source: SourceOptions | None = None,
    aws: AwsOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Push images into ECR.

    Args:
        paths: What to push, and, without --to, where to: SOURCE DESTINATION.
        to: Push all images of all sources, below this registry and prefix.
        create_repository: Create a repository that does not exist.
        dry_run: Say what would be sent, and send nothing.
        no_referrers: Leave behind the signatures, attestations and SBOMs that refer to the images.
        journal: Remember in this file what ECR has acknowledged. After an interruption, run the same
            command again to resume.
    """
    show = show or OutputOptions()
    layers = layers or LayerOptions()

    async def main() -> int:
        settings = make_settings(limits, layers, create_repository=create_repository)
        platforms = parse_platforms(layers.platform)
        given = ["-" if path == STANDARD_INPUT else path for path in paths]
        sources, goal = _sources_and_goal(given, to)
        hosts = [parse_remote(each).host for each in sources if is_remote(each)]
        registries = make_source_registries(source, hosts)
        if aws is not None and aws.profile is not None:
            # ECR's own hosts tell their region, but not who asks.
            registries |= {
                host: replace(registry, aws=AwsConfiguration(profile=aws.profile))
                for host, registry in registries.items()
                if is_ecr(host)
            }
        async with AsyncExitStack() as stack:
            # First, since it takes no time to tell that there is no region, and much to read an archive from a pipe.
            listener = _Listener(show)
            heard = Listener(listener)
            kept = await stack.enter_async_context(open_journal(journal)) if journal and not dry_run else None
            registry = await stack.enter_async_context(
                connect(goal.registry, aws=make_aws(aws), settings=settings, emit=heard, journal=kept)
            )
            logins = await stack.enter_async_context(open_logins(settings, heard))
            remotes = await stack.enter_async_context(
                open_pool(registries, logins=logins, emit=heard, retry=RetryPolicy.of(settings))
            )
            opening = _Opening(stack, settings, remotes, platforms, heard)
            if "-" in sources and not show.quiet:
                say("asyncpush: reading an archive from standard input")
            images, unread = await _prepare_all(opening, sources, goal)
            results: list[ImageResult | ImageFailure] = [*unread]
            if images:
                face = await stack.enter_async_context(progress(show.face, images=len(images)))
                listener.open(face, tells_failures=show.face == "json" or len(images) > 1)
                results += await push_all(registry, images, dry=dry_run, referrers=not no_referrers)
            listener.close()
        return _conclude(results, show)

    return run(main, verbose=show.verbose)


def _sources_and_goal(paths: Sequence[str], to: str | None) -> tuple[Sequence[str], Destination | Prefix]:
    if to is not None:
        if not paths:
            raise UsageError("there is nothing to push", hint="asyncpush push SOURCE... --to REGISTRY/PREFIX")
        goal = parse_prefix(to)
        if ":" in goal.path or "@" in goal.path:
            raise UsageError(f"--to {to} names a tag", hint="tags are the images' own; write REGISTRY/PREFIX")
        return paths, goal
    if len(paths) != 2:
        given = f"{len(paths)} words" if len(paths) > 1 else f"only {paths[0]!r}" if paths else "neither"
        raise UsageError(
            f"push takes SOURCE DESTINATION, and was given {given}",
            hint="for several sources write --to REGISTRY/PREFIX",
        )
    return paths[:1], parse_destination(paths[1])


@dataclass(frozen=True, slots=True)
class _Opening:
    """What the opening of each source takes; *stack* keeps them open."""

    stack: AsyncExitStack
    settings: Settings
    remotes: RegistryPool
    platforms: tuple[Platform, ...]
    emit: Emit


Prepared: TypeAlias = "tuple[Image, Destination] | ImageFailure"


async def _prepare_all(
    opening: _Opening, sources: Sequence[str], goal: Destination | Prefix
) -> tuple[list[tuple[Image, Destination]], list[ImageFailure]]:
    """The images of all *sources*, and what can't be read or put there: that does not keep the others from going."""
    found: dict[int, list[Prepared]] = {}

    async def one(position: int, source: str) -> None:
        try:
            with foreseen():
                found[position] = await _prepare(opening, source, goal)
        except (SourceError, ChoiceError, UnforeseenError) as error:
            found[position] = [ImageFailure(source, "", error)]

    with only_cause():
        async with anyio.create_task_group() as tg:
            for position, source in enumerate(sources):
                if is_remote(source):
                    tg.start_soon(one, position, source)
                else:
                    await one(position, source)
    prepared = [each for position in sorted(found) for each in found[position]]
    images = [each for each in prepared if not isinstance(each, ImageFailure)]
    return _each_once(images, opening.emit), [each for each in prepared if isinstance(each, ImageFailure)]


async def _prepare(opening: _Opening, source: str, goal: Destination | Prefix) -> list[Prepared]:
    """Open *source*, and say where each of its images goes; all that can be wrong with it shows here."""
    opened = await opening.stack.enter_async_context(
        open_source(source, opening.settings, remotes=opening.remotes, emit=opening.emit)
    )
    if isinstance(goal, Destination):
        image = await opened.image(platform=opening.platforms)
        return [(image, replace(goal, tag=goal.tag or "latest"))]
    return [_placed(image, goal) for image in await opened.all_images(platform=opening.platforms)]


def _placed(image: Image | UnreadImage, goal: Prefix) -> Prepared:
    if isinstance(image, UnreadImage):
        return ImageFailure(image.source, "", image.error)
    if image.repository is None:
        error = UsageError(f"{image.source} names no repository", hint="push it on its own: SOURCE DESTINATION")
        return ImageFailure(image.source, "", error)
    try:
        return image, goal.join(image.repository, image.tag)
    except InvalidReferenceError as error:
        return ImageFailure(image.source, "", error)


class _Listener:
    """Passes events on to a face, which comes once it is known how many images there are.

    The failure of an only image is left to the error line, where people read it; that says why it failed.
    """

    def __init__(self, show: OutputOptions) -> None:
        self._show = show
        self._face: Emit = self._keep
        self._kept: list[Event] = []
        self._tells_failures = True

    def __call__(self, event: Event) -> None:
        if self._tells_failures or not isinstance(event, ImageFailed):
            self._face(event)

    def open(self, face: Emit, *, tells_failures: bool) -> None:
        """Pass on what has happened so far, and all that will."""
        self._tells_failures = tells_failures
        self._face = self._say if self._show.face == "none" else face
        for event in self._kept:
            self._face(event)
        self._kept.clear()

    def close(self) -> None:
        """Say what nobody was there to hear."""
        for event in self._kept:
            self._say(event)

    def _keep(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._kept.append(event)

    def _say(self, event: Event) -> None:
        if not self._show.quiet:
            say_notice(event)


def _conclude(results: Sequence[ImageResult | ImageFailure], show: OutputOptions) -> int:
    failures = [result for result in results if isinstance(result, ImageFailure)]
    if len(failures) == len(results) and all(isinstance(failure.error, UsageError) for failure in failures):
        # Nothing was sent. Credentials are looked for with the first request, and all fail of the same.
        different = {str(failure.error): failure for failure in reversed(failures)}
        if len(different) == 1:
            raise failures[0].error
        for failure in reversed(different.values()):
            say_error(failure.error, about=_about(failure, len(results)))
        return USAGE
    print_images(results, show.output)
    for failure in failures:
        if not isinstance(failure.error, CREDENTIALS_LOST):
            say_error(failure.error, about=_about(failure, len(results)))
    say_lost([(failure.error, failure.destination) for failure in failures], len(results))
    left = [each for result in results if isinstance(result, ImageResult) for each in result.referrers if each.error]
    for referrer in left:
        if referrer.outcome == "failed" and referrer.error:
            say_error(referrer.error, about=f"{referrer.source}, which refers to {referrer.subject.short}")
    return FAILED if failures or any(each.outcome == "failed" for each in left) else DONE


def _about(failure: ImageFailure, results: int) -> str | None:
    """What a failure's line must name beside its own words; a source that can't be opened mostly names itself."""
    if isinstance(failure.error, SourceError) or not failure.destination:
        alone = results == 1 and not failure.destination
        return None if alone or _names(str(failure.error), failure.source) else failure.source
    return failure.destination if results > 1 else None


def _names(text: str, source: str) -> bool:
    return re.search(rf"(?<![\w./:-]){re.escape(source)}(?![\w/-])", text) is not None


def _each_once(images: Sequence[tuple[Image, Destination]], emit: Emit) -> list[tuple[Image, Destination]]:
    """*images* without those that go where another one goes, which must then be the same image."""
    taken: dict[str, Image] = {}
    different: list[tuple[Image, Destination]] = []
    for image, to in images:
        other = taken.setdefault(str(to), image)
        if other is image or to.tag is None:
            different.append((image, to))
        elif other.content != image.content:
            raise UsageError(f"{other.source} and {image.source} both go to {to}", hint="push them one by one")
        elif other.source != image.source:
            emit(Notice(f"{image.source} is the same image as {other.source}; both go to {to}, and it is pushed once"))
    return different
