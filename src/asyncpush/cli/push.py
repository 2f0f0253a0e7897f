"""``asyncpush push`` and ``asyncpush layers``: images, or plain files as layers, into ECR."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeAlias

import anyio
from anyio import to_thread
from cyclopts import Parameter

from asyncpush.api import Registry, connect, open_logins, open_objects, push_all, push_layers
from asyncpush.cli import github
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
    without_endpoint,
)
from asyncpush.cli.report import (
    OUTCOME_WORDS,
    Finally,
    Summary,
    print_images,
    print_layers,
    say_summary,
)
from asyncpush.cli.run import run, say_error, say_failures, status_of
from asyncpush.cli.streams import STANDARD_INPUT, say, say_notice
from asyncpush.errors import (
    AsyncpushError,
    ChoiceError,
    InvalidReferenceError,
    SourceError,
    UnforeseenError,
    UsageError,
    foreseen,
    only_cause,
)
from asyncpush.events import Emit, Event, Listener, Notice
from asyncpush.model import Platform
from asyncpush.protocols import Image, ObjectStore
from asyncpush.reference import Destination, Prefix, check_tag, parse_destination, parse_prefix, registry_of
from asyncpush.results import ImageFailure, ImageResult, LayerFailure, LayerResult
from asyncpush.settings import AwsConfiguration, RetryPolicy, Settings
from asyncpush.sources import UnreadImage, is_stream, open_source
from asyncpush.sources.registry import RegistryPool, is_ecr, is_remote, open_pool, parse_remote
from asyncpush.sources.streams import check_stream
from asyncpush.timeline import Timeline, TimelineRecorder
from asyncpush.traffic import Traffic, TrafficCounter

app = command(
    "push",
    usage="asyncpush push [OPTIONS] SOURCE DESTINATION\n       asyncpush push [OPTIONS] SOURCE... --to REGISTRY/PREFIX",
    epilogue="""
SOURCE is one of
  oci:DIR[:TAG]              an OCI image layout
  oci-archive:FILE[:TAG]     an OCI image layout in a tar archive
  docker-archive:FILE[:REF]  the output of docker save
  docker://HOST/REPO[:TAG|@DIGEST]
                             an image in another registry
  docker-daemon:NAME[:TAG|@DIGEST]
                             an image in Docker on this machine
  containers-storage:NAME[:TAG|@DIGEST]
                             an image of podman or buildah on this machine
  s3://BUCKET/KEY[:TAG]      an archive in S3
  PATH                       a layout or archive; the format is detected
  -                          an archive on standard input
If an archive has several images, :REF or :@N selects one.

DESTINATION is one of
  ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY[:TAG]
  public.ecr.aws/ALIAS/REPOSITORY[:TAG]
  REPOSITORY[:TAG]           in your own registry
The default TAG is latest; --tag gives the image more tags. With --to, images
keep their own names and tags.

Examples
  asyncpush push docker-daemon:app:1.4 team/app:1.4
  asyncpush push images/*.tar --to mirror --create-repository
  asyncpush push docker://quay.io/team/app:1.4 team/app:1.4
  asyncpush push oci:build team/app --tag 1.4.2 --tag 1.4 --tag latest
""",
)


@app.default
def push(
    *paths: Annotated[str, Parameter(show=False)],
    to: Annotated[str | None, Parameter(name="--to")] = None,
    tag: Annotated[list[str] | None, Parameter(name="--tag")] = None,
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
        paths: SOURCE DESTINATION; with --to, only sources.
        to: Push all images of all sources to this REGISTRY/PREFIX.
        tag: Give the image this tag, too; may be repeated.
        create_repository: Create repositories that do not exist.
        dry_run: Show what would be sent, but send nothing.
        no_referrers: Do not push the signatures, attestations and SBOMs that refer to the images.
        journal: Record in this file what ECR has acknowledged. After an interruption, run the same command again
            to resume.
    """
    show = show or OutputOptions()
    layers = layers or LayerOptions()
    given = ["-" if path == STANDARD_INPUT else path for path in paths]
    so_far = _SoFar(given if to is not None else given[:1], given[1] if to is None and len(given) > 1 else "")
    ending = Finally(show.output, so_far.print_json)

    async def main() -> int:
        settings = make_settings(limits, layers, create_repository=create_repository)
        platforms = parse_platforms(layers.platform)
        sources, destination = _sources_and_destination(given, to, aws)
        tags = _tags(destination, tag or ())
        for stream in filter(is_stream, sources):
            check_stream(stream)
        hosts = [parse_remote(source).host for source in sources if is_remote(source)]
        registries = make_source_registries(source, hosts)
        if aws is not None and aws.profile is not None:
            # ECR's host names tell the region, but not the profile.
            registries |= {
                host: replace(registry, aws=AwsConfiguration(profile=aws.profile))
                for host, registry in registries.items()
                if is_ecr(host)
            }
        async with AsyncExitStack() as stack:
            # First, since a missing region shows at once, while reading an archive from a pipe takes long.
            started, counter = time.monotonic(), TrafficCounter()
            listener = _Listener(show, counter)
            emit = Listener(listener)
            if show.display == "json":  # its reader gets the end, whatever happens before the images are known
                listener.open(await stack.enter_async_context(github.grouped_progress("json")))
            opened_journal = None
            if journal and not dry_run:
                from asyncpush.journal import open_journal

                opened_journal = await stack.enter_async_context(open_journal(journal))
            registry = await stack.enter_async_context(
                connect(destination.registry, aws=make_aws(aws), settings=settings, emit=emit, journal=opened_journal)
            )
            logins = await stack.enter_async_context(open_logins(settings, emit))
            remotes = await stack.enter_async_context(
                open_pool(registries, logins=logins, emit=emit, retry=RetryPolicy.of(settings))
            )
            from_s3 = AwsConfiguration(profile=aws.profile if aws else None, region=registry.region)
            objects = await stack.enter_async_context(open_objects(from_s3, settings.retry, emit))
            opening = _Opening(stack, settings, remotes, objects, platforms, emit, show)
            images, unread = await _prepare_all(opening, sources, destination, tags)
            so_far.prepared(images, unread)
            results: list[ImageResult | ImageFailure] = [*unread]
            if images and show.display != "json":
                showing = github.grouped_progress(
                    show.display, images=len(images), each=show.shows_each, summarized=show.display != "none"
                )
                listener.open(await stack.enter_async_context(showing))
            if images:
                results += await push_all(
                    registry, images, dry=dry_run, referrers=not no_referrers, on_result=so_far.ended
                )
            listener.close()
            traffic = _traffic(registry, remotes, counter)
        await to_thread.run_sync(github.report, [_row(result) for result in results])
        status = _conclude(results, show, traffic, listener.timeline(), ending)
        # The error of a single image says all; `--progress json` ends with totals of its own.
        if show.display not in ("none", "json") and (len(results) > 1 or not _failed(results)):
            say_summary(_summary(results, traffic, counter.sent, time.monotonic() - started), each=show.verbose)
        return status

    return run(main, verbose=show.verbose, end_early=ending.end_early)


class _SoFar:
    """What was done so far, for a push that ends early.

    Args:
        sources: the sources that were given.
        destination: the destination, if there is only one.
    """

    def __init__(self, sources: Sequence[str], destination: str) -> None:
        self._asked = [(source, destination) for source in sources]
        self._unread: Sequence[ImageFailure] = ()
        self._ended: dict[int, ImageResult | ImageFailure] = {}

    def prepared(self, images: Sequence[tuple[Image, Destination]], unread: Sequence[ImageFailure]) -> None:
        """The sources hold *images*, and *unread* that can't be pushed."""
        self._asked = [(image.source, str(to)) for image, to in images]
        self._unread = unread

    def ended(self, position: int, result: ImageResult | ImageFailure) -> None:
        """The push of an image has ended."""
        self._ended[position] = result

    def print_json(self, cause: AsyncpushError) -> None:
        """Print the results as JSON; an image without one has failed for *cause*."""
        rest = [
            self._ended.get(position) or ImageFailure(source, to, cause)
            for position, (source, to) in enumerate(self._asked)
        ]
        print_images([*self._unread, *rest], "json", stopped=cause)


def _sources_and_destination(
    paths: Sequence[str], to: str | None, aws: AwsOptions | None
) -> tuple[Sequence[str], Destination | Prefix]:
    if to is not None:
        if not paths:
            raise UsageError("no source was given", hint="write asyncpush push SOURCE... --to REGISTRY/PREFIX")
        destination = parse_prefix(without_endpoint(to, aws))
        if ":" in destination.path or "@" in destination.path:
            raise UsageError(f"--to {to} names a tag, but images keep their own tags", hint="write REGISTRY/PREFIX")
        return paths, destination
    if len(paths) != 2:
        given = f"{len(paths)} arguments" if len(paths) > 1 else f"only {paths[0]!r}" if paths else "neither"
        raise UsageError(
            f"push takes SOURCE DESTINATION, but was given {given}",
            hint="to push several sources, use --to REGISTRY/PREFIX",
        )
    return paths[:1], parse_destination(without_endpoint(paths[1], aws))


def _tags(destination: Destination | Prefix, more: Sequence[str]) -> tuple[str, ...]:
    """The tags of the only image: that of the destination, and *more*; none if images keep their own."""
    if isinstance(destination, Prefix):
        if more:
            raise UsageError("--tag has no effect with --to, since images keep their own tags", hint="leave one out")
        return ()
    for tag in more:
        check_tag(tag)
    own = destination.tag or (None if more else "latest")
    return tuple(dict.fromkeys((*([own] if own else ()), *more)))


@dataclass(frozen=True, slots=True)
class _Opening:
    """What opening each source needs; *stack* keeps sources open."""

    stack: AsyncExitStack
    settings: Settings
    remotes: RegistryPool
    objects: ObjectStore
    platforms: tuple[Platform, ...]
    emit: Emit
    show: OutputOptions

    def tell(self, text: str) -> None:
        """Tell that something begins that can take long."""
        if self.show.display == "json":
            self.emit(Notice(text))
        elif not self.show.quiet:
            say(f"asyncpush: {text}")


Prepared: TypeAlias = "tuple[Image, Destination] | ImageFailure"


async def _prepare_all(
    opening: _Opening, sources: Sequence[str], destination: Destination | Prefix, tags: Sequence[str]
) -> tuple[list[tuple[Image, Destination]], list[ImageFailure]]:
    """The images of all *sources*, and the failures: sources and images that can't be read or have no destination."""
    found: dict[int, list[Prepared]] = {}

    async def prepare(position: int, source: str) -> None:
        try:
            with foreseen():
                found[position] = await _prepare(opening, source, destination, tags)
        except (SourceError, ChoiceError, UnforeseenError) as error:
            found[position] = [ImageFailure(source, "", error)]

    with only_cause():
        async with anyio.create_task_group() as tg:
            for position, source in enumerate(sources):
                if is_remote(source):
                    tg.start_soon(prepare, position, source)
                else:
                    await prepare(position, source)
    prepared = [result for position in sorted(found) for result in found[position]]
    images = [result for result in prepared if not isinstance(result, ImageFailure)]
    return _each_once(images, opening.emit), [result for result in prepared if isinstance(result, ImageFailure)]


async def _prepare(
    opening: _Opening, source: str, destination: Destination | Prefix, tags: Sequence[str]
) -> list[Prepared]:
    """Open *source*, and find the destination of each of its images."""
    if source == "-" or is_stream(source):
        opening.tell(f"reading {'an archive from standard input' if source == '-' else source}")
    opened = await opening.stack.enter_async_context(
        open_source(source, opening.settings, remotes=opening.remotes, objects=opening.objects, emit=opening.emit)
    )
    if isinstance(destination, Destination):
        image = await opened.image(platform=opening.platforms)
        return [(image, replace(destination, tag=tag)) for tag in tags]
    return [_placed(image, destination) for image in await opened.all_images(platform=opening.platforms)]


def _placed(image: Image | UnreadImage, destination: Prefix) -> Prepared:
    if isinstance(image, UnreadImage):
        return ImageFailure(image.source, "", image.error)
    if image.repository is None:
        error = UsageError(
            f"{image.source} names no repository", hint="push it alone: asyncpush push SOURCE DESTINATION"
        )
        return ImageFailure(image.source, "", error)
    try:
        return image, destination.join(image.repository, image.tag)
    except InvalidReferenceError as error:
        return ImageFailure(image.source, "", error)


class _Listener:
    """Passes events on to *counter*, and to a display, which opens once the number of images is known."""

    def __init__(self, show: OutputOptions, counter: TrafficCounter) -> None:
        self._show = show
        self._counter = counter
        self._display: Emit = self._keep
        self._kept: list[Event] = []
        self._recorder = TimelineRecorder() if show.output == "json" else None

    def timeline(self) -> Timeline | None:
        """The course of the run so far; None if it is not printed."""
        return self._recorder.timeline() if self._recorder else None

    def __call__(self, event: Event) -> None:
        if self._recorder:
            self._recorder(event)
        self._counter(event)
        self._display(event)

    def open(self, display: Emit) -> None:
        """Pass on the events so far, and all that follow."""
        self._display = self._say if self._show.display == "none" else display
        for event in self._kept:
            self._display(event)
        self._kept.clear()

    def close(self) -> None:
        """Write the notices that no display took."""
        for event in self._kept:
            self._say(event)

    def _keep(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._kept.append(event)

    def _say(self, event: Event) -> None:
        if not self._show.quiet:
            say_notice(event)


def _traffic(registry: Registry, remotes: RegistryPool, counter: TrafficCounter) -> Traffic:
    statistics = registry.statistics()
    requests = Counter({each.operation: each.sent for each in statistics})
    requests.update(remotes.requests)
    pace = {each.operation: each.rate for each in statistics if each.rate is not None}
    return counter.traffic(requests, pace)


def _summary(results: Sequence[ImageResult | ImageFailure], traffic: Traffic, sent: int, seconds: float) -> Summary:
    done = [result for result in results if isinstance(result, ImageResult)]
    images = Counter(OUTCOME_WORDS[result.outcome] for result in done)
    images[OUTCOME_WORDS["failed"]] = len(results) - len(done)
    is_dry = any(result.outcome == "planned" for result in done)
    return Summary(
        images=images,
        referrers=Counter(OUTCOME_WORDS[referrer.outcome] for result in done for referrer in result.referrers),
        sizes={
            "to send" if is_dry else "sent": sum(result.bytes_sent for result in done) if is_dry else sent,
            "already there": sum(result.bytes_present for result in done),
            "shared": sum(result.bytes_shared for result in done),
        },
        traffic=traffic,
        seconds=seconds,
    )


def _conclude(
    results: Sequence[ImageResult | ImageFailure],
    show: OutputOptions,
    traffic: Traffic,
    timeline: Timeline | None,
    ending: Finally,
) -> int:
    failures = _failed(results)
    if len(failures) == len(results) and all(isinstance(failure.error, UsageError) for failure in failures):
        # Nothing was sent. Credentials are looked up with the first request, so that all images fail alike.
        different = {str(failure.error): failure for failure in reversed(failures)}
        if len(different) == 1:
            raise failures[0].error
        if show.output == "json":
            ending.is_printing()
            print_images(results, show.output, traffic, timeline)
        for failure in reversed(different.values()):
            say_error(failure.error, about=_about(failure, len(results)))
        return status_of([failure.error for failure in failures], begun=False)
    ending.is_printing()
    print_images(results, show.output, traffic, timeline, each=show.verbose)
    say_failures(
        [(failure.error, failure.destination, _about(failure, len(results))) for failure in failures],
        len(results),
        each=show.verbose,
    )
    referrers = [referrer for result in results if isinstance(result, ImageResult) for referrer in result.referrers]
    failed = [(referrer, referrer.error) for referrer in referrers if referrer.outcome == "failed" and referrer.error]
    for referrer, error in failed:
        say_error(error, about=f"{referrer.source}, which refers to {referrer.subject.short}")
    errors = [failure.error for failure in failures] + [error for _, error in failed]
    return status_of(errors)


def _failed(results: Sequence[ImageResult | ImageFailure]) -> list[ImageFailure]:
    return [result for result in results if isinstance(result, ImageFailure)]


def _row(result: ImageResult | ImageFailure) -> github.Row:
    if isinstance(result, ImageFailure):
        return github.Row(result.destination or result.source, "failed", note=str(result.error))
    digest = str(result.digest) if result.digest and result.outcome != "planned" else ""
    return github.Row(
        result.destination, OUTCOME_WORDS[result.outcome], digest, result.bytes_sent, reference=result.reference
    )


def _about(failure: ImageFailure, results: int) -> str | None:
    """What the line of a failure must name in addition; most errors of sources name the source."""
    if isinstance(failure.error, SourceError) or not failure.destination:
        alone = results == 1 and not failure.destination
        return None if alone or _names(str(failure.error), failure.source) else failure.source
    return failure.destination if results > 1 else None


def _names(text: str, source: str) -> bool:
    return re.search(rf"(?<![\w./:-]){re.escape(source)}(?![\w/-])", text) is not None


def _each_once(images: Sequence[tuple[Image, Destination]], emit: Emit) -> list[tuple[Image, Destination]]:
    """*images* with distinct destinations; two images with the same destination must be the same image."""
    taken: dict[str, Image] = {}
    different: list[tuple[Image, Destination]] = []
    for image, to in images:
        other = taken.setdefault(str(to), image)
        if other is image or to.tag is None:
            different.append((image, to))
        elif other.content != image.content:
            raise UsageError(f"{other.source} and {image.source} both go to {to}", hint="push them one by one")
        elif other.source != image.source:
            emit(Notice(f"{image.source} is the same image as {other.source}; it is pushed to {to} once"))
    return different


layers_app = command(
    "layers",
    usage="asyncpush layers [OPTIONS] FILE... --repository-name NAME",
    epilogue="""
Example
  asyncpush layers base.tar.gz app.tar.gz --repository-name team/app
""",
)


@layers_app.default
def layers(
    *files: Annotated[Path, Parameter(show=False)],
    repository_name: str,
    registry_id: str | None = None,
    create_repository: bool = False,
    dry_run: bool = False,
    limits: LimitOptions | None = None,
    aws: AwsOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Push files as layers, unchanged, and print their digests.

    Args:
        files: The layers: usually tar archives, compressed or not.
        repository_name: The repository to push to.
        registry_id: The account that owns the registry. By default, your own account.
        create_repository: Create the repository if it does not exist.
        dry_run: Show which layers are missing in the repository, but send nothing.
    """
    show = show or OutputOptions()
    ended: dict[int, LayerResult | LayerFailure] = {}

    def so_far(cause: AsyncpushError) -> None:
        print_layers([ended.get(at) or LayerFailure(str(file), cause) for at, file in enumerate(files)], "json", cause)

    ending = Finally(show.output, so_far)

    async def main() -> int:
        if not files:
            raise UsageError("no file was given", hint="write asyncpush layers FILE... --repository-name NAME")
        settings = make_settings(limits, create_repository=create_repository)
        async with (
            github.grouped_progress(show.display) as emit,
            connect(registry_of(registry_id), aws=make_aws(aws), settings=settings, emit=emit) as registry,
        ):
            results = await push_layers(registry, files, repository_name, dry=dry_run, on_result=ended.__setitem__)
        ending.is_printing()
        print_layers(results, show.output)
        failures = [result for result in results if isinstance(result, LayerFailure)]
        told = [
            (failure.error, failure.file, None if _names(str(failure.error), failure.file) else failure.file)
            for failure in failures
        ]
        say_failures(told, len(results), each=show.verbose)
        return status_of([failure.error for failure in failures])

    return run(main, verbose=show.verbose, end_early=ending.end_early)
