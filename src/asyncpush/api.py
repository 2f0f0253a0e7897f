"""The composition root: a connection to a registry, and the pushes that the command line and programs enter by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import anyio
from anyio import CancelScope, CapacityLimiter

from asyncpush.administration import Login, RegistryAdmin, RepositoryReader
from asyncpush.ecr.http import open_http
from asyncpush.ecr.logins import open_logins as open_logins
from asyncpush.ecr.registry import EcrRegistry
from asyncpush.ecr.session import open_client
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    ConfigurationError,
    RepositoryNotFoundError,
    only_cause,
)
from asyncpush.events import Emit, ImageFailed, ignore
from asyncpush.image import ImageResult, Run, dry_run, push_image
from asyncpush.layer import Resources, push_layer
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.planning import plan_anew, plan_image
from asyncpush.protocols import Blob, Image, Journal, Repository
from asyncpush.reference import (
    Destination,
    RegistryName,
    check_repository,
    in_registry,
    parse_destination,
    parse_registry,
)
from asyncpush.referrers import carry_referrers
from asyncpush.settings import AwsConfiguration, Settings, SourceRegistry
from asyncpush.sources import file_blob, open_source
from asyncpush.sources.registry import open_remotes

#: Images that are worked on at once. Their layers share the slots; this bounds what only asks and waits.
_IMAGES_AT_ONCE = 32

#: What `layers` calls a file; ECR does not look inside, and a manifest may call it otherwise.
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

#: Connections beyond the two that may carry parts of one layer: questions, completing calls and manifests.
_SPARE_CONNECTIONS = 16


class Registry:
    """An open connection to one ECR registry; ``connect`` makes it.

    All pushes over one connection share its limits, and send each layer of a repository once. ``pace`` tells how many
    requests of each operation were sent and throttled, and how fast they may go; ``endpoint_url`` and ``region`` tell
    where they go. ``admin`` is for what concerns the whole registry, and ``login`` gives the password of its ``/v2/``.
    """

    def __init__(self, ecr: EcrRegistry, endpoint_url: str, region: str, run: Run) -> None:
        self.name = ecr.name
        self.run = run
        self.settings = run.resources.settings
        self.emit = run.resources.emit
        self.endpoint_url = endpoint_url
        self.region = region
        self.pace = ecr.pace
        self.admin: RegistryAdmin = ecr.admin
        self.login: Login = ecr.login
        self._ecr = ecr

    async def account(self) -> str | None:
        """Whose registry it is: as ``name`` has it, an alias of ECR Public's maybe, or else the caller's own account.

        Asked for once (DescribeRegistry, else GetAuthorizationToken, else STS); None if it can't be learnt. Of the
        caller's own registry, ``Repository.address`` names the account only from then on.

        Raises:
            RegistryError: ECR refuses the credentials, or can't be reached.
        """
        return await self._ecr.account()

    async def require_account(self, purpose: str) -> str:
        """Whose registry it is, for a *purpose* that can't do without, such as ``a journal``.

        Raises:
            ConfigurationError: it can't be learnt.
            RegistryError: ECR refuses the credentials, or can't be reached.
        """
        account = await self.account()
        if account is None:
            asked = "DescribeRegistries" if self.name.service == "ecr-public" else "DescribeRegistry"
            raise ConfigurationError(
                f"{purpose} must know whose registry this is, and neither {asked} nor GetAuthorizationToken nor STS "
                "tells",
                hint=f"write the registry with its account: {self._ecr.host_with_account}",
            )
        return account

    @property
    def address(self) -> str:
        """What the addresses of its repositories begin with."""
        return self._ecr.address

    def repository(self, name: str) -> Repository:
        """The repository called *name*; nothing is asked yet.

        Raises:
            InvalidReferenceError: *name* is none that ECR takes.
        """
        check_repository(name, self.name.service)
        return self._ecr.repository(name)

    def reader(self, name: str) -> RepositoryReader:
        """What reads the repository called *name* back; nothing is asked yet.

        Raises:
            InvalidReferenceError: *name* is none that ECR takes.
        """
        check_repository(name, self.name.service)
        return self._ecr.reader(name)


@asynccontextmanager
async def connect(
    registry: str | RegistryName | None = None,
    *,
    aws: AwsConfiguration | None = None,
    settings: Settings | None = None,
    emit: Emit = ignore,
    journal: Journal | None = None,
    run: Run | None = None,
) -> AsyncIterator[Registry]:
    """Connect to an ECR registry.

    Args:
        registry: its host, such as ``123456789012.dkr.ecr.eu-west-1.amazonaws.com`` or ``public.ecr.aws/ALIAS``;
            None is the caller's own registry in the configured region.
        aws: what to set over the AWS configuration of the environment: profile, region, endpoint, credentials.
        settings: the limits of all pushes over this connection.
        emit: hears of all that happens; it must not block.
        journal: remembers what ECR has acknowledged, so that a later push goes on from there (``open_journal``).
        run: what these pushes share with those of other connections, in the place of the three before.

    Raises:
        InvalidReferenceError: *registry* is no ECR registry.
        ConfigurationError: there is no region or no such profile; or there is a journal, and whose registry it is
            can't be learnt.
        CredentialsError: there are no AWS credentials, or what should give them fails.
        RegistryError: there is a journal, and ECR, which must tell whose registry it is, can't be asked.
    """
    name = parse_registry(registry) if isinstance(registry, str) else registry or RegistryName()
    if run is not None:
        journal = None  # whoever shares it asks when that costs nothing
    run = run or Run.of(Resources.of(settings or Settings(), emit, journal))
    settings, emit = run.resources.settings, run.resources.emit
    aws, connections = aws or AwsConfiguration(), 2 * settings.max_layers + _SPARE_CONNECTIONS
    async with (
        open_client(name, aws, connections) as client,
        open_http(client, connections) as http,
    ):
        ecr = EcrRegistry(client, name, aws, http, max_attempts=settings.max_attempts, emit=emit)
        opened = Registry(ecr, client.meta.endpoint_url, client.meta.region_name, run)
        if journal is not None:
            await opened.require_account("a journal")
        yield opened


async def push(
    registry: Registry,
    source: str,
    destination: str,
    *,
    platform: Platform | None = None,
    dry: bool = False,
    sources: Mapping[str, SourceRegistry] | None = None,
    referrers: bool = True,
) -> ImageResult:
    """Push one image, or one index with all that it names.

    Args:
        registry: the connection.
        source: ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:REF]``, a path, ``-``, or
            ``docker://HOST/REPOSITORY[:TAG|@DIGEST]``.
        destination: ``[REGISTRY/]REPOSITORY[:TAG]``; the tag is ``latest`` if there is none.
        platform: picks one image from an index.
        dry: only find out what would be sent.
        sources: how registries are reached that images are read from, by host; one that is not in it is reached as
            docker and podman would, and ECR with the AWS credentials.
        referrers: carry signatures, attestations and SBOMs along; those that stay behind are named in the result.

    Raises:
        UsageError: the source or destination is not well formed, or a choice is missing; nothing was sent.
        SourceError: the source can't be read, or is damaged.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    written = in_registry(parse_destination(destination), registry.name)
    to = Destination(written.registry, written.repository, written.tag or "latest")
    async with (
        open_logins(registry.settings, registry.emit) as logins,
        open_remotes(sources, logins=logins, emit=registry.emit) as remotes,
        open_source(source, registry.settings, remotes=remotes, emit=registry.emit) as opened,
    ):
        return await _push(registry, await opened.image(platform=platform), to, dry=dry, referrers=referrers)


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """An image that was not pushed, and why."""

    source: str
    destination: str
    error: AsyncpushError


async def push_all(
    registry: Registry, images: Sequence[tuple[Image, Destination]], *, dry: bool = False, referrers: bool = True
) -> list[ImageResult | ImageFailure]:
    """Push many images, whose sources are open; one that fails does not stop the others, but for lost credentials.

    Returns:
        What became of each, in the order of *images*.
    """
    outcomes: dict[int, ImageResult | ImageFailure] = {}
    at_once = CapacityLimiter(_IMAGES_AT_ONCE)

    async def one(position: int, image: Image, to: Destination) -> None:
        async with at_once:
            try:
                outcomes[position] = await _push(registry, image, to, dry=dry, referrers=referrers)
            except AsyncpushError as error:
                outcomes[position] = ImageFailure(image.source, str(to), error)
                stop.on(error)

    with only_cause():
        async with anyio.create_task_group() as tg:
            stop = Stop(tg.cancel_scope)
            for position, (image, to) in enumerate(images):
                tg.start_soon(one, position, image, to)
    for position, (image, to) in enumerate(images):
        if position not in outcomes:
            outcomes[position] = ImageFailure(image.source, str(to), stop.cause)
    return [outcomes[position] for position in range(len(images))]


class Stop:
    """Stops what is many when credentials are lost: of that all that is left would fail."""

    def __init__(self, scope: CancelScope) -> None:
        self._scope = scope
        self._cause: AsyncpushError | None = None

    @property
    def cause(self) -> AsyncpushError:
        """What has stopped them."""
        assert self._cause is not None, "only what was stopped has no outcome"  # noqa: S101
        return self._cause

    def on(self, error: AsyncpushError) -> None:
        """Stop if *error* is such a one."""
        if isinstance(error, CREDENTIALS_LOST):
            self._cause = self._cause or error
            self._scope.cancel()


async def _push(registry: Registry, image: Image, to: Destination, *, dry: bool, referrers: bool) -> ImageResult:
    repository = registry.repository(to.repository)
    try:
        if dry:
            result = await _dry_run(registry, image, repository, to)
        else:
            result = await push_image(image, repository, to.tag, str(to), registry.run)
    except AsyncpushError as error:
        registry.emit(ImageFailed(str(to), str(error)))
        raise
    if not referrers:
        return result
    return replace(result, referrers=await carry_referrers(image, repository, to, registry.run, dry=dry))


async def _dry_run(registry: Registry, image: Image, repository: Repository, to: Destination) -> ImageResult:
    try:
        plan = await plan_image(image, repository, to.tag)
    except RepositoryNotFoundError:
        if not registry.settings.create_repository:
            raise
        plan = plan_anew(image)
    return dry_run(image, str(to), plan)


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A file that is a layer of the repository now.

    Attributes:
        file: the file.
        digest: its sha256.
        size: its bytes.
        media_type: what a manifest should call it.
        outcome: ``pushed``; ``present`` if the repository had it already; ``planned`` in a dry run.
    """

    file: str
    digest: Digest
    size: int
    media_type: str
    outcome: Literal["pushed", "present", "planned"]


@dataclass(frozen=True, slots=True)
class LayerFailure:
    """A file that was not pushed, and why."""

    file: str
    error: AsyncpushError


async def push_layers(
    registry: Registry, files: Sequence[Path], repository_name: str, *, dry: bool = False
) -> list[LayerResult | LayerFailure]:
    """Push raw files as layers, as they are, many at once; one that fails does not stop the others.

    All files are hashed before the first is sent, so that one question tells which are there already. Lost credentials
    stop all.

    Returns:
        What became of each, in the order of *files*.

    Raises:
        InvalidReferenceError: *repository_name* is none that ECR takes.
        RegistryError: the repository can't be asked or created.
    """
    repository = registry.repository(repository_name)
    outcomes: dict[int, LayerResult | LayerFailure] = {}
    blobs = await _hash_all(files, outcomes)
    digests = {blob.descriptor.digest for blob in blobs.values() if blob.descriptor}
    try:
        there = await repository.available(digests) if digests else frozenset[Digest]()
    except RepositoryNotFoundError:
        if not registry.settings.create_repository:
            raise
        if not dry:
            await repository.create()
        there = frozenset()
    resources = registry.run.resources

    async def one(position: int, file: str, blob: Blob, descriptor: Descriptor) -> None:
        outcome: Literal["pushed", "present", "planned"] = "planned" if dry else "present"
        try:
            if descriptor.digest in there:
                outcome = "present"
            elif not dry:
                key = (repository.address, blob.identity)
                pushed, ours = await registry.run.layers.do(key, lambda: push_layer(repository, blob, resources))
                outcome = "pushed" if ours and pushed.outcome == "pushed" else "present"
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
                    tg.start_soon(one, position, str(files[position]), blob, blob.descriptor)
    return [outcomes.get(at) or LayerFailure(str(file), stop.cause) for at, file in enumerate(files)]


async def _hash_all(files: Sequence[Path], outcomes: dict[int, LayerResult | LayerFailure]) -> dict[int, Blob]:
    """Each file as a blob, by its position; those that can't be read are *outcomes* already."""
    blobs: dict[int, Blob] = {}

    async def one(position: int, file: Path) -> None:
        try:
            blobs[position] = await file_blob(file, _LAYER)
        except AsyncpushError as error:
            outcomes[position] = LayerFailure(str(file), error)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for position, file in enumerate(files):
                tg.start_soon(one, position, file)
    return blobs
