"""The emulator in a thread of its own, for programs that are not asynchronous, such as tests that use boto3."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncpush.emulator.request_log import RequestRecord
from asyncpush.emulator.server import Emulator


class ThreadedEmulator:
    """An emulator in a thread, for as long as its ``with`` block runs; its data is removed afterwards.

    Any thread may use it. For speed, what it acknowledges does not survive a power cut.

    Attributes:
        endpoint_url: what to give to AWS clients; it stays the same.
    """

    endpoint_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point any AWS tool or SDK to it, with made-up credentials."""
        return {
            "AWS_ENDPOINT_URL_ECR": self.endpoint_url,
            "AWS_ENDPOINT_URL_ECR_PUBLIC": self.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    @property
    def requests(self) -> list[RequestRecord]:
        """The requests since it began or was reset, oldest first: ``operation`` and HTTP ``status`` of each."""
        return self._portal.call(lambda: list(self._emulator.requests))

    @property
    def counts(self) -> Counter[str]:
        """How many requests there were of each operation."""
        return Counter(request.operation for request in self.requests)

    def reset(self) -> None:
        """Remove all repositories, images, uploads, settings and requests, and close open connections."""
        port = self._emulator.port
        self._leave()
        self._enter(port)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal: BlockingPortal = stack.enter_context(start_blocking_portal())
            self._enter(0)
            stack.callback(self._leave)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _enter(self, port: int) -> None:
        with ExitStack() as stack:
            data = stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncpush-", ignore_cleanup_errors=True))
            self._emulator = Emulator(Path(data), port=port, fsync=False)
            running: AbstractContextManager[Emulator] = self._portal.wrap_async_context_manager(self._emulator)
            stack.enter_context(running)
            self.endpoint_url = self._emulator.endpoint_url
            self._running = stack.pop_all()

    def _leave(self) -> None:
        self._running.close()
