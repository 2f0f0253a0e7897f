"""Which credentials a registry gets: those that were given, or those that docker, podman and ECR have for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from anyio import Lock, to_thread

from asyncpush.errors import ConfigurationError, InvalidReferenceError, RegistryError, SourceDeniedError
from asyncpush.protocols import Login
from asyncpush.reference import HUB, parse_registry
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.credential_helpers import ask_helper
from asyncpush.sources.registry.docker_config import HUB_KEY, Account, AuthFile, Helper, auth_files

#: Makes the login of a registry that AWS credentials open; None if it can't.
Logins: TypeAlias = Callable[[SourceRegistry], Login | None]

#: Seconds after which a helper that has failed is asked again, and files are read again that had nothing: a connection
#: can last for days, and somebody may have logged in meanwhile.
RETRY_PAUSE = 60.0


def no_logins(registry: SourceRegistry) -> Login | None:  # noqa: ARG001 - a ``Logins``
    """Logins for nobody."""
    return None


class CredentialStore:
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
        self._files: tuple[AuthFile | ConfigurationError, ...] | None = None
        self._read_again_at = math.inf
        self._told: dict[Helper, _Told] = {}
        self._problem: ConfigurationError | None = None
        self._refused: set[Account] = set()
        self._lock = Lock()

    @property
    def opens_ecr(self) -> bool:
        """Whether AWS credentials make the login: ECR asks for one at each request."""
        return self._login is not None

    async def find(self, repository: str, *, refresh: bool = False) -> Account | None:
        """The credentials for *repository*; None if there are none.

        Args:
            repository: its name; empty for what concerns the whole registry.
            refresh: read the files and ask the helpers again: what they said before has expired.

        Raises:
            ConfigurationError: the helper that was given can't be used, or ECR's login has no AWS credentials.
            SourceDeniedError: ECR refuses to log in.
        """
        registry = self._registry
        if registry.anonymous:
            return None
        if registry.credentials is not None:
            return Account(registry.credentials.username, registry.credentials.password)
        async with self._lock:
            if refresh:
                self._files = None
                self._told = {helper: told for helper, told in self._told.items() if told.error is not None}
            if registry.credential_helper is not None:
                server = HUB_KEY if self._host == HUB else self._host
                return await self._ask(Helper(registry.credential_helper, server))
            if registry.aws is not None and self._login is None:
                raise ConfigurationError(
                    f"{registry.host} is to be opened by AWS credentials, but is not an ECR registry that they open"
                )
            return await self._found(repository)

    def pass_over(self, account: Account) -> None:
        """Use a stored login no more: the registry has refused it."""
        self._refused.add(account)

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

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say in a refusal what has kept credentials back: a file that is malformed, a helper that is missing."""
        try:
            yield
        except SourceDeniedError as error:
            problem = self._problem
            if problem is not None and problem.message not in error.message:
                error.message = f"{error.message} ({problem.message})"
                error.hint = "; or ".join(filter(None, (problem.hint, error.hint)))
            raise

    async def _stored(self, repository: str) -> Account | None:
        """What docker and podman have. What can't be used is passed over: often no credentials are needed."""
        if self._files is None or time.monotonic() >= self._read_again_at:
            self._files = await to_thread.run_sync(auth_files)
        problems: list[ConfigurationError] = []
        found: Account | None = None
        for file in self._files:
            if isinstance(file, ConfigurationError):
                problems.append(file)
            elif found := await self._held(file, repository, problems):
                break
        self._problem = problems[0] if problems else None
        # What was found once need not be there a second time: a file may have been a pipe.
        self._read_again_at = time.monotonic() + RETRY_PAUSE if found is None else math.inf
        return found

    async def _held(self, file: AuthFile, repository: str, problems: list[ConfigurationError]) -> Account | None:
        if helper := file.helper(self._host):
            try:
                if account := await self._ask(helper):
                    account = replace(account, origin=f"docker-credential-{helper.name}, which {file.name} names")
                    if self._is_usable(account, problems):
                        return account
            except ConfigurationError as error:
                problems.append(ConfigurationError(f"{error.message}, and {file.name} names it", hint=error.hint))
        try:
            found = file.account(self._host, repository)
        except ConfigurationError as error:
            problems.append(error)
            return None
        return found if found and self._is_usable(found, problems) else None

    def _is_usable(self, account: Account, problems: list[ConfigurationError]) -> bool:
        if account in self._refused:
            problems.append(ConfigurationError(f"it refuses {account.label}"))
            return False
        return True

    async def _ask(self, helper: Helper) -> Account | None:
        told = self._told.get(helper)
        if told is None or time.monotonic() >= told.until:
            try:
                told = _Told(await ask_helper(helper, self._host, self._helper_timeout))
            except ConfigurationError as error:
                # One that hangs must not cost its time for each repository again.
                told = _Told(error=error, until=time.monotonic() + RETRY_PAUSE)
            self._told[helper] = told
        if told.error is not None:
            raise told.error
        return told.account


@dataclass(frozen=True, slots=True)
class _Told:
    """What a helper has said, or why it hasn't, and until when that counts."""

    account: Account | None = None
    error: ConfigurationError | None = None
    until: float = float("inf")


def is_ecr(host: str) -> bool:
    """Whether AWS credentials open the registry at *host* by themselves: a private one of ECR."""
    try:
        parse_registry(host)
    except InvalidReferenceError:
        return False
    return True
