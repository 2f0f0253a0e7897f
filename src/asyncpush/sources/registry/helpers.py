"""Credential helpers: ``docker-credential-NAME get``, as docker runs them (docker-credential-helpers' protocol)."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress

import anyio
import msgspec

from asyncpush import open_files
from asyncpush.errors import ConfigurationError
from asyncpush.redaction import HIDDEN
from asyncpush.sources.registry.stored import Account, Helper

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: What helpers print, and how docker tells that they have nothing.
_NOT_FOUND = "credentials not found"

#: What words of people hardly have: a digit or a capital behind another letter.
_SECRET = re.compile(r"[^\W\d_][^\s]*[0-9]|[0-9][^\s]*[^\W\d_]|[a-z][^\s]*[A-Z]")
_LONGEST_WORD = 40

#: The longest answer: tokens run to a few KiB.
_MAX_ANSWER = 1024 * 1024


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
        raise ConfigurationError(f"{helper.name[:100]!r} is no name of a credential helper")
    try:
        with anyio.fail_after(timeout):
            status, output = await _run(program, helper.server)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise ConfigurationError(
                f"{program} has not answered for {timeout:g} seconds", hint="run it by hand"
            ) from error
        raise ConfigurationError(
            f"{program} can't be run: {open_files.reason(error)}",
            hint=open_files.advice(error, "install it, or take it out of the configuration"),
        ) from error
    if status != 0:
        words = "".join(letter if letter.isprintable() else " " for letter in output.decode(errors="replace"))
        said = " ".join(_maybe_secret(word) for word in words.partition("{")[0].split())[:200]
        if _NOT_FOUND in said.lower():
            return None
        raise ConfigurationError(
            f"{program} failed for {host}: {said or f'exit status {status}'}", hint="run it by hand"
        )
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # What it printed is not shown, and its cause neither: it may hold a secret.
        raise ConfigurationError(
            f"{program} gave no credentials for {host} that can be read", hint="run it by hand"
        ) from error
    return Account.of(answer.Username, answer.Secret)


def _maybe_secret(word: str) -> str:
    """A word of what a helper has said, unless it may be what nobody should read."""
    return HIDDEN if _SECRET.search(word) or len(word) > _LONGEST_WORD else word


async def _run(program: str, server: str) -> tuple[int, bytes]:
    """Its exit status and what it prints; one that prints without end is ended, and has said nothing."""
    command = [program, "get"]
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None  # noqa: S101 - narrows a type
        assert process.stdout is not None  # noqa: S101
        with suppress(anyio.BrokenResourceError):  # it may have ended, and have said why
            await process.stdin.send(server.encode())
            await process.stdin.aclose()
        output = bytearray()
        async for chunk in process.stdout:
            output += chunk
            if len(output) > _MAX_ANSWER:
                process.kill()
                return 0, b""
        return await process.wait(), bytes(output)
