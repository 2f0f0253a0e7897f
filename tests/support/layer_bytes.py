"""One layer, compressed in every valid way, and in some invalid ones."""

from __future__ import annotations

import gzip

from asyncpush.engine.compress import zstd
from support.images import A, B

PACKED = gzip.compress(A, 6, mtime=0)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"a ToC"
MIDDLE = len(PACKED) // 2

DAMAGED = {
    "one bit": PACKED[:MIDDLE] + bytes([PACKED[MIDDLE] ^ 1]) + PACKED[MIDDLE + 1 :],
    "cut": PACKED[:-9],
    "rubbish": b"\x1f\x8b" + b"rubbish" * 9,
    "another layer": gzip.compress(B, 6, mtime=0),
    "more behind it": PACKED + b"more",
    "another member behind it": PACKED + gzip.compress(b"more"),
    "cut zstd": zstd.compress(A)[:-3],
    "zstd rubbish": b"\x28\xb5\x2f\xfd" + b"rubbish" * 9,
    "another layer in zstd": zstd.compress(B),
}

WHOLE = {
    "gzip": PACKED,
    "members": gzip.compress(A[:7]) + gzip.compress(b"") + gzip.compress(A[7:]),
    "padded": PACKED + bytes(1000),
    "zstd": zstd.compress(A),
    "frames": SKIPPABLE + zstd.compress(A[:7]) + zstd.compress(A[7:]) + SKIPPABLE,
}
