"""Endpoints in processes of their own: the discarding sink, the emulator, and Debian's docker-registry."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]

HERE = Path(__file__).parent
MiB = 1024 * 1024

#: Where the emulator's ``/v2/`` leads, by an address that names no region.
REGION = "us-east-1"

#: The emulator's own key.
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}

#: Seconds that an endpoint has to start.
_START = 30


class UnavailableError(Exception):
    """Raised when something that a benchmark needs is not on this machine; its text says what."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for 127.0.0.1, its key, and the authority that has signed it; PEM files."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint.

    Attributes:
        url: where it listens.
        pid: its process.
        ca: what clients must trust to use it; None where it speaks HTTP.
        count_requests: how many requests it has had so far.
    """

    url: str
    pid: int
    ca: Path | None
    count_requests: Callable[[], int]

    @property
    def host(self) -> str:
        """``HOST:PORT``."""
        return self.url.partition("://")[2]

    def cpu_seconds(self) -> float:
        """Processor time that its process has used so far; 0 where there is no ``/proc``."""
        try:
            words = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def environment(self) -> dict[str, str]:
        """What makes AWS clients, and Go's, use it; no configuration of this machine counts."""
        # An installed asyncpush is compiled; this checkout's must be, too, whatever this shell says.
        left_out = ("AWS_", "SSL_CERT_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        aws = {
            "AWS_ENDPOINT_URL_ECR": self.url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEYS["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": KEYS["aws_secret_access_key"],
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_PAGER": "",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        trust = {"AWS_CA_BUNDLE": str(self.ca), "SSL_CERT_FILE": str(self.ca)} if self.ca else {}
        return {**kept, **aws, **trust}

    def fetch(self, path: str, **request: object) -> bytes:
        """Ask it for *path*; *request* goes to ``urllib.request.Request``."""
        tls = ssl.create_default_context(cafile=self.ca) if self.ca else None
        asked = urllib.request.Request(self.url + path, **request)  # type: ignore[arg-type] # passed on as it is
        with urllib.request.urlopen(asked, context=tls, timeout=30) as reply:
            return bytes(reply.read())


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate for 127.0.0.1, and an authority for it, with the openssl command.

    Raises:
        UnavailableError: there is none.
    """
    ca, ca_key, request = folder / "authority.pem", folder / "authority.key", folder / "endpoint.csr"
    made = Certificate(folder / "endpoint.pem", folder / "endpoint.key", ca)
    extensions = folder / "endpoint.ext"
    extensions.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE\nauthorityKeyIdentifier=keyid\n"
        "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\n",
        encoding="ascii",
    )
    # Python 3.13 and later refuse an authority that does not say what its key is for.
    authority = ("-subj", "/CN=asyncpush benchmarks", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    new = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    signed = ("-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial", "-days", "30")
    for command in (
        ("req", "-x509", *new, str(ca_key), *authority, "-days", "30", "-out", str(ca)),
        ("req", "-new", *new, str(made.key), "-subj", "/CN=127.0.0.1", "-out", str(request)),
        ("x509", "-req", *signed, "-extfile", str(extensions), "-out", str(made.certificate)),
    ):
        try:
            subprocess.run(("openssl", *command), check=True, capture_output=True)
        except FileNotFoundError as error:
            raise UnavailableError("TLS needs the openssl command, to make a certificate") from error
    return made


@contextmanager
def sink(
    tls: Certificate | None = None, *, part_size: int = 10 * MiB, latency: float = 0, bandwidth: float = 0
) -> Iterator[Endpoint]:
    """Run the discarding endpoint."""
    command = [sys.executable, str(HERE / "sink.py"), "--part-size", str(part_size)]
    command += ["--latency", str(latency), "--bandwidth", str(bandwidth)]
    if tls:
        command += ["--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
    with _started(command) as (process, line):
        endpoint = Endpoint(line, process.pid, tls.ca if tls else None, lambda: _sum(endpoint, "/_sink/stats"))
        yield endpoint


def layer_bytes(endpoint: Endpoint) -> int:
    """The bytes of layers that the sink has received."""
    return int(json.loads(endpoint.fetch("/_sink/stats"))["layer_bytes"])


@contextmanager
def emulator(
    folder: Path, tls: Certificate | None = None, *, options: Sequence[str] = ("--no-verify-signatures",)
) -> Iterator[Endpoint]:
    """Run asyncpush's emulator on *folder*; like the registry beside it, it asks nobody who he is, unless told to."""
    command = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(folder), *options]
    if tls:
        command += ["--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
    with _started(command) as (process, line):
        url, ca = line.partition("=")[2], tls.ca if tls else None
        endpoint = Endpoint(url, process.pid, ca, lambda: _sum(endpoint, "/_emulator/requests"))
        yield endpoint


def _sum(endpoint: Endpoint, path: str) -> int:
    document = json.loads(endpoint.fetch(path))
    counts = document["counts"] if "counts" in document else document["requests"]
    return sum(count for name, count in counts.items() if name != "stats")


_REGISTRY = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {data}}}
  cache: {{blobdescriptor: inmemory}}
http:
  addr: 127.0.0.1:{port}
  secret: benchmark
{tls}"""


@contextmanager
def docker_registry(folder: Path, tls: Certificate | None = None) -> Iterator[Endpoint]:
    """Run docker-registry (distribution) on *folder*, with its storage on disk and its access log counted.

    Raises:
        UnavailableError: it is not installed, or does not start.
    """
    port, log = _free_port(), folder / "log"
    lines = f"  tls: {{certificate: {tls.certificate}, key: {tls.key}}}\n" if tls else ""
    settings = folder / "registry.yml"
    settings.write_text(_REGISTRY.format(data=folder / "data", port=port, tls=lines), encoding="utf-8")

    def count() -> int:
        return len(re.findall(rb'"(?:GET|HEAD|POST|PATCH|PUT|DELETE) /v2/', log.read_bytes()))

    with log.open("wb") as output:
        try:
            process = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=output, stderr=output)
        except FileNotFoundError as error:
            raise UnavailableError("docker-registry is not installed (Debian's package docker-registry)") from error
        with _ended(process):
            endpoint = Endpoint(
                f"http{'s' if tls else ''}://127.0.0.1:{port}", process.pid, tls.ca if tls else None, count
            )
            _wait_for(port, process)
            yield endpoint


def ecr_client(endpoint: Endpoint) -> Any:  # noqa: ANN401 - boto3's clients have no types
    """boto3's client of an emulator."""
    trust = str(endpoint.ca) if endpoint.ca else None
    return boto3.client("ecr", endpoint_url=endpoint.url, region_name=REGION, verify=trust, **KEYS)


def v2_password(client: Any) -> str:  # noqa: ANN401 - likewise
    """The password of the user AWS at ``/v2/``."""
    [grant] = client.get_authorization_token()["authorizationData"]
    return base64.b64decode(grant["authorizationToken"]).decode().partition(":")[2]


@contextmanager
def _started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server that says in its first line where it listens."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with _ended(process):
        assert process.stdout is not None, "it is a pipe"
        line = process.stdout.readline().strip()
        if not line:
            raise UnavailableError(f"{' '.join(command[1:3])} did not start; run it to see why")
        yield process, line


@contextmanager
def _ended(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise UnavailableError("docker-registry did not start; run `docker-registry serve` to see why")
