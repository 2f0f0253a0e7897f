"""A manifest as a registry gives it: what its headers claim, and whether its bytes bear that out."""

from __future__ import annotations

import msgspec

from asyncpush.errors import DigestMismatchError, ManifestError
from asyncpush.manifest import ACCEPTED_TYPES, Manifest, parse_manifest
from asyncpush.model import Descriptor, Digest
from asyncpush.sources.registry.requests import Answer

_SCHEMA_1 = 1


class _Version(msgspec.Struct, rename={"schema_version": "schemaVersion"}):
    schema_version: int = 0


def described(answer: Answer, reference: str | Digest) -> Descriptor | None:
    """What a HEAD tells; None where it tells too little, or what can't be."""
    length = answer.headers.get("Content-Length", "")
    digest, media_type = digest_of(answer), media_type_of(answer)
    if answer.status != 200 or digest is None or media_type is None or not (length.isascii() and length.isdecimal()):
        return None
    if not int(length[:12]):
        return None  # some say so of HEAD's own body
    if isinstance(reference, Digest) and reference != digest:
        return None
    return Descriptor(media_type, digest, int(length[:12]))


def media_type_of(answer: Answer) -> str | None:
    """The type of manifest that an answer says it is; None if it says something else."""
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return media_type if media_type in ACCEPTED_TYPES else None


def digest_of(answer: Answer) -> Digest | None:
    """The digest that an answer claims; None if it claims none."""
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", "").strip())
    except ValueError:
        return None  # missing, or of another algorithm


def parse_checked(raw: bytes, media_type: str | None, claim: Digest | None, what: str) -> Manifest:
    """Parse a manifest, and see that it is what is claimed; *what* is how to call it in errors.

    Raises:
        DigestMismatchError: its bytes are others.
        ManifestError: it is malformed, or of a type that ECR does not take.
    """
    # First, since the digest of a signed schema 1 image leaves out its signatures.
    _refuse_schema_1(raw, what)
    digest = Digest.of(raw)
    if claim is not None and claim != digest:
        raise _mismatch(what, claim, digest)
    return parse_manifest(raw, media_type=media_type, name=what)


def _refuse_schema_1(raw: bytes, what: str) -> None:
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if version == _SCHEMA_1:
        raise ManifestError(
            f"{what} is a schema 1 image (schema version 1), which ECR refuses (405 UNSUPPORTED)",
            hint="convert it: pull it and push it again with a tool of today, such as skopeo copy --format v2s2",
        )


def _mismatch(what: str, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
    hint = "the registry, or a proxy before it, gives other bytes than were asked for"
    return DigestMismatchError(what, expected, actual, hint=hint)
