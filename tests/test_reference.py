"""Destinations as users write them: every partition's hosts, repository names, tags; and nothing else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncpush.errors import InvalidReferenceError
from asyncpush.reference import (
    Destination,
    Prefix,
    RegistryName,
    check_repository,
    in_registry,
    parse_destination,
    parse_prefix,
    parse_registry,
    registry_of,
)

ACCOUNT = "123456789012"

#: Host, region, FIPS, dual stack: the forms of ECR's endpoints in each partition.
PRIVATE_HOSTS = [
    (f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.ap-southeast-5.amazonaws.com", "ap-southeast-5", False, False),
    (f"{ACCOUNT}.dkr.ecr.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.us-gov-west-1.amazonaws.com", "us-gov-west-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1", False, False),
    (f"{ACCOUNT}.dkr.ecr.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1", False, False),
    (f"{ACCOUNT}.dkr.ecr-fips.us-east-2.amazonaws.com", "us-east-2", True, False),
    (f"{ACCOUNT}.dkr.ecr-fips.us-gov-east-1.amazonaws.com", "us-gov-east-1", True, False),
    (f"{ACCOUNT}.dkr-ecr.eu-central-1.on.aws", "eu-central-1", False, True),
    (f"{ACCOUNT}.dkr-ecr-fips.us-west-2.on.aws", "us-west-2", True, True),
    (f"{ACCOUNT}.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "cn-north-1", False, True),
    (f"{ACCOUNT}.dkr-ecr.eusc-de-east-1.on.amazonwebservices.eu", "eusc-de-east-1", False, True),
]

REGISTRIES = [
    (host, RegistryName("ecr", ACCOUNT, region, fips, dual_stack, host))
    for host, region, fips, dual_stack in PRIVATE_HOSTS
] + [("public.ecr.aws/a1b2c3d4", RegistryName("ecr-public", "a1b2c3d4", "us-east-1", host="public.ecr.aws"))]


@pytest.mark.parametrize(("written", "registry"), REGISTRIES)
def test_every_registry_is_known_by_its_host(written: str, registry: RegistryName) -> None:
    assert parse_registry(written) == registry
    assert parse_destination(f"{written}/team/app:1.0") == Destination(registry, "team/app", "1.0")
    assert parse_destination(f"{written}/app") == Destination(registry, "app", None)
    assert parse_prefix(f"{written}/team/mirror") == Prefix(registry, "team/mirror")
    assert parse_prefix(written) == Prefix(registry, "")


@pytest.mark.parametrize(
    ("written", "repository", "tag"),
    [
        ("app", "app", None),
        ("app:1.0", "app", "1.0"),
        ("team/app:v1_2-RC.3", "team/app", "v1_2-RC.3"),
        ("team/my.app", "team/my.app", None),
        ("my.app:1", "my.app", "1"),
        ("a__b/c--d/e.f_g:latest", "a__b/c--d/e.f_g", "latest"),
        ("x" * 256, "x" * 256, None),
        (f"app:{'t' * 128}", "app", "t" * 128),
    ],
)
def test_a_bare_name_is_in_the_callers_own_registry(written: str, repository: str, tag: str | None) -> None:
    assert parse_destination(written) == Destination(RegistryName(), repository, tag)
    assert str(parse_destination(written)) == written


@pytest.mark.parametrize(
    "written",
    [
        "",
        "a",
        "x" * 257,
        "App",
        "app/",
        "/app",
        "a//b",
        "app-",
        "a___b",
        "a..b",
        "app name",
        "app\n",
        "äpp",
        "app:",
        ":1",
        "app:.1",
        "app:-1",
        "app:1:2",
        f"app:{'t' * 129}",
        "app:1\n",
        "app@sha256:" + "a" * 64,
        "app:1@sha256:" + "a" * 64,
        "https://app",
        "docker://app:1",
        "docker.io/library/app",
        "localhost/app",
        "localhost:5000/app",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com:443/app",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com.evil.example/app",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.org/app",
        f"{ACCOUNT}.dkr.ecr.amazonaws.com/app",
        f"{ACCOUNT}.dkr.ecr.EU-WEST-1.amazonaws.com/app",
        f"{ACCOUNT}1.dkr.ecr.eu-west-1.amazonaws.com/app",
        f"{ACCOUNT}.dkrxecr.eu-west-1.amazonaws.com/app",
        "public.ecr.aws",
        "public.ecr.aws/alias",
        "public.ecr.aws/alias/",
        "public.ecr.aws//app",
        f"public.ecr.aws/alias/{'x' * 206}",
    ],
)
def test_nothing_else_is_a_destination(written: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        parse_destination(written)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_prefix_puts_images_below_it() -> None:
    host = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"
    for written in (f"{host}/mirror", f"{host}/mirror/"):
        assert str(parse_prefix(written).join("shop/web", "1")) == f"{host}/mirror/shop/web:1"
    assert str(parse_prefix(host).join("web", None)) == f"{host}/web"
    assert str(parse_prefix("mirror").join("web", "1")) == "mirror/web:1"
    with pytest.raises(InvalidReferenceError):
        parse_prefix("mirror").join("web", "not a tag")
    with pytest.raises(InvalidReferenceError, match="begins with a slash"):
        parse_prefix(f"/{host}")
    assert str(parse_prefix("/mirror").join("web", "1")) == "mirror/web:1"
    with pytest.raises(InvalidReferenceError):
        parse_prefix("x" * 250).join("much-too-long", None)


def test_a_destination_belongs_to_the_connections_registry_or_to_none() -> None:
    registry = parse_registry(f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com")
    assert in_registry(parse_destination("app:1"), registry) == Destination(registry, "app", "1")
    written = parse_destination(f"{registry.host}/app:1")
    assert in_registry(written, registry) == written
    with pytest.raises(InvalidReferenceError, match="is not in your own registry"):
        in_registry(written, RegistryName())
    public = parse_registry("public.ecr.aws/alias")
    with pytest.raises(InvalidReferenceError, match="is not a repository name"):
        in_registry(Destination(RegistryName(), "x" * 206, None), public)


PIECES = [*(host for host, _ in REGISTRIES), *"/:@.-_ \n", "app", "1", "://", "é"]


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@example("public.ecr.aws/\x00/app")
@example("/".join(["a"] * 200))
def test_no_text_raises_anything_but_an_invalid_reference(text: str) -> None:
    for parse in (parse_destination, parse_prefix, parse_registry, check_repository):
        with suppress(InvalidReferenceError):
            parse(text)


names = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+)*", fullmatch=True).filter(
    lambda name: 2 <= len(name) <= 200
)
tags = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)


@given(st.sampled_from([("", RegistryName()), *REGISTRIES]), names, tags)
def test_a_destination_reads_back_as_it_is_written(
    place: tuple[str, RegistryName], repository: str, tag: str | None
) -> None:
    written, registry = place
    destination = Destination(registry, repository, tag)
    if registry == RegistryName() and "." in repository.partition("/")[0] and "/" in repository:
        return  # its first part would pass for another registry's host
    assert parse_destination(str(destination)) == destination
    assert str(destination).startswith(written)


@pytest.mark.parametrize("text", ["", "12345678901", "1234567890123", "team-alias", "12345678901\u0661"])
def test_only_twelve_digits_are_an_account(text: str) -> None:
    with pytest.raises(InvalidReferenceError, match="12 digits"):
        registry_of(text)


def test_no_account_is_the_callers_own_registry() -> None:
    assert registry_of(None) == RegistryName()
    assert registry_of("123456789012") == RegistryName(id="123456789012")
