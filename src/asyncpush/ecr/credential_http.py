"""HTTP of botocore's credential providers: sent on the event loop, with limits on the time and size of an answer.

botocore's own session waits for the next byte only, and reads an answer of any size: an endpoint that sends a byte now
and then keeps it for ever, and an endless answer takes all memory.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any, TypeVar

import aiohttp
import anyio
import botocore.exceptions as bce
from anyio import from_thread
from botocore.awsrequest import AWSResponse
from botocore.utils import get_environ_proxies

from asyncpush.ecr.http_session import EcrHttpSession
from asyncpush.http.session import bypasses_proxies

T = TypeVar("T")

#: The most bytes of an answer: credentials take some KiB.
_MAX_ANSWER = 1024 * 1024

_CLOSE_TIMEOUT = 5


class AnswerTooLargeError(bce.BotoCoreError):  # type: ignore[misc] # botocore is untyped
    """Raised for an answer that is too large for credentials."""

    fmt = "the answer of {endpoint_url} is too large for credentials"


def run_on_event_loop(function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
    """Call *function* from a worker thread; it ends with the task that waits for the thread."""
    try:
        return from_thread.run(function, *arguments)
    except concurrent.futures.CancelledError:
        from_thread.check_cancelled()  # raises the cancellation of the calling task
        raise


class CredentialHttp:
    """Sends requests in place of botocore's session; called in a worker thread.

    Args:
        verify: a file of certificate authorities, or True for the usual ones.
        connect_timeout: seconds to connect.
        read_timeout: seconds between two bytes of an answer. The whole answer arrives within both timeouts.
        use_proxies: whether the proxies of the environment apply.

    Attributes:
        last_answer: what the peer of the last request did; empty if nobody could be reached.
    """

    def __init__(
        self, *, verify: bool | str, connect_timeout: float, read_timeout: float, use_proxies: bool = True
    ) -> None:
        self._verify = verify
        self._timeout = (connect_timeout, read_timeout)
        self._use_proxies = use_proxies
        self.last_answer = ""

    def send(self, request: Any) -> AWSResponse:
        """Send a prepared request.

        Raises:
            BotoCoreError: there is no answer, it comes too slowly, or it is too large.
        """
        self.last_answer = ""
        try:
            response = run_on_event_loop(self._send, request)
        except bce.ReadTimeoutError:
            self.last_answer = "did not answer in time"
            raise
        except bce.ConnectionClosedError:
            self.last_answer = "closed the connection without an answer"
            raise
        ok = response.status_code == 200
        self.last_answer = "gave none" if ok else f"answered with HTTP status {response.status_code}"
        return response

    async def _send(self, request: Any) -> AWSResponse:
        try:
            with anyio.fail_after(sum(self._timeout)):
                return await self._exchange(request)
        except TimeoutError as error:
            raise bce.ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except aiohttp.ClientError as error:
            raise bce.ConnectionClosedError(endpoint_url=request.url, error=error) from error

    async def _exchange(self, request: Any) -> AWSResponse:
        is_direct = not self._use_proxies or bypasses_proxies(request.url)
        session = EcrHttpSession(
            verify=self._verify,
            proxies={} if is_direct else get_environ_proxies(request.url),
            timeout=self._timeout,
            max_pool_connections=1,
        )
        await session.__aenter__()
        try:
            request.stream_output = True  # otherwise aiobotocore reads the whole answer itself
            answer = await session.send(request)
            with closing(answer.raw):
                body = bytearray()
                async for block in answer.raw.content.iter_any():
                    body += block
                    if len(body) > _MAX_ANSWER:
                        raise AnswerTooLargeError(endpoint_url=request.url)
        finally:
            # aiohttp expects one cancellation, and anyio repeats it at every await: closing is shielded from that.
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await session.__aexit__(None, None, None)
        response = AWSResponse(answer.url, answer.status_code, answer.headers, None)
        response._content = bytes(body)  # noqa: SLF001 - botocore's own session reads it into this, too
        return response
