"""What became of what was asked for, failures among it, and how to raise them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from asyncpush.errors import AsyncpushError, FailuresError
from asyncpush.model import Digest


class Result:
    """What became of something; some or all of it may have failed."""

    __slots__ = ()

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """What has failed, as the user knows it, and why; empty if nothing has."""
        raise NotImplementedError

    def raise_for_failures(self) -> None:
        """Return if nothing has failed.

        Raises:
            FailuresError: something has; the error has all of it.
        """
        if failures := self.failures:
            raise FailuresError(failures)


ResultT = TypeVar("ResultT", bound=Result)


class Results(list[ResultT], Result):
    """What became of many things, in the order in which they were asked for."""

    __slots__ = ()

    def __init__(self, results: Iterable[ResultT] = ()) -> None:
        super().__init__(results)

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """What of all of them has failed."""
        return tuple(failure for result in self for failure in result.failures)


@dataclass(frozen=True, slots=True)
class ImageFailure(Result):
    """An image that was not pushed, and why."""

    source: str
    destination: str
    error: AsyncpushError

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The image itself."""
        return ((self.destination or self.source, self.error),)


@dataclass(frozen=True, slots=True)
class LayerResult(Result):
    """A file that is a layer of the repository now.

    Attributes:
        file: the file.
        digest: its sha256.
        size: its bytes.
        media_type: what a manifest should call it.
        outcome: ``pushed``; ``present`` if the repository had it already; ``planned`` in a dry run.
    """

    file: str
    digest: Digest
    size: int
    media_type: str
    outcome: Literal["pushed", "present", "planned"]

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class LayerFailure(Result):
    """A file that was not pushed, and why."""

    file: str
    error: AsyncpushError

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The file itself."""
        return ((self.file, self.error),)
