"""Sets and maps of millions of digests: 40 bytes each, while a tuple of strings in a dictionary takes 500."""

from __future__ import annotations

from collections.abc import Hashable

from asyncpush.model import Digest

#: Bytes of a digest that select its bucket: of a million digests, each of the 65,536 buckets holds 16.
_PREFIX = 2

#: Bytes of a value, which may be a size.
_VALUE = 8

#: Bytes of a number that represents the part of a key before its digest.
_NUMBER = 4

_HEX = 64
_SHA256 = "sha256:"


class PackedMap:
    """A map of keys of bytes, all of the same length, such as digests, to small numbers."""

    __slots__ = ("_buckets", "_rest", "_value", "_width")

    def __init__(self, key_size: int = _HEX // 2, value_size: int = _VALUE) -> None:
        self._rest = key_size - _PREFIX
        self._value = value_size
        self._width = self._rest + value_size
        self._buckets: dict[bytes, bytes] = {}

    def __contains__(self, key: bytes) -> bool:
        return self._find(self._buckets.get(key[:_PREFIX], b""), key[_PREFIX:]) >= 0

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values())) // self._width

    def get(self, key: bytes) -> int | None:
        """The value of *key*, or None."""
        bucket = self._buckets.get(key[:_PREFIX], b"")
        at = self._find(bucket, key[_PREFIX:])
        return None if at < 0 else int.from_bytes(bucket[at + self._rest : at + self._width])

    def put(self, key: bytes, value: int = 0) -> None:
        """Set the value of *key*."""
        bucket = self._buckets.get(key[:_PREFIX], b"")
        at = self._find(bucket, key[_PREFIX:])
        end = len(bucket) if at < 0 else at
        entry = key[_PREFIX:] + value.to_bytes(self._value)
        self._buckets[key[:_PREFIX]] = bucket[:end] + entry + bucket[end + self._width :]

    def discard(self, key: bytes) -> None:
        """Remove *key* if it is present."""
        bucket = self._buckets.get(key[:_PREFIX], b"")
        if (at := self._find(bucket, key[_PREFIX:])) >= 0:
            self._buckets[key[:_PREFIX]] = bucket[:at] + bucket[at + self._width :]

    def _find(self, bucket: bytes, rest: bytes) -> int:
        at = bucket.find(rest)
        while at >= 0 and at % self._width:
            at = bucket.find(rest, at + 1)
        return at


class PackedSet:
    """A set of keys: tuples that end in a digest (``(ADDRESS, "sha256:HEX")``) are packed, others are not."""

    __slots__ = ("_others", "_packed", "_words")

    def __init__(self) -> None:
        self._words: dict[Hashable, int] = {}
        self._packed = PackedMap(_HEX // 2 + _NUMBER, value_size=0)
        self._others: set[Hashable] = set()

    def __contains__(self, key: Hashable) -> bool:
        packed = self._pack(key)
        return key in self._others if packed is None else packed in self._packed

    def add(self, key: Hashable) -> None:
        """Add *key* if it is not present."""
        if (packed := self._pack(key)) is None:
            self._others.add(key)
        else:
            self._packed.put(packed)

    def discard(self, key: Hashable) -> None:
        """Remove *key* if it is present."""
        if (packed := self._pack(key)) is None:
            self._others.discard(key)
        else:
            self._packed.discard(packed)

    def _pack(self, key: Hashable) -> bytes | None:
        if not isinstance(key, tuple) or not key:
            return None
        *words, last = key
        text = str(last)
        if len(text) != len(_SHA256) + _HEX or not text.startswith(_SHA256):
            return None
        try:
            digest = bytes.fromhex(text[len(_SHA256) :])
        except ValueError:
            return None
        word = words[0] if len(words) == 1 else tuple(words)
        return digest + self._words.setdefault(word, len(self._words)).to_bytes(_NUMBER)


class PackedNames:
    """A map of digests to names, of which there are few: the repositories of a million layers."""

    __slots__ = ("_names", "_numbers", "_packed")

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._packed = PackedMap(value_size=_NUMBER)

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, Digest) and bytes.fromhex(digest.hex) in self._packed

    def get(self, digest: Digest) -> str | None:
        """The name of *digest*, or None."""
        number = self._packed.get(bytes.fromhex(digest.hex))
        return None if number is None else self._names[number]

    def setdefault(self, digest: Digest, name: str) -> None:
        """Set the name of *digest*, unless it has one."""
        if digest in self:
            return
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        self._packed.put(bytes.fromhex(digest.hex), self._numbers[name])
