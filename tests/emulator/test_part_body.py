"""The emulator's reader of part bodies agrees with a plain JSON parser on every body."""

from __future__ import annotations

import base64
import json
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncpush.emulator.api.part_body import ReceivedPart, locate_blob
from asyncpush.emulator.api.part_body import read_part_body as read_part_body_by
from asyncpush.emulator.api.validation import load_input_rules
from asyncpush.emulator.errors import AwsError

UPLOAD_ID = "0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e"
MAX_PART = 20 * 1024 * 1024


def read_part_body(body: bytearray) -> ReceivedPart:
    return read_part_body_by(body, partial(load_input_rules("ecr").check, "UploadLayerPart"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
# Names and values that look like the blob's own member, inside of strings and as keys.
decoys = st.sampled_from(
    ['"layerPartBlob": "AAAA"', "layerPartBlob", '\\"layerPartBlob\\":', '{"layerPartBlob":"', "\\"]
)
spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body as any JSON writer may write it, and the bytes of its blob."""
    blob = draw(st.binary(max_size=60))
    members = draw(st.dictionaries(st.text() | decoys.filter(lambda key: key != "layerPartBlob"), json_values | decoys))
    members |= {
        "registryId": "123456789012",
        "repositoryName": "team/app",
        "uploadId": UPLOAD_ID,
        "partFirstByte": draw(st.integers(0, 2**40)),
        "partLastByte": draw(st.integers(0, 2**40)),
        "layerPartBlob": base64.b64encode(blob).decode(),
    }
    ordered = dict(draw(st.permutations(list(members.items()))))
    separators = (draw(spaces) + "," + draw(spaces), draw(spaces) + ":" + draw(spaces))
    text = draw(spaces) + json.dumps(ordered, separators=separators, ensure_ascii=draw(st.booleans())) + draw(spaces)
    return text.encode(errors="surrogatepass").replace(b"/", b"\\/" if draw(st.booleans()) else b"/"), blob


@given(bodies())
def test_a_body_is_read_as_a_json_parser_reads_it(written: tuple[bytes, bytes]) -> None:
    body, blob = written
    expected = json.loads(body)
    read = read_part_body(bytearray(body))
    assert read.blob == blob
    assert read.request.repository_name == "team/app"
    assert read.request.upload_id == UPLOAD_ID
    assert read.request.part_first_byte == expected["partFirstByte"]
    assert read.request.part_last_byte == expected["partLastByte"]


@given(st.binary(max_size=200) | st.text().map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()))
@example(b'{"layerPartBlob": "AAAA", "layerPartBlob": "BBBB"}')
@example(b'{"layerPartBlob": "AAAA"')
@example(b'{"layerPartBlob": "AAAA"} x')
@example(b'{"layerPartBlob" "AAAA"}')
def test_a_place_is_found_only_where_a_json_parser_finds_the_blob(body: bytes) -> None:
    place = locate_blob(bytearray(body))
    try:
        parsed = json.loads(body)
    except ValueError:
        return
    if place is not None:
        assert parsed["layerPartBlob"].encode() == body[slice(*place)]


def test_the_usual_body_is_read_without_parsing_its_blob() -> None:
    members = {"uploadId": UPLOAD_ID, "partFirstByte": 0, "layerPartBlob": "AAAA", "partLastByte": 2}
    for body in (json.dumps(members).encode(), json.dumps(members, separators=(",", ":")).encode()):
        first, end = locate_blob(bytearray(body)) or (0, 0)
        assert body[first:end] == b"AAAA"


@pytest.mark.parametrize("slash", ["/", "\\/", "\\u002f", "\\u002F"])
def test_a_blob_is_read_however_its_slashes_are_written(slash: str) -> None:
    body = body_with(base64.b64encode(b"\xff" * 30).decode()).replace(b"/", slash.encode())
    assert read_part_body(body).blob == b"\xff" * 30


def body_with(blob: str) -> bytearray:
    members = {"repositoryName": "app", "uploadId": UPLOAD_ID, "partFirstByte": 0, "partLastByte": 2}
    return bytearray(json.dumps({**members, "layerPartBlob": blob}).encode())


@pytest.mark.parametrize(
    "blob", ["A", "AAA", "AA=A", "AA==AAAA", "AAA\n", "AA A", "A\u00e9AA", "!!!!", "AAA-", "AAA\\"]
)
def test_a_blob_that_is_no_base64_is_an_invalid_parameter(blob: str) -> None:
    with pytest.raises(AwsError) as caught:
        read_part_body(body_with(blob))
    assert caught.value.code == "InvalidParameterException"
    assert "'layerPartBlob'" in caught.value.message


@pytest.mark.parametrize("last", ["5", "null", "[]", '"AAA"', '{"layerPartBlob": "AAAA"}'])
def test_of_two_blobs_the_last_counts_whatever_it_is(last: str) -> None:
    body = body_with("AAAA").removesuffix(b"}") + f', "layerPartBlob": {last}}}'.encode()
    with pytest.raises(AwsError) as caught:
        read_part_body(bytearray(body))
    assert caught.value.code == "InvalidParameterException"
    assert "'layerPartBlob'" in caught.value.message


@pytest.mark.parametrize(
    "text", ['{"layerPartBlob": "AAAA", }', '{"layerPartBlob": "AAAA"', '{"a": 01, "layerPartBlob": "A"}']
)
def test_a_body_that_is_no_json_is_refused_although_its_blob_can_be_found(text: str) -> None:
    with pytest.raises(AwsError) as caught:
        read_part_body(bytearray(text.encode()))
    assert caught.value.code == "SerializationException"


def test_the_longest_part_has_twenty_mebibytes() -> None:
    longest = base64.b64encode(bytes(MAX_PART)).decode()
    assert len(read_part_body(body_with(longest)).blob) == MAX_PART
    with pytest.raises(AwsError) as caught:
        read_part_body(body_with(base64.b64encode(bytes(MAX_PART + 1)).decode()))
    assert caught.value.code == "InvalidParameterException"
    assert str(MAX_PART) in caught.value.message
