"""asyncpush's errors for those of botocore, and whether a retry can help: transient, throttled or final."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import botocore.exceptions as bce

from asyncpush import open_files
from asyncpush.ecr.regions import unknown_region_hint
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
    is_throttled,
)
from asyncpush.http.retry import Verdict
from asyncpush.http.session import proxy_advice

#: The code of an answer that is not ECR's, such as a proxy's error page: ECR's reply is lost.
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
_BAD_REQUEST = 400
_RANGE_NOT_SATISFIABLE = 416

#: The TLS setting in aiohttp's messages: "Cannot connect to host HOST:PORT ssl:default [...]".
_TLS_OPTION = re.compile(r" ssl:\S+(?= \[)")

#: The user information of a URL: ``https://USER:PASSWORD@HOST``.
_USER = re.compile(r"(?<=://)[^/?#\s]*@")

_QUERY = re.compile(r"(?<=\w)\?[^\s'\"]+")

#: The codes for expired credentials; the provider may have renewed them.
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})


class RedirectError(aiohttp.ClientError):
    """Raised for a redirect, which is not followed."""


#: What a wrong address causes: a refused connection, an unknown host, or a redirect.
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
    # The codes of /v2/ (distribution-spec, Error Codes).
    "NAME_UNKNOWN": RepositoryNotFoundError,
    "BLOB_UPLOAD_UNKNOWN": UploadNotFoundError,
    "BLOB_UPLOAD_INVALID": InvalidLayerPartError,
    "DIGEST_INVALID": InvalidLayerError,
}

#: How the message of InvalidSignatureException begins if the time is wrong, and not the keys.
_EXPIRED_SIGNATURE = "Signature expired"
_WRONG_TIME = (_EXPIRED_SIGNATURE, "Signature not yet current")

CLOCK_HINT = "check this machine's clock"

_HINTS = {
    "UploadNotFoundException": "run the same command again",
    "BLOB_UPLOAD_UNKNOWN": "run the same command again",
    "LayersNotFoundException": "run the same command again",
    "LimitExceededException": "this is a quota, not a rate: ask for more in Service Quotas, or push less",
    "AccessDeniedException": "let the caller's policy, or the repository's, allow this action",
    "UnrecognizedClientException": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...)",
    "ExpiredTokenException": "renew the credentials and run the same command again",
    "MissingAuthenticationTokenException": "check the credentials, and that no proxy takes headers away",
    "InvalidSignatureException": "check the secret access key and this machine's clock",
    "KmsException": "let the caller use the repository's key",
    # The code of /v2/ for AccessDeniedException.
    "DENIED": "let the caller push here, and do ecr:GetDownloadUrlForLayer in the repository that is mounted from",
}


def verdict(error: AsyncpushError) -> Verdict:
    """Whether sending the request again can help, and whether ECR asked for a pause."""
    if isinstance(error, ConnectionFailedError):
        return "transient"
    if isinstance(error, ServiceError):
        if is_throttled(error):
            return "throttled"
        if error.code in _TRANSIENT or error.status in _TRANSIENT_STATUS:
            return "transient"
    return "final"


def is_signed_late(error: AsyncpushError) -> bool:
    """Whether ECR refused the signature as expired: the clocks differ, or the request took too long to arrive."""
    return isinstance(error, ServiceError) and f": {_EXPIRED_SIGNATURE}" in error.message


def is_wrong_time(error: bce.ClientError) -> bool:
    """Whether AWS refused a request for its time, and not for its keys; S3 has a code of its own for that."""
    code = error.response.get("Error", {}).get("Code")
    return code == "RequestTimeTooSkewed" or _text(error).startswith(_WRONG_TIME)


def _text(error: bce.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message") or error.response.get("message") or "")


@contextmanager
def translate_errors(operation: str, endpoint: str, region: str = "") -> Iterator[None]:
    """Raise asyncpush's errors for botocore's.

    Args:
        operation: the operation's name, for messages.
        endpoint: the endpoint's URL, for messages.
        region: the registry's region, for messages; empty if the operation is none of ECR's.

    Raises:
        ServiceError: ECR answered with an error; a subclass if there is one for its code.
        ConnectionFailedError: ECR did not answer.
        ConfigurationError: credentials are missing, or their provider failed.
    """
    handled = sys.exception()
    try:
        yield
    except bce.ClientError as error:
        raise _service_error(operation, endpoint, region, error) from error
    except bce.SSLError as error:
        url = _failed_url(error, endpoint)
        raise ConnectionFailedError(
            f"{url} is not trusted: {_reason(error)}",
            hint=f"check the address, or set AWS_CA_BUNDLE to its authority{proxy_advice(url)}",
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
        if (own_error := _own_error(error.kwargs.get("error"), handled)) is not None:
            raise own_error from error
        shortage = open_files.shortage(error)
        url = _failed_url(error, endpoint)
        advice = _unknown_region(error, endpoint) or f"check the endpoint and the network{proxy_advice(url)}"
        raise ConnectionFailedError(
            f"{operation} got no answer from {url}: {shortage or _reason(error)}",
            hint=open_files.advice(error, advice),
            wrong_address=isinstance(error.kwargs.get("error"), _WRONG_ADDRESS),
            silent=type(error) is not bce.HTTPClientError and shortage is None,
        ) from error
    except (bce.NoCredentialsError, bce.PartialCredentialsError) as error:
        raise ConfigurationError(
            "no AWS credentials found", hint="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except bce.BotoCoreError as error:
        raise ConfigurationError(f"{operation} can't be sent: {error}", hint="check the AWS configuration") from error


def _service_error(operation: str, endpoint: str, region: str, error: bce.ClientError) -> ServiceError:
    fault = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    code = str(fault.get("Code", "Unknown"))
    text = _text(error)
    kind = _CLASSES.get(code, ServiceError)
    if is_wrong_time(error):
        kind = ServiceError  # the request took too long to send; a retry can help
    elif meta.get("HTTPStatusCode") == _RANGE_NOT_SATISFIABLE:
        kind = InvalidLayerPartError  # /v2/: a chunk does not follow the last one
    translation = kind(
        # A credential provider's request to STS or SSO may have failed instead of ECR's operation.
        error.operation_name or operation,
        code,
        text,
        status=int(meta.get("HTTPStatusCode", 0)),
        request_id=str(meta.get("RequestId", "")),
        # An answer without an error code is another server's: botocore then uses the HTTP status as the code.
        hint=f"check {endpoint}" if code.isdecimal() else _hint(code, kind, region),
    )
    if is_wrong_time(error):
        translation.hint = CLOCK_HINT
    if isinstance(translation, InvalidLayerPartError):
        translation.last_valid_byte = error.response.get("lastValidByteReceived")
    return translation


def _hint(code: str, kind: type[ServiceError], region: str) -> str | None:
    if kind is not RepositoryNotFoundError:
        return _HINTS.get(code)
    here, elsewhere = (f" in {region}", "; if it is in another region, give --region") if region else ("", "")
    return f"create it{here}, or push with --create-repository{elsewhere}"


def _own_error(error: BaseException | None, handled: BaseException | None) -> AsyncpushError | None:
    """The error of asyncpush's that made a request fail, such as a source that can't be read further; None if none.

    If the request is sent while its caller handles an error, that is *handled*, and Python names it as the context of
    whatever the request raises.
    """
    while error is not None and error is not handled:
        if isinstance(error, AsyncpushError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _unknown_region(error: bce.BotoCoreError, endpoint: str) -> str | None:
    """What to do if the endpoint's host does not exist since the region does not."""
    cause = error.kwargs.get("error")
    if isinstance(cause, aiohttp.ClientConnectorError):
        cause = cause.os_error
    return unknown_region_hint(_failed_url(error, endpoint)) if isinstance(cause, socket.gaierror) else None


def _failed_url(error: bce.BotoCoreError, endpoint: str) -> str:
    """The URL of the failed request: *endpoint*, or the STS or SSO endpoint that a credential provider used."""
    return _without_user(str(error.kwargs.get("endpoint_url") or endpoint)).partition("?")[0].rstrip("/")


def _without_user(text: str) -> str:
    return _USER.sub("", text)


def _reason(error: bce.BotoCoreError) -> str:
    inner = error.kwargs.get("error") or error
    # The query of a download URL is a secret.
    if isinstance(inner, aiohttp.ClientResponseError):
        # Its own text begins with a status of aiohttp's own, which is not the server's.
        text = f"it does not speak HTTP: {inner.message}" if inner.status == _BAD_REQUEST else inner.message
    else:
        text = str(inner)
    if isinstance(inner, aiohttp.ClientConnectorError):
        text = text.replace("[None]", f"[{open_files.reason(inner.os_error)}]")
    text = " ".join(_QUERY.sub("", _without_user(text)).split()) or type(inner).__name__
    return _TLS_OPTION.sub("", text)[:300]
