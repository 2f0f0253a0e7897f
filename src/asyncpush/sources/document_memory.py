"""How much memory the manifests, configs and lists of sources may take: a small archive can hold gigabytes of them."""

from __future__ import annotations

from threading import Lock

from asyncpush.errors import ManifestError
from asyncpush.settings import MiB

#: For all sources that are open, beside what each has for its own size.
MAX_MEMORY = 32 * MiB

#: Bytes of memory for each byte of a source: documents that lie uncompressed take no more, unless they are made for it.
_OWN = 4

#: A document is kept as its bytes, and as the texts in it.
_COPIES = 2

#: Bytes that a JSON value takes, once it is read.
_VALUE = 64


class DocumentPool:
    """Bytes that the documents of all open sources may take beside what each has for its own size."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.left = MAX_MEMORY

    def take(self, size: int) -> bool:
        """Take *size* bytes; whether there were as many."""
        with self._lock:
            if size > self.left:
                return False
            self.left -= size
            return True


POOL = DocumentPool()


class DocumentMemory:
    """What the documents of one source take, as long as it is open.

    Args:
        size: bytes of the source as it lies on the disk; None where each document lies there as it is.
    """

    def __init__(self, size: int | None) -> None:
        self._own = _OWN * (size or 0)
        self._is_plain = size is None
        self._taken = 0
        self._known: set[object] = set()
        self._lock = Lock()

    def charge(self, content: object, size: int, label: str) -> None:
        """Count a document before it is read, once.

        Raises:
            ManifestError: there is no room for it.
        """
        with self._lock:
            if content not in self._known:
                self._own += _OWN * size * self._is_plain
                self._take(_COPIES * size, label)
                self._known.add(content)

    def charge_values(self, content: object, count: int, label: str) -> None:
        """Count what a document becomes when it is decoded, once; likewise."""
        with self._lock:
            if (content, count) not in self._known:
                self._take(_VALUE * count, label)
                self._known.add((content, count))

    def _take(self, size: int, label: str) -> None:
        own = min(self._own, size)
        if not POOL.take(size - own):
            raise ManifestError(
                f"{label} is one too many: the manifests and configs of the sources that are open take more than"
                f" {MAX_MEMORY // MiB} MiB of memory",
                hint="push fewer images at once",
            )
        self._own -= own
        self._taken += size - own

    def close(self) -> None:
        """Give back what was taken."""
        with self._lock:
            POOL.take(-self._taken)
            self._taken = 0
