"""Which credentials a registry gets: those that were given, or those that docker, podman and ECR have for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from anyio import Lock, to_thread

from asyncpush.administration import Login
from asyncpush.errors import ConfigurationError, InvalidReferenceError, RegistryError, SourceDeniedError
from asyncpush.reference import parse_registry
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.helpers import ask_helper
from asyncpush.sources.registry.stored import Account, AuthFile, auth_files

#: Makes the login of a registry that AWS credentials open; None if it can't.
Logins: TypeAlias = Callable[[SourceRegistry], Login | None]


def no_logins(registry: SourceRegistry) -> Login | None:  # noqa: ARG001 - a ``Logins``
    """Logins for nobody."""
    return None


class Accounts:
    """Finds the credentials for the repositories of one registry.

    Args:
        registry: what was given for it.
        host: the registry's host in its one form.
        logins: makes the login of ECR registries.
        helper_timeout: seconds that a credential helper may take.
    """

    def __init__(self, registry: SourceRegistry, host: str, logins: Logins, helper_timeout: float) -> None:
        self._registry = registry
        self._host = host
        self._helper_timeout = helper_timeout
        self._login = logins(registry) if registry.aws is not None or is_ecr(host) else None
        self._files: tuple[AuthFile, ...] | None = None
        self._helped: dict[str, Account | None] = {}
        self._lock = Lock()

    async def find(self, repository: str, *, anew: bool = False) -> Account | None:
        """The credentials for *repository*; None if there are none.

        Args:
            repository: its name; empty for what concerns the whole registry.
            anew: ask the helpers again: what they said before has expired.

        Raises:
            ConfigurationError: a helper or a file that holds them can't be used, or ECR's login has no AWS credentials.
            SourceDeniedError: ECR refuses to log in.
        """
        registry = self._registry
        if registry.anonymous:
            return None
        if registry.credentials is not None:
            return Account(registry.credentials.username, registry.credentials.password)
        async with self._lock:
            if anew:
                self._helped.clear()
            if registry.credential_helper is not None:
                return await self._ask(registry.credential_helper)
            if registry.aws is not None and self._login is None:
                raise ConfigurationError(
                    f"{registry.host} is to be opened by AWS credentials, but is no registry of ECR that they open"
                )
            return await self._found(repository)

    async def _found(self, repository: str) -> Account | None:
        problem: ConfigurationError | None = None
        if self._login is not None:
            try:
                granted = await self._login()
            except ConfigurationError as error:
                if self._registry.aws is not None:
                    raise
                problem = error  # without AWS credentials, somebody may have logged in otherwise
            except RegistryError as error:
                raise SourceDeniedError(f"no login for {self._host}: {error.message}", hint=error.hint) from error
            else:
                return Account(granted.username, granted.password)
        found = await self._stored(repository)
        if found is None and problem is not None:
            raise problem
        return found

    async def _stored(self, repository: str) -> Account | None:
        if self._files is None:
            self._files = await to_thread.run_sync(auth_files)
        for file in self._files:
            if (helper := file.helper(self._host)) and (account := await self._ask(helper)):
                return account
            if account := file.account(self._host, repository):
                return account
        return None

    async def _ask(self, helper: str) -> Account | None:
        if helper not in self._helped:
            self._helped[helper] = await ask_helper(helper, self._host, self._helper_timeout)
        return self._helped[helper]


def is_ecr(host: str) -> bool:
    """Whether AWS credentials open the registry at *host* by themselves: a private one of ECR."""
    try:
        parse_registry(host)
    except InvalidReferenceError:
        return False
    return True
