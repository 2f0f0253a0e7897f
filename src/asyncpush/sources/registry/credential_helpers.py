"""Credential helpers: ``docker-credential-NAME get``, as docker runs them (docker-credential-helpers' protocol)."""

from __future__ import annotations

import re

import anyio
import msgspec

from asyncpush import open_files
from asyncpush.errors import ConfigurationError
from asyncpush.processes import run_small
from asyncpush.redaction import HIDDEN
from asyncpush.sources.registry.docker_config import Account, Helper

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What helpers print, and how docker tells that they have nothing.
_NOT_FOUND = "credentials not found"

#: What words of people hardly have: a digit or a capital behind another letter.
_SECRET = re.compile(r"[^\W\d_][^\s]*[0-9]|[0-9][^\s]*[^\W\d_]|[a-z][^\s]*[A-Z]")
_LONGEST_WORD = 40


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


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


def _maybe_secret(word: str) -> str:
    """A word of what a helper has said, unless it may be what nobody should read."""
    return HIDDEN if _SECRET.search(word) or len(word) > _LONGEST_WORD else word
