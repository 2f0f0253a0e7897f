"""botocore's errors as asyncpush's, and what each of them is worth: another try, a pause, or an end."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import botocore.exceptions as bce

from asyncpush import open_files
from asyncpush.errors import (
    AsyncpushError,
    ConfigurationError,
    ConnectionFailedError,
    CredentialsRefusedError,
    InvalidLayerError,
    InvalidLayerPartError,
    LayersNotFoundError,
    RepositoryNotFoundError,
    ServiceError,
    UploadNotFoundError,
)
from asyncpush.http.retry import Verdict

# ECR says ThrottlingException; the others are other services' words for it, which proxies and emulators use, too.
# LimitExceededException is not among them: for ECR it is a quota on parts, tags or images, and no wait helps.
_THROTTLES = frozenset(
    {"ThrottlingException", "Throttling", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded"}
)
#: What is not an answer of ECR's: the reply that should have come is lost.
UNEXPECTED_ANSWER = "UnexpectedAnswer"

_TRANSIENT = frozenset(
    {
        "ServerException",
        "InternalFailure",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "RequestTimeoutException",
        UNEXPECTED_ANSWER,
    }
)
_TRANSIENT_STATUS = frozenset({408, 500, 502, 503, 504})
_TOO_MANY_REQUESTS = 429

#: aiohttp also names what it was told of TLS: "Cannot connect to host HOST:PORT ssl:default [...]".
_TLS_OPTION = re.compile(r" ssl:\S+(?= \[)")

#: Who asks, and the password: ``https://USER:PASSWORD@HOST``.
_USER = re.compile(r"(?<=://)[^/?#\s]*@")

_QUERY = re.compile(r"(?<=\w)\?[^\s'\"]+")

#: The codes of credentials that have ended; renewed ones may have come since.
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})


class RedirectError(aiohttp.ClientError):
    """Raised for a redirect, which is not followed."""


#: What a wrong address shows: nobody there, no such host, or somebody who knows better.
_WRONG_ADDRESS = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, socket.gaierror, RedirectError)

_CLASSES: dict[str, type[ServiceError]] = {
    **dict.fromkeys(EXPIRED, CredentialsRefusedError),
    "UnrecognizedClientException": CredentialsRefusedError,
    "InvalidClientTokenId": CredentialsRefusedError,
    "InvalidSignatureException": CredentialsRefusedError,
    "IncompleteSignatureException": CredentialsRefusedError,
    "MissingAuthenticationTokenException": CredentialsRefusedError,
    "RepositoryNotFoundException": RepositoryNotFoundError,
    "UploadNotFoundException": UploadNotFoundError,
    "InvalidLayerPartException": InvalidLayerPartError,
    "InvalidLayerException": InvalidLayerError,
    "LayersNotFoundException": LayersNotFoundError,
    "ReferencedImagesNotFoundException": LayersNotFoundError,
}

#: How InvalidSignatureException begins where the time is wrong, and not the keys.
_EXPIRED_SIGNATURE = "Signature expired"
_LATE = (_EXPIRED_SIGNATURE, "Signature not yet current")

_HINTS = {
    "RepositoryNotFoundException": "create it, or push with --create-repository",
    "LimitExceededException": "this is a quota, not a rate: ask for more in Service Quotas, or push less",
    "AccessDeniedException": "let the caller's policy, or the repository's, allow this action",
    "UnrecognizedClientException": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...)",
    "ExpiredTokenException": "renew the credentials and run the same command again",
    "MissingAuthenticationTokenException": "check the credentials, and that no proxy takes headers away",
    "InvalidSignatureException": "check the secret access key and this machine's clock",
    "KmsException": "let the caller use the repository's key",
    # What /v2/ says for AccessDeniedException, of a mount.
    "DENIED": "let the caller push here, and do ecr:GetDownloadUrlForLayer in the repository that is mounted from",
}


def verdict(error: AsyncpushError) -> Verdict:
    """Whether sending the request again can help, and whether ECR asked for a pause."""
    if isinstance(error, ConnectionFailedError):
        return "transient"
    if isinstance(error, ServiceError):
        if error.code in _THROTTLES or error.status == _TOO_MANY_REQUESTS:
            return "throttled"
        if error.code in _TRANSIENT or error.status in _TRANSIENT_STATUS:
            return "transient"
    return "final"


def is_signed_late(error: AsyncpushError) -> bool:
    """Whether ECR refused a signature because it was too old: by its clock, or after a long way."""
    return isinstance(error, ServiceError) and f": {_EXPIRED_SIGNATURE}" in error.message


@contextmanager
def translated(operation: str, endpoint: str) -> Iterator[None]:
    """Raise asyncpush's errors for botocore's.

    Args:
        operation: the operation's name, for messages.
        endpoint: the endpoint's URL, for messages.

    Raises:
        ServiceError: ECR answered with an error; a subclass where there is one for its code.
        ConnectionFailedError: it did not answer.
        ConfigurationError: credentials are missing or can't be had.
    """
    try:
        yield
    except bce.ClientError as error:
        raise _service_error(operation, endpoint, error) from error
    except bce.SSLError as error:
        raise ConnectionFailedError(
            f"{_where(error, endpoint)} is not trusted: {_reason(error)}",
            hint="check the address, or set AWS_CA_BUNDLE to its authority",
            wrong_address=True,
        ) from error
    except bce.ProxyConnectionError as error:
        raise ConnectionFailedError(
            f"{operation} got no answer: {_without_user(error.kwargs['proxy_url'])}, the proxy, can't be used: "
            f"{open_files.shortage(error) or _reason(error)}",
            hint=open_files.advice(error, "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"),
            wrong_address=True,
        ) from error
    except (bce.HTTPClientError, bce.ConnectionError) as error:
        if (ours := _ours(error.kwargs.get("error"))) is not None:
            raise ours from error
        shortage = open_files.shortage(error)
        raise ConnectionFailedError(
            f"{operation} got no answer from {_where(error, endpoint)}: {shortage or _reason(error)}",
            hint=open_files.advice(error, "check the endpoint and the network"),
            wrong_address=isinstance(error.kwargs.get("error"), _WRONG_ADDRESS),
            silent=type(error) is not bce.HTTPClientError and shortage is None,
        ) from error
    except (bce.NoCredentialsError, bce.PartialCredentialsError) as error:
        raise ConfigurationError(
            "there are no AWS credentials", hint="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except bce.BotoCoreError as error:
        raise ConfigurationError(
            f"{operation} could not be sent: {error}", hint="check the AWS configuration"
        ) from error


def _service_error(operation: str, endpoint: str, error: bce.ClientError) -> ServiceError:
    fault = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    code = str(fault.get("Code", "Unknown"))
    text = str(fault.get("Message") or error.response.get("message") or "")
    kind = _CLASSES.get(code, ServiceError)
    if text.startswith(_LATE):
        kind = ServiceError  # a request that took too long to leave; the next one need not
    translation = kind(
        # What a credential provider asked of STS or SSO is not a failure of ECR's operation.
        error.operation_name or operation,
        code,
        text,
        status=int(meta.get("HTTPStatusCode", 0)),
        request_id=str(meta.get("RequestId", "")),
        # Without a code of its own the answer is some other server's: botocore then takes the HTTP status for one.
        hint=f"check {endpoint}" if code.isdecimal() else _HINTS.get(code),
    )
    if isinstance(translation, InvalidLayerPartError):
        translation.last_valid_byte = error.response.get("lastValidByteReceived")
    return translation


def _ours(error: BaseException | None) -> AsyncpushError | None:
    """What of asyncpush's own is behind a request that broke off: a source that failed while its bytes left, say."""
    while error is not None:
        if isinstance(error, AsyncpushError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _where(error: bce.BotoCoreError, endpoint: str) -> str:
    """The URL that failed: *endpoint*, or the STS or SSO endpoint that a credential provider asked on the way."""
    return _without_user(str(error.kwargs.get("endpoint_url") or endpoint)).partition("?")[0].rstrip("/")


def _without_user(text: str) -> str:
    return _USER.sub("", text)


def _reason(error: bce.BotoCoreError) -> str:
    inner = error.kwargs.get("error") or error
    # The query of a download's address is a password.
    text = " ".join(_QUERY.sub("", _without_user(str(inner))).split()) or type(inner).__name__
    return _TLS_OPTION.sub("", text)[:300]
