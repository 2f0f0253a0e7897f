"""Archives that arrive as streams: an image that a container engine saves, or an object in S3."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from asyncpush.errors import InvalidReferenceError, SourceDeniedError, SourceNotFoundError, UsageError
from asyncpush.events import Emit
from asyncpush.protocols import BlobStream, ObjectStore
from asyncpush.reference import S3_SCHEME, SCHEME, S3Location, parse_remote
from asyncpush.sources.source import Location, splits

Engine = Literal["docker-daemon", "containers-storage"]

ENGINES: tuple[Engine, ...] = ("docker-daemon", "containers-storage")

#: An image's id, or the beginning of one, as engines print it.
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image in a container engine on this machine.

    Attributes:
        engine: the engine.
        name: its name there, with a tag or digest; or its id.
        repository: the repository in its name, without a registry; None for an id.
        tag: the tag in its name; None for an id or a digest.
    """

    engine: Engine
    name: str
    repository: str | None = None
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> EngineImage | None:
        """Read ``ENGINE:NAME[:TAG|@DIGEST]`` or ``ENGINE:ID``; None for anything else. The default tag is ``latest``.

        Raises:
            InvalidReferenceError: it names no image.
        """
        scheme, _, name = text.partition(":")
        engine = next((engine for engine in ENGINES if text.startswith(f"{engine}:")), None)
        if engine is None:
            return None
        if _ID.fullmatch(name):
            return cls(engine, name)
        try:
            parsed = parse_remote(f"{SCHEME}{name}")
        except InvalidReferenceError as error:
            raise InvalidReferenceError(
                f"{text[:300]!r} names no image", hint=f"write {scheme}:NAME[:TAG|@DIGEST], or {scheme}:ID"
            ) from error
        has_tag = parsed.digest is not None or name.endswith(f":{parsed.tag}")
        return cls(engine, name if has_tag else f"{name}:{parsed.tag}", parsed.name, parsed.tag)


def is_engine_image(source: str) -> bool:
    """Whether *source* names an image in a container engine on this machine."""
    return source.startswith(tuple(f"{engine}:" for engine in ENGINES))


def is_stream(source: str) -> bool:
    """Whether *source* names an archive that arrives as a stream."""
    return source.startswith(S3_SCHEME) or is_engine_image(source)


def check_stream(source: str) -> EngineImage | S3Location:
    """Read the name of an archive that arrives as a stream; of an object, with whatever is chosen behind its key.

    Raises:
        InvalidReferenceError: it is not well formed.
    """
    image = EngineImage.parse(source)
    if image is not None:
        return image
    try:
        location = S3Location.parse(source)
    except UsageError as error:
        raise InvalidReferenceError(error.message, hint=error.hint) from error
    if location is None or location.is_prefix:
        raise InvalidReferenceError(
            f"{source[:300]!r} names no object", hint="write s3://BUCKET/KEY[:TAG], the key of one archive"
        )
    return location


@asynccontextmanager
async def open_archive_stream(
    source: str, objects: ObjectStore | None, emit: Emit
) -> AsyncIterator[tuple[Location, BlobStream]]:
    """Begin to receive an archive; its bytes can be read until the block is left.

    Args:
        source: ``docker-daemon:NAME``, ``containers-storage:NAME`` or ``s3://BUCKET/KEY``, with a choice behind it.
        objects: S3; None where it can't be read.
        emit: receives a ``Notice`` if the engine keeps us waiting.

    Raises:
        InvalidReferenceError: *source* is not well formed, or is an object without *objects*.
        SourceError: there is no such image or object, or it can't be read.
    """
    parsed = check_stream(source)
    async with AsyncExitStack() as stack:
        if isinstance(parsed, S3Location):
            yield await _open_object(parsed, objects, stack)
            return
        # What speaks with engines is imported where one is asked: most pushes ask none.
        if parsed.engine == "docker-daemon":
            from asyncpush.sources.docker_daemon import open_image
        else:
            from asyncpush.sources.containers_storage import open_image
        stream = await stack.enter_async_context(open_image(parsed.name, emit))
        yield Location(None, source, None, "image"), stream


async def _open_object(
    whole: S3Location, objects: ObjectStore | None, stack: AsyncExitStack
) -> tuple[Location, BlobStream]:
    """Open an object; as with paths, a key that exists takes precedence over a split at a colon."""
    if objects is None:
        raise InvalidReferenceError(f"{whole} can't be read here", hint="open it over a connection to a registry")
    failure: SourceNotFoundError | SourceDeniedError | None = None
    for key, choice in splits(whole.key):
        location = S3Location(whole.bucket, key)
        try:
            stream = await stack.enter_async_context(objects.open(location))
        except (SourceNotFoundError, SourceDeniedError) as error:  # S3 may deny that an object does not exist
            failure = error
            continue
        return Location(None, str(location), choice, "object"), stream
    assert failure is not None, "a key has one split at least"  # noqa: S101
    raise failure
