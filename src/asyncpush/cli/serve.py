"""``asyncpush serve``: the emulator on a port of this machine, until it is interrupted."""

from __future__ import annotations

import asyncio
import shlex
import ssl
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from anyio import to_thread
from cyclopts import Group, Parameter

from asyncpush import open_files
from asyncpush.cli.options import command
from asyncpush.cli.run import DONE, FAILED, run, run_server
from asyncpush.cli.streams import say, write_lines
from asyncpush.emulator import DamagedDataError, Emulator, FaultConfig, Finding, Quirks
from asyncpush.emulator.auth.credentials import DEFAULT_CREDENTIALS, read_credentials
from asyncpush.emulator.faults.config import FaultConfigDocument, describe, read_file
from asyncpush.emulator.store.fsck import check as check_data
from asyncpush.errors import UsageError
from asyncpush.http.session import is_loopback, load_chain

_FAULTS = Group("Faults")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOptions:
    """The conditions that the emulator serves in."""

    latency: Annotated[str | None, Parameter(group=_FAULTS, metavar="TIME")] = None
    """What each request takes longer, such as 40ms: one round trip."""

    jitter: Annotated[str | None, Parameter(group=_FAULTS, metavar="TIME")] = None
    """By how much that varies, up and down."""

    bandwidth: Annotated[str | None, Parameter(group=_FAULTS, metavar="RATE")] = None
    """Bytes a second on each connection, in each direction: 30MB/s, 512KiB/s, 100Mbit/s."""

    throttle: Annotated[list[str] | None, Parameter(group=_FAULTS, metavar="OPERATION=RATE[:BURST]")] = None
    """Requests a second that an operation may have, and how many at once, for each account. Can be repeated."""

    quotas: Annotated[Literal["aws"] | None, Parameter(group=_FAULTS)] = None
    """ECR's documented request rates, where no --throttle says otherwise."""

    fault: Annotated[list[str] | None, Parameter(group=_FAULTS, metavar="RULE")] = None
    """Something that goes wrong; see below. Can be repeated: of several rules that fire, the first acts."""

    seed: Annotated[int | None, Parameter(group=_FAULTS)] = None
    """Makes chance repeatable (probability, jitter)."""

    fault_config: Annotated[Path | None, Parameter(group=_FAULTS, metavar="FILE")] = None
    """The same as a YAML or JSON file, its members called like these options; what is given here comes first."""


app = command(
    "serve",
    usage="asyncpush serve [OPTIONS]",
    epilogue="""
It prints what to set so that every AWS tool talks to it, and serves until it
is interrupted. Other tools push and pull at docker://HOST:PORT/REPOSITORY:TAG,
as the user AWS with the password that `aws ecr get-login-password` prints, and
what was pushed lies in --data as OCI image layouts.

Where ECR's documentation leaves a question open, --quirk NAME=VALUE
chooses the answer: --quirk large-parts=refused, for one. A name that is
not there lists them all; asyncpush.emulator.Quirks documents each.

A fault's RULE is OPERATION[,repository=GLOB][:CONDITION,...]:ACTION, such as
PutImage:first=2:throttle. OPERATION is a glob of ECR's names, or of
v2:METHOD-KIND with base, blob, manifest, referrers, tags or upload.

Conditions (all must hold; requests that the rule selects are counted):
  nth=N  every=N  first=N  after=N  probability=P  limit=N
  lag=SECONDS   with layers-not-found: after a layer's completion

Actions:
  throttle          ThrottlingException
  server-error      ServerException, 500
  unavailable       503, and no error that clients have a model of
  reset-before      the connection is reset, nothing is done
  reset-after       all is done, the connection is reset
  lost-reply        all is done, the connection ends without an answer
  slow-reply=S      all is done, the answer comes S seconds later
  availability=A    BatchCheckLayerAvailability says A of every layer,
                    AVAILABLE or UNAVAILABLE
  layers-not-found  PutImage says LayersNotFoundException
  upload-expired    the upload is gone: UploadNotFoundException
  expired-token     ExpiredTokenException
  access-denied     AccessDeniedException
""",
)


@app.default
def serve(
    *,
    host: Annotated[str, Parameter(show_default=True)] = "127.0.0.1",
    port: Annotated[int, Parameter(show_default=True)] = 4510,
    data: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    credentials: Path | None = None,
    no_verify_signatures: bool = False,
    quirk: Annotated[list[str] | None, Parameter(negative=(), metavar="NAME=VALUE")] = None,
    quota: Annotated[list[str] | None, Parameter(negative=(), metavar="NAME=VALUE")] = None,
    discard: Annotated[bool, Parameter(negative=())] = False,
    check: Annotated[bool, Parameter(negative=())] = False,
    admin: bool = False,
    fault_config: FaultOptions | None = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Run the emulator: a local ECR, on disk.

    Args:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        data: Where repositories are kept, as OCI image layouts; a temporary directory by default.
        tls_cert: A certificate chain (PEM), to serve HTTPS.
        tls_key: Its private key (PEM).
        credentials: The keys that requests may be signed with: an AWS shared credentials file, all of its profiles.
            The key test with the secret test by default.
        no_verify_signatures: Let everybody in, whatever the signature, and without a password at /v2/.
        quirk: An answer to a question that ECR's documentation leaves open. Can be repeated.
        quota: A quota lower than ECR's, such as max-parts=100, or upload-lifetime=60. Can be repeated.
        discard: Keep no bytes of layers, only their sizes and digests: for benchmarks. Pulls of them are refused.
        check: Serve nothing: check what --data holds, every hash of it, and say what is wrong (exit status 1).
        admin: Let anybody who reaches it change the faults while it runs: GET, PUT and DELETE /_emulator/faults.
        verbose: Show where an error comes from.
    """
    if check:
        return run(partial(_check, data), verbose=verbose)

    async def main() -> int:
        if not 0 <= port <= 65535:
            raise UsageError(f"--port is {port}", hint="give 1 to 65535, or 0 for a free one")
        context = await to_thread.run_sync(_tls_context, tls_cert, tls_key)
        chosen = Quirks.parse(quirk or (), quota or ())
        forecast = await to_thread.run_sync(make_fault_config, fault_config)
        keys = await to_thread.run_sync(read_credentials, credentials) if credentials else DEFAULT_CREDENTIALS
        with tempfile.TemporaryDirectory(prefix="asyncpush-") as scratch:
            emulator = Emulator(
                data or Path(scratch),
                host=host,
                port=port,
                tls=context,
                credentials=keys,
                verify_signatures=not no_verify_signatures,
                quirks=chosen,
                discard=discard,
                fault_config=forecast,
                admin=admin,
            )
            asyncio.get_running_loop().set_exception_handler(_Shortages())
            async with emulator:
                _introduce(emulator, data, _advice(credentials, verified=not no_verify_signatures))
                if warning := exposure(host, credentials, verified=not no_verify_signatures):
                    say(f"asyncpush: warning: {warning}")
                await emulator.serve_forever()
        return DONE

    return run_server(main, verbose=verbose)


class _Shortages:
    """Says in one line that no connection can be accepted, where asyncio shows a traceback for each try."""

    def __init__(self) -> None:
        self._said: str | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        shortage = open_files.shortage(context.get("exception"))
        if shortage is None:
            loop.default_exception_handler(context)
        elif shortage != self._said:
            self._said = shortage
            say(f"asyncpush: note: connections wait to be accepted: {shortage}; raise the limit with `ulimit -n`")


async def _check(data: Path | None) -> int:
    if data is None:
        raise UsageError("--check has no --data", hint="name the directory to check")
    try:
        done = await check_data(data, _say_finding)
    except DamagedDataError as error:
        write_lines([f"{error.message} (damage)"])
        return FAILED
    summary = (
        f"{data}: {done.repositories} repositories, {done.images} images, {done.uploads} unfinished uploads, "
        f"{done.blobs} blobs of {done.size} bytes hashed: {done.damaged} damaged, {done.stray} stray, "
        f"{done.leftover} left by a kill"
    )
    write_lines([summary])
    return DONE if done.is_clean else FAILED


def _say_finding(finding: Finding) -> None:
    note = "left by a kill, and made right by the next start" if finding.grade == "leftover" else finding.grade
    write_lines([f"{finding} ({note})"])


def _introduce(emulator: Emulator, data: Path | None, advice: str) -> None:
    url = emulator.endpoint_url
    kept = f"kept in {data}" if data else "gone when it ends (--data DIR keeps it)"
    say(f"A local ECR listens on {url}; what it holds is {kept}. Point any AWS tool at it:\n")
    write_lines([f"export AWS_ENDPOINT_URL_ECR={url}", f"export AWS_ENDPOINT_URL_ECR_PUBLIC={url}"])
    say(f"\n{advice}\n\nCtrl-C ends it.")
    if not emulator.fault_config.is_empty:
        say(f"\nIts faults: {msgspec.json.encode(describe(emulator.fault_config)).decode()}")


def _advice(credentials: Path | None, *, verified: bool) -> str:
    if verified and credentials:
        path = shlex.quote(str(credentials.absolute()))
        return (
            f"Any region will do; the credentials are those of {credentials}, in any of its profiles:\n"
            f"export AWS_REGION=us-east-1 AWS_SHARED_CREDENTIALS_FILE={path}"
        )
    which = "Any region will do; the credentials are these" if verified else "Any region and credentials will do"
    return f"{which}:\nexport AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test"


def exposure(host: str, credentials: Path | None, *, verified: bool) -> str | None:
    """What is to be feared of listening on *host*; None where nobody else reaches it, or only who has a key."""
    if is_loopback(host) or (verified and credentials):
        return None
    who = "everybody knows the key test" if verified else "it asks nobody for a key"
    give = "give --credentials FILE" if verified else "leave out --no-verify-signatures"
    return f"other machines reach {host}, and {who}: they can push, pull and delete; {give}, or listen on 127.0.0.1"


def _tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise UsageError("--tls-key has no --tls-cert", hint="give both")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        load_chain(context, certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = (
            open_files.reason(error) if isinstance(error, FileNotFoundError) else open_files.shortage(error) or error
        )
        raise UsageError(
            f"{certificate} can't be used: {reason}", hint="give a PEM chain, and its key as --tls-key"
        ) from error
    return context


def make_fault_config(options: FaultOptions | None) -> FaultConfig:
    """The faults that the options ask for; blocks while it reads the file.

    Raises:
        UsageError: one of them, or the file, is written wrong.
    """
    options = options or FaultOptions()
    given = FaultConfigDocument(
        latency=options.latency,
        jitter=options.jitter,
        bandwidth=options.bandwidth,
        throttle=tuple(options.throttle or ()),
        quotas=options.quotas,
        fault=tuple(options.fault or ()),
        seed=options.seed,
    )
    return given.over(read_file(options.fault_config) if options.fault_config else FaultConfigDocument()).fault_config()
