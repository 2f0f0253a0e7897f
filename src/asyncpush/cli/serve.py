"""``asyncpush serve``: run the emulator until it is interrupted."""

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
    """The faults that the emulator injects."""

    latency: Annotated[str | None, Parameter(group=_FAULTS, metavar="TIME")] = None
    """Delay of each request, such as 40ms: one round trip."""

    jitter: Annotated[str | None, Parameter(group=_FAULTS, metavar="TIME")] = None
    """Random variation of the latency, up and down."""

    bandwidth: Annotated[str | None, Parameter(group=_FAULTS, metavar="RATE")] = None
    """Bandwidth of each connection, in each direction: 30MB/s, 512KiB/s, 100Mbit/s."""

    throttle: Annotated[list[str] | None, Parameter(group=_FAULTS, metavar="OPERATION=RATE[:BURST]")] = None
    """Requests a second of an operation, and burst, for each account. Repeatable."""

    quotas: Annotated[Literal["aws"] | None, Parameter(group=_FAULTS)] = None
    """Apply ECR's documented request rates to operations without --throttle."""

    fault: Annotated[list[str] | None, Parameter(group=_FAULTS, metavar="RULE")] = None
    """Inject a fault; see below. Repeatable: if several rules match, the first one acts."""

    seed: Annotated[int | None, Parameter(group=_FAULTS)] = None
    """Seed of the random numbers for probability and jitter."""

    fault_config: Annotated[Path | None, Parameter(group=_FAULTS, metavar="FILE")] = None
    """A YAML or JSON file with members named like these options; the options override the file."""


app = command(
    "serve",
    usage="asyncpush serve [OPTIONS]",
    epilogue="""
The emulator prints the variables that point every AWS tool at it, and runs
until it is interrupted. Other tools push and pull as the user AWS, with the
password that `aws ecr get-login-password` prints, at
docker://HOST:PORT/REPOSITORY:TAG.

Where ECR's documentation leaves a question open, --quirk NAME=VALUE selects the
answer, such as --quirk large-parts=refused. An unknown name lists all quirks;
asyncpush.emulator.Quirks documents them.

The RULE of a --fault is OPERATION[,repository=GLOB][:CONDITION,...]:ACTION,
such as PutImage:first=2:throttle. OPERATION is a glob for the names of ECR's
operations, or for v2:METHOD-KIND, where KIND is base, blob, manifest,
referrers, tags or upload.

Conditions (all must hold; they count the requests that the rule selects):
  nth=N  every=N  first=N  after=N  probability=P  limit=N
  lag=SECONDS   with layers-not-found: after a layer's completion

Actions:
  throttle          ThrottlingException
  server-error      ServerException, 500
  unavailable       503, without an ECR error
  bad-gateway       502 with an HTML page, as a proxy responds
  reset-before      reset the connection, and do nothing
  reset-after       do it, then reset the connection
  lost-reply        do it, then close the connection without a response
  slow-reply=S      do it, and respond S seconds later
  availability=A    BatchCheckLayerAvailability reports every layer as A:
                    AVAILABLE or UNAVAILABLE
  layers-not-found  LayersNotFoundException from PutImage
  upload-expired    UploadNotFoundException; the upload is gone
  expired-token     ExpiredTokenException
  access-denied     AccessDeniedException

Actions for requests below /v2/ (v2:...), where refusals have the registry's
codes, such as 429 TOOMANYREQUESTS:
  retry-after=S     429 with Retry-After: S
  unauthorized      401 with a challenge
  range-invalid     416 with the Range that has arrived; PATCH, PUT of uploads
  reset-during=N    keep the first N bytes of the body, such as 10MiB, then
                    reset the connection; POST, PATCH, PUT of uploads
  stall=S           receive no more for S seconds, then do it
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
    """Run the emulator: a local ECR that keeps its data on disk.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 selects a free one.
        data: The directory for repositories, which are OCI image layouts. By default, a temporary directory.
        tls_cert: Serve HTTPS with this certificate chain (PEM).
        tls_key: The private key of --tls-cert (PEM).
        credentials: Accept the keys of all profiles in this AWS shared credentials file. By default, the only key is
            test with the secret test.
        no_verify_signatures: Accept every request, whatever its signature, and without a password at /v2/.
        quirk: The answer to a question that ECR's documentation leaves open. Repeatable.
        quota: A quota lower than ECR's, such as max-parts=100 or upload-lifetime=60. Repeatable.
        discard: Store only the sizes and digests of layers, not their bytes, for benchmarks. Pulls of layers fail.
        check: Do not serve: check all data in --data, including every hash. Exit status 1 if something is wrong.
        admin: Let anyone who can connect change the faults: GET, PUT and DELETE /_emulator/faults.
        verbose: Print the traceback of an error.
    """
    if check:
        return run(partial(_check, data), verbose=verbose)

    async def main() -> int:
        if not 0 <= port <= 65535:
            raise UsageError(f"--port is {port}", hint="give 1 to 65535, or 0 for a free port")
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
    """Reports in one line that no connection can be accepted, instead of a traceback for each try."""

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
        raise UsageError("--check needs --data", hint="name the directory to check")
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
    note = "left by a kill; the next start repairs it" if finding.grade == "leftover" else finding.grade
    write_lines([f"{finding} ({note})"])


def _introduce(emulator: Emulator, data: Path | None, advice: str) -> None:
    url = emulator.endpoint_url
    kept = f"keeps its data in {data}" if data else "deletes its data when it ends (--data DIR keeps it)"
    say(f"A local ECR listens on {url} and {kept}. Point any AWS tool at it:\n")
    write_lines([f"export AWS_ENDPOINT_URL_ECR={url}", f"export AWS_ENDPOINT_URL_ECR_PUBLIC={url}"])
    say(f"\n{advice}\n\nA browser shows what it does at {url}/. Ctrl-C ends it.")
    if not emulator.fault_config.is_empty:
        say(f"\nIts faults: {msgspec.json.encode(describe(emulator.fault_config)).decode()}")


#: boto3 reads the second one only.
_REGION = "export AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1"


def _advice(credentials: Path | None, *, verified: bool) -> str:
    if verified and credentials:
        path = shlex.quote(str(credentials.absolute()))
        return (
            f"Any region works; the credentials are those of any profile in {credentials}:\n"
            f"{_REGION} AWS_SHARED_CREDENTIALS_FILE={path}"
        )
    which = "Any region works, with these credentials" if verified else "Any region and credentials work"
    return f"{which}:\n{_REGION} AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test"


def exposure(host: str, credentials: Path | None, *, verified: bool) -> str | None:
    """A warning about listening on *host*; None if no other machine can reach it, or a secret key is needed."""
    if is_loopback(host) or (verified and credentials):
        return None
    why = "the key test is public" if verified else "requests need no key"
    advice = "give --credentials FILE" if verified else "leave out --no-verify-signatures"
    return (
        f"other machines can reach {host}, and {why}: they can push, pull and delete; {advice}, or listen on 127.0.0.1"
    )


def _tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise UsageError("--tls-key needs --tls-cert", hint="give both")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        load_chain(context, certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = (
            open_files.reason(error) if isinstance(error, FileNotFoundError) else open_files.shortage(error) or error
        )
        raise UsageError(
            f"{certificate} can't be used: {reason}", hint="give a certificate chain in PEM, and its key as --tls-key"
        ) from error
    return context


def make_fault_config(options: FaultOptions | None) -> FaultConfig:
    """The faults that the options describe; blocks while it reads the file.

    Raises:
        UsageError: an option or the file is invalid.
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
