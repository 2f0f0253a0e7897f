"""What many tests need: an emulator, a connection to it, independent judges, and a quiet machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme
from blockbuster import BlockBusterFunction, blockbuster_ctx
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

import asyncpush
from asyncpush import Registry, Settings
from asyncpush.emulator import Emulator
from support.aws import QUIRKS, REGION, aws
from support.commands import Server, cli_environment
from support.migrations import Bench, bench, keys
from support.places import ROOT
from support.s3 import Bucket, moto_server, new_bucket

# Tests start hundreds of processes, which compile asyncpush each where the environment forbids to keep compiled code.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# In GitHub Actions, commands write annotations instead of errors, and a summary of the step.
for _name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)

# How long an example takes tells how busy the machine is: pytest's own limit is for what hangs.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    """asyncio only: aiobotocore runs on nothing else."""
    return "asyncio"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: many tests wait for another process."""
    return (os.cpu_count() or 1) + 1


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
        # It reads what is in the page cache, and nothing else.
        guard.functions["os.preadv"].can_block_in("asyncpush/ecr/raw_body.py", {"_read_cached"})
        # A face writes its few lines where it is; a terminal that is stopped stops it, as everywhere.
        for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
            guard.functions[name].can_block_in("asyncpush/progress/lines.py", {"write", "flush"})
        yield


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """An empty local ECR; where ECR leaves a question open, it answers as ASYNCPUSH_QUIRKS says."""
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS) as running:
        yield running


@pytest.fixture
async def here(tmp_path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A source beside the emulator, whose credentials are in the environment."""
    keys(monkeypatch)
    async with bench(tmp_path, emulator) as made:
        yield made


Connect = Callable[..., AbstractAsyncContextManager[Registry]]


@pytest.fixture
async def registry(emulator: Emulator) -> AsyncIterator[Registry]:
    """A connection to the emulator that creates missing repositories."""
    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as connected:
        yield connected


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
PACKAGES = frozenset({"distributed", "jsonschema", "kubernetes_validate", "matplotlib"})


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a moto server, for ``bucket``: it takes half a second to stop."""
    with moto_server() as url:
        yield url


@pytest.fixture
def bucket(
    need: Callable[[str], str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """An empty bucket in S3, as moto serves it."""
    need("moto")
    with new_bucket(request.getfixturevalue("s3_server"), monkeypatch) as made:
        yield made


@pytest.fixture
def skopeo(need: Callable[[str], str]) -> str:
    """Debian's skopeo, for tests that call it by its name."""
    return need("skopeo")


@pytest.fixture
def real_images(request: pytest.FixtureRequest) -> Path:
    """The folder of small real images; ``ASYNCPUSH_TEST_IMAGES`` names it, or it lies beside the checkout."""
    beside = ROOT.parent / "shared" / "images"
    folder = Path(os.environ.get("ASYNCPUSH_TEST_IMAGES", beside))
    if not folder.is_dir():
        if os.environ.get("ASYNCPUSH_REQUIRE_PEERS"):
            pytest.fail(f"{folder} is missing, and ASYNCPUSH_REQUIRE_PEERS is set")
        pytest.skip("there are no real images; ASYNCPUSH_TEST_IMAGES can name their folder")
    return folder
