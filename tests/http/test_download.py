"""Laws of resumed downloads: whatever a server makes of ranges, each byte is taken once, or the response refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.http.download import ContentRange, Download

DATA = bytes(range(256)) * 4


def respond(headers: dict[str, str], *, ranges: bool, longest: int) -> tuple[int, dict[str, str], bytes]:
    """The response of a server that supports ranges or not, and sends up to *longest* bytes of one."""
    if not ranges or "Range" not in headers:
        return 200, {}, DATA
    start = int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
    body = DATA[start : start + longest]
    return 206, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"}, body


@given(
    st.lists(st.integers(1, len(DATA)), min_size=1, max_size=20),
    st.booleans(),
    st.integers(1, len(DATA)),
    st.sampled_from([None, len(DATA)]),
    st.integers(0, len(DATA) - 1),
)
def test_each_byte_is_taken_once_however_often_it_breaks(
    breaks: list[int], ranges: bool, longest: int, size: int | None, start: int
) -> None:
    download, taken = Download(size, start), b""
    for broken_after in [*breaks, *[len(DATA)] * len(DATA)]:
        status, headers, body = respond(download.request_headers(), ranges=ranges, longest=longest)
        assert download.accept(status, headers, len(body))
        received = body[:broken_after]
        taken += download.take(received[:100]) + download.take(received[100:])
        if received == body and not download.is_bounded:
            break

    assert taken == DATA[start:]
    assert download.received == len(DATA)


@pytest.mark.parametrize(
    ("status", "value", "length"),
    [
        (206, None, None),
        (206, "bytes 11-99/100", None),
        (206, "bytes 10-100/101", None),
        (206, "bytes 10-99/101", None),
        (206, "bytes 10-9/100", None),
        (206, "bytes 10-99/100", 89),
        (206, "lines 10-99/100", None),
        (416, "bytes */100", None),
    ],
)
def test_a_response_without_the_missing_bytes_is_refused(status: int, value: str | None, length: int | None) -> None:
    download = Download(100, start=10)
    assert download.accept(206, {"Content-Range": "bytes 10-99/*"}, 90)

    assert not download.accept(status, {"Content-Range": value} if value else {}, length)


def test_without_ranges_all_bytes_are_requested_and_the_first_ones_skipped() -> None:
    download = Download(start=10)
    download.uses_ranges = False

    assert download.request_headers() == {}
    assert not download.accept(206, {"Content-Range": "bytes 10-99/100"})
    assert download.accept(200, {})
    assert download.take(DATA[:15]) == DATA[10:15]


def test_a_content_range_may_leave_the_size_open() -> None:
    assert ContentRange.parse({"Content-Range": "bytes 5-9/*"}) == ContentRange(5, 9, None)
    assert ContentRange.parse({}) is None
