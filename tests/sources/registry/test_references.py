"""How images in registries are written, and what a registry's challenge means."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.errors import InvalidReferenceError
from asyncpush.model import Digest
from asyncpush.sources.registry import RemoteReference, canonical_host, parse_remote
from asyncpush.sources.registry.www_authenticate import Challenge, parse_challenges

DIGEST = Digest("a" * 64)


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "name"),
    [
        ("debian", "docker.io", "library/debian", "latest", "debian"),
        ("debian:12", "docker.io", "library/debian", "12", "debian"),
        ("team/app:1.0", "docker.io", "team/app", "1.0", "team/app"),
        ("docker.io/debian", "docker.io", "library/debian", "latest", "debian"),
        ("index.docker.io/library/debian", "docker.io", "library/debian", "latest", "debian"),
        ("docker.io/library/a/b", "docker.io", "library/a/b", "latest", "library/a/b"),
        ("library/library/app", "docker.io", "library/library/app", "latest", "library/library/app"),
        ("registry-1.docker.io/team/app", "docker.io", "team/app", "latest", "team/app"),
        ("quay.io/app", "quay.io", "app", "latest", "app"),
        ("localhost/app", "localhost", "app", "latest", "app"),
        ("localhost:5000/a/b/c:x", "localhost:5000", "a/b/c", "x", "a/b/c"),
        ("host:5000/app", "host:5000", "app", "latest", "app"),
        ("HOST/app", "host", "app", "latest", "app"),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", "app"),
        ("ghcr.io/library/app", "ghcr.io", "library/app", "latest", "library/app"),
    ],
)
def test_hosts_are_told_from_names_as_docker_does(text: str, host: str, repository: str, tag: str, name: str) -> None:
    parsed = parse_remote(f"docker://{text}")

    assert parsed == RemoteReference(host, repository, tag, None)
    assert parsed.name == name
    assert parse_remote(str(parsed)) == parsed


def test_a_digest_counts_more_than_a_tag() -> None:
    assert parse_remote(f"docker://quay.io/app@{DIGEST}") == RemoteReference("quay.io", "app", None, DIGEST)
    both = parse_remote(f"docker://quay.io/app:1@{DIGEST}")
    assert (both.tag, both.target) == ("1", DIGEST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quay.io/",
        "quay.io/App",
        "quay.io/app:",
        "quay.io/app:-x",
        "quay.io/app:a:b",
        "quay.io/a//b",
        "quay.io:0/app",
        "quay.io:99999/app",
        "-quay.io/app",
        "quay.io/app@sha512:00",
        "quay.io/app@",
        "user:secret@quay.io/app",
        f"quay.io/{'a' * 300}",
    ],
)
def test_what_is_written_wrong_is_refused(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        parse_remote(f"docker://{text}")


@pytest.mark.parametrize("host", ["[:::]", "[1.2.3.4]", "[....]:5000", "[::1", "[]"])
def test_what_is_no_ipv6_address_is_no_host(host: str) -> None:
    with pytest.raises(InvalidReferenceError, match="is not a registry host"):
        parse_remote(f"docker://{host}:5000/app" if host.endswith("]") else f"docker://{host}/app")
    with pytest.raises(InvalidReferenceError, match="is not a registry host"):
        canonical_host(host)


def test_a_password_in_a_reference_without_a_repository_is_not_shown() -> None:
    with pytest.raises(InvalidReferenceError, match="names no user") as caught:
        parse_remote("docker://user:s3cret@quay.io")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(InvalidReferenceError, match="is not a sha256 digest"):
        parse_remote("docker://quay.io/team/app@latest")
    assert parse_remote(f"docker://debian:12@{DIGEST}").digest == DIGEST


def test_a_password_in_a_reference_is_not_shown() -> None:
    with pytest.raises(InvalidReferenceError, match="names no user; set ASYNCPUSH_SRC_CREDS") as caught:
        parse_remote("docker://user:s3cret@quay.io/app")
    assert "s3cret" not in str(caught.value)


@given(st.text(alphabet=string.ascii_letters + string.digits + ".:/@_-[]%", max_size=40))
def test_any_text_is_a_reference_that_reads_the_same_again_or_an_error(text: str) -> None:
    try:
        parsed = parse_remote(f"docker://{text}")
    except InvalidReferenceError:
        return
    assert parse_remote(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://a.example/t?x=1,2",service="r",scope="repository:a:pull,push"',
            [("bearer", {"realm": "https://a.example/t?x=1,2", "service": "r", "scope": "repository:a:pull,push"})],
        ),
        (
            'Basic realm="a, b=\\"c\\"" , Bearer realm=x,service = "y"',
            [("basic", {"realm": 'a, b="c"'}), ("bearer", {"realm": "x", "service": "y"})],
        ),
        ("Negotiate", [("negotiate", {})]),
        ("Negotiate abc==, BASIC Realm=r", [("negotiate", {}), ("basic", {"realm": "r"})]),
        ("Basic, Bearer realm=z", [("basic", {}), ("bearer", {"realm": "z"})]),
        (',,"?", Basic', [("basic", {})]),
        ("", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    parsed = parse_challenges([header])

    assert [(each.scheme, dict(each.parameters)) for each in parsed] == expected


_WORD = st.text(alphabet=string.ascii_letters + string.digits + "-_", min_size=1, max_size=8)
_VALUE = st.text(alphabet=string.printable.replace("\r", "").replace("\n", ""), max_size=12)


@given(
    st.lists(
        st.tuples(_WORD, st.dictionaries(_WORD.map(str.lower), _VALUE, min_size=1, max_size=3)), min_size=1, max_size=4
    ),
    st.sampled_from([", ", ",", " , "]),
)
def test_challenges_that_were_written_out_are_read_back(
    challenges: list[tuple[str, dict[str, str]]], comma: str
) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = comma.join(
        f"{scheme} {comma.join(f'{name}={quoted(value)}' for name, value in parameters.items())}"
        for scheme, parameters in challenges
    )

    expected = tuple(Challenge(scheme.lower(), tuple(parameters.items())) for scheme, parameters in challenges)
    assert parse_challenges([header]) == expected


@given(st.lists(st.text(max_size=60), max_size=3))
def test_any_header_is_read_without_an_error(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme
