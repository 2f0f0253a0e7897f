"""Verifies AWS Signature Version 4: takes a request and its body, and returns the key that signed it.

Written from "AWS Signature Version 4 for API requests" (IAM user guide): canonical request, string to sign, key.
Codes and messages are those that AWS's JSON services answer; the status is 400 for each, as ECR's own answers have it
(AWS's pages of common errors say 403 for some, which is what its query services answer).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote_to_bytes

from asyncpush.emulator.auth.credentials import KnownCredentials
from asyncpush.emulator.errors import AwsError

ALGORITHM = "AWS4-HMAC-SHA256"

#: How far a request's date may be from the emulator's clock, either way.
MAX_SKEW = timedelta(minutes=5)

_TERMINATOR = "aws4_request"
_ISO_BASIC = "%Y%m%dT%H%M%SZ"
_TIMESTAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")
#: Regions become parts of paths: nothing but these characters.
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_UNRESERVED = "-_.~"


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it was received, without its body.

    Attributes:
        method: the HTTP method.
        path: the path in the request line, before the query.
        query: what follows the question mark.
        headers: names and values in order, as bytes; a name may occur more than once.
    """

    method: str
    path: str
    query: str
    headers: Sequence[tuple[bytes, bytes]]

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        wanted = name.encode()
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signature.

    Attributes:
        access_key_id: the key that it claims.
        scope: the credential's elements without the first.
        signed_headers: in lower case and in order.
        signature: in hex.
        date: the request's.
    """

    access_key_id: str
    scope: tuple[str, str, str, str]
    signed_headers: tuple[str, ...]
    signature: str
    date: datetime

    @property
    def timestamp(self) -> str:
        """The date as it is signed."""
        return self.date.strftime(_ISO_BASIC)


def check_claim(
    request: SignedRequest, *, keys: Mapping[str, KnownCredentials], services: Sequence[str], now: datetime
) -> tuple[Claim, KnownCredentials]:
    """Check by the headers alone that a request claims a signature that could be valid.

    Args:
        request: the request as received.
        keys: the known keys, by access key id.
        services: the names that the credential's scope may have, such as ``ecr``.
        now: the time, with a time zone.

    Returns:
        The claim, and the key that it names.

    Raises:
        AwsError: MissingAuthenticationTokenException, IncompleteSignatureException, UnrecognizedClientException,
            ExpiredTokenException or InvalidSignatureException.
    """
    claim = _read_claim(request)
    credentials = _find(claim, request, keys, now)
    _check_date(claim.date, now)
    _check_scope(claim, services)
    _check_signed_headers(claim, request)
    return claim, credentials


def verify(
    request: SignedRequest,
    body: bytes | bytearray,
    *,
    keys: Mapping[str, KnownCredentials],
    services: Sequence[str],
    now: datetime,
) -> KnownCredentials:
    """Verify that a request was signed recently, by a known key, for one of *services* in any region.

    It hashes the whole body: call it in a thread if that is long.

    Args:
        request: the request as received.
        body: its body as received.
        keys: see ``check_claim``.
        services: likewise.
        now: likewise.

    Returns:
        The key that signed it.

    Raises:
        AwsError: as ``check_claim`` does; InvalidSignatureException.
    """
    claim, credentials = check_claim(request, keys=keys, services=services, now=now)
    canonical = _canonical_request(request, claim.signed_headers, hashlib.sha256(body).hexdigest())
    if not hmac.compare_digest(_signature(credentials, claim, canonical).encode(), claim.signature.encode()):
        raise _invalid(
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
        )
    return credentials


def _read_claim(request: SignedRequest) -> Claim:
    given = request.values("authorization")
    if not given:
        raise AwsError("MissingAuthenticationTokenException", "Missing Authentication Token")
    algorithm, _, rest = ", ".join(given).partition(" ")
    if algorithm != ALGORITHM:
        raise _incomplete(f"Authorization header has the algorithm '{algorithm}' instead of '{ALGORITHM}'")
    members = _members(rest)
    dates = request.values("x-amz-date") or request.values("date")
    lacking = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if not members.get(name)
    ]
    if not dates:
        lacking.append("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
    if lacking:
        raise _incomplete(" ".join(lacking))
    elements = members["Credential"].split("/")
    if len(elements) != 5:
        raise _incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, "
            f"got '{members['Credential']}'"
        )
    key_id, day, region, service, term = elements
    names = tuple(sorted(name.lower() for name in members["SignedHeaders"].split(";")))
    return Claim(key_id, (day, region, service, term), names, members["Signature"], _read_date(dates[0]))


def _members(text: str) -> dict[str, str]:
    members: dict[str, str] = {}
    for member in text.split(","):
        name, equals, value = member.strip().partition("=")
        if not equals:
            raise _incomplete(f"'{name}' not a valid key=value pair (missing equal-sign) in Authorization header")
        members[name] = value
    return members


def _read_date(text: str) -> datetime:
    try:
        if _TIMESTAMP.fullmatch(text):
            return datetime.strptime(text, _ISO_BASIC).replace(tzinfo=UTC)
        return parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _incomplete(f"Date must be in ISO-8601 'basic format'. Got '{text}'") from error


def _find(
    claim: Claim, request: SignedRequest, keys: Mapping[str, KnownCredentials], now: datetime
) -> KnownCredentials:
    found = keys.get(claim.access_key_id)
    # Without a token the request means lasting credentials, and none are known under that id.
    token = "".join(request.values("x-amz-security-token"))
    if found is None or not hmac.compare_digest(token.encode(), (found.session_token or "").encode()):
        raise AwsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if found.expires is not None and found.expires <= now:
        raise AwsError("ExpiredTokenException", "The security token included in the request is expired")
    return found


def _check_date(date: datetime, now: datetime) -> None:
    signed, here = date.strftime(_ISO_BASIC), now.strftime(_ISO_BASIC)
    if date < now - MAX_SKEW:
        limit = (now - MAX_SKEW).strftime(_ISO_BASIC)
        raise _invalid(f"Signature expired: {signed} is now earlier than {limit} ({here} - 5 min.)")
    if date > now + MAX_SKEW:
        limit = (now + MAX_SKEW).strftime(_ISO_BASIC)
        raise _invalid(f"Signature not yet current: {signed} is still later than {limit} ({here} + 5 min.)")


def _check_scope(claim: Claim, services: Sequence[str]) -> None:
    day, region, service, term = claim.scope
    if day != claim.timestamp[:8]:
        raise _invalid(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
            f"'{day}' != '{claim.timestamp[:8]}', from '{claim.timestamp}'."
        )
    if not _REGION.fullmatch(region):
        raise _invalid("Credential should be scoped to a valid region.")
    if service not in services:
        raise _invalid(f"Credential should be scoped to correct service: '{services[0]}'.")
    if term != _TERMINATOR:
        raise _invalid(f"Credential should be scoped with a valid terminator: '{_TERMINATOR}', not '{term}'.")


def _check_signed_headers(claim: Claim, request: SignedRequest) -> None:
    """The headers that must be signed: the host, and what the request says to AWS (``x-amz-*``)."""
    names = {name.lower().decode("latin-1") for name, _ in request.headers}
    for name in sorted({"host"} | {name for name in names if name.startswith("x-amz-")}):
        if name not in claim.signed_headers:
            raise _invalid(f"'{name}' must be a 'SignedHeader' in the AWS Authorization.")


def _canonical_request(request: SignedRequest, signed_headers: tuple[str, ...], body_hash: str) -> bytes:
    lines = [request.method.encode(), _canonical_path(request.path).encode(), _canonical_query(request.query).encode()]
    received: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        received.setdefault(name.lower(), []).append(b" ".join(value.split()))
    names = [name.encode("latin-1") for name in signed_headers]
    lines += [name + b":" + b",".join(received.get(name, ())) for name in names]
    lines += [b"", b";".join(names), body_hash.encode()]
    return b"\n".join(lines)


def _canonical_path(path: str) -> str:
    """The path without empty and dot segments, encoded once more than in the request line (every service but S3)."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    slash = "/" if segments and path.endswith("/") else ""
    return quote("/" + "/".join(segments), safe="/" + _UNRESERVED) + slash


def _canonical_query(query: str) -> str:
    """The parameters, encoded again and in order."""
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    encoded = sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)


def _encoded(text: str) -> str:
    return quote(unquote_to_bytes(text), safe=_UNRESERVED)


def _signature(credentials: KnownCredentials, claim: Claim, canonical_request: bytes) -> str:
    hashed = hashlib.sha256(canonical_request).hexdigest()
    text = "\n".join((ALGORITHM, claim.timestamp, "/".join(claim.scope), hashed))
    key = b"AWS4" + credentials.secret_access_key.encode()
    for element in (*claim.scope, text):
        key = hmac.digest(key, element.encode(), "sha256")
    return key.hex()


def _incomplete(message: str) -> AwsError:
    return AwsError("IncompleteSignatureException", message)


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidSignatureException", message)
