"""AWS credentials: each provider's failure is one line that names it, before anything is read or sent; and mid-run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from aiohttp import web
from anyio import to_thread
from anyio.from_thread import start_blocking_portal
from botocore.config import Config

import asyncpush
from asyncpush import AwsConfiguration, Settings
from asyncpush.api import ImageFailure, Registry, open_logins, push_all
from asyncpush.ecr import credential_providers, credentials
from asyncpush.emulator import Emulator, FaultConfig, KnownCredentials
from asyncpush.emulator.faults import parse_fault
from asyncpush.errors import (
    ConnectionFailedError,
    CredentialsError,
    CredentialsExpiredError,
    CredentialsRefusedError,
)
from asyncpush.events import Event, ImageDone
from asyncpush.protocols import Image
from asyncpush.reference import Destination, parse_destination
from asyncpush.results import ImageResult
from asyncpush.settings import SourceRegistry
from asyncpush.sources import open_source
from support.aws import REGION, aws
from support.commands import Ran, Server, cli_environment, run_here
from support.images import DockerSave, Layout, layer_tar
from support.migrations import bench, keys, outcomes

#: In no message.
SECRET = "wJalrXUtnFEMI/K7MDENG"
KEYS = f"aws_access_key_id = AKIDPROFILE\naws_secret_access_key = {SECRET}\n"
ROLE = "arn:aws:iam::123456789012:role/deploy"
MFA = "arn:aws:iam::123456789012:mfa/somebody"
SSO = "[profile p]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = push\n"
SSO_SESSION = "[sso-session corp]\nsso_region = eu-west-1\nsso_start_url = https://corp.awsapps.com/start\n"


def environment(**given: str) -> dict[str, str]:
    """Nothing but a region, an endpoint where nobody is, and what is given."""
    return {"AWS_REGION": REGION, "AWS_ENDPOINT_URL_ECR": "http://127.0.0.1:9", **given}


def refused(ran: Ran, *words: str, status: int = 4) -> None:
    """See that a run has failed in one line, with these words in it and no secret."""
    assert (ran.status, ran.out) == (status, ""), ran
    assert ran.err.startswith("asyncpush: error: ")
    assert ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err
    assert SECRET not in ran.err


@pytest.fixture
def nobody() -> Iterator[str]:
    """An endpoint that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """STS and SSO are asked once, and a container endpoint without pauses: botocore waits some seconds otherwise."""
    asking = credential_providers.CLIENT_CONFIG.merge(Config(retries={"total_max_attempts": 1}))
    monkeypatch.setattr(credential_providers, "CLIENT_CONFIG", asking)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)


@dataclass
class Stub:
    """A server that gives one answer, and remembers what it was asked."""

    status: int = 200
    body: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def answering(status: int, body: str) -> Iterator[Stub]:
    stub = Stub(status, body)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            stub.asked.append(f"{self.path} {self.rfile.read(length).decode()}")
            self.send_response(stub.status)
            self.send_header("Content-Length", str(len(stub.body)))
            self.end_headers()
            self.wfile.write(stub.body.encode())

        def do_GET(self) -> None:
            self.do_POST()

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        stub.url = f"http://127.0.0.1:{server.server_port}"
        yield stub
        server.shutdown()
        thread.join()


def prints(text: str) -> str:
    """The line of a profile whose process prints *text*."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f"[profile p]\ncredential_process = {sys.executable} -c \"print('''{quoted}''')\"\n"


def answer(**members: object) -> str:
    """What a process prints."""
    return json.dumps({"Version": 1, "AccessKeyId": "AKIDPROCESS", "SecretAccessKey": SECRET, **members})


PROCESS = "the credential_process of profile 'p'"

#: A name, the configuration file, the environment, and words of the error.
CASES: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "nothing": ("", {}, ("no AWS credentials found", "AWS_PROFILE")),
    "half a pair": ("", {"AWS_ACCESS_KEY_ID": "A"}, ("the environment", "AWS_SECRET_ACCESS_KEY is missing")),
    "half a profile": ("[profile p]\naws_access_key_id = A\n", {"AWS_PROFILE": "p"}, ("'p'", "aws_secret_access_key")),
    "expired": (
        "",
        {"AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00Z", "KEYS": SECRET},
        ("the environment expired at 2020-01-01T00:00:00Z", "renew them"),
    ),
    "no time": ("", {"AWS_CREDENTIAL_EXPIRATION": "soon", "KEYS": SECRET}, ("the environment", "its expiration")),
    "a line end": (
        "",
        {"AWS_ACCESS_KEY_ID": "A\n", "AWS_SECRET_ACCESS_KEY": SECRET},
        ("access key id", "a line break"),
    ),
    "a secret's line end": ("", {"KEYS": f"{SECRET}\n"}, ("secret access key from the environment", "a line break")),
    "a blank": ("", {"KEYS": f" {SECRET}"}, ("secret access key", "white space")),
    "a token's line end": ("", {"KEYS": SECRET, "AWS_SESSION_TOKEN": f"{SECRET}\r"}, ("session token", "a line break")),
    "quotation marks": ("", {"KEYS": f'"{SECRET}"'}, ("secret access key", "quotation marks")),
    "other letters": ("", {"KEYS": f"{SECRET}é"}, ("secret access key", "an invalid character")),
    "no such profile": ("", {"AWS_PROFILE": "p"}, ("(p) could not be found", "list-profiles")),
    "process: expired": (
        prints(answer(Expiration="2020-01-01T00:00:00Z")),
        {"AWS_PROFILE": "p"},
        (f"{PROCESS} expired at 2020-01-01T00:00:00Z",),
    ),
    "process: HTML": (prints(f"<html>{SECRET}</html>"), {"AWS_PROFILE": "p"}, (PROCESS, "is not JSON")),
    "process: nothing": (prints(""), {"AWS_PROFILE": "p"}, (PROCESS, "it printed nothing")),
    "process: a list": (prints("[]"), {"AWS_PROFILE": "p"}, (PROCESS, "not in the format that AWS documents")),
    "process: no keys": (prints('{"Version": 1}'), {"AWS_PROFILE": "p"}, (PROCESS, "AccessKeyId")),
    "process: a number": (prints(answer(AccessKeyId=5)), {"AWS_PROFILE": "p"}, (PROCESS, "AccessKeyId")),
    "process: a version": (prints(answer(Version=2)), {"AWS_PROFILE": "p"}, (PROCESS, "Version 2")),
    "process: no time": (prints(answer(Expiration="soon")), {"AWS_PROFILE": "p"}, (PROCESS, "its Expiration")),
    "process: a line end": (prints(answer(AccessKeyId="A\\n")), {"AWS_PROFILE": "p"}, (PROCESS, "a line break")),
    "process: empty keys": (
        prints(answer(SecretAccessKey="")),
        {"AWS_PROFILE": "p"},
        (f"the secret access key from {PROCESS} is empty",),
    ),
    "process: fails": (
        f"[profile p]\ncredential_process = sh -c 'echo not logged in >&2; echo {SECRET}; exit 3'\n",
        {"AWS_PROFILE": "p"},
        (PROCESS, "exit status 3: not logged in"),
    ),
    "process: killed": (
        "[profile p]\ncredential_process = sh -c 'kill -9 $$'\n",
        {"AWS_PROFILE": "p"},
        (PROCESS, "signal 9"),
    ),
    "process: missing": (
        f"[profile p]\ncredential_process = /no/such --token {SECRET}\n",
        {"AWS_PROFILE": "p"},
        (PROCESS, "/no/such can't be run: No such file or directory"),
    ),
    "process: empty": ("[profile p]\ncredential_process =\n", {"AWS_PROFILE": "p"}, (PROCESS, "is empty")),
    "process: half a word": (
        f"[profile p]\ncredential_process = echo '{SECRET}\n",
        {"AWS_PROFILE": "p"},
        (PROCESS, "can't be split"),
    ),
    "process: of a role's source": (
        f"[profile r]\nrole_arn = {ROLE}\nsource_profile = p\n{prints('')}",
        {"AWS_PROFILE": "r"},
        (PROCESS, "it printed nothing"),
    ),
    "role: loops": (
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\nrole_arn = {ROLE}\nsource_profile = p\n",
        {"AWS_PROFILE": "p"},
        (f"role {ROLE} of profile 'p'", "loop"),
    ),
    "role: source without keys": (
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\nregion = eu-west-1\n",
        {"AWS_PROFILE": "p"},
        (ROLE, '"q" must have credentials'),
    ),
    "role: no such source": (
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n",
        {"AWS_PROFILE": "p"},
        (ROLE, '"q"', "does not exist"),
    ),
    "role: no source": (f"[profile p]\nrole_arn = {ROLE}\n", {"AWS_PROFILE": "p"}, (ROLE, "source_profile")),
    "role: STS is down": (
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\n{KEYS}",
        {"AWS_PROFILE": "p", "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9"},
        (ROLE, "http://127.0.0.1:9", "check the network"),
    ),
    "role: a dead proxy": (
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\n{KEYS}",
        {"AWS_PROFILE": "p", "HTTPS_PROXY": f"http://user:{SECRET}@127.0.0.1:9"},
        (ROLE, "proxy", "HTTPS_PROXY"),
    ),
    "role: a proxy that is none": (
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\n{KEYS}",
        {"AWS_PROFILE": "p", "HTTPS_PROXY": "http://127.0.0.1:99999"},
        (ROLE, "HTTPS_PROXY"),
    ),
    "web identity: no file": (
        "",
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such", "AWS_ROLE_ARN": ROLE},
        ("web identity token file /no/such", "No such file or directory"),
    ),
    "web identity: empty": (
        "",
        {"AWS_WEB_IDENTITY_TOKEN_FILE": os.devnull, "AWS_ROLE_ARN": ROLE},
        (f"web identity token file {os.devnull}", "it holds no token"),
    ),
    "web identity: no role": ("", {"AWS_WEB_IDENTITY_TOKEN_FILE": os.devnull}, ("web identity", "role ARN")),
    "container: dead": (
        "",
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/x"},
        ("the container credentials endpoint", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ),
    "container: elsewhere": (
        "",
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/x"},
        ("the container credentials endpoint", "example.com"),
    ),
    "metadata: no answer": (
        "",
        {"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"},
        ("no AWS credentials found",),
    ),
    "metadata: no address": ("", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "nowhere"}, ("nowhere",)),
    "a section twice": (f"[default]\n{KEYS}[default]\n", {}, ("CONFIG, line 4: [default] appears twice",)),
    "a byte order mark": (f"\ufeff[default]\n{KEYS}", {}, ("CONFIG, line 1", "byte order mark")),
    "no section": (f"aws_secret_access_key = {SECRET}\n", {"KEYS": SECRET}, ("CONFIG, line 1", "[default]")),
    "no setting": (f"[default]\n{SECRET}\n", {"KEYS": SECRET}, ("CONFIG, line 2",)),
    "no region": ("", {"KEYS": SECRET, "AWS_REGION": ""}, ("no region is set",)),
    "ECR's proxy is none": (
        "",
        {"KEYS": SECRET, "AWS_ENDPOINT_URL_ECR": "", "HTTPS_PROXY": f"http://user:{SECRET}@[::1"},
        ("the proxy for https is not an address", "HTTPS_PROXY"),
    ),
    "SSO: not logged in": (
        SSO + SSO_SESSION,
        {"AWS_PROFILE": "p"},
        ("SSO session 'corp'", "aws sso login --profile p"),
    ),
    "SSO: no such session": (SSO, {"AWS_PROFILE": "p"}, ("SSO session 'corp'", "check profile 'p'")),
    "SSO: of a role's source": (
        f"[profile r]\nrole_arn = {ROLE}\nsource_profile = p\n{SSO}{SSO_SESSION}",
        {"AWS_PROFILE": "r"},
        (ROLE, "aws sso login --profile p"),
    ),
}


#: What is wrong with the configuration itself, and not with credentials.
MALFORMED = {"no such profile", "a section twice", "a byte order mark", "no section", "no setting", "no region"}
MALFORMED |= {"ECR's proxy is none", "metadata: no address"}


@pytest.mark.parametrize("name", CASES)
def test_a_provider_that_fails_is_named_before_anything_is_read(name: str, nobody: str, tmp_path: Path) -> None:
    text, given, words = CASES[name]
    config = tmp_path / "config"
    config.write_text(text)
    given = environment(AWS_CONFIG_FILE=str(config), **{"AWS_ENDPOINT_URL_ECR": nobody, **given})
    if secret := given.pop("KEYS", None):
        given |= {"AWS_ACCESS_KEY_ID": "AKIDENVIRONMENT", "AWS_SECRET_ACCESS_KEY": secret}
    ran = run_here("push", "/no/such/archive", "app:1", "--progress", "none", **given)
    refused(ran, *(word.replace("CONFIG", str(config)) for word in words), status=2 if name in MALFORMED else 4)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, SECRET, "it answered with HTTP status 403"),
        (200, f"<html>{SECRET}", "Unable to parse JSON"),
        (200, "[]", "it returned no valid credentials"),
        (200, json.dumps({"AccessKeyId": "A", "SecretAccessKey": SECRET}), "it returned no valid credentials"),
        (
            200,
            json.dumps(
                {"AccessKeyId": "A", "SecretAccessKey": SECRET, "Token": "t", "Expiration": "2020-01-01T00:00:00Z"}
            ),
            "expired at 2020-01-01",
        ),
    ],
)
def test_a_container_endpoint_that_gives_no_credentials_is_named(status: int, body: str, words: str) -> None:
    with answering(status, body) as stub:
        given = environment(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{stub.url}/credentials")
        ran = run_here("push", "/no/such/archive", "app:1", "--progress", "none", **given)
    assert stub.asked
    refused(ran, "the container credentials endpoint", words)


@contextmanager
def going_on(block: bytes, pause: float) -> Iterator[str]:
    """A server whose answers go on after each pause: they end after 4 MiB, or with the client."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                self.send_response(200)
                self.end_headers()
                for _ in range(4 * 2**20 // len(block)):
                    self.wfile.write(block)
                    stopped.wait(pause)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    stopped = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        stopped.set()
        thread.join()


@pytest.mark.parametrize(
    ("block", "pause", "variable", "words"),
    [
        (b" " * 2**16, 0.0, "AWS_CONTAINER_CREDENTIALS_FULL_URI", ("the container credentials endpoint", "too large")),
        (b" " * 2**16, 0.0, "AWS_EC2_METADATA_SERVICE_ENDPOINT", ("the instance metadata service", "too large")),
        (b" ", 0.05, "AWS_ENDPOINT_URL_STS", (f"role {ROLE} of profile 'p'", "Read timeout on endpoint")),
    ],
)
def test_an_answer_of_a_provider_that_goes_on_is_ended(
    block: bytes, pause: float, variable: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = credential_providers.CLIENT_CONFIG.merge(Config(connect_timeout=0.2, read_timeout=0.2))
    monkeypatch.setattr(credential_providers, "CLIENT_CONFIG", short)
    config = tmp_path / "config"
    config.write_text(f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\n{KEYS}")
    profile = {"AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "p"} if variable == "AWS_ENDPOINT_URL_STS" else {}
    with going_on(block, pause) as url:
        given = environment(**{variable: url}, AWS_EC2_METADATA_DISABLED="", **profile)
        ran = run_here("push", "/no/such/archive", "app:1", "--progress", "none", **given)
    refused(ran, *words)


def test_a_metadata_service_that_gives_nothing_is_named() -> None:
    with answering(500, "") as stub:
        given = environment(AWS_EC2_METADATA_SERVICE_ENDPOINT=stub.url, AWS_EC2_METADATA_DISABLED="")
        ran = run_here("push", "/no/such/archive", "app:1", "--progress", "none", **given)
    refused(ran, "no AWS credentials found: the instance metadata service answered with HTTP status 500")


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        ("AccessDenied", "no", "AssumeRole failed: AccessDenied: no"),
        ("ExpiredToken", "no", "AssumeRole failed: ExpiredToken: no"),
        ("SignatureDoesNotMatch", "Signature expired: 1 is now earlier than 2", "; check this machine's clock"),
        ("<", "no", "the answer is not from AWS; check the network"),
    ],
)
def test_a_refusal_of_sts_is_told_as_its_own(code: str, text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\n[profile q]\n{KEYS}")
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{text}</Message></Error></ErrorResponse>"
    with answering(403, body) as stub:
        given = environment(AWS_CONFIG_FILE=str(config), AWS_PROFILE="p", AWS_ENDPOINT_URL_STS=stub.url)
        ran = run_here("push", "/no/such/archive", "app:1", "--progress", "none", **given)
    refused(ran, f"role {ROLE} of profile 'p'", words)


@pytest.mark.parametrize("token", ["rubbish", "null", "[]", "{}", f'{{"accessToken": "{SECRET}", "expiresAt": "x"}}'])
def test_a_damaged_sso_cache_means_a_new_login(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where it is botocore has found out when it was imported.
    for name in ("botocore.credentials.SSOProvider", "botocore.tokens.SSOTokenProvider"):
        monkeypatch.setattr(f"{name}._SSO_TOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / f"{hashlib.sha1(b'corp').hexdigest()}.json").write_text(token)
    config = tmp_path / "config"
    config.write_text(SSO + SSO_SESSION)
    ran = run_here("push", "/no", "app:1", **environment(AWS_CONFIG_FILE=str(config), AWS_PROFILE="p"))
    refused(ran, "the SSO session 'corp' of profile 'p'", "run `aws sso login --profile p`")


@pytest.mark.parametrize(
    "words",
    [
        "push /no/such/archive app:1",
        "push /no/such/archive /no/other --to prefix",
        "layers /no/such/file --repository-name app",
        "migrate PLAN --no-resume",
        "verify app:1",
        "verify PLAN",
        "bench --size 1MiB",
    ],
)
def test_every_command_refuses_alike(words: str, nobody: str, tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(b"no archive")
    (tmp_path / "plan.yaml").write_text("version: 1\nimages: [{from: 'docker-archive:app.tar', to: app:1}]\n")
    (tmp_path / "config").write_text(prints(""))
    given = environment(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_PROFILE="p", AWS_ENDPOINT_URL_ECR=nobody)
    ran = run_here(*words.replace("PLAN", str(tmp_path / "plan.yaml")).split(), "--progress", "none", **given)
    refused(ran, PROCESS, "it printed nothing")


def test_aws_keeps_its_own_statuses(nobody: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(prints(""))
    given = environment(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_ENDPOINT_URL_ECR=nobody)
    without = run_here("ecr", "describe-repositories", **given)
    assert (without.status, "Unable to locate credentials" in without.err) == (253, True)
    failing = run_here("ecr", "describe-repositories", **given, AWS_PROFILE="p")
    assert failing.status == 255
    assert failing.err.strip() == "Error when retrieving credentials from custom-process: it printed nothing"


def test_empty_variables_set_nothing(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"[default]\nregion = eu-central-1\n{KEYS}")
    empty = ("REGION", "DEFAULT_REGION", "PROFILE", "MAX_ATTEMPTS", "CONTAINER_CREDENTIALS_RELATIVE_URI", "CA_BUNDLE")
    with pytest.MonkeyPatch.context() as patch:
        for name in empty:
            patch.setenv(f"AWS_{name}", "")
        patch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        ran = run_here(
            "layers", __file__, "--repository-name", "app", "--progress", "none", AWS_CONFIG_FILE=str(config)
        )
    # It was about to ask ECR in the region of the file.
    refused(ran, "the proxy", "http://127.0.0.1:9", "HTTPS_PROXY", status=1)


async def test_an_empty_bundle_leaves_certificates_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, "")
    aws = AwsConfiguration(region=REGION, access_key_id="a", secret_access_key="b")
    async with asyncpush.connect(aws=aws) as registry:
        assert registry._ecr._client._endpoint.http_session._verify is True


async def test_a_dead_proxy_is_blamed_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@127.0.0.1:9")
    aws = AwsConfiguration(region=REGION, access_key_id="a", secret_access_key="b")
    async with asyncpush.connect(aws=aws) as registry:
        with pytest.raises(ConnectionFailedError, match="the proxy, can't be used") as caught:
            await registry.login()
    assert "hunter2" not in str(caught.value)
    assert "HTTPS_PROXY" in str(caught.value)


# Processes


def archive() -> bytes:
    return DockerSave().image(layer_tar("credentials"), tags=["app:1"]).archive()


def process(folder: Path, script: str) -> AwsConfiguration:
    """A configuration whose credential_process is this script of the shell's."""
    (folder / "process").write_text(script)
    (folder / "config").write_text(f"[profile p]\ncredential_process = sh {folder / 'process'}\n")
    return AwsConfiguration(profile="p", region=REGION, endpoint_url="http://127.0.0.1:9", credential_timeout=0.5)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


async def test_a_process_that_hangs_is_ended_in_time(config: Path) -> None:
    # Its child keeps the pipes open.
    with pytest.raises(CredentialsError, match=f"{PROCESS}: it did not end within 0.5 seconds"):
        async with asyncpush.connect(aws=process(config, "sleep 60; echo never")):
            pass


async def test_a_process_ends_with_who_waits_for_it(config: Path) -> None:
    aws = process(config, f"echo $$ > {config}/new; mv {config}/new {config}/pid; exec sleep 60")

    async def wait() -> None:
        async with asyncpush.connect(aws=AwsConfiguration(profile="p", region=REGION, endpoint_url=aws.endpoint_url)):
            pass

    async with anyio.create_task_group() as tg:
        tg.start_soon(wait)
        while not await anyio.Path(config / "pid").exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.01)
        tg.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int((config / "pid").read_text()), 0)


async def test_clients_that_are_open_at_once_share_credentials(config: Path) -> None:
    aws = process(config, f"echo run >> {config}/runs; echo '{answer()}'")
    async with asyncpush.connect(aws=aws), asyncpush.connect(aws=AwsConfiguration(profile="p", region="eu-north-1")):
        pass
    assert (config / "runs").read_text() == "run\n"
    async with asyncpush.connect(aws=aws):
        pass
    assert (config / "runs").read_text() == "run\nrun\n"


async def test_a_login_that_fails_is_tried_once_for_all_images(config: Path) -> None:
    aws = process(config, f"echo run >> {config}/runs; exit 1")
    source = SourceRegistry(host="123456789012.dkr.ecr.eu-west-1.amazonaws.com", aws=aws)
    async with open_logins() as logins:
        login = logins(source)
        assert login is not None
        for _ in range(3):
            with pytest.raises(CredentialsError, match=PROCESS):
                await login()
    assert (config / "runs").read_text() == "run\n"


def test_a_process_does_not_eat_the_archive(server: Server, tmp_path: Path) -> None:
    process(tmp_path, f"cat > {tmp_path}/seen; echo '{answer(AccessKeyId='test', SecretAccessKey='test')}'")
    lasting = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    given = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "p", **lasting}
    words = ("push", "-", "credentials/stdin:1", "--create-repository", "--progress", "none", "-q")
    ran = server.run(*words, stdin=archive(), **given)
    assert (ran.status, ran.err) == (0, "")
    assert (tmp_path / "seen").read_bytes() == b""


def assumes(folder: Path, url: str) -> dict[str, str]:
    """The environment of a profile whose role wants an MFA code."""
    (folder / "config").write_text(
        f"[profile p]\nrole_arn = {ROLE}\nsource_profile = q\nmfa_serial = {MFA}\n[profile q]\n{KEYS}"
    )
    lasting = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "p", "AWS_ENDPOINT_URL_STS": url, **lasting}


def test_an_mfa_code_is_not_asked_for_without_a_terminal(nobody: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asyncpush", "push", "-", "app:1", "--progress", "none"],
        input=b"123456\n",
        capture_output=True,
        env=cli_environment(**environment(**assumes(tmp_path, nobody))),
        start_new_session=True,
        timeout=60,
    )
    refused(Ran(done.returncode, done.stdout.decode(), done.stderr.decode()), MFA, "profile 'p'", "no terminal")


def test_an_mfa_code_is_asked_for_at_the_terminal_and_not_in_the_archive(server: Server, tmp_path: Path) -> None:
    granted = (
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>test</AccessKeyId>"
        "<SecretAccessKey>test</SecretAccessKey><SessionToken></SessionToken>"
        "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
    main, terminal = pty.openpty()
    with answering(200, granted) as stub:
        given = {**server.environment, **assumes(tmp_path, stub.url)}
        with subprocess.Popen(
            [sys.executable, "-m", "asyncpush", "push", "-", "credentials/mfa:1", "--create-repository", "-q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=cli_environment(**given),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
        ) as running:
            asked = b""
            while not asked.endswith(b": "):
                asked += os.read(main, 100)
            os.write(main, b"654321\n")
            _, err = running.communicate(archive(), timeout=60)
    os.close(main)
    os.close(terminal)
    assert asked.decode() == f"Enter MFA code for {MFA}: "
    assert (running.returncode, err) == (0, b"")
    [request] = stub.asked
    assert "TokenCode=654321" in request


# In the midst of a run


@dataclass
class Clock:
    """The time as credentials see it."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (credentials, credential_providers):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=clock, monotonic=time.monotonic))
    return clock


def in_an_hour(clock: Clock) -> str:
    return datetime.fromtimestamp(clock.now + 3600, UTC).isoformat()


async def test_credentials_are_renewed_before_they_end(emulator: Emulator, config: Path, clock: Clock) -> None:
    """A renewal that fails is not repeated for each request, and takes nothing away while what is there is good."""
    once = answer(AccessKeyId="test", SecretAccessKey="test", Expiration=in_an_hour(clock))
    again = answer(AccessKeyId="test", SecretAccessKey="test", Expiration=in_an_hour(Clock(clock.now + 3600)))
    aws = process(config, f"echo run >> {config}/runs; cat {config}/answer")
    (config / "answer").write_text(once)
    aws = replace(aws, endpoint_url=emulator.endpoint_url, credential_timeout=60)

    def runs() -> int:
        return len((config / "runs").read_text().split())

    async with asyncpush.connect(aws=aws) as registry:

        async def ask() -> None:
            async with anyio.create_task_group() as tg:
                for _ in range(5):
                    tg.start_soon(registry.admin.repositories, ["app"])

        await ask()
        clock.now += 2600
        await ask()
        assert runs() == 1
        clock.now += 500
        (config / "answer").unlink()
        await ask()
        await ask()
        assert runs() == 2
        (config / "answer").write_text(again)
        clock.now += 100
        await ask()
        assert runs() == 3
        clock.now += 4100
        (config / "answer").unlink()
        for _ in range(2):
            with pytest.raises(CredentialsExpiredError, match=f"{PROCESS} have expired, and there are no others"):
                await registry.login()
        assert runs() == 4


async def test_credentials_that_ecr_calls_expired_are_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools that log in write new ones into the same file; until then nothing is sent twice."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    old = KnownCredentials("AKIDOLD", SECRET, "token", expires=datetime(2020, 1, 1, tzinfo=UTC))

    def write(key: str, rest: str = "") -> None:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n{rest}")

    write("AKIDOLD", "aws_session_token = token\n")
    async with Emulator(
        tmp_path / "ecr", fsync=False, credentials=[old, KnownCredentials("AKIDNEW", SECRET)]
    ) as emulator:
        aws = AwsConfiguration(region=REGION, endpoint_url=emulator.endpoint_url)
        async with asyncpush.connect(aws=aws) as registry:
            with pytest.raises(CredentialsRefusedError, match="ExpiredTokenException"):
                await registry.login()
            assert len(emulator.requests) == 1
            await to_thread.run_sync(write, "AKIDNEW")
            monkeypatch.setattr(credentials, "FAILURE_LIFETIME", 0)
            assert (await registry.login()).username == "AWS"
            assert len(emulator.requests) == 3


async def test_a_migration_stops_when_credentials_end_and_goes_on_with_others(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    keys(monkeypatch)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", in_an_hour(clock))
    one_is_done = anyio.Event()

    def emit(event: Event) -> None:
        if isinstance(event, ImageDone):
            clock.now += 4000
            one_is_done.set()

    async with bench(tmp_path, emulator) as made:
        for number in range(5):
            made.hold("team/app", f"v{number}", layer_tar(f"lost {number}"))

        @made.source.rule("GET", "/manifests/")
        async def others_wait(request: web.Request) -> web.StreamResponse | None:
            if not request.path.endswith("/v0"):
                await one_is_done.wait()
            return None

        plan = made.plan(*({"from": f"team/app:v{number}", "to": f"app{number}:1"} for number in range(5)))
        report = await made.run(plan, emit=emit)
        assert isinstance(report.stopped, CredentialsExpiredError)
        assert "the environment expired at" in str(report.stopped)
        assert sorted(outcomes(report).values()) == ["failed"] * 4 + ["pushed"]
        assert {type(result.error) for result in report.failed} == {CredentialsExpiredError}

        monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION")
        resumed = await made.run(plan)
        assert (resumed.resumed, resumed.stopped) == (True, None)
        assert sorted(outcomes(resumed).values()) in ([how, *["pushed"] * 4] for how in ("finished", "present"))


async def images_and_registry(folder: Path, stack: AsyncExitStack, aws: AwsConfiguration) -> tuple[Registry, Image]:
    layout = Layout()
    layout.tag(layout.image(layer_tar("batch")), "1")
    settings = Settings(create_repository=True)
    opened = await stack.enter_async_context(open_source(f"oci:{layout.write(folder / 'app')}:1", settings))
    registry = await stack.enter_async_context(asyncpush.connect(aws=aws, settings=settings))
    return registry, await opened.image()


def everywhere(image: Image, count: int) -> list[tuple[Image, Destination]]:
    return [(image, parse_destination(f"lost{number}:1")) for number in range(count)]


async def test_a_batch_stops_when_credentials_end(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    keys(monkeypatch)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", in_an_hour(clock))
    aws = AwsConfiguration(region=REGION, endpoint_url=emulator.endpoint_url)
    async with AsyncExitStack() as stack:
        registry, image = await images_and_registry(tmp_path, stack, aws)
        [done] = await push_all(registry, everywhere(image, 1))
        assert isinstance(done, ImageResult)
        before = len(emulator.requests)
        clock.now += 4000
        results = await push_all(registry, everywhere(image, 50))
    assert {type(each.error) for each in results if isinstance(each, ImageFailure)} == {CredentialsExpiredError}
    assert (len(results), len(emulator.requests)) == (50, before)


async def test_a_batch_stops_when_credentials_are_refused(emulator: Emulator, tmp_path: Path) -> None:
    emulator.fault_config = FaultConfig(faults=(parse_fault("*:expired-token"),))
    async with AsyncExitStack() as stack:
        registry, image = await images_and_registry(tmp_path, stack, aws(emulator.endpoint_url))
        results = await push_all(registry, everywhere(image, 200))
    errors = [each.error for each in results if isinstance(each, ImageFailure)]
    assert [type(error) for error in errors] == [CredentialsRefusedError] * 200
    assert len(emulator.requests) < 100


@pytest.fixture
def forgetful(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The environment of an ECR that says of credentials that they are expired when an image is put, or read."""
    operation = getattr(request, "param", "PutImage")
    emulator = Emulator(tmp_path / "ecr", fsync=False)
    emulator.fault_config = FaultConfig(faults=(parse_fault(f"{operation}:expired-token"),))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(emulator):
        yield environment(
            AWS_ENDPOINT_URL_ECR=emulator.endpoint_url, AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test"
        )


def told_images(folder: Path) -> list[Path]:
    layout = Layout()
    layout.tag(layout.image(layer_tar("told")), "1")
    return [layout.write(folder / f"app{number}") for number in range(3)]


LOST = "PutImage failed: ExpiredTokenException: The security token included in the request is expired"


def test_a_batch_tells_once_that_credentials_were_lost(forgetful: dict[str, str], tmp_path: Path) -> None:
    words = ["push", *told_images(tmp_path), "--to", "told", "--create-repository", "--progress", "none"]
    ran = run_here(*words, **forgetful)
    assert (ran.status, ran.out) == (4, "")
    [line] = ran.err.splitlines()
    assert line.startswith("asyncpush: error: 3 of 3 not pushed (told/app0:1, told/app1:1, told/app2:1): " + LOST)


def test_a_migration_tells_once_that_credentials_were_lost(forgetful: dict[str, str], tmp_path: Path) -> None:
    images = [{"from": f"oci:{folder}:1", "to": f"told/{folder.name}:2"} for folder in told_images(tmp_path)]
    plan = {"version": 1, "defaults": {"repository": {"create": True}}, "images": images}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    ran = run_here("migrate", tmp_path / "plan.yaml", "--progress", "none", **forgetful)
    assert (ran.status, ran.out) == (4, "")
    line, summary = ran.err.splitlines()
    assert line.startswith(f"asyncpush: error: the migration stopped: {LOST}")
    assert summary.startswith("asyncpush: 3 images: 3 failed; ")
    journal = run_here("journal", "show", tmp_path / "plan.journal")
    assert "run 1: unfinished, 0 images finished, 0 failed" in journal.out


@pytest.mark.parametrize("forgetful", ["BatchGetImage"], indirect=True)
def test_verify_tells_once_that_credentials_were_lost(forgetful: dict[str, str]) -> None:
    ran = run_here("verify", *(f"lost{number}:1" for number in range(40)), "--progress", "none", **forgetful)
    assert ran.status == 4
    line, summary = ran.err.splitlines()
    assert summary.startswith("asyncpush: 0 images whole in 0:0")
    assert re.match(r"asyncpush: error: 40 of 40 not verified \(.*lost0:1, .*\): .*ExpiredTokenException", line)


@pytest.mark.parametrize("forgetful", ["DescribeImages"], indirect=True)
def test_a_batch_of_calls_stops_when_credentials_are_refused(forgetful: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text('{"repositoryName": "ab"}\n' * 500)
    ran = run_here("ecr", "describe-images", "--batch", tmp_path / "inputs", "--max-requests", "2", **forgetful)
    sent = len(ran.out.splitlines())
    assert (ran.status, sent < 10) == (1, True)
    first, summary = ran.err.splitlines()
    assert first.startswith(f"asyncpush: error: only the first {sent} inputs were sent: DescribeImages failed")
    assert f"{sent} inputs: 0 done" in summary
