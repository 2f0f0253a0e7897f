"""Which credentials a registry gets: those that were given, or those that docker, podman and ECR have for it.

Credential helpers run as docker runs them: ``docker-credential-NAME get`` (docker-credential-helpers' protocol).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import anyio
import msgspec
from anyio import Lock, to_thread

from asyncpush import open_files
from asyncpush.errors import ConfigurationError, InvalidReferenceError, RegistryError, SourceDeniedError
from asyncpush.processes import run_small
from asyncpush.protocols import Login
from asyncpush.redaction import HIDDEN
from asyncpush.reference import HUB, parse_registry
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.docker_config import HUB_KEY, Account, AuthFile, Helper, auth_files

#: Makes the login of a registry that AWS credentials open; None if it can't.
Logins: TypeAlias = Callable[[SourceRegistry], Login | None]

#: Seconds after which a helper that has failed is asked again, and files are read again that had nothing: a connection
#: can last for days, and somebody may have logged in meanwhile.
RETRY_PAUSE = 60.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What helpers print, and how docker tells that they have nothing.
_NOT_FOUND = "credentials not found"

#: What words of people hardly have: a digit or a capital behind another letter.
_SECRET = re.compile(r"[^\W\d_][^\s]*[0-9]|[0-9][^\s]*[^\W\d_]|[a-z][^\s]*[A-Z]")

_LONGEST_WORD = 40


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


def no_logins(registry: SourceRegistry) -> Login | None:  # noqa: ARG001 - a ``Logins``
    """Logins for nobody."""
    return None


def is_ecr(host: str) -> bool:
    """Whether AWS credentials open the registry at *host* by themselves: a private one of ECR."""
    try:
        parse_registry(host)
    except InvalidReferenceError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Told:
    """What a helper has said, or why it hasn't, and until when that counts."""

    account: Account | None = None
    error: ConfigurationError | None = None
    until: float = float("inf")


async def ask_helper(helper: Helper, host: str, timeout: float) -> Account | None:  # noqa: ASYNC109 - it ends a process
    """Ask a credential helper; None if it has nothing for *host*.

    Args:
        helper: which, and what to ask it for.
        host: the registry.
        timeout: seconds that it may take.

    Raises:
        ConfigurationError: it is not installed, fails, takes too long, or answers something else.
    """
    program = f"docker-credential-{helper.name}"
    if not _NAME.fullmatch(helper.name):
        raise ConfigurationError(f"{helper.name[:100]!r} is not a name of a credential helper")
    try:
        with anyio.fail_after(timeout):
            done = await run_small([program, "get"], helper.server.encode())
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise ConfigurationError(
                f"{program} has not answered for {timeout:g} seconds", hint="run it by hand"
            ) from error
        raise ConfigurationError(
            f"{program} can't be run: {open_files.reason(error)}",
            hint=open_files.advice(error, "install it, or take it out of the configuration"),
        ) from error
    if done.is_endless:
        raise ConfigurationError(
            f"{program} gave no credentials for {host}: it prints without end", hint="run it by hand"
        )
    if done.status != 0:
        words = "".join(letter if letter.isprintable() else " " for letter in done.output.decode(errors="replace"))
        said = " ".join(_maybe_secret(word) for word in words.partition("{")[0].split())[:200]
        if _NOT_FOUND in said.lower():
            return None
        raise ConfigurationError(
            f"{program} failed for {host}: {said or f'exit status {done.status}'}", hint="run it by hand"
        )
    try:
        answer = msgspec.json.decode(done.output, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # What it printed is not shown, and its cause neither: it may hold a secret.
        raise ConfigurationError(
            f"{program} gave no credentials for {host} that can be read", hint="run it by hand"
        ) from error
    return Account.of(answer.Username, answer.Secret)


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


def _maybe_secret(word: str) -> str:
    """A word of what a helper has said, unless it may be what nobody should read."""
    return HIDDEN if _SECRET.search(word) or len(word) > _LONGEST_WORD else word
