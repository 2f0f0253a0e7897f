"""An open connection to one registry: what programs see of it, and what all pushes over it share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from anyio import CapacityLimiter

from asyncpush.ecr.registry import EcrRegistry
from asyncpush.engine.context import PushContext
from asyncpush.errors import ConfigurationError, UsageError
from asyncpush.protocols import Login, RegistryAdmin, Repository, RepositoryReader
from asyncpush.reference import RegistryName, check_repository
from asyncpush.settings import Settings
from asyncpush.sources.registry import RegistryPool

#: Images that are worked on at once. Their layers share the slots; this bounds what only asks and waits.
_IMAGES_AT_ONCE = 32


class Registry(ABC):
    """An open connection to one ECR registry; ``connect`` makes it.

    All pushes over one connection share its limits, its connections to source registries and what those have granted,
    and send each layer of a repository once.

    Attributes:
        name: the registry, as it was asked for.
        endpoint_url: where its requests go.
        region: the region that they are signed for.
        settings: the limits.
    """

    name: RegistryName
    endpoint_url: str
    region: str
    settings: Settings

    @abstractmethod
    async def account(self) -> str | None:
        """Whose registry it is: as ``name`` has it, an alias of ECR Public's maybe, or else the caller's own account.

        Asked for once (DescribeRegistry, else GetAuthorizationToken, else STS); None if it can't be learnt. Of the
        caller's own registry, ``Repository.address`` names the account only from then on.

        Raises:
            RegistryError: ECR refuses the credentials, or can't be reached.
        """

    @abstractmethod
    def repository(self, name: str) -> Repository:
        """The repository called *name*; nothing is asked yet.

        Raises:
            InvalidReferenceError: *name* is none that ECR takes.
        """


class OpenRegistry(Registry):
    """A ``Registry`` with what the engine needs of it.

    ``pace`` tells how many requests of each operation were sent and throttled, and how fast they may go. ``admin`` is
    for what concerns the whole registry, and ``login`` gives the password of its ``/v2/``. ``remotes`` are the
    registries that images are read from, and ``images`` bounds how many are worked on at once.
    """

    def __init__(
        self, ecr: EcrRegistry, endpoint_url: str, region: str, context: PushContext, remotes: RegistryPool
    ) -> None:
        self.name = ecr.name
        self.context = context
        self.remotes = remotes
        self.settings = context.settings
        self.emit = context.emit
        self.endpoint_url = endpoint_url
        self.region = region
        self.pace = ecr.pace
        self.admin: RegistryAdmin = ecr.admin
        self.login: Login = ecr.login
        self.images = CapacityLimiter(_IMAGES_AT_ONCE)
        self._ecr = ecr

    async def account(self) -> str | None:
        """See ``Registry``."""
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

    def wait_again(self) -> None:
        """Wait once more for an endpoint that was silent for ``Settings.max_outage``: else its requests get one try."""
        self._ecr.wait_again()

    def repository(self, name: str) -> Repository:
        """See ``Registry``."""
        check_repository(name, self.name.service)
        return self._ecr.repository(name)

    def reader(self, name: str) -> RepositoryReader:
        """What reads the repository called *name* back; nothing is asked yet.

        Raises:
            InvalidReferenceError: *name* is none that ECR takes.
        """
        check_repository(name, self.name.service)
        return self._ecr.reader(name)


def engine_of(registry: Registry) -> OpenRegistry:
    """What the engine needs of *registry*.

    Raises:
        UsageError: it was not opened by ``connect``.
    """
    if not isinstance(registry, OpenRegistry):
        raise UsageError("this is not an open connection to a registry", hint="asyncpush.connect opens one")
    return registry
