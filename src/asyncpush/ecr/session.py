"""Opens clients of ECR, with the region, credentials and endpoint that every AWS tool uses, and with verified TLS."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import aioboto3
import aiobotocore.session
import anyio
import botocore
import botocore.exceptions as bce
from aiobotocore.config import AioConfig
from anyio import to_thread

from asyncpush.ecr import http_session, part_body
from asyncpush.ecr.configuration import configure_session, session_variables
from asyncpush.ecr.credentials import open_credentials
from asyncpush.ecr.errors import translate_errors
from asyncpush.ecr.http_session import CONNECT_TIMEOUT, READ_TIMEOUT, EcrHttpSession
from asyncpush.ecr.models import data_loader
from asyncpush.ecr.regions import is_aws, known_regions
from asyncpush.errors import ConfigurationError
from asyncpush.http.session import user_agent
from asyncpush.redaction import hide_user_of
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration

_CLOSE_TIMEOUT = 5

_REGION_HINT = "give --region, or set AWS_REGION"
_INVALID_ENDPOINT = "Invalid endpoint:"

#: One thread at a time reads botocore's data, which all share.
_LOADING = threading.Lock()

# botocore does the same for its own logger; otherwise warnings with tracebacks go to standard error.
logging.getLogger("aiobotocore").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """How a client sends its requests.

    Attributes:
        verify: a file of certificate authorities; None for that of the AWS configuration, False for no verification.
        signed: whether requests are signed.
        connect_timeout: seconds to connect; None waits for ever.
        read_timeout: seconds between two bytes of an answer, or of a request body; None waits for ever.
        retry_mode: botocore's retry mode; None if asyncpush retries, with rate limits and events.
    """

    verify: bool | str | None = None
    signed: bool = True
    connect_timeout: float | None = CONNECT_TIMEOUT
    read_timeout: float | None = READ_TIMEOUT
    retry_mode: str | None = None

    def config(self, registry: RegistryName, connections: int, session: Any) -> AioConfig:
        """Botocore's configuration for a client of *session*; reads files."""
        application = session._session.get_config_variable("user_agent_appid")  # noqa: SLF001 - aioboto3 has no public access to it
        agent = f"{user_agent()} Botocore/{botocore.__version__}"
        return AioConfig(
            # botocore would build its own user agent for each request, which takes 7 per cent of a migration's time.
            user_agent=f"{agent} app/{application}" if application else agent,
            max_pool_connections=connections,
            retries={"mode": self.retry_mode} if self.retry_mode else {"mode": "standard", "total_max_attempts": 1},
            connect_timeout=self.connect_timeout,
            read_timeout=self.read_timeout,
            signature_version=None if self.signed else botocore.UNSIGNED,
            use_fips_endpoint=registry.fips or None,
            use_dualstack_endpoint=registry.dual_stack or None,
            http_session_cls=EcrHttpSession,
        )


@asynccontextmanager
async def open_client(
    registry: RegistryName, aws: AwsConfiguration, connections: int, transport: Transport | None = None
) -> AsyncIterator[Any]:
    """Open a client for *registry* that can have *connections* requests in flight.

    Raises:
        ConfigurationError: no region is set, or the region, profile, endpoint or proxy is invalid.
        CredentialsError: there are no credentials; nothing was sent.
    """
    async with _open(registry.service, registry, aws, connections, transport or Transport()) as client:
        part_body.install(client)
        yield client


@asynccontextmanager
async def open_s3(aws: AwsConfiguration, connections: int) -> AsyncIterator[Any]:
    """Open a client for S3; ``endpoint_url`` of *aws* is ECR's, so that only the environment can name another endpoint.

    Raises:
        ConfigurationError: no region is set, or the region, profile, endpoint or proxy is invalid.
        CredentialsError: there are no credentials; nothing was sent.
    """
    transport = Transport(retry_mode="standard")
    async with _open("s3", RegistryName(), replace(aws, endpoint_url=None), connections, transport) as client:
        yield client


@asynccontextmanager
async def _open(
    service: str, registry: RegistryName, aws: AwsConfiguration, connections: int, transport: Transport
) -> AsyncIterator[Any]:
    http_session.check_host_names()
    region = registry.region or aws.region
    session = await to_thread.run_sync(_session, region, aws)
    if not session.region_name:
        raise ConfigurationError("no region is set", hint=_REGION_HINT) from bce.NoRegionError()
    if any(character.isspace() for character in session.region_name):
        # botocore's own check of host labels accepts a line break.
        raise ConfigurationError(
            f"{session.region_name!r} is not a region", hint=_REGION_HINT
        ) from bce.InvalidRegionError(region_name=session.region_name)
    config = await to_thread.run_sync(transport.config, registry, connections, session)
    async with AsyncExitStack() as stack:
        if transport.signed:
            credentials = await stack.enter_async_context(open_credentials(aws, session.region_name))
            session._session._credentials = credentials  # noqa: SLF001 - otherwise the session looks for its own
        await to_thread.run_sync(_load_data, session, service)
        with translate_errors("connecting", aws.endpoint_url or service.upper()):
            try:
                opening = session.client(service, endpoint_url=aws.endpoint_url, config=config, verify=transport.verify)
                client = await opening.__aenter__()
            except bce.InvalidRegionError as error:
                raise ConfigurationError(
                    f"{error.kwargs['region_name']!r} is not a region", hint=_REGION_HINT
                ) from error
            except ValueError as error:
                # Only botocore knows an endpoint from the environment: "Invalid endpoint: URL".
                text = " ".join(str(error).split())
                if not text.startswith(_INVALID_ENDPOINT):
                    raise ConfigurationError(f"the AWS configuration can't be used: {text[:300]}") from error
                raise _invalid_endpoint(aws.endpoint_url or text.removeprefix(_INVALID_ENDPOINT).strip()) from error
        stack.push_async_exit(lambda *details: _close(opening, *details))
        _check_endpoint(client.meta.endpoint_url)
        _check_proxy(client)
        yield client


def _check_endpoint(url: str) -> None:
    """Refuse an invalid endpoint: botocore accepts other schemes than HTTP's, and ports that are not numbers."""
    hide_user_of(url)
    if not _is_http_url(url):
        raise _invalid_endpoint(url)


def _check_proxy(client: Any) -> None:
    """Refuse an invalid proxy; the message does not contain its URL, which may contain a password."""
    url = client.meta.endpoint_url
    proxy = client._endpoint.http_session._proxy_config.proxy_url_for(url)  # noqa: SLF001 - the proxy that its requests use
    hide_user_of(proxy)
    # botocore prepends http:// to a scheme that it does not know.
    if proxy and (proxy.count("://") > 1 or not _is_http_url(proxy)):
        scheme = urlsplit(url).scheme
        raise ConfigurationError(
            f"the proxy for {scheme} is not an address", hint=f"check {scheme.upper()}_PROXY: http://HOST:PORT"
        )


def _is_http_url(url: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    return False


def _invalid_endpoint(url: str) -> ConfigurationError:
    return ConfigurationError(f"{url!r} is not an endpoint", hint="write http(s)://HOST[:PORT]")


async def _close(opening: Any, *details: Any) -> None:
    # aiohttp expects one cancellation, and anyio repeats it at every await: closing is shielded from that.
    with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        await opening.__aexit__(*details)


def _session(region: str | None, aws: AwsConfiguration) -> Any:
    """A session with its configuration files read; blocks."""
    inner = configure_session(aiobotocore.session.AioSession(session_vars=session_variables()), aws, region)
    inner.register_component("data_loader", data_loader(inner.get_config_variable("data_path")))
    return aioboto3.Session(botocore_session=inner)


def _load_data(session: Any, service: str) -> None:
    """Read the data and code of botocore's that a client needs; blocks, for a tenth of a second the first time."""
    loader = session._session.get_component("data_loader")  # noqa: SLF001 - there is no public access to it
    with _LOADING:
        for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
            loader.load_data(name)
        for kind in ("service-2", "endpoint-rule-set-1"):
            loader.load_service_model(service, kind, api_version=None)
        known_regions()
    if service == "s3":
        import_module("aioboto3.s3.inject")  # the first client would import it, in the event loop


#: The domains of registries' hosts that are not amazonaws.com, by botocore's name of the partition.
_DOMAINS = {
    "aws-cn": "amazonaws.com.cn",
    "aws-eusc": "amazonaws.eu",
    "aws-iso": "c2s.ic.gov",
    "aws-iso-b": "sc2s.sgov.gov",
    "aws-iso-e": "cloud.adc-e.uk",
    "aws-iso-f": "csp.hci.ic.gov",
}


def registry_host(client: Any, account: str) -> str:
    """The host of *account*'s private registry in the client's region and partition."""
    domain = _DOMAINS.get(client.meta.partition, "amazonaws.com")
    return f"{account}.dkr.ecr.{client.meta.region_name}.{domain}"


def account_of(url: str) -> str | None:
    """The account in the URL of a private registry, in any domain; None if the URL contains none."""
    match = re.match(r"([0-9]{12})\.dkr[.-]", urlsplit(url).hostname or "")
    return match[1] if match else None


def registry_address(client: Any, name: RegistryName, account: str | None) -> str:
    """The unique address of a registry, whichever of its hosts the user named.

    At AWS it is the registry's host without FIPS or dual stack; elsewhere it is ``ENDPOINT/REGION/ACCOUNT``.

    Args:
        client: a client of the registry.
        name: the registry, as the user named it.
        account: its account, or its alias at ECR Public; None if that is unknown.
    """
    if not is_aws(client.meta.endpoint_url):
        parts = urlsplit(client.meta.endpoint_url)
        endpoint = f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        region = "public" if name.service == "ecr-public" else client.meta.region_name
        return f"{endpoint}/{region}/{account or ''}"
    if name.service == "ecr-public":
        return f"public.ecr.aws/{account or ''}"
    return registry_host(client, account or "")
