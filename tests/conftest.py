"""What many tests need: an emulator, a connection to it, independent judges, and a quiet machine."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import trustme
from blockbuster import BlockBusterFunction, blockbuster_ctx
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

import asyncpush
from asyncpush import AwsConfiguration, Registry, Settings
from asyncpush.emulator import Emulator, Quirks
from asyncpush.events import Event

if TYPE_CHECKING:
    from migrations import Bench

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
REGION = "eu-west-1"

# Tests start hundreds of processes, which compile asyncpush each where the environment forbids to keep compiled code.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

#: How the emulator of the client's tests answers open questions: ``NAME=VALUE,...``; both answers must do.
QUIRKS = Quirks.parse(filter(None, os.environ.get("ASYNCPUSH_QUIRKS", "").split(",")))


# How long an example takes tells how busy the machine is: pytest's own limit is for what hangs.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    """asyncio only: aiobotocore runs on nothing else."""
    return "asyncio"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the tests that ask the real ECR must be given (``-m aws``)."""
    parser.addoption("--repository", help="a repository of the real ECR that may be written to")


@pytest.fixture(autouse=True, scope="session")
def no_aws_configuration(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may read this machine's AWS configuration, or go through its proxy; but for those that ask ECR itself."""
    if request.config.getoption("--repository"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        # What this machine trusts is not of the tests, either, and takes each process and client 0.1 seconds to read.
        authority = tmp_path_factory.mktemp("trusted") / "authority.pem"
        trustme.CA().cert_pem.write_to_path(str(authority))
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            patch.setenv(name, str(authority))
        yield


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A blocking call (file, sleep, socket) of asyncpush's on an event loop's thread fails the test."""
    with blockbuster_ctx(scanned_modules=["asyncpush"]) as guard:
        for name in ("os.pread", "os.preadv", "os.pwrite", "os.fsync"):
            guard.functions[name] = BlockBusterFunction(None, name, scanned_modules=["asyncpush"]).activate()
        # A face writes its few lines where it is; a terminal that is stopped stops it, as everywhere.
        for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
            guard.functions[name].can_block_in("asyncpush/progress/sink.py", {"write", "flush"})
        yield


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """An empty local ECR; where ECR leaves a question open, it answers as ASYNCPUSH_QUIRKS says."""
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS) as running:
        yield running


@pytest.fixture
async def here(tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A source beside the emulator, whose credentials are in the environment."""
    from migrations import bench, keys  # which import this module

    keys(monkeypatch)
    async with bench(tmp_path, emulator) as made:
        yield made


Connect = Callable[..., AbstractAsyncContextManager[Registry]]


def aws(endpoint_url: str) -> AwsConfiguration:
    """How to reach an endpoint with credentials that are made up."""
    return AwsConfiguration(region=REGION, endpoint_url=endpoint_url, access_key_id="test", secret_access_key="test")


@pytest.fixture
async def registry(emulator: Emulator) -> AsyncIterator[Registry]:
    """A connection to the emulator that creates missing repositories."""
    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as connected:
        yield connected


def judge(endpoint_url: str, service: str = "ecr", **keys: str) -> Any:
    """boto3's own client: an independent reading of the protocol. It blocks; call it in a worker thread."""
    return boto3.client(service, endpoint_url=endpoint_url, region_name=REGION, **(keys or KEYS))


def token(endpoint_url: str) -> str:
    """What ``Authorization: Basic`` needs at ``/v2/``: the user AWS and its password. It blocks."""
    [grant] = judge(endpoint_url).get_authorization_token()["authorizationData"]
    return grant["authorizationToken"]


def password(endpoint_url: str) -> str:
    """The password of the user AWS at ``/v2/``. It blocks."""
    return base64.b64decode(token(endpoint_url)).decode().removeprefix("AWS:")


def judge_in(endpoint_url: str, region: str, service: str = "ecr") -> Any:
    """boto3's own client in another region."""
    return boto3.client(service, endpoint_url=endpoint_url, region_name=region, **KEYS)


class Events(list[Event]):
    """An ``Emit`` that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        """Those of one kind."""
        return [event for event in self if isinstance(event, kind)]


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished run of the command line."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Server:
    """An emulator in a process of its own."""

    url: str
    environment: dict[str, str]

    def run(
        self,
        *words: str | Path,
        stdin: bytes | None = None,
        timeout: float = 60,
        bound: bool = False,
        **environment: str,
    ) -> Ran:
        """Run ``asyncpush`` against it, as a user would."""
        return run_cli(*words, stdin=stdin, timeout=timeout, bound=bound, **{**self.environment, **environment})


#: Runs a command of root's without the right to read and write what modes forbid.
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def cli_environment(**environment: str) -> dict[str, str]:
    """The environment of a command that is run: this one, and *environment*; empty values are taken out."""
    merged = {**os.environ, "COLUMNS": "200", **environment}
    return {name: value for name, value in merged.items() if value}


def run_cli(
    *words: str | Path, stdin: bytes | None = None, timeout: float = 60, bound: bool = False, **environment: str
) -> Ran:
    """Run ``asyncpush`` to its end; *bound* by the modes of files, which root is not."""
    unbound = bound and os.geteuid() == 0
    done = subprocess.run(
        [*(BOUND if unbound else ()), sys.executable, "-m", "asyncpush", *map(str, words)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout,
        env=cli_environment(**environment),
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An emulator that was started by its command, for tests of the command line; tests share it, so names differ."""
    data = tmp_path_factory.mktemp("served")
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=cli_environment(),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.fullmatch(r"export AWS_ENDPOINT_URL_ECR=(\S+)\n", line)
    assert match, line
    yield Server(
        match[1],
        {
            "AWS_ENDPOINT_URL_ECR": match[1],
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        },
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    process.stdout.close()


#: Peers that are imported.
PACKAGES = frozenset({"jsonschema", "matplotlib"})


@pytest.fixture
def need(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Skip a test whose peer is not installed; where peers are required (CI), fail instead."""

    def needed(name: str) -> str:
        """The path of program *name*, or the name of a Python package."""
        if name.isidentifier() and find_spec(name):
            return name
        # A program of another Python's may be called like a package that this one lacks.
        found = None if name in PACKAGES else shutil.which(name)
        found = found or shutil.which(name, path=str(Path(sys.executable).parent))
        if found is None:
            if os.environ.get("ASYNCPUSH_REQUIRE_PEERS"):
                pytest.fail(f"{name} is not installed, and ASYNCPUSH_REQUIRE_PEERS is set")
            pytest.skip(f"{name} is not installed")
        return found or name

    return needed


@pytest.fixture
def skopeo(need: Callable[[str], str]) -> str:
    """Debian's skopeo, for tests that call it by its name."""
    return need("skopeo")


@pytest.fixture
def real_images(request: pytest.FixtureRequest) -> Path:
    """The folder of small real images; ``ASYNCPUSH_TEST_IMAGES`` names it, or it lies beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "images"
    folder = Path(os.environ.get("ASYNCPUSH_TEST_IMAGES", beside))
    if not folder.is_dir():
        if os.environ.get("ASYNCPUSH_REQUIRE_PEERS"):
            pytest.fail(f"{folder} is missing, and ASYNCPUSH_REQUIRE_PEERS is set")
        pytest.skip("there are no real images; ASYNCPUSH_TEST_IMAGES can name their folder")
    return folder
