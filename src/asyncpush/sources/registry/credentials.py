"""Which credentials a registry gets: the user's for this run, or those that docker, podman or ECR have for it.

Credential helpers run as docker runs them: ``docker-credential-NAME get`` (docker-credential-helpers' protocol).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import anyio
import msgspec
from anyio import Lock, to_thread

from asyncpush import open_files
from asyncpush.errors import ConfigurationError, RegistryError, SourceDeniedError
from asyncpush.processes import run_small
from asyncpush.redaction import HIDDEN
from asyncpush.reference import HUB
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.docker_config import HUB_KEY, Account, AuthFile, Helper, auth_files
from asyncpush.sources.registry.logins import Logins, is_ecr

#: Seconds after which a helper that has failed runs again, and files without a match are read again: a connection can
#: last for days, and the user may log in meanwhile.
RETRY_PAUSE = 60.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: How helpers report that they have no credentials, and docker recognizes it.
_NOT_FOUND = "credentials not found"

#: What prose rarely contains: a digit beside a letter, or a capital behind a small letter.
_SECRET = re.compile(r"[^\W\d_][^\s]*[0-9]|[0-9][^\s]*[^\W\d_]|[a-z][^\s]*[A-Z]")

_LONGEST_WORD = 40


class CredentialStore:
    """Finds the credentials for the repositories of one registry.

    Args:
        registry: its configuration.
        host: its host in canonical form.
        logins: creates the login for ECR registries.
        helper_timeout: seconds that a credential helper may take.
    """

    def __init__(self, registry: SourceRegistry, host: str, logins: Logins, helper_timeout: float) -> None:
        self._registry = registry
        self._host = host
        self._helper_timeout = helper_timeout
        self._login = logins(registry) if registry.aws is not None or is_ecr(host) else None
        self._files: tuple[AuthFile | ConfigurationError, ...] | None = None
        self._read_again_at = math.inf
        self._answers: dict[Helper, _HelperAnswer] = {}
        self._problem: ConfigurationError | None = None
        self._rejected: set[Account] = set()
        self._lock = Lock()

    @property
    def uses_aws_login(self) -> bool:
        """Whether AWS credentials provide the login: ECR requires one for each request."""
        return self._login is not None

    async def find(self, repository: str, *, refresh: bool = False) -> Account | None:
        """The credentials for *repository*; None if there are none.

        Args:
            repository: its name; empty for requests about the whole registry.
            refresh: read the files and run the helpers again: their earlier credentials have expired.

        Raises:
            ConfigurationError: the helper that was given can't be used, ECR's login has no AWS credentials, or the
                registry is none that accepts them.
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
                self._answers = {helper: answer for helper, answer in self._answers.items() if answer.error is not None}
            if registry.credential_helper is not None:
                server = HUB_KEY if self._host == HUB else self._host
                return await self._ask(Helper(registry.credential_helper, server))
            if registry.aws is not None and self._login is None:
                raise ConfigurationError(
                    f"{registry.host} is configured for AWS credentials, but is not an ECR registry that accepts them"
                )
            return await self._look_up(repository)

    def reject(self, account: Account) -> None:
        """Stop using a stored login: the registry has refused it."""
        self._rejected.add(account)

    async def _look_up(self, repository: str) -> Account | None:
        problem: ConfigurationError | None = None
        if self._login is not None:
            try:
                granted = await self._login()
            except ConfigurationError as error:
                if self._registry.aws is not None:
                    raise
                problem = error  # without AWS credentials, the user may have logged in otherwise
            except RegistryError as error:
                raise SourceDeniedError(f"no login for {self._host}: {error.message}", hint=error.hint) from error
            else:
                return Account(granted.username, granted.password)
        found = await self._from_files(repository)
        if found is None and problem is not None:
            raise problem
        return found

    @contextmanager
    def explain_refusals(self) -> Iterator[None]:
        """Add to a refusal why no credentials were found: a malformed file, say, or a missing helper."""
        try:
            yield
        except SourceDeniedError as error:
            problem = self._problem
            if problem is not None and problem.message not in error.message:
                error.message = f"{error.message} ({problem.message})"
                error.hint = "; or ".join(filter(None, (problem.hint, error.hint)))
            raise

    async def _from_files(self, repository: str) -> Account | None:
        """The login that docker or podman have stored. Unusable files are skipped: often no credentials are needed."""
        if self._files is None or time.monotonic() >= self._read_again_at:
            self._files = await to_thread.run_sync(auth_files)
        problems: list[ConfigurationError] = []
        found: Account | None = None
        for file in self._files:
            if isinstance(file, ConfigurationError):
                problems.append(file)
            elif found := await self._from_file(file, repository, problems):
                break
        self._problem = problems[0] if problems else None
        # A file may be a pipe, which cannot be read a second time.
        self._read_again_at = time.monotonic() + RETRY_PAUSE if found is None else math.inf
        return found

    async def _from_file(self, file: AuthFile, repository: str, problems: list[ConfigurationError]) -> Account | None:
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
        if account in self._rejected:
            problems.append(ConfigurationError(f"it refuses {account.label}"))
            return False
        return True

    async def _ask(self, helper: Helper) -> Account | None:
        answer = self._answers.get(helper)
        if answer is None or time.monotonic() >= answer.until:
            try:
                answer = _HelperAnswer(await ask_helper(helper, self._host, self._helper_timeout))
            except ConfigurationError as error:
                # A helper that hangs must not cost its timeout again for each repository.
                answer = _HelperAnswer(error=error, until=time.monotonic() + RETRY_PAUSE)
            self._answers[helper] = answer
        if answer.error is not None:
            raise answer.error
        return answer.account


@dataclass(frozen=True, slots=True)
class _HelperAnswer:
    """The answer of a helper, or its failure, and until when it counts."""

    account: Account | None = None
    error: ConfigurationError | None = None
    until: float = float("inf")


async def ask_helper(helper: Helper, host: str, timeout: float) -> Account | None:  # noqa: ASYNC109 - it ends a process
    """Run a credential helper; None if it has no credentials for *host*.

    Args:
        helper: which one, and the server to ask it for.
        host: the registry.
        timeout: seconds that it may take.

    Raises:
        ConfigurationError: it is not installed, fails, takes too long, or prints something else.
    """
    program = f"docker-credential-{helper.name}"
    if not _NAME.fullmatch(helper.name):
        raise ConfigurationError(f"{helper.name[:100]!r} is not a valid name of a credential helper")
    try:
        with anyio.fail_after(timeout):
            finished = await run_small([program, "get"], helper.server.encode())
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise ConfigurationError(
                f"{program} did not answer within {timeout:g} seconds", hint="run it by hand"
            ) from error
        raise ConfigurationError(
            f"{program} can't be run: {open_files.reason(error)}",
            hint=open_files.advice(error, "install it, or take it out of the configuration"),
        ) from error
    if finished.is_too_long:
        raise ConfigurationError(
            f"{program} returned no credentials for {host}: its output does not end", hint="run it by hand"
        )
    if finished.status != 0:
        text = "".join(letter if letter.isprintable() else " " for letter in finished.output.decode(errors="replace"))
        output = " ".join(_masked(word) for word in text.partition("{")[0].split())[:200]
        if _NOT_FOUND in output.lower():
            return None
        raise ConfigurationError(
            f"{program} failed for {host}: {output or f'exit status {finished.status}'}", hint="run it by hand"
        )
    try:
        document = msgspec.json.decode(finished.output, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Neither its output nor the cause is shown: they may hold a secret.
        raise ConfigurationError(
            f"{program} returned no readable credentials for {host}", hint="run it by hand"
        ) from error
    return Account.of(document.Username, document.Secret)


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


def _masked(word: str) -> str:
    """A word of a helper's output, hidden if it may be a secret."""
    return HIDDEN if _SECRET.search(word) or len(word) > _LONGEST_WORD else word
