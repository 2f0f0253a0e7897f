"""``asyncpush push``: images from layouts and archives into ECR."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from asyncpush.api import ImageFailure, connect, push_all
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    Limits,
    OutputOptions,
    command,
    make_aws,
    make_settings,
    parse_platform,
)
from asyncpush.cli.report import print_images
from asyncpush.cli.run import DONE, FAILED, run, say_error
from asyncpush.cli.streams import STANDARD_INPUT, say
from asyncpush.errors import SourceError, UsageError
from asyncpush.events import Emit, Event, ImageFailed, ignore
from asyncpush.image import ImageResult
from asyncpush.model import Platform
from asyncpush.progress import progress
from asyncpush.protocols import Image
from asyncpush.reference import Destination, Prefix, parse_destination, parse_prefix
from asyncpush.settings import Settings
from asyncpush.sources import open_source

app = command(
    "push",
    usage="asyncpush push [OPTIONS] SOURCE DESTINATION\n       asyncpush push [OPTIONS] SOURCE... --to REGISTRY/PREFIX",
    epilogue="""
SOURCE is one of
  oci:DIR[:TAG]              an OCI image layout
  oci-archive:FILE[:TAG]     the same in a tar archive
  docker-archive:FILE[:REF]  what docker save writes
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
""",
)


@app.default
def push(
    *paths: Annotated[str, Parameter(show=False)],
    to: Annotated[str | None, Parameter(name="--to")] = None,
    create_repository: bool = False,
    dry_run: bool = False,
    layers: LayerOptions | None = None,
    limits: Limits | None = None,
    aws: AwsOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Push images into ECR.

    Args:
        paths: What to push, and, without --to, where to: SOURCE DESTINATION.
        to: Push all images of all sources, below this registry and prefix.
        create_repository: Create a repository that does not exist.
        dry_run: Say what would be sent, and send nothing.
    """
    show = show or OutputOptions()
    layers = layers or LayerOptions()

    async def main() -> int:
        settings = make_settings(limits, layers, create_repository=create_repository)
        platform = parse_platform(layers.platform)
        given = ["-" if path == STANDARD_INPUT else path for path in paths]
        sources, goal = _sources_and_goal(given, to)
        async with AsyncExitStack() as stack:
            # First, since it takes no time to tell that there is no region, and much to read an archive from a pipe.
            listener = _Listener()
            registry = await stack.enter_async_context(
                connect(goal.registry, aws=make_aws(aws), settings=settings, emit=listener)
            )
            images, unread = await _prepare_all(stack, sources, goal, platform, settings, show.quiet)
            results: list[ImageResult | ImageFailure] = [*unread]
            if images:
                listener.face = await stack.enter_async_context(progress(show.face, images=len(images)))
                listener.tells_failures = show.face == "json" or len(images) > 1
                results += await push_all(registry, images, dry=dry_run)
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


async def _prepare_all(
    stack: AsyncExitStack,
    sources: Sequence[str],
    goal: Destination | Prefix,
    platform: Platform | None,
    settings: Settings,
    quiet: bool,
) -> tuple[list[tuple[Image, Destination]], list[ImageFailure]]:
    """The images of all *sources*, and the sources that can't be read: those do not keep the others from going."""
    images: list[tuple[Image, Destination]] = []
    unread: list[ImageFailure] = []
    for source in sources:
        try:
            images += await _prepare(stack, source, goal, platform, settings, quiet)
        except SourceError as error:
            unread.append(ImageFailure(source, "", error))
    _refuse_collisions(images)
    return images, unread


async def _prepare(
    stack: AsyncExitStack,
    source: str,
    goal: Destination | Prefix,
    platform: Platform | None,
    settings: Settings,
    quiet: bool,
) -> list[tuple[Image, Destination]]:
    """Open *source*, and say where each of its images goes; all that can be wrong with it shows here."""
    if source == "-" and not quiet:
        say("asyncpush: reading an archive from standard input")
    opened = await stack.enter_async_context(open_source(source, settings))
    if isinstance(goal, Destination):
        image = await opened.image(platform=platform)
        return [(image, replace(goal, tag=goal.tag or "latest"))]
    pairs = []
    for image in await opened.images(platform=platform):
        if image.repository is None:
            raise UsageError(f"{image.source} names no repository", hint="push it on its own: SOURCE DESTINATION")
        pairs.append((image, goal.join(image.repository, image.tag)))
    return pairs


class _Listener:
    """Passes events on to a face, which comes once it is known how many images there are.

    The failure of an only image is left to the error line, where people read it; that says why it failed.
    """

    def __init__(self) -> None:
        self.face: Emit = ignore
        self.tells_failures = True

    def __call__(self, event: Event) -> None:
        if self.tells_failures or not isinstance(event, ImageFailed):
            self.face(event)


def _conclude(results: Sequence[ImageResult | ImageFailure], show: OutputOptions) -> int:
    failures = [result for result in results if isinstance(result, ImageFailure)]
    if len(failures) == len(results) and all(isinstance(failure.error, UsageError) for failure in failures):
        # Credentials are looked for with the first request: nothing was sent, and all failed of the same.
        raise failures[0].error
    print_images(results, show.output)
    for failure in failures:
        say_error(failure.error, about=_about(failure, len(results)))
    return FAILED if failures else DONE


def _about(failure: ImageFailure, results: int) -> str | None:
    """What a failure's line must name beside its own words; a source that can't be opened names itself."""
    if isinstance(failure.error, SourceError):
        return failure.source if failure.destination else None
    return failure.destination if results > 1 else None


def _refuse_collisions(images: Sequence[tuple[Image, Destination]]) -> None:
    taken: dict[str, Image] = {}
    for image, to in images:
        other = taken.setdefault(str(to), image)
        if other is not image and to.tag is not None:
            raise UsageError(f"{other.source} and {image.source} both go to {to}", hint="push them one by one")
