"""An open connection to one registry: its public interface, and what all pushes over it share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from anyio import CapacityLimiter

from asyncpush.ecr.rate_limit import OperationStatistics
from asyncpush.ecr.registry import EcrRegistry
from asyncpush.engine.context import PushContext
from asyncpush.errors import ConfigurationError, UsageError
from asyncpush.protocols import Login, ObjectStore, RegistryAdmin, Repository, RepositoryReader
from asyncpush.reference import RegistryName, check_repository
from asyncpush.settings import Settings
from asyncpush.sources.registry import RegistryPool

#: Images that are pushed at once. Their layers share the slots; this limits the images that only ask and wait.
_IMAGES_AT_ONCE = 32


class Registry(ABC):
    """An open connection to one ECR registry; ``connect`` makes it.

    All pushes over one connection share its limits and its connections and tokens for source registries, and send each
    layer to a repository once.

    Attributes:
        name: the registry, as given to ``connect``.
        endpoint_url: the endpoint of its requests.
        region: the region for which requests are signed.
        settings: the limits.
    """

    name: RegistryName
    endpoint_url: str
    region: str
    settings: Settings

    @abstractmethod
    async def account(self) -> str | None:
        """Return the account that owns the registry: the one in ``name`` (or ECR Public's alias), or the caller's own.

        The caller's own is asked for once (DescribeRegistry, else GetAuthorizationToken, else STS); None if none of
        them names it. ``Repository.address`` contains the caller's account only after this call.

        Raises:
            RegistryError: ECR refuses the credentials, or can't be reached.
        """

    @abstractmethod
    def statistics(self) -> tuple[OperationStatistics, ...]:
        """Return the requests so far: of each operation, how many were sent, sent again and throttled, and its rate."""

    @abstractmethod
    def repository(self, name: str) -> Repository:
        """Return the repository called *name*, without a request.

        Raises:
            InvalidReferenceError: ECR does not accept *name*.
        """


class OpenRegistry(Registry):
    """The implementation of ``Registry``, with what the engine needs besides.

    ``pace`` counts the requests of each operation and limits their rates. ``admin`` manages the repositories and
    settings of the registry, and ``login`` gets the password of its ``/v2/``. ``remotes`` are the source registries,
    ``objects`` reads archives in S3, and ``images`` limits how many images are pushed at once.
    """

    def __init__(
        self,
        ecr: EcrRegistry,
        endpoint_url: str,
        region: str,
        context: PushContext,
        remotes: RegistryPool,
        objects: ObjectStore,
    ) -> None:
        self.name = ecr.name
        self.context = context
        self.remotes = remotes
        self.objects = objects
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
        """Return the account that owns the registry, for a *purpose* that requires it, such as ``a journal``.

        Raises:
            ConfigurationError: nothing names the account.
            RegistryError: ECR refuses the credentials, or can't be reached.
        """
        account = await self.account()
        if account is None:
            operation = "DescribeRegistries" if self.name.service == "ecr-public" else "DescribeRegistry"
            raise ConfigurationError(
                f"{purpose} must know whose registry this is, and neither {operation} nor GetAuthorizationToken nor "
                "STS tells",
                hint=f"write the registry with its account: {self._ecr.host_with_account}",
            )
        return account

    @property
    def address(self) -> str:
        """The prefix of the addresses of its repositories."""
        return self._ecr.address

    def wait_again(self) -> None:
        """Wait again for an endpoint that was silent for ``Settings.max_outage``; else each request has one try."""
        self._ecr.wait_again()

    def statistics(self) -> tuple[OperationStatistics, ...]:
        """See ``Registry``."""
        return self.pace.statistics()

    def repository(self, name: str) -> Repository:
        """See ``Registry``."""
        check_repository(name, self.name.service)
        return self._ecr.repository(name)

    def reader(self, name: str) -> RepositoryReader:
        """Return the reader of the repository called *name*, without a request.

        Raises:
            InvalidReferenceError: ECR does not accept *name*.
        """
        check_repository(name, self.name.service)
        return self._ecr.reader(name)


def engine_of(registry: Registry) -> OpenRegistry:
    """Return *registry* with the members that the engine needs.

    Raises:
        UsageError: ``connect`` did not open it.
    """
    if not isinstance(registry, OpenRegistry):
        raise UsageError("this is not an open connection to a registry", hint="asyncpush.connect opens one")
    return registry
