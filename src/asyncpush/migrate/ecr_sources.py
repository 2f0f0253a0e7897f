"""Source registries that are ECR's: what its API tells about their repositories, beyond what every registry serves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio

from asyncpush.api import open_registry
from asyncpush.connection import OpenRegistry
from asyncpush.engine.context import PushContext
from asyncpush.errors import AsyncpushError, ConfigurationError, SourceArchivedError, SourceNotFoundError, UsageError
from asyncpush.events import Notice
from asyncpush.migrate.plan.model import PlanEntry
from asyncpush.model import ArchivedImage, RepositoryInfo, restoring
from asyncpush.reference import RegistryName, parse_registry
from asyncpush.settings import AwsConfiguration, RepositorySettings, SourceRegistry
from asyncpush.single_flight import SingleFlight
from asyncpush.sources.registry import has_ecr_api, is_ecr

_ARN_PARTS = 6


class EcrSources:
    """The source registries of a migration that are ECR's; each is connected to when it is first needed.

    Args:
        registries: how to reach source registries, by host.
        push: what all pushes share.
        stack: keeps the connections open.
    """

    def __init__(self, registries: Mapping[str, SourceRegistry], push: PushContext, stack: AsyncExitStack) -> None:
        self._registries = registries
        self._push = push
        self._stack = stack
        self._lock = anyio.Lock()
        self._opened: dict[str, OpenRegistry | ConfigurationError] = {}
        self._listing: SingleFlight[Mapping[str, RepositoryInfo]] = SingleFlight()
        self._listed: dict[str, Mapping[str, RepositoryInfo]] = {}
        self._settings: SingleFlight[RepositorySettings] = SingleFlight()
        self._archived: SingleFlight[ArchivedImages] = SingleFlight()
        self._silent: set[str] = set()

    @property
    def opened(self) -> tuple[OpenRegistry, ...]:
        """Those that were connected to."""
        return tuple(opened for opened in self._opened.values() if isinstance(opened, OpenRegistry))

    def has(self, host: str) -> bool:
        """Whether the registry at *host* is a private one of ECR."""
        return has_ecr_api(host, self._registries.get(host))

    async def at(self, host: str) -> OpenRegistry:
        """The connection to the registry at *host*.

        Raises:
            ConfigurationError: there is no region, no such profile, or no credentials.
        """
        async with self._lock:
            if host not in self._opened:
                registry = self._registries.get(host)
                aws = (registry.aws if registry else None) or AwsConfiguration()
                name = parse_registry(host) if is_ecr(host) else RegistryName()
                opening = open_registry(name, aws, self._push)
                try:
                    self._opened[host] = await self._stack.enter_async_context(opening)
                except ConfigurationError as error:
                    self._opened[host] = error  # to look for credentials may take long
            opened = self._opened[host]
        if isinstance(opened, ConfigurationError):
            raise opened
        return opened

    async def repositories(self, host: str) -> Mapping[str, RepositoryInfo]:
        """All repositories of the registry at *host*, by name; they are listed once.

        Raises:
            ConfigurationError: there are no credentials.
            RegistryError: ECR refuses, or can't be reached.
        """

        async def listed() -> Mapping[str, RepositoryInfo]:
            found = await (await self.at(host)).admin.all_repositories()
            self._listed[host] = {repository.name: repository for repository in found}
            return self._listed[host]

        repositories, _ = await self._listing.do(host, listed)
        return repositories

    async def settings_for(self, entry: PlanEntry, target: OpenRegistry) -> RepositorySettings:
        """The settings of a new repository in *target* that is like the source of *entry*.

        Raises:
            SourceNotFoundError: the source does not exist.
            UsageError: the source's key can't be used in the target, and the plan names no other.
            RegistryError: ECR refuses to describe the source, or can't be reached.
        """
        given = entry.repository_settings
        source = await self.at(entry.host)

        async def read() -> RepositorySettings:
            return await source.admin.settings_of(await self._describe(entry), given)

        settings, _ = await self._settings.do((entry.host, entry.repository, given), read)
        if given.encryption is None and given.kms_key is None and settings.kms_key:
            key = _Key.parse(settings.kms_key, await source.account() or "", source.region)
            account = await target.account()
            if (key.region, key.account if account else None) != (target.region, account):
                raise ForeignKeyError(settings.kms_key, account, target.region)
        return settings

    async def _describe(self, entry: PlanEntry) -> RepositoryInfo:
        described = self._listed.get(entry.host)
        if described is None:
            described = await (await self.at(entry.host)).admin.repositories([entry.repository])
        if entry.repository not in described:
            raise SourceNotFoundError(f"{entry.host} has no repository {entry.repository}", hint="check the name")
        return described[entry.repository]

    async def archived(self, host: str, repository: str) -> ArchivedImages:
        """The archived images of a repository; none for other registries, and where ECR does not tell."""

        async def ask() -> ArchivedImages:
            try:
                found = await (await self.at(host)).admin.archived_images(repository)
            except AsyncpushError as error:
                found, reason = None, str(error)
            else:
                reason = "allow ecr:DescribeImages"
            if found is None and host not in self._silent:
                self._silent.add(host)
                self._push.emit(Notice(f"{host} does not tell which of its images are archived: {reason}"))
            return ArchivedImages(tuple(found or ()))

        if not self.has(host):
            return ArchivedImages()
        found, _ = await self._archived.do((host, repository), ask)
        return found


class ForeignKeyError(UsageError):
    """Raised when the key of a source's encryption can't be used for its target.

    Args:
        key: the key.
        account: the target's account; None if that is unknown.
        region: the target's region.
    """

    def __init__(self, key: str, account: str | None, region: str) -> None:
        self.key = key
        super().__init__(
            f"{key} can't encrypt repositories of {account or 'the target'} in {region}",
            hint="write beside like: source which key can: kms_key: ARN, or kms_key: alias/aws/ecr for AWS's own",
        )


@dataclass(frozen=True, slots=True)
class _Key:
    """Where a key of KMS is."""

    account: str
    region: str

    @classmethod
    def parse(cls, text: str, account: str, region: str) -> _Key:
        """Read an ARN; anything else names a key of *account* in *region*."""
        parts = text.split(":", _ARN_PARTS - 1)
        if len(parts) < _ARN_PARTS or parts[0] != "arn":
            return cls(account, region)
        return cls(parts[4], parts[3])


@dataclass(frozen=True, slots=True)
class ArchivedImages:
    """The archived images of a repository."""

    images: tuple[ArchivedImage, ...] = ()
    _by_name: dict[str, ArchivedImage] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for image in self.images:
            self._by_name.update(dict.fromkeys((*image.tags, image.digest), image))

    @property
    def tags(self) -> tuple[str, ...]:
        """Their tags, sorted."""
        return tuple(sorted(tag for image in self.images for tag in image.tags))

    def find(self, reference: str) -> ArchivedImage | None:
        """The image with this tag or digest; None if it is not archived."""
        return self._by_name.get(reference)

    def named_in(self, text: str) -> ArchivedImage | None:
        """The first image whose digest occurs in *text*."""
        return next((image for image in self.images if image.digest in text), None)


def reason_of(image: ArchivedImage) -> str:
    """Why an archived image can't be copied."""
    return "archived at the source" if image.status == "ARCHIVED" else "being restored at the source"


def archived_error(entry: PlanEntry, name: str, image: ArchivedImage) -> SourceArchivedError:
    """The error for an archived image of *entry*, which *name* refers to: trying again does not help."""
    separator = "@" if name.startswith("sha256:") else ":"
    hint = f"restore it first: {restoring(entry.repository, name)}"
    if image.status != "ARCHIVED":
        hint = "run the same command again when it is ACTIVE"
    return SourceArchivedError(f"{entry.host}/{entry.repository}{separator}{name} is {reason_of(image)}", hint=hint)
