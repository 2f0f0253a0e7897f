"""What a plan says of registries: how sources are reached, and which the targets are."""

from __future__ import annotations

from pathlib import Path

from msgspec import UNSET

from asyncpush.errors import InvalidReferenceError, UsageError
from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.document import (
    AwsDocument,
    CredentialsDocument,
    RegistryDocument,
    TargetDocument,
    TlsDocument,
)
from asyncpush.migrate.plan.model import PlanTarget
from asyncpush.migrate.plan.repositories import given
from asyncpush.reference import RegistryName, check_repository, parse_registry
from asyncpush.settings import AwsConfiguration, Credentials, SourceRegistry


def source_registry(host: str, said: RegistryDocument, base: Path, place: str, problems: Problems) -> SourceRegistry:
    """How *host* is reached; blocks while it looks for files.

    Args:
        host: the registry's host.
        said: what the plan says of it.
        base: the directory that paths are relative to.
        place: where the plan says it.
        problems: takes what is wrong.
    """
    credentials = given(said.credentials) or CredentialsDocument()
    tls = given(said.tls) or TlsDocument()
    if said.credentials is not UNSET and not problems.has_below(member(place, "credentials")):
        _check_credentials(credentials, member(place, "credentials"), problems)
    there = member(place, "tls")
    if said.plain_http is True and said.tls is not UNSET:
        problems.add(there, "means nothing with plain_http")
    if tls.key is not UNSET and tls.cert is UNSET:
        problems.add(member(there, "key"), "needs cert")
    files = {name: _file(getattr(tls, name), base, member(there, name), problems) for name in ("ca", "cert", "key")}
    user = credentials.username is not UNSET and credentials.password is not UNSET
    return SourceRegistry(
        host=host,
        plain_http=said.plain_http is True,
        verify=tls.verify is not False,
        ca_bundle=files["ca"],
        client_certificate=files["cert"],
        client_key=files["key"],
        credentials=Credentials(str(credentials.username), str(credentials.password)) if user else None,
        credential_helper=given(credentials.helper),
        aws=_source_aws(credentials, place, problems),
        anonymous=credentials.anonymous is True,
        connections=given(said.connections) or SourceRegistry(host=host).connections,
    )


def _check_credentials(said: CredentialsDocument, place: str, problems: Problems) -> None:
    ways = [name for name in ("username", "helper", "ecr", "anonymous") if getattr(said, name) not in (UNSET, False)]
    if (said.username is UNSET) != (said.password is UNSET):
        lacking = "password" if said.password is UNSET else "username"
        problems.add(place, f"has no {lacking}")
    elif said.username == "":
        problems.add(member(place, "username"), "is empty")
    elif len(ways) != 1:
        has = f"has {' and '.join(ways)}" if ways else "says nothing"
        problems.add(place, has, hint="give one of username and password, helper, ecr, or anonymous")
    if isinstance(said.helper, str) and (not said.helper or "/" in said.helper):
        problems.add(member(place, "helper"), "is not a name", hint="the NAME of a program docker-credential-NAME")


def _source_aws(said: CredentialsDocument, place: str, problems: Problems) -> AwsConfiguration | None:
    if isinstance(said.ecr, AwsDocument):
        return _aws(said.ecr, member(member(place, "credentials"), "ecr"), problems)
    return AwsConfiguration() if said.ecr is True else None


def _file(said: object, base: Path, place: str, problems: Problems) -> Path | None:
    if not isinstance(said, str):
        return None
    path = base / said
    try:
        is_file = bool(said) and path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        problems.add(place, f"{said[:300]!r} is not a file that exists", hint="the path is relative to the plan")
    return path


def make_target(name: str, said: TargetDocument, place: str, problems: Problems) -> PlanTarget:
    """The target that *said* stands for; what is wrong with it is noted at *place*."""
    registry = RegistryName()
    if isinstance(said.registry, str):
        with problems.at(member(place, "registry")):
            registry = parse_registry(said.registry)
    region = given(said.region)
    if region and registry.region and region != registry.region:
        problems.add(member(place, "region"), f"is {region}, but the registry is in {registry.region}")
    prefix = ""
    with problems.at(member(place, "prefix")):
        prefix = _prefix((given(said.prefix) or "").strip("/"), registry)
    return PlanTarget(name, registry, prefix, _aws(said, place, problems))


def _prefix(text: str, registry: RegistryName) -> str:
    try:
        if text:
            # A prefix may be shorter than a repository's name.
            check_repository(f"{text}/x", registry.service)
    except InvalidReferenceError as error:
        raise InvalidReferenceError(f"{text[:300]!r} can't begin a repository's name", hint=error.hint) from error
    return text


def _aws(said: AwsDocument | TargetDocument, place: str, problems: Problems) -> AwsConfiguration:
    url = given(said.endpoint_url)
    if url is not None:
        with problems.at(member(place, "endpoint_url")):
            check_url(url)
    return AwsConfiguration(profile=given(said.profile), region=given(said.region), endpoint_url=url)


def check_url(url: str) -> None:
    """See that *url* can be an endpoint's.

    Raises:
        UsageError: it can't.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in ("http", "https") or not rest.strip("/"):
        raise UsageError("is not an endpoint URL", hint="write http://HOST:PORT or https://HOST")
