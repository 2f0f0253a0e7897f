"""What is written in one line: image references of every grammar, challenges, and links."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import pytest
from hypothesis import strategies as st

from asyncpush.model import Digest, Platform
from asyncpush.reference import parse_destination, parse_prefix, parse_registry, parse_remote
from asyncpush.sources.registry.listing import parse_links
from asyncpush.sources.registry.www_authenticate import parse_challenges
from asyncpush.sources.source import ImageName, locate
from support.fuzzing import TIME, search, value_or_error

pytestmark = TIME

HEX = "0123456789abcdef" * 4

#: Pieces of which references are made, and what may be taken for one.
PIECES = [
    "docker://", "oci:", "oci-archive:", "docker-archive:", "public.ecr.aws", "docker.io", "index.docker.io", "quay.io",
    "localhost", "[::1]", "[fe80::1%eth0]", "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "dkr-ecr.us-east-1.on.aws",
    "library/", "a", "app", "App", "1.0", "latest", ":5000", ":0", ":65536", ":", "/", "//", "@", f"sha256:{HEX}",
    "sha256:", "sha512:", "user:pass", "_", "__", "___", "-", "--", ".", "..", " ", "\n", "\0", "\u0130", "\u212a",
    "\u0661", "\ud800", "%2f", "?", "#", "x" * 130, "x" * 256, "*",
]  # fmt: skip
references = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=30)

#: The grammar of distribution/reference, as its documentation has it.
WORD = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*"
TAG = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
PATH = re.compile(f"{WORD}(?:/{WORD})*")


def remote(text: str) -> object:
    parsed = parse_remote(text)
    assert parse_remote(str(parsed)) == parsed
    assert PATH.fullmatch(parsed.repository)
    assert parsed.tag is None or re.fullmatch(TAG, parsed.tag)
    url = urlsplit(f"https://{parsed.host}/v2/{parsed.repository}/tags/list")
    assert (url.netloc, url.path, url.username) == (parsed.host, f"/v2/{parsed.repository}/tags/list", None)
    assert url.hostname
    assert url.port is None or 0 < url.port < 65536
    return parsed


def destination(text: str) -> object:
    parsed = parse_destination(text)
    assert parse_destination(str(parsed)) == parsed
    assert PATH.fullmatch(parsed.repository)
    assert parsed.tag is None or re.fullmatch(TAG, parsed.tag)
    return parsed


def prefix(text: str) -> object:
    parsed = parse_prefix(text)
    joined = parsed.join("app", "1")
    assert parse_destination(str(joined)) == joined
    return parsed


def registry(text: str) -> object:
    parsed = parse_registry(text)
    assert urlsplit(f"https://{parsed.host}").netloc == parsed.host
    return parsed


def image_name(text: str) -> object:
    parsed = ImageName.parse(text)
    assert str(parsed)
    return parsed


def digest(text: str) -> object:
    try:
        parsed = Digest.parse(text)
    except ValueError:
        return None
    assert str(parsed) == text
    return parsed


def platform(text: str) -> object:
    try:
        parsed = Platform.parse(text)
    except ValueError:
        return None
    assert Platform.parse(str(parsed)) == parsed
    return parsed


@pytest.mark.parametrize("read", [remote, destination, prefix, registry, image_name, locate, digest, platform])
def test_any_reference_reads_back_as_it_is_written_or_is_an_error(read: Callable[[str], Any]) -> None:
    def law(text: str) -> None:
        value_or_error(lambda: read(text))

    written = references.map(lambda text: f"docker://{text}") | references if read is remote else references
    search(law, written, examples=40)


# Headers. What is longer than this never comes: the HTTP client refuses it.

LONGEST = 8190
PARTS = ["Bearer", "Basic", " ", ",", "=", '"', "\\", '\\"', "realm", "service", "scope", "a", "\t", "'", "<", ">", ";",
         "rel", "next", "/v2/_catalog?n=1&last=a", "https://b.example/x?a=1,2", "\xe9", "\udcff", "\x00"]  # fmt: skip
headers = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)
repeated = st.builds(
    lambda one, two, times: (one * times + two)[:LONGEST], headers, headers, st.sampled_from([1, 10, 400, 3000])
)


def test_any_challenge_is_read_in_bounded_time() -> None:
    def law(values: list[str]) -> None:
        for challenge in value_or_error(lambda: parse_challenges(values)):
            assert challenge.scheme == challenge.scheme.lower()
            assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", challenge.scheme)

    search(law, st.lists(headers | repeated, max_size=3), examples=40)


word = st.from_regex("[A-Za-z][A-Za-z0-9_-]{0,7}", fullmatch=True)
value = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='\\"'), max_size=30)


def test_parameters_of_a_challenge_are_those_that_urllib_reads() -> None:
    def law(scheme: str, parameters: dict[str, str], comma: str) -> None:
        rest = comma.join(f'{name}="{text}"' for name, text in parameters.items())
        [challenge] = parse_challenges([f"{scheme} {rest}"])
        assert dict(challenge.parameters) == parse_keqv_list(parse_http_list(rest))
        assert challenge.scheme == scheme.lower()

    parameters = st.dictionaries(word.map(str.lower), value, min_size=1, max_size=5)
    search(law, word, parameters, st.sampled_from([",", ", ", " ,\t"]), examples=20)


def test_any_link_is_read_in_bounded_time_and_leads_where_it_says() -> None:
    def law(values: list[str]) -> None:
        for link in value_or_error(lambda: parse_links(values)):
            assert any(link.target in value for value in values)
            assert all(relation == relation.lower() for relation in link.relations)

    search(law, st.lists(headers | repeated, max_size=3), examples=40)
