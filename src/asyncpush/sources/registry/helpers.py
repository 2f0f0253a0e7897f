"""Credential helpers: ``docker-credential-NAME get``, as docker runs them (docker-credential-helpers' protocol)."""

from __future__ import annotations

import re
import subprocess

import anyio
import msgspec

from asyncpush.errors import ConfigurationError
from asyncpush.sources.registry.reference import HUB
from asyncpush.sources.registry.stored import HUB_KEY, Account

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What helpers print, and how docker tells that they have nothing.
_NOT_FOUND = "credentials not found"


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


async def ask_helper(name: str, host: str, timeout: float) -> Account | None:  # noqa: ASYNC109 - it ends a process
    """Ask a credential helper; None if it has nothing for *host*.

    Args:
        name: ``NAME`` in ``docker-credential-NAME``.
        host: the registry.
        timeout: seconds that it may take.

    Raises:
        ConfigurationError: it is not installed, fails, takes too long, or answers something else.
    """
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name[:100]!r} is no name of a credential helper")
    server = HUB_KEY if host == HUB else host
    try:
        with anyio.fail_after(timeout):
            done = await anyio.run_process(
                [program, "get"], input=server.encode(), check=False, stderr=subprocess.DEVNULL
            )
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise ConfigurationError(
                f"{program} has not answered for {timeout:g} seconds", hint="run it by hand"
            ) from error
        raise ConfigurationError(
            f"{program} can't be run: {error.strerror or error}", hint="install it, or take it out of the configuration"
        ) from error
    if done.returncode != 0:
        said = " ".join(done.stdout.decode(errors="replace").split())[:200]
        if _NOT_FOUND in said.lower():
            return None
        raise ConfigurationError(f"{program} failed for {host}: {said or f'exit status {done.returncode}'}")
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # What it printed is not shown, and its cause neither: it may hold a secret.
        raise ConfigurationError(f"{program} gave no credentials for {host} that can be read") from error
    return Account.of(answer.Username, answer.Secret)
