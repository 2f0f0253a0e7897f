"""The entry points of the command line and of programs: connect to a registry, and push images and layers to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import anyio
from anyio import CancelScope

from asyncpush import open_files
from asyncpush.connection import OpenRegistry, engine_of
from asyncpush.connection import Registry as Registry
from asyncpush.ecr.auth_token import open_logins as open_logins
from asyncpush.ecr.http_session import open_http
from asyncpush.ecr.regions import partition_of as partition_of
from asyncpush.ecr.registry import EcrRegistry
from asyncpush.ecr.s3 import open_objects as open_objects
from asyncpush.ecr.session import Transport, open_client
from asyncpush.engine.context import PushContext
from asyncpush.engine.diff import assume_missing, diff_image
from asyncpush.engine.image import dry_run, push_image
from asyncpush.engine.layer import push_layer
from asyncpush.engine.referrers import carry_referrers
from asyncpush.errors import CREDENTIALS_LOST, AsyncpushError, RepositoryNotFoundError, foreseen, only_cause
from asyncpush.events import Emit, ImageFailed, Listener, ignore
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import Blob, Image, Journal, ObjectStore, Repository
from asyncpush.reference import Destination, RegistryName, in_registry, parse_destination, parse_registry
from asyncpush.results import ImageFailure, ImageResult, LayerFailure, LayerResult, Results, ResultT
from asyncpush.settings import AwsConfiguration, RetryPolicy, Settings, SourceRegistry
from asyncpush.sources import Source, file_blob
from asyncpush.sources import open_source as open_any_source
from asyncpush.sources.registry import open_pool

#: The media type of a pushed file. ECR does not check it, and a manifest may name another one.
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

#: Connections besides the two for the parts of each layer: for queries, completing calls and manifests.
_SPARE_CONNECTIONS = 16


@asynccontextmanager
async def connect(
    registry: str | RegistryName | None = None,
    *,
    aws: AwsConfiguration | None = None,
    settings: Settings | None = None,
    emit: Emit = ignore,
    journal: Journal | None = None,
) -> AsyncIterator[Registry]:
    """Connect to an ECR registry.

    Args:
        registry: its host, such as ``123456789012.dkr.ecr.eu-west-1.amazonaws.com`` or ``public.ecr.aws/ALIAS``;
            None is the caller's own registry in the configured region.
        aws: overrides of the AWS configuration of the environment: profile, region, endpoint, credentials.
        settings: the limits of all pushes over this connection.
        emit: receives all events; it must not block. After it has raised an exception, it is not called again.
        journal: records what ECR has acknowledged, so that a later push resumes from there (``open_journal``).

    Raises:
        InvalidReferenceError: *registry* is not an ECR registry.
        ConfigurationError: there is no region or no such profile; or there is a journal, and nothing names the account
            that owns the registry.
        CredentialsError: there are no AWS credentials, or their provider fails.
        RegistryError: there is a journal, and ECR can't be asked for the account that owns the registry.
    """
    name = parse_registry(registry) if isinstance(registry, str) else registry or RegistryName()
    context = PushContext.of(settings or Settings(), Listener(emit), journal)
    async with open_registry(name, aws or AwsConfiguration(), context) as opened:
        if journal is not None:
            await opened.require_account("a journal")
        yield opened


@asynccontextmanager
async def open_registry(name: RegistryName, aws: AwsConfiguration, context: PushContext) -> AsyncIterator[OpenRegistry]:
    """Connect to the registry called *name*; its pushes share *context* with those over other connections.

    If *context* has a journal, the caller must call ``OpenRegistry.require_account`` before it pushes anything.

    Raises:
        ConfigurationError: there is no region or no such profile.
        CredentialsError: there are no AWS credentials, or their provider fails.
    """
    settings, emit = context.settings, context.emit
    connections = open_files.share(2 * settings.max_layers + _SPARE_CONNECTIONS)
    async with (
        open_client(name, aws, connections, Transport(read_timeout=settings.retry.read)) as client,
        open_http(client, connections, settings.retry.read) as http,
        open_logins(settings, emit) as logins,
        open_pool(logins=logins, emit=emit, retry=RetryPolicy.of(settings)) as remotes,
        open_objects(AwsConfiguration(region=client.meta.region_name), settings.retry, emit) as objects,
    ):
        ecr = EcrRegistry(client, name, aws, http, settings=settings, emit=emit, brake=context.brake)
        yield OpenRegistry(ecr, client.meta.endpoint_url, client.meta.region_name, context, remotes, objects)


@asynccontextmanager
async def open_source(
    source: str | Path,
    settings: Settings | None = None,
    *,
    registry: Registry | None = None,
    sources: Mapping[str, SourceRegistry] | None = None,
    stdin: BinaryIO | None = None,
    emit: Emit = ignore,
) -> AsyncIterator[Source]:
    """Open a source and list its images; their blobs can be read until it is closed.

    Args:
        source: as in ``push``. ``@N`` or ``@DIGEST`` instead of a tag selects an image by position or digest.
        settings: how uncompressed layers are compressed, whether foreign layers are pushed, and whether an index may be
            reduced to the platforms that the source holds; None uses those of *registry*.
        registry: the connection to push the images over: its connections to source registries are then shared.
        sources: how to reach source registries, by host; as in ``push``.
        stdin: the input for ``-``; None is the standard input of the process.
        emit: receives notices about missing images, repeated requests, and the like.

    Raises:
        InvalidReferenceError: the kind of *source* is unknown.
        SourceError: it can't be read, or does not match its description.
    """
    listener = Listener(emit)
    async with AsyncExitStack() as stack:
        if registry is not None:
            settings, remotes = settings or registry.settings, engine_of(registry).remotes
            objects: ObjectStore = engine_of(registry).objects
        else:
            settings = settings or Settings()
            logins = await stack.enter_async_context(open_logins(settings, listener))
            remotes = await stack.enter_async_context(
                open_pool(logins=logins, emit=listener, retry=RetryPolicy.of(settings))
            )
            objects = await stack.enter_async_context(open_objects(AwsConfiguration(), settings.retry, listener))
        remotes = remotes.with_registries(sources or {})
        opening = open_any_source(source, settings, stdin=stdin, remotes=remotes, objects=objects, emit=listener)
        yield await stack.enter_async_context(opening)


async def push(
    registry: Registry,
    source: str | Path,
    destination: str,
    *,
    platform: Platform | Collection[Platform] | None = None,
    dry: bool = False,
    sources: Mapping[str, SourceRegistry] | None = None,
    referrers: bool = True,
    journal: Journal | None = None,
) -> ImageResult:
    """Push one image, or one index with everything that it names.

    Any number of calls may run at once: one connection pushes 32 images at a time, and the others wait.

    Args:
        registry: the connection.
        source: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:REF]``, a path, ``-``,
            ``docker://HOST/REPOSITORY[:TAG|@DIGEST]``, ``docker-daemon:NAME[:TAG|@DIGEST]``,
            ``containers-storage:NAME[:TAG|@DIGEST]``, or ``s3://BUCKET/KEY[:TAG]``, which is read with the AWS
            credentials of the environment. A ``Path`` is a layout or an archive, whatever its name.
        destination: ``[REGISTRY/]REPOSITORY[:TAG]``; the default tag is ``latest``.
        platform: selects one image of an index; several platforms make an index of their images.
        dry: only find out what would be sent.
        sources: how to reach source registries, by host; asyncpush reaches others as docker and podman do, and ECR with
            the AWS credentials.
        referrers: also push signatures, attestations and SBOMs; the result names those that were not pushed.
        journal: records what ECR has acknowledged; None uses the connection's.

    Raises:
        UsageError: the source or destination is not well formed, or the source requires a choice; nothing was sent.
        SourceError: the source can't be read, or is damaged.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    engine = engine_of(registry)
    parsed = in_registry(parse_destination(destination), registry.name)
    to = Destination(parsed.registry, parsed.repository, parsed.tag or "latest")
    remotes = engine.remotes.with_registries(sources or {})
    context = (await _context(engine, None if dry else journal)).for_next_call()
    async with (
        engine.images,
        open_any_source(source, registry.settings, remotes=remotes, objects=engine.objects, emit=engine.emit) as opened,
    ):
        image, repository = await opened.image(platform=platform), engine.repository(to.repository)
        return await _push(engine, context, repository, image, to, dry=dry, referrers=referrers)


async def _context(engine: OpenRegistry, journal: Journal | None) -> PushContext:
    """The context of a push: the connection's, with the push's own *journal* if it has one."""
    if journal is None or journal is engine.context.journal:
        return engine.context
    await engine.require_account("a journal")
    return replace(engine.context, journal=journal)


async def push_all(
    registry: Registry,
    images: Sequence[tuple[Image, Destination]],
    *,
    dry: bool = False,
    referrers: bool = True,
    on_result: Callable[[int, ImageResult | ImageFailure], None] | None = None,
) -> Results[ImageResult | ImageFailure]:
    """Push many images of open sources. An image that fails does not stop the others; lost credentials stop all.

    Args:
        registry: the connection.
        images: the images, and where they go.
        dry: only find out what would be sent.
        referrers: also push signatures, attestations and SBOMs.
        on_result: gets the position in *images* and the result of each image as it ends; who cancels the call knows
            from it what was done. An image that is pushed again, since its repository was deleted meanwhile, has a
            second result. It must not block.

    Returns:
        The result of each image, in the order of *images*.
    """
    engine = engine_of(registry)
    batch = _Batch(engine, engine.context.for_next_call(), images, dry, referrers, _Outcomes(on_result))
    stop = await batch.push(range(len(images)))
    while not stop.is_stopped and (lost := batch.take_lost()):
        stop = await batch.push(lost)
    for position, (image, to) in enumerate(images):
        if position not in batch.outcomes:
            batch.outcomes[position] = ImageFailure(image.source, str(to), stop.cause)
    return Results(batch.outcomes[position] for position in range(len(images)))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images that one call pushes, and their results.

    Attributes:
        repositories: the repositories so far, by name; shared, because each caches what ECR says about it.
        pushed_at: when each image was pushed, by the monotonic clock.
    """

    engine: OpenRegistry
    context: PushContext
    images: Sequence[tuple[Image, Destination]]
    dry: bool
    referrers: bool
    outcomes: _Outcomes[ImageResult | ImageFailure]
    repositories: dict[str, Repository] = field(default_factory=dict)
    pushed_at: dict[int, float] = field(default_factory=dict)

    async def push(self, positions: Iterable[int]) -> Stop:
        """Push the images at *positions*."""
        with only_cause():
            async with anyio.create_task_group() as tg:
                stop = Stop(tg.cancel_scope)
                for position in positions:
                    tg.start_soon(self._push_one, position, stop)
        return stop

    async def _push_one(self, position: int, stop: Stop) -> None:
        image, to = self.images[position]
        async with self.engine.images:
            try:
                repository = self._repository(to.repository)
                with foreseen():
                    pushed = await _push(
                        self.engine, self.context, repository, image, to, dry=self.dry, referrers=self.referrers
                    )
            except AsyncpushError as error:
                self.outcomes[position] = ImageFailure(image.source, str(to), error)
                stop.on(error)
            else:
                self.pushed_at[position] = time.monotonic()
                self.outcomes[position] = pushed

    def _repository(self, name: str) -> Repository:
        if name not in self.repositories:
            self.repositories[name] = self.engine.repository(name)
        return self.repositories[name]

    def take_lost(self) -> list[int]:
        """Remove the results of images whose repository was deleted after them, and created again for others."""
        lost = [
            position
            for position, moment in self.pushed_at.items()
            if self.context.created.is_newer(self._repository(self.images[position][1].repository), moment)
        ]
        for position in lost:
            del self.outcomes[position], self.pushed_at[position]
        return lost


class _Outcomes(dict[int, ResultT]):
    """Results by their position; *listen* gets each as it ends."""

    def __init__(self, listen: Callable[[int, ResultT], None] | None) -> None:
        super().__init__()
        self._listen = listen

    def __setitem__(self, position: int, result: ResultT) -> None:
        super().__setitem__(position, result)
        if self._listen is not None:
            self._listen(position, result)


class Stop:
    """Stops many tasks when credentials are lost, because all remaining tasks would fail.

    Args:
        scope: the cancel scope of the tasks.
    """

    def __init__(self, scope: CancelScope) -> None:
        self._scope = scope
        self._cause: AsyncpushError | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether the tasks were stopped."""
        return self._cause is not None

    @property
    def cause(self) -> AsyncpushError:
        """The error that has stopped the tasks."""
        assert self._cause is not None, "only stopped tasks have no outcome"  # noqa: S101
        return self._cause

    def on(self, error: AsyncpushError) -> None:
        """Stop the tasks if *error* means that the credentials are lost."""
        if isinstance(error, CREDENTIALS_LOST):
            self._cause = self._cause or error
            self._scope.cancel()


async def _push(
    engine: OpenRegistry,
    context: PushContext,
    repository: Repository,
    image: Image,
    to: Destination,
    *,
    dry: bool,
    referrers: bool,
) -> ImageResult:
    try:
        with foreseen():
            if dry:
                result = await _dry_run(engine, image, repository, to)
            else:
                result = await push_image(image, repository, to.tag, str(to), context)
    except AsyncpushError as error:
        engine.emit(ImageFailed(str(to), str(error)))
        raise
    if not referrers:
        return result
    return replace(result, referrers=await carry_referrers(image, repository, to, context, dry=dry))


async def _dry_run(registry: Registry, image: Image, repository: Repository, to: Destination) -> ImageResult:
    try:
        diff = await diff_image(image, repository, to.tag)
    except RepositoryNotFoundError:
        if not registry.settings.create_repository:
            raise
        diff = assume_missing(image)
    return dry_run(image, str(to), diff)


async def push_layers(
    registry: Registry,
    files: Sequence[str | Path],
    repository_name: str,
    *,
    dry: bool = False,
    journal: Journal | None = None,
    on_result: Callable[[int, LayerResult | LayerFailure], None] | None = None,
) -> Results[LayerResult | LayerFailure]:
    """Push raw files as layers, unchanged and many at once. A file that fails does not stop the others.

    All files are hashed before the first is sent, so that one request finds out which layers the repository has. Lost
    credentials stop all.

    Args:
        registry: the connection.
        files: the layers, usually tar archives, compressed or not.
        repository_name: the repository to push to.
        dry: only find out which layers are missing.
        journal: records what ECR has acknowledged; None uses the connection's.
        on_result: gets the position in *files* and the result of each file as it ends; it must not block.

    Returns:
        The result of each file, in the order of *files*.

    Raises:
        InvalidReferenceError: ECR does not accept *repository_name*.
        RegistryError: the repository can't be queried or created.
    """
    repository = registry.repository(repository_name)
    outcomes = _Outcomes(on_result)
    blobs = await _hash_all(files, outcomes)
    digests = {blob.descriptor.digest for blob in blobs.values() if blob.descriptor}
    try:
        present = await repository.available(digests) if digests else frozenset[Digest]()
    except RepositoryNotFoundError:
        if not registry.settings.create_repository:
            raise
        if not dry:
            await repository.create()
        present = frozenset()
    context = await _context(engine_of(registry), None if dry else journal)

    async def push_one(position: int, file: str, blob: Blob, descriptor: Descriptor) -> None:
        outcome: Literal["pushed", "present", "planned"] = "present"
        try:
            if descriptor.digest not in present:
                with foreseen():
                    outcome = "planned" if dry else await _send_once(context, repository, blob)
        except AsyncpushError as error:
            outcomes[position] = LayerFailure(file, error)
            stop.on(error)
            return
        outcomes[position] = LayerResult(file, descriptor.digest, descriptor.size, descriptor.media_type, outcome)

    with only_cause():
        async with anyio.create_task_group() as tg:
            stop = Stop(tg.cancel_scope)
            for position, blob in blobs.items():
                if blob.descriptor is not None:
                    tg.start_soon(push_one, position, str(files[position]), blob, blob.descriptor)
    return Results(outcomes.get(position) or LayerFailure(str(file), stop.cause) for position, file in enumerate(files))


async def _send_once(context: PushContext, repository: Repository, blob: Blob) -> Literal["pushed", "present"]:
    """Push a layer whose digest is known, unless another call has pushed it or is pushing it."""
    outcome: Literal["pushed", "present"] = "present"

    async def send() -> None:
        nonlocal outcome
        pushed = await push_layer(repository, blob, context)
        outcome = "pushed" if pushed.outcome == "pushed" else "present"

    await context.layers.do((repository.address, blob.identity), send)
    return outcome


async def _hash_all(
    files: Sequence[str | Path], outcomes: MutableMapping[int, LayerResult | LayerFailure]
) -> dict[int, Blob]:
    """Return each file as a blob, by its position; files that can't be read become failures in *outcomes*."""
    blobs: dict[int, Blob] = {}

    async def hash_one(position: int, file: str | Path) -> None:
        try:
            with foreseen():
                blobs[position] = await file_blob(Path(file), _LAYER_TYPE)
        except AsyncpushError as error:
            outcomes[position] = LayerFailure(str(file), error)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for position, file in enumerate(files):
                tg.start_soon(hash_one, position, file)
    return blobs
