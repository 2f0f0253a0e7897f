"""The endpoint of a sweep: a registry of the user's, or an emulator that runs for the sweep alone."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import anyio
from anyio import to_thread

from asyncpush.connection import Registry
from asyncpush.ecr.regions import is_aws
from asyncpush.emulator.process import local_ecr
from asyncpush.errors import AsyncpushError, RegistryError, ServiceError
from asyncpush.protocols import Repository
from asyncpush.reference import RegistryName, Service
from asyncpush.settings import AwsConfiguration

#: Seconds that deleting a repository may take, retries included: the longest wait after Ctrl-C.
_CLEANING = 30


@dataclass(frozen=True, slots=True)
class BenchTarget:
    """How to reach the endpoint of a sweep.

    Attributes:
        registry: the registry.
        aws: what overrides the AWS configuration.
        local: whether it is the sweep's own emulator, on this machine, whose data is removed afterwards.
    """

    registry: RegistryName = field(default_factory=RegistryName)
    aws: AwsConfiguration = field(default_factory=AwsConfiguration)
    local: bool = False


@dataclass(frozen=True, slots=True)
class BenchEndpoint:
    """The endpoint of a sweep, as it is reported.

    Attributes:
        url: the endpoint.
        service: ``ecr`` or ``ecr-public``.
        registry_id: the account or alias; None is the caller's own.
        region: the region that requests are signed for.
        local: whether it is the sweep's own emulator.
    """

    url: str
    service: Service
    registry_id: str | None
    region: str
    local: bool

    @classmethod
    def of(cls, target: BenchTarget, home: Registry) -> Self:
        """The endpoint of *home*, a connection to *target*."""
        return cls(home.endpoint_url, home.name.service, home.name.id, home.region, target.local)

    @property
    def is_aws(self) -> bool:
        """Whether it is AWS, which somebody pays for."""
        return is_aws(self.url)

    def __str__(self) -> str:
        if self.local:
            return "the emulator, which shares this machine"
        if not self.is_aws:
            return self.url
        account = f"account {self.registry_id}" if self.registry_id else "the caller's own account"
        return f"{account}{' at ECR Public' if self.service == 'ecr-public' else ''}, {self.region} ({self.url})"


@asynccontextmanager
async def local_target() -> AsyncIterator[BenchTarget]:
    """Run an emulator on a temporary directory, until the block is left.

    Raises:
        RegistryError: it did not start.
    """
    scratch = await to_thread.run_sync(
        lambda: tempfile.TemporaryDirectory(prefix="asyncpush-bench-", ignore_cleanup_errors=True)
    )
    try:
        async with local_ecr(Path(scratch.name) / "ecr") as aws:
            yield BenchTarget(aws=aws, local=True)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(scratch.cleanup)


@asynccontextmanager
async def own_repository(
    home: Registry, target: BenchTarget, name: str, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Create repository *name*, and delete it with its content when the block is left, however that happens.

    Args:
        home: a connection to *target*.
        target: where it is.
        name: a name that nobody else uses.
        say: shows the user that it is left behind, and the command that removes it, where another error is raised.

    Raises:
        RegistryError: it can't be created, or can't be deleted: then the hint removes it.
    """
    repository = home.repository(name)
    may_be_there = not target.local
    try:
        try:
            # If it exists already, the reply to an earlier try was lost: the name is random.
            await repository.create()
        except ServiceError:
            may_be_there = False
            raise
        yield
    except BaseException:
        if may_be_there:
            try:
                await _delete(repository, home, target)
            except RegistryError as failure:
                say(f"asyncpush: {failure}")
        raise
    await _delete(repository, home, target)


async def _delete(repository: Repository, home: Registry, target: BenchTarget) -> None:
    reason = f"no answer in {_CLEANING} s"
    with anyio.move_on_after(_CLEANING, shield=True):
        try:
            await repository.delete(force=True)
        except AsyncpushError as error:
            reason = error.message
        else:
            return
    raise RegistryError(
        f"repository {repository.name} is left behind: {reason}",
        hint=f"remove it with: {removal(repository.name, home, target)}",
    )


def removal(name: str, home: Registry, target: BenchTarget) -> str:
    """The command that removes repository *name* by hand."""
    words = ["aws", home.name.service, "delete-repository", "--force", "--repository-name", name]
    words += ["--region", home.region]
    if home.name.id and home.name.service == "ecr":
        words += ["--registry-id", home.name.id]
    if not is_aws(home.endpoint_url):
        words += ["--endpoint-url", home.endpoint_url]
    if target.aws.profile:
        words += ["--profile", target.aws.profile]
    return shlex.join(words)
