"""Many registries as sources: each opened when it is first used, all closed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from asyncpush.events import Emit, ignore
from asyncpush.protocols import Image
from asyncpush.reference import RemoteReference, canonical_host
from asyncpush.settings import RetryPolicy, SourceRegistry
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.credentials import Logins, no_logins
from asyncpush.sources.registry.source_registry import RepositoryReferrers, SourceRegistryReader
from asyncpush.sources.source import Platforms, each_platform


class RegistryPool:
    """Registries that images are read from, each opened when it is first used; ``open_pool`` makes it.

    Those that are reached in the same way share their connections, tokens and what is known of them.
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
        self._remotes: dict[SourceRegistry, SourceRegistryReader] = {}
        self._wires: list[RegistryClient] = []

    def reached_by(self, registries: Mapping[str, SourceRegistry]) -> RegistryPool:
        """The same, but for how *registries* are reached, by host."""
        if not registries:
            return self
        all_of_them = self._registries | dict(registries)
        remotes = RegistryPool(all_of_them, self._logins, self._emit, self._retry, self._stack)
        remotes._remotes, remotes._wires = self._remotes, self._wires
        return remotes

    @property
    def requests(self) -> Counter[str]:
        """How many requests of each kind were sent, to all of them."""
        return sum((remote.requests for remote in self._remotes.values()), Counter[str]())

    def at(self, host: str) -> SourceRegistryReader:
        """The registry at *host*; one that nothing was given for is reached as docker and podman would.

        Raises:
            InvalidReferenceError: *host* is none.
        """
        host = canonical_host(host)
        registry = self._registries.get(host) or SourceRegistry(host=host)
        if registry not in self._remotes:
            wire = RegistryClient(registry, self._logins, self._emit, self._retry)
            self._stack.push_async_callback(wire.aclose)
            self._wires.append(wire)
            self._remotes[registry] = SourceRegistryReader(wire)
        return self._remotes[registry]

    def wait_again(self) -> None:
        """Wait for hosts once more that were silent for too long."""
        for wire in self._wires:
            wire.wait_again()


@asynccontextmanager
async def open_pool(
    registries: Mapping[str, SourceRegistry] | None = None,
    *,
    logins: Logins = no_logins,
    emit: Emit = ignore,
    retry: RetryPolicy | None = None,
) -> AsyncIterator[RegistryPool]:
    """Read from any number of registries, until the context is left.

    Args:
        registries: how each is reached, by its host; those that are not there are reached as docker and podman would.
        logins: makes the login of registries that AWS credentials open.
        emit: hears of each request that is sent again.
        retry: time limits, and how often that is.
    """
    async with AsyncExitStack() as stack:
        yield RegistryPool(registries or {}, logins, emit, retry or RetryPolicy(), stack)


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """The one image that a reference names.

    Attributes:
        remote: its registry.
        reference: what the user wrote.
        push_foreign_layers: take non-distributable layers, too.
    """

    remote: SourceRegistryReader
    reference: RemoteReference
    push_foreign_layers: bool = False

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """The image, as the only one; see ``image``."""
        return (await self.image(platform=platform),)

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """The image, as the only one; see ``image``."""
        return (await self.image(platform=platform),)

    async def image(self, *, platform: Platforms = None) -> Image:
        """Read the image; what its tag names now counts.

        Args:
            platform: of an index, take the image for this platform alone, or of several the images for them.

        Raises:
            ChoiceError: none is for *platform*.
            SourceError: the registry refuses or can't be reached, or the image is incomplete or malformed.
        """
        reference = self.reference
        descriptor = (await self.remote.manifest(reference.repository, reference.target)).descriptor
        root = await self.remote.load(
            reference.repository,
            descriptor,
            each_platform(platform),
            push_foreign_layers=self.push_foreign_layers,
        )
        tags = partial(self.remote.tags, reference.repository)
        referrers = RepositoryReferrers(self.remote, reference.repository, tags, self.remote.emit)
        return Image(str(reference), reference.name, reference.tag, root, referrers)
