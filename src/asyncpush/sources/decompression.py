"""Compressed bytes, whatever compressed them, as the bytes that they were: streams, padding, and their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from asyncpush.engine.decompress import (
    CORRUPT,
    LARGE,
    TOO_FAR_BACK,
    WINDOW_LOG,
    Decompressor,
    Packing,
    new_decompressor,
    turn_of,
)
from asyncpush.errors import SourceError
from asyncpush.settings import MiB

#: Enough of a file's beginning to tell what it is: a tar archive's first header.
HEAD_SIZE = 512

_MAGIC: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
)


def sniff(head: bytes) -> Packing | None:
    """How the file that begins with *head* is compressed, by its magic number; None if it isn't."""
    if head[257:262] == b"ustar":
        return None
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"  # a skippable frame, as pzstd begins its files with
    return next((packing for magic, packing in _MAGIC if head.startswith(magic)), None)


class Unpacker:
    """Decompresses compressed streams that lie one behind the other, with or without zeros between and behind them.

    Args:
        read: gives the next compressed bytes, none only at the end; blocks.
        label: how to call them in errors.
    """

    def __init__(self, read: Callable[[], bytes], label: str) -> None:
        self._read = read
        self._label = label
        self._pending = b""
        self._begun = False
        self._stream: Decompressor | None = None
        self._packing: Packing = "gzip"
        self._turn = ExitStack()
        self._has_turn = False

    def close(self) -> None:
        """Let others decompress."""
        self._stream = None
        self.let_others()

    def let_others(self) -> None:
        """Let others decompress while nothing comes: who waits for a pipe keeps its window, but not its turn."""
        self._has_turn = False
        self._turn.close()

    def _take_turn(self) -> None:
        if not self._has_turn and self._packing in LARGE:
            self._turn.enter_context(turn_of(self._packing))
            self._has_turn = True

    def decompress(self, size: int) -> bytes:
        """The next bytes, *size* at the most; none only at the end, all checksums having been right.

        Raises:
            SourceError: they are damaged or cut short, need too much memory, or something else lies behind them.
        """
        # No variable has the stream: what is raised would keep its window for as long as the error is kept.
        while self._stream or self._next_stream():
            data = self._some(size)
            if data:
                return data
        return b""

    def _some(self, size: int) -> bytes:
        assert self._stream is not None, "a stream has begun"  # noqa: S101
        packed = self._input() if self._stream.needs_input else b""
        self._take_turn()
        with self._intact():
            data = self._stream.decompress(packed, size)
        if self._stream.eof:
            self._pending = self._stream.unused_data
            self._stream = None
        return data

    def _input(self) -> bytes:
        data, self._pending = self._pending or self._read(), b""
        if not data:
            raise SourceError(
                f"{self._label} is cut short: its compressed data has no end", hint="fetch or save it again"
            )
        return data

    def _next_stream(self) -> Decompressor | None:
        """Begin the next stream; None if there is nothing but zeros any more."""
        padding = b"\0" if self._begun else b""
        self._pending = self._pending.lstrip(padding)
        while len(self._pending) < HEAD_SIZE and (more := self._read()):
            self._pending = (self._pending + more).lstrip(padding)
        if not self._pending:
            return None
        packing = sniff(self._pending)
        if packing is None:
            raise SourceError(
                f"{self._label} holds something else behind its compressed data",
                hint="it may be damaged, or several files in one; give each file alone",
            )
        self._begun, self._packing = True, packing
        self._take_turn()
        self._stream = new_decompressor(packing)
        return self._stream

    @contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        except CORRUPT as error:
            if any(words in str(error) for words in TOO_FAR_BACK):
                raise SourceError(
                    f"{self._label} needs more than {(1 << WINDOW_LOG) // MiB} MiB of memory to be decompressed",
                    hint="decompress it first",
                ) from error
            raise SourceError(f"{self._label} is damaged: {error}", hint="fetch or save it again") from error
