"""A discarding ECR: it answers a push as ECR's API does, and uploads of layers as ``/v2/``, and keeps nothing of it.

    python benchmarks/sink.py [--port 0] [--tls-cert FILE --tls-key FILE] [--latency SECONDS] [--bandwidth BYTES_PER_S]

It is the endpoint of benchmarks that are about the client: it should cost next to nothing. Bytes are read into one
buffer that all connections share, and counted; only the small members around a part's base64 are looked at. It says
where it listens on standard output; SIGTERM or SIGINT ends it, and it says what it received and what time that took.
``GET /_sink/stats`` tells the same in between.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import signal
import socket
import ssl
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from answers import RefusalError, answer, answer_v2

MiB = 1024 * 1024

#: One read takes up to this much, and what the rate allows in this many seconds where there is one.
_READ = 1 * MiB
_PACED_READ_SECONDS = 0.008

#: A connection that fell behind its rate, since this process or its client had other things to do, may catch up so far.
_CATCH_UP_SECONDS = 0.05

#: Where the small members of a part are: botocore writes them before the base64, asyncpush on both sides of it.
_KEPT_HEAD = 2048
_KEPT_TAIL = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """How the endpoint behaves.

    Attributes:
        part_size: bytes a part, as InitiateLayerUpload answers them.
        latency: seconds that each answer is held back: one round trip a request.
        bandwidth: bytes a second that are read from each connection; 0 is as fast as it goes.
    """

    part_size: int = 10 * MiB
    latency: float = 0
    bandwidth: float = 0

    @property
    def read_size(self) -> int:
        """Bytes that one read takes at most."""
        paced = int(self.bandwidth * _PACED_READ_SECONDS)
        return min(_READ, max(paced, 16 * 1024)) if self.bandwidth else _READ


@dataclass(slots=True)
class Tally:
    """What was received so far."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes_received: int = 0
    layer_bytes: int = 0
    connections: int = 0

    def document(self) -> dict[str, object]:
        """As JSON, with the processor time of this process."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "requests": dict(self.requests),
            "bytes_received": self.bytes_received,
            "layer_bytes": self.layer_bytes,
            "connections": self.connections,
            "cpu_seconds": used.ru_utime + used.ru_stime,
        }


@dataclass(slots=True)
class Request:
    """A request whose body is being read: all of it, both ends of a part's, or nothing of a layer's own bytes.

    Attributes:
        operation: the API's operation, or ``v2 METHOD``.
        length: the body's length in bytes.
        head: its line and headers, below ``/v2/``.
        seen: bytes of the body so far.
        kept: what is looked at.
    """

    operation: str
    length: int
    head: str = ""
    seen: int = 0
    kept: bytearray = field(default_factory=bytearray)

    def take(self, data: memoryview) -> memoryview:
        """Read on; returns what is left of *data* behind the body."""
        mine = data[: self.length - self.seen]
        if self.operation == "UploadLayerPart":
            self.kept += mine[: max(0, _KEPT_HEAD - self.seen)]
            self.kept += mine[max(0, self.length - _KEPT_TAIL - self.seen, _KEPT_HEAD - self.seen) :]
        elif not self.head:
            self.kept += mine
        self.seen += len(mine)
        return data[len(mine) :]

    @property
    def is_whole(self) -> bool:
        """Whether all of the body was read."""
        return self.seen == self.length


class Connection(asyncio.BufferedProtocol):
    """One client's connection: requests in, answers out, one after the other."""

    def __init__(self, shape: Shape, tally: Tally, buffer: memoryview) -> None:
        self._shape = shape
        self._tally = tally
        self._buffer = buffer
        self._head = bytearray()
        self._request: Request | None = None
        self._due = 0.0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self._transport = cast("asyncio.Transport", transport)
        self._tally.connections += 1

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the buffer has the size that it has
        """The one buffer: what was read is dealt with before anybody reads again."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Deal with what was read."""
        self._tally.bytes_received += nbytes
        data = self._buffer[:nbytes]
        whole: list[Request] = []
        while data:
            data = self._request.take(data) if self._request else self._take_head(data)
            if self._request and self._request.is_whole:
                whole.append(self._request)
                self._request = None
        # The last bytes take their time, too: an answer waits for them.
        wait = self._pace(nbytes) if self._shape.bandwidth else 0
        for request in whole:
            self._answer(request, wait + self._shape.latency)

    def _take_head(self, data: memoryview) -> memoryview:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return data[:0]
        head, rest = self._head[:end], memoryview(bytes(self._head[end + 4 :]))
        self._head = bytearray()
        self._request = _parse_head(head.decode("latin-1"))
        self._due = self._loop.time()
        return rest

    def _pace(self, count: int) -> float:
        """Stop reading until the rate allows what was read, and say how long; the small buffer stops the sender."""
        now = self._loop.time()
        self._due = max(self._due, now - _CATCH_UP_SECONDS) + count / self._shape.bandwidth
        if self._due - now > _PACED_READ_SECONDS / 4:
            self._transport.pause_reading()
            self._loop.call_at(self._due, self._resume)
        return max(0, self._due - now)

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _answer(self, request: Request, wait: float) -> None:
        self._tally.requests[request.operation] += 1
        if request.head:
            status, headers, size = answer_v2(request.head, request.length)
            self._tally.layer_bytes += size
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"HTTP/1.1 {status} .\r\n{lines}Content-Length: 0\r\n\r\n"
            self._loop.call_later(wait, self._write, head.encode())
            return
        status, document = 200, self._tally.document()
        if request.operation != "stats":
            try:
                document, size = answer(request.operation, bytes(request.kept), request.length, self._shape.part_size)
                self._tally.layer_bytes += size
            except RefusalError as error:
                status, document = 400, {"__type": error.code, "message": str(error)}
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} .\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        self._loop.call_later(wait, self._write, head.encode() + body)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


_LENGTH = re.compile(r"(?im)^content-length: *(\d+)")
_TARGET = re.compile(r"(?im)^x-amz-target: *\w+\.(\w+)")


def _parse_head(head: str) -> Request:
    target, length = _TARGET.search(head), _LENGTH.search(head)
    size = int(length[1]) if length else 0
    method, path = head.split(" ", 2)[:2]
    if path.startswith("/v2/"):
        return Request(f"v2 {method}", size, head)
    return Request("stats" if path == "/_sink/stats" else target[1] if target else "unknown", size)


async def serve(port: int, shape: Shape, tls: ssl.SSLContext | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    tally, buffer = Tally(), memoryview(bytearray(shape.read_size))
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ended.set)
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        if shape.bandwidth:
            # Inherited by each connection: what waits unread here must be little, or the rate would be the kernel's.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, shape.read_size)
        server = await loop.create_server(lambda: Connection(shape, tally, buffer), sock=listener, ssl=tls)
        scheme = "https" if tls else "http"
        print(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await ended.wait()
        server.close()
    print(json.dumps(tally.document()), flush=True)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="A discarding ECR, for benchmarks.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--part-size", type=int, default=10 * MiB, help="bytes")
    parser.add_argument("--latency", type=float, default=0, help="seconds a request")
    parser.add_argument("--bandwidth", type=float, default=0, help="bytes a second and connection")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    given = parser.parse_args()
    tls = None
    if given.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(given.tls_cert, given.tls_key)
    asyncio.run(serve(given.port, Shape(given.part_size, given.latency, given.bandwidth), tls))


if __name__ == "__main__":
    main()
