"""Check TLS certificates and host names, for every client that aiobotocore makes in this process.

aiobotocore before 3.9 (aioboto3 15.5 pins 2.25.1) takes botocore's SSL context as it is, which leaves the host name
to urllib3; aiohttp leaves it to the context, so that nobody checks it. Through a proxy it passes no context at all, and
nothing is checked. A program may make clients of its own beside ours, which a subclass handed to our client would leave
open: the class itself is mended. (Credential providers are botocore's own here, which check.) The contexts are also
made in a worker thread here, where they belong: loading a CA bundle takes 25 ms.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiobotocore
import aiobotocore.httpsession
import aiohttp
import anyio
import botocore.httpsession
from anyio import to_thread

from asyncpush import open_files
from asyncpush.errors import ConnectionFailedError
from asyncpush.http.session import load_authorities, load_chain, usable_for_tls

_MENDED_IN = (3, 9)


def check_host_names() -> None:
    """Mend ``AIOHTTPSession`` where aiobotocore is older than 3.9; may be called any number of times."""
    version = tuple(int(word) for word in aiobotocore.__version__.split(".")[:2])
    if version < _MENDED_IN:
        aiobotocore.httpsession.AIOHTTPSession._get_session = _get_session  # noqa: SLF001 - the defect is in a private method


async def _get_session(self: Any, proxy_url: str | None) -> aiohttp.ClientSession:
    lock = self.__dict__.setdefault("_asyncpush_lock", anyio.Lock())
    async with lock:
        if proxy_url not in self._sessions:
            context = await to_thread.run_sync(ssl_context, self, proxy_url) if self._verify else False
            connector = aiohttp.TCPConnector(limit=self._max_pool_connections, ssl=context, **self._connector_args)
            session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, skip_auto_headers={"CONTENT-TYPE"}, auto_decompress=False
            )
            self._sessions[proxy_url] = await self._exit_stack.enter_async_context(session)
    opened: aiohttp.ClientSession = self._sessions[proxy_url]
    return opened


def ssl_context(session: Any, proxy_url: str | None) -> ssl.SSLContext:
    """The checks of one client's connections; reads files."""
    context: ssl.SSLContext = botocore.httpsession.create_urllib3_context()
    context.check_hostname = True
    if bundle := botocore.httpsession.get_cert_path(session._verify):  # noqa: SLF001 - self of the method above
        with _usable(bundle):
            load_authorities(bundle, context)
    if session._cert_file:  # noqa: SLF001
        with _usable(session._cert_file):  # noqa: SLF001
            load_chain(context, session._cert_file, session._key_file)  # noqa: SLF001
    if proxy_url:
        # aiohttp has one context for the proxy and for what is behind it: both sets of authorities are needed.
        settings = session._proxy_config.settings  # noqa: SLF001
        if bundle := settings.get("proxy_ca_bundle"):
            with _usable(bundle):
                load_authorities(bundle, context)
        if certificate := settings.get("proxy_client_cert"):
            file, key = (certificate, None) if isinstance(certificate, str) else certificate
            with _usable(file):
                load_chain(context, file, key)
    return context


@contextmanager
def _usable(file: str) -> Iterator[None]:
    try:
        with usable_for_tls(file, "see AWS_CA_BUNDLE and ca_bundle"):
            yield
    except OSError as error:
        shortage = open_files.reason(error)
        raise ConnectionFailedError(f"no connection can be made: {shortage}", hint=open_files.HINT) from error
