"""Contender: the floor of ``/v2/``. Read a block, send it: in bare threads, nothing else.

The digests are known, so that nothing is hashed. Over TLS, Python's own module encrypts: no client in Python can do
less. The image's manifest is not pushed.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from job import Job, measured, read_job

#: Bytes that are read at once.
BLOCK = 256 * 1024


def push(job: Job) -> None:
    """Push the layers of the job's only source, the path of an OCI layout with one image."""
    [source] = job.sources
    layout = Path(source.partition(":")[2].rpartition(":")[0])
    [descriptor] = json.loads((layout / "index.json").read_bytes())["manifests"]
    digests = [layer["digest"] for layer in json.loads(_blob(layout, descriptor["digest"]).read_bytes())["layers"]]
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool, measured():
        shares = [digests[number::threads] for number in range(threads)]
        list(pool.map(lambda share: push_layers(job, layout, share), shares))


def push_layers(job: Job, layout: Path, digests: list[str]) -> None:
    """Push some layers over one connection."""
    address = urlsplit(job.url)
    bundle = os.environ.get("AWS_CA_BUNDLE")
    tls = ssl.create_default_context(cafile=bundle) if address.scheme == "https" else None
    with socket.create_connection(("127.0.0.1", address.port or 0)) as plain:
        wire = Wire(tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain)
        for digest in digests:
            location = wire.ask("POST", f"/v2/{job.repository}/blobs/uploads/")
            with _blob(layout, digest).open("rb", buffering=0) as file:
                location = wire.append(location, file.fileno(), os.fstat(file.fileno()).st_size)
            wire.ask("PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}")


class Wire:
    """HTTP/1.1, as little of it as the endpoint needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._block = memoryview(bytearray(BLOCK))
        login = Path(os.environ["DOCKER_CONFIG"], "config.json")
        [entry] = json.loads(login.read_bytes())["auths"].values()
        self._password = entry["auth"]
        assert base64.b64decode(self._password).startswith(b"AWS:"), "it is ECR's"

    def ask(self, method: str, target: str) -> str:
        """Send a request without a body; return where the upload goes on."""
        self._connection.sendall(self._head(method, target, 0))
        return self._answer()

    def append(self, target: str, file: int, size: int) -> str:
        """Append a whole file to an upload; return where it goes on."""
        self._connection.sendall(self._head("PATCH", target, size, f"Content-Range: 0-{size - 1}\r\n"))
        done = 0
        while done < size:
            count = os.preadv(file, [self._block], done)
            if not count:
                raise RuntimeError("the file has changed")
            self._connection.sendall(self._block[:count])
            done += count
        return self._answer()

    def _head(self, method: str, target: str, length: int, more: str = "") -> bytes:
        path = target if target.startswith("/") else f"/{target.split('/', 3)[3]}"
        return (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {self._password}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n{more}\r\n"
        ).encode()

    def _answer(self) -> str:
        received = b""
        while b"\r\n\r\n" not in received:
            more = self._connection.recv(65536)
            if not more:
                raise RuntimeError("the endpoint has closed the connection")
            received += more
        first, *headers = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        if first.split()[1] not in {"201", "202"}:
            raise RuntimeError(first)
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
        return found.get("location", "")


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.partition(":")[2]


if __name__ == "__main__":
    push(read_job())
