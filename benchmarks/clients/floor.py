"""Contender: the floor. Read, base64, sha256 of the body, send: in bare threads, nothing else.

No client can do less for UploadLayerPart under SigV4. The layers' digests are known beforehand, as they are to
asyncpush. Variant ``held`` keeps the body until its hash is known and sends it then, as a client must that puts the
hash into the signature before it sends; the plain one sends each block while it is in the processor's cache, which no
signing client can.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pybase64
from job import Job, Layer, measured, read_job

#: Bytes that are dealt with while they are in the cache; 3 divides it.
BLOCK = 384 * 1024


def push(job: Job) -> None:
    """Push the job's layers."""
    address = urlsplit(job.url)
    bundle = os.environ.get("AWS_CA_BUNDLE")
    tls = ssl.create_default_context(cafile=bundle) if address.scheme == "https" else None
    hold = job.variant == "held"
    digests = {layer.path: digest_of(layer) for layer in job.layers}

    def push_one(layer: Layer) -> None:
        push_layer(address.port or 0, tls, layer, digests[layer.path], hold=hold)

    with ThreadPoolExecutor(job.concurrency) as threads, measured():
        list(threads.map(push_one, job.layers))


def digest_of(layer: Layer) -> str:
    """The digest of a file."""
    with Path(layer.path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def push_layer(port: int, tls: ssl.SSLContext | None, layer: Layer, digest: str, *, hold: bool) -> None:
    """Push one file over a connection of its own."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        wire = Wire(tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain)
        upload = wire.ask("InitiateLayerUpload", {"repositoryName": "floor"})
        part_size = int(upload["partSize"])
        with Path(layer.path).open("rb", buffering=0) as file:
            for first in range(0, layer.size, part_size):
                part = Part(file.fileno(), first, min(first + part_size, layer.size) - 1)
                wire.send_part(part, hold=hold)
        wire.ask("CompleteLayerUpload", {"uploadId": upload["uploadId"], "layerDigests": [digest]})


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes *first* to *last*, inclusive, of an open file."""

    file: int
    first: int
    last: int

    @property
    def head(self) -> bytes:
        """The body up to the base64."""
        document = json.dumps({"uploadId": "", "partFirstByte": self.first, "partLastByte": self.last})
        return f'{document[:-1]}, "layerPartBlob": "'.encode()

    @property
    def encoded_size(self) -> int:
        """The length of the base64."""
        return (self.last - self.first + 3) // 3 * 4


class Wire:
    """HTTP/1.1 with AWS JSON, as little of it as the endpoint needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._block = memoryview(bytearray(BLOCK))

    def ask(self, operation: str, members: dict[str, object]) -> dict[str, str]:
        """Send a small request and read its answer."""
        body = json.dumps(members).encode()
        self._connection.sendall(_head(operation, len(body)) + body)
        return self._answer()

    def send_part(self, part: Part, *, hold: bool) -> None:
        """Make and send one part, and see that it has arrived."""
        head, body = part.head, hashlib.sha256()
        send = self._connection.sendall
        ready = [_head("UploadLayerPart", len(head) + part.encoded_size + 2), head]
        body.update(head)
        for start in range(part.first, part.last + 1, BLOCK):
            block = self._block[: min(BLOCK, part.last + 1 - start)]
            if os.preadv(part.file, [block], start) != len(block):
                raise RuntimeError("the file has changed")
            encoded = pybase64.b64encode(block)
            body.update(encoded)
            ready.append(encoded)
            if not hold:
                for piece in ready:
                    send(piece)
                ready.clear()
        ready.append(b'"}')
        body.update(b'"}')
        body.hexdigest()
        for piece in ready:
            send(piece)
        if int(self._answer()["lastByteReceived"]) != part.last:
            raise RuntimeError("a part has not arrived whole")

    def _answer(self) -> dict[str, str]:
        received = b""
        while not received.endswith(b"}"):
            more = self._connection.recv(65536)
            if not more:
                raise RuntimeError("the endpoint has closed the connection")
            received += more
        answer: dict[str, str] = json.loads(received.partition(b"\r\n\r\n")[2])
        return answer


def _head(operation: str, length: int) -> bytes:
    target = f"AmazonEC2ContainerRegistry_V20150921.{operation}"
    return (
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Amz-Target: {target}\r\n"
        f"Content-Type: application/x-amz-json-1.1\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


if __name__ == "__main__":
    push(read_job())
