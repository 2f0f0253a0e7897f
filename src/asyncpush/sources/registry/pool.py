"""The registries of a run: each opened when it is first used, all closed together; and one image as a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from asyncpush.events import Emit, ignore
from asyncpush.protocols import Image
from asyncpush.reference import RemoteReference, canonical_host
from asyncpush.settings import RetryPolicy, SourceRegistry
from asyncpush.sources.registry.logins import Logins, no_logins
from asyncpush.sources.source import Platforms, each_platform

if TYPE_CHECKING:
    # The HTTP client of registries is imported when the first is opened: most pushes read from none.
    from asyncpush.sources.registry.client import RegistryClient
    from asyncpush.sources.registry.pull_limit import PullLimit
    from asyncpush.sources.registry.source_registry import SourceRegistryReader


class RegistryPool:
    """Registries that images are read from, each opened when it is first used; ``open_pool`` creates it.

    Registries with the same configuration share their connections, tokens and cached manifests.
    """

    def __init__(
        self,
        registries: Mapping[str, SourceRegistry],
        logins: Logins,
        emit: Emit,
        retry: RetryPolicy,
        stack: AsyncExitStack,
    ) -> None:
        self._registries = {canonical_host(host): registry for host, registry in registries.items()}
        self._logins = logins
        self._emit = emit
        self._retry = retry
        self._stack = stack
        self._readers: dict[SourceRegistry, SourceRegistryReader] = {}
        self._clients: list[RegistryClient] = []

    def with_registries(self, registries: Mapping[str, SourceRegistry]) -> RegistryPool:
        """This pool, with other configurations of *registries*, by host."""
        if not registries:
            return self
        merged = self._registries | dict(registries)
        pool = RegistryPool(merged, self._logins, self._emit, self._retry, self._stack)
        pool._readers, pool._clients = self._readers, self._clients
        return pool

    @property
    def pulls(self) -> dict[str, tuple[PullLimit, int]]:
        """Of each registry that limits pulls, by host: what it allows, and the manifests that were read from it."""
        readers = self._readers.values()
        return {
            reader.host: (limit, reader.requests["GET manifest"])
            for reader in readers
            if (limit := reader.pull_limit) is not None
        }

    @property
    def requests(self) -> Counter[str]:
        """How many requests of each kind were sent to all registries."""
        return sum((reader.requests for reader in self._readers.values()), Counter[str]())

    def at(self, host: str) -> SourceRegistryReader:
        """The registry at *host*; without a configuration, it is reached as by docker and podman.

        Raises:
            InvalidReferenceError: *host* is not a host.
        """
        from asyncpush.sources.registry.client import RegistryClient
        from asyncpush.sources.registry.source_registry import SourceRegistryReader

        host = canonical_host(host)
        registry = self._registries.get(host) or SourceRegistry(host=host)
        if registry not in self._readers:
            client = RegistryClient(registry, self._logins, self._emit, self._retry)
            self._stack.push_async_callback(client.aclose)
            self._clients.append(client)
            self._readers[registry] = SourceRegistryReader(client)
        return self._readers[registry]

    def wait_again(self) -> None:
        """Wait again for hosts that were silent for too long."""
        for client in self._clients:
            client.wait_again()


@asynccontextmanager
async def open_pool(
    registries: Mapping[str, SourceRegistry] | None = None,
    *,
    logins: Logins = no_logins,
    emit: Emit = ignore,
    retry: RetryPolicy | None = None,
) -> AsyncIterator[RegistryPool]:
    """Open a pool of registries, until the context is left.

    Args:
        registries: their configurations, by host; others are reached as by docker and podman.
        logins: creates the login of registries that accept AWS credentials.
        emit: receives each retry.
        retry: the time limits, and when requests are sent again.
    """
    async with AsyncExitStack() as stack:
        yield RegistryPool(registries or {}, logins, emit, retry or RetryPolicy(), stack)


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """The one image that a reference names (``source.Source``).

    Attributes:
        reader: its registry.
        reference: the reference that the user wrote.
        push_foreign_layers: whether non-distributable layers are pushed, too.
    """

    reader: SourceRegistryReader
    reference: RemoteReference
    push_foreign_layers: bool = False

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """The image, as the only one; see ``image``."""
        return (await self.image(platform=platform),)

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """The image, as the only one; see ``image``."""
        return (await self.image(platform=platform),)

    async def image(self, *, platform: Platforms = None) -> Image:
        """Read the image that the tag names now.

        Args:
            platform: of an index, take only the image for this platform, or those for several.

        Raises:
            ChoiceError: there is no image for *platform*.
            SourceError: the registry refuses or can't be reached, or the image is incomplete or malformed.
        """
        from asyncpush.sources.registry.source_registry import RepositoryReferrers

        reference = self.reference
        descriptor = (await self.reader.manifest(reference.repository, reference.target)).descriptor
        root = await self.reader.load(
            reference.repository,
            descriptor,
            each_platform(platform),
            push_foreign_layers=self.push_foreign_layers,
        )
        tags = partial(self.reader.tags, reference.repository)
        referrers = RepositoryReferrers(self.reader, reference.repository, tags, self.reader.emit)
        return Image(str(reference), reference.name, reference.tag, root, referrers)
