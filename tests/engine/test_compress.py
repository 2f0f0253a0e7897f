"""Laws of layers that are compressed as they are read."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.engine import compress
from asyncpush.engine.compress import BLOCK_SIZE, CompressedBlob
from asyncpush.errors import DigestMismatchError
from asyncpush.model import Descriptor, Digest
from support.places import TESTS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RANDOM = random.Random(7)
LAYER = b"".join(RANDOM.randbytes(400) + b"the same text again " * 30 for _ in range(2600))[: 2 * BLOCK_SIZE + 12345]
WAYS = [("gzip", 1), ("gzip", 3), ("gzip", 4), ("gzip", 9), ("zstd", 3), ("zstd", 10)]


class Reader:
    def __init__(self, data):
        self.data, self.consumed = data, 0

    def readinto(self, buffer):
        found = self.data[self.consumed : self.consumed + len(buffer)]
        buffer[: len(found)] = found
        self.consumed += len(found)
        return len(found)


@dataclass
class Raw:
    data: bytes
    diff_id: Digest | None = None
    name: str = "layer 0123456789ab"

    @property
    def descriptor(self):
        return Descriptor("raw", self.diff_id or Digest.of(self.data), len(self.data))

    @contextmanager
    def open(self):
        yield Reader(self.data)

    def mismatch(self, expected, actual):
        return DigestMismatchError(self.name, expected, actual)


def read(blob, size=300_000):
    out, buffer = bytearray(), memoryview(bytearray(size))
    with blob.open() as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
        assert reader.consumed == blob.source_size
    return bytes(out)


def unpack(codec, data):
    return gzip.decompress(data) if codec == "gzip" else zstd.decompress(data)


@pytest.mark.parametrize(("codec", "level"), WAYS)
@pytest.mark.parametrize("size", [0, 1, 1000, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, len(LAYER)])
def test_what_is_compressed_decompresses_to_the_layer(codec, level, size):
    data = LAYER[:size]

    packed = read(CompressedBlob(Raw(data), "type", codec, level))

    assert hashlib.sha256(unpack(codec, packed)).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize(("codec", "level"), WAYS)
def test_a_layer_really_gets_smaller(codec, level):
    assert len(read(CompressedBlob(Raw(LAYER), "type", codec, level))) < len(LAYER) * 0.6


@settings(max_examples=15, deadline=None)
@given(
    way=st.sampled_from([("gzip", 1), ("gzip", 6), ("zstd", 3)]),
    sizes=st.lists(st.integers(500, 700_000), min_size=1, max_size=5),
)
def test_the_compressed_bytes_are_the_same_whatever_the_buffers(way, sizes):
    blob = CompressedBlob(Raw(LAYER), "type", *way)
    expected = read(blob)
    out = bytearray()

    with blob.open() as reader:
        turn = 0
        while True:
            buffer = memoryview(bytearray(sizes[turn % len(sizes)]))
            count = reader.readinto(buffer)
            out += buffer[:count]
            if count < len(buffer):
                break
            turn += 1

    assert bytes(out) == expected


@pytest.mark.parametrize(("codec", "level"), WAYS)
def test_only_the_last_buffer_is_not_filled(codec, level):
    counts, buffer = [], memoryview(bytearray(100_000))
    with CompressedBlob(Raw(LAYER), "type", codec, level).open() as reader:
        while count := reader.readinto(buffer):
            counts.append(count)

    assert set(counts[:-1]) == {100_000}


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [0, 5, BLOCK_SIZE, len(LAYER)])
def test_bytes_that_are_not_the_diff_ids_are_never_given_out_as_whole(codec, size):
    blob = CompressedBlob(Raw(LAYER[:size], Digest.of(b"another layer")), "type", codec)

    with pytest.raises(DigestMismatchError, match="layer 0123456789ab is damaged"):
        read(blob)


def test_a_gzip_header_tells_neither_time_nor_name():
    for level in (1, 6):
        head = read(CompressedBlob(Raw(b"x"), "type", "gzip", level))[:9]

        assert head[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("codec", "level", "ending"),
    [("gzip", None, "+gzip-1"), ("gzip", 6, "+gzip-6"), ("zstd", None, "+zstd-3"), ("zstd", 1, "+zstd-1")],
)
def test_the_identity_tells_the_diff_id_and_the_way_of_compression(codec, level, ending):
    assert CompressedBlob(Raw(b"abc"), "type", codec, level).identity == f"{Digest.of(b'abc')}{ending}"


def test_no_level_is_the_default_level():
    for codec, level in compress.DEFAULT_LEVELS.items():
        assert read(CompressedBlob(Raw(LAYER), "t", codec)) == read(CompressedBlob(Raw(LAYER), "t", codec, level))


def test_without_isal_zlib_does_all_levels(monkeypatch):
    monkeypatch.setattr(compress, "isal_zlib", None)

    for level in (1, 3):
        assert zlib.decompress(read(CompressedBlob(Raw(LAYER), "type", "gzip", level)), 31) == LAYER


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_another_process_makes_the_same_bytes(codec, tmp_path):
    (tmp_path / "layer").write_bytes(LAYER)
    script = (
        "import sys, hashlib, pathlib; sys.path.insert(0, sys.argv[1]); import engine.test_compress as t;"
        "data = pathlib.Path(sys.argv[2]).read_bytes();"
        "print(hashlib.sha256(t.read(t.CompressedBlob(t.Raw(data), 'type', sys.argv[3]), 77_777)).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(TESTS), str(tmp_path / "layer"), codec]

    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert there == hashlib.sha256(read(CompressedBlob(Raw(LAYER), "type", codec))).hexdigest()


def test_open_layers_have_no_buffers_of_their_own() -> None:
    """Hundreds of layers may be open at once, but only a few threads work on them."""
    blobs = [CompressedBlob(Raw(LAYER), "type") for _ in range(16)]
    buffer = memoryview(bytearray(1000))
    read(blobs[0])  # this thread has its buffer now
    tracemalloc.start()
    try:
        with ExitStack() as opened:
            readers = [opened.enter_context(blob.open()) for blob in blobs]
            held = tracemalloc.get_traced_memory()[0]
            codecs = [compress.new_compressor("gzip", 1) for _ in blobs]
            # What the codecs take by themselves is theirs.
            assert held - (tracemalloc.get_traced_memory()[0] - held) < len(codecs) * BLOCK_SIZE / 4
            assert all(reader.readinto(buffer) for reader in readers)
    finally:
        tracemalloc.stop()
