"""A text stream that may go away: once it fails, what is written to it is dropped."""

from __future__ import annotations

from typing import TextIO


class Sink:
    """Writes to *stream* until that fails. A reader who leaves (``2>&1 | head``) must not break a push."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:
        """The stream's encoding; UTF-8 where it has none."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write *text*; letters that the stream's encoding lacks are escaped. Never raises."""
        if not self._gone:
            try:
                self._stream.write(self._encodable(text))
            except (OSError, ValueError):
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Hand on what was written. Never raises."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._gone = True

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The stream's file descriptor.

        Raises:
            OSError: it has none.
        """
        return self._stream.fileno()

    def _encodable(self, text: str) -> str:
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)
