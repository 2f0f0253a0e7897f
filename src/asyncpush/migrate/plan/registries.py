"""The registries of a plan: how sources are reached, what the targets are, and how repositories are created."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from asyncpush import open_files
from asyncpush.errors import InvalidReferenceError, UsageError
from asyncpush.files import read_small
from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.document import (
    AwsDocument,
    CredentialsDocument,
    QuotasDocument,
    RegistryDocument,
    RepositoryDocument,
    TargetDocument,
    TlsDocument,
)
from asyncpush.migrate.plan.model import PlanTarget
from asyncpush.reference import RegistryName, check_repository, parse_registry
from asyncpush.settings import AwsConfiguration, Credentials, Mutability, RepositorySettings, SourceRegistry


def source_registry(host: str, spec: RegistryDocument, base: Path, place: str, problems: Problems) -> SourceRegistry:
    """How to reach *host*; blocks while it looks for files.

    Args:
        host: the registry's host.
        spec: its part of the plan.
        base: the directory that paths are relative to.
        place: where that is in the plan.
        problems: collects the problems.
    """
    credentials = given(spec.credentials) or CredentialsDocument()
    tls = given(spec.tls) or TlsDocument()
    if spec.credentials is not UNSET and not problems.has_below(member(place, "credentials")):
        _check_credentials(credentials, member(place, "credentials"), problems)
    tls_place = member(place, "tls")
    if spec.plain_http is True and spec.tls is not UNSET:
        problems.add(tls_place, "has no effect with plain_http")
    if tls.key is not UNSET and tls.cert is UNSET:
        problems.add(member(tls_place, "key"), "needs cert")
    files = {name: _file(getattr(tls, name), base, member(tls_place, name), problems) for name in ("ca", "cert", "key")}
    user = credentials.username is not UNSET and credentials.password is not UNSET
    return SourceRegistry(
        host=host,
        plain_http=spec.plain_http is True,
        verify=tls.verify is not False,
        ca_bundle=files["ca"],
        client_certificate=files["cert"],
        client_key=files["key"],
        credentials=Credentials(str(credentials.username), str(credentials.password)) if user else None,
        credential_helper=given(credentials.helper),
        aws=_source_aws(credentials, place, problems),
        anonymous=credentials.anonymous is True,
        connections=given(spec.connections) or SourceRegistry(host=host).connections,
        requests_per_second=given(spec.requests_per_second),
    )


def _check_credentials(spec: CredentialsDocument, place: str, problems: Problems) -> None:
    ways = [name for name in ("username", "helper", "ecr", "anonymous") if getattr(spec, name) not in (UNSET, False)]
    if (spec.username is UNSET) != (spec.password is UNSET):
        lacking = "password" if spec.password is UNSET else "username"
        problems.add(place, f"has no {lacking}")
    elif spec.username == "":
        problems.add(member(place, "username"), "is empty")
    elif len(ways) != 1:
        has = f"has {' and '.join(ways)}" if ways else "is empty"
        problems.add(place, has, hint="give one of username and password, helper, ecr, or anonymous")
    if isinstance(spec.helper, str) and (not spec.helper or "/" in spec.helper):
        problems.add(member(place, "helper"), "is not a name", hint="give the NAME of a program docker-credential-NAME")


def _source_aws(spec: CredentialsDocument, place: str, problems: Problems) -> AwsConfiguration | None:
    if isinstance(spec.ecr, AwsDocument):
        return _aws(spec.ecr, member(member(place, "credentials"), "ecr"), problems)
    return AwsConfiguration() if spec.ecr is True else None


def _file(spec: object, base: Path, place: str, problems: Problems) -> Path | None:
    if not isinstance(spec, str):
        return None
    path = base / spec
    try:
        is_file = bool(spec) and path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        problems.add(place, f"{spec[:300]!r} is not an existing file", hint="the path is relative to the plan")
    return path


def quotas_of(*documents: QuotasDocument | UnsetType) -> tuple[tuple[str, int], ...]:
    """The quotas of *documents*, by operation; those of a later one override those before."""
    quotas: dict[str, int] = {}
    for document in documents:
        if not isinstance(document, UnsetType):
            quotas |= msgspec.to_builtins(document)
    return tuple(quotas.items())


def make_target(
    name: str, spec: TargetDocument, place: str, problems: Problems, quotas: QuotasDocument | UnsetType = UNSET
) -> PlanTarget:
    """The target that *spec* describes; its problems are noted at *place*, and its *quotas* are those of the plan."""
    registry = RegistryName()
    if isinstance(spec.registry, str):
        with problems.at(member(place, "registry")):
            registry = parse_registry(spec.registry)
    region = given(spec.region)
    if region and registry.region and region != registry.region:
        problems.add(member(place, "region"), f"is {region}, but the registry is in {registry.region}")
    prefix = ""
    with problems.at(member(place, "prefix")):
        prefix = _prefix((given(spec.prefix) or "").strip("/"), registry)
    transport = None if isinstance(spec.transport, UnsetType) else spec.transport
    if transport == "v2" and registry.service == "ecr-public":
        problems.add(member(place, "transport"), "is v2, but ECR Public takes layers through its API only")
    aws = _aws(spec, place, problems)
    return PlanTarget(name, registry, prefix, aws, transport, quotas_of(quotas, spec.quotas))


def _prefix(text: str, registry: RegistryName) -> str:
    try:
        if text:
            # A prefix can be shorter than a repository name.
            check_repository(f"{text}/x", registry.service)
    except InvalidReferenceError as error:
        raise InvalidReferenceError(
            f"{text[:300]!r} can't be the beginning of a repository name", hint=error.hint
        ) from error
    return text


def _aws(spec: AwsDocument | TargetDocument, place: str, problems: Problems) -> AwsConfiguration:
    url = given(spec.endpoint_url)
    if url is not None:
        with problems.at(member(place, "endpoint_url")):
            check_url(url)
    return AwsConfiguration(profile=given(spec.profile), region=given(spec.region), endpoint_url=url)


def check_url(url: str) -> None:
    """Check that *url* can be an endpoint.

    Raises:
        UsageError: it can't.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in ("http", "https") or not rest.strip("/"):
        raise UsageError("is not an endpoint URL", hint="write http://HOST:PORT or https://HOST")


T = TypeVar("T")

#: The place of the settings that entries inherit.
DEFAULTS = "defaults.repository"

# ImageTagMutabilityExclusionFilter in ECR's service model, and how many CreateRepository accepts.
_EXCLUSION = re.compile(r"[0-9a-zA-Z._*-]{1,128}")
_MAX_EXCLUSIONS = 5

_EXCLUDING: dict[Mutability, Mutability] = {
    "MUTABLE": "MUTABLE_WITH_EXCLUSION",
    "IMMUTABLE": "IMMUTABLE_WITH_EXCLUSION",
}


@dataclass(slots=True)
class Repositories:
    """Makes the settings of repositories, and reads policies, each file once; blocks while it does.

    Attributes:
        base: the directory that paths are relative to.
        problems: collects the problems.
    """

    base: Path
    problems: Problems
    _files: dict[Path, str] = field(default_factory=dict)

    def settings(
        self, spec: RepositoryDocument | UnsetType, defaults: RepositoryDocument | UnsetType, place: str
    ) -> RepositorySettings:
        """The settings that *spec*, at *place*, describes, with the members of *defaults* where it has none.

        A problem is noted where the members are written that it concerns.
        """
        own, both = given(spec) or RepositoryDocument(), merged(spec, defaults)

        def place_of(name: str, *others: str) -> str:
            is_own = any(getattr(own, each) is not UNSET for each in (name, *others))
            return member(place if is_own else DEFAULTS, name)

        kms_key = given(both.kms_key)
        has_kms = both.encryption in ("KMS", "KMS_DSSE") or (both.encryption is UNSET and both.like == "source")
        if kms_key is not None and not has_kms:
            kms_place = place_of("kms_key", "encryption", "like")
            self.problems.add(kms_place, "needs an encryption", hint="add encryption: KMS or KMS_DSSE")
        tags = both.tags if isinstance(both.tags, dict) else {}
        return RepositorySettings(
            mutability=self._mutability(both, place_of),
            exclusions=tuple(given(both.exclusions) or ()),
            scan_on_push=given(both.scan_on_push),
            encryption=given(both.encryption),
            kms_key=kms_key,
            resource_tags=tuple(tags.items()),
            policy=self._policy("policy", both.policy, place_of("policy")),
            lifecycle_policy=self._policy("lifecycle_policy", both.lifecycle_policy, place_of("lifecycle_policy")),
        )

    def _mutability(self, spec: RepositoryDocument, place_of: Callable[..., str]) -> Mutability | None:
        mutability: Mutability | None = given(spec.mutability)
        exclusions = given(spec.exclusions) or []
        exclusions_place = place_of("exclusions")
        if len(exclusions) > _MAX_EXCLUSIONS:
            self.problems.add(exclusions_place, f"has {len(exclusions)} wildcards; ECR allows {_MAX_EXCLUSIONS}")
        for at, wildcard in enumerate(exclusions):
            if not _EXCLUSION.fullmatch(wildcard):
                self.problems.add(
                    f"{exclusions_place}[{at}]", f"{wildcard[:140]!r} is not a tag wildcard", hint="such as dev-*"
                )
        if not exclusions:
            if mutability and mutability.endswith("_WITH_EXCLUSION"):
                self.problems.add(place_of("mutability", "exclusions"), f"{mutability} needs exclusions")
            return mutability
        if mutability is None:
            self.problems.add(place_of("exclusions", "mutability"), "needs mutability: IMMUTABLE or MUTABLE")
            return None
        return _EXCLUDING.get(mutability, mutability)

    def _policy(self, name: str, spec: str | dict[str, object] | UnsetType, place: str) -> str | None:
        if spec is UNSET:
            return None
        if isinstance(spec, dict):
            text = json.dumps(spec, separators=(",", ":"))
            for inner, words in faults_of(name, text, spec):
                self.problems.add(f"{place}.{inner}" if inner else place, words)
            return text
        with self.problems.at(place):
            text = self._read(self.base / str(spec), LENGTHS[name][1])
            for inner, words in faults_of(name, text, _object_of(text, str(spec))):
                self.problems.add(place, f"{spec}: {inner} {words}" if inner else f"{spec} {words}")
            return text
        return None

    def _read(self, path: Path, longest: int) -> str:
        if path not in self._files:
            try:
                # A character has up to four bytes.
                text = read_small(path, 4 * longest).decode("utf-8-sig")
            except OSError as error:
                if error.errno == errno.EFBIG:
                    raise UsageError(f"{path} has more than {longest} characters; ECR allows no more") from error
                raise UsageError(
                    f"{path} can't be read: {open_files.reason(error)}", hint="name a JSON file"
                ) from error
            except ValueError as error:
                raise UsageError(f"{os.fspath(path)!r} is not UTF-8 text", hint="name a JSON file") from error
            if len(text) > longest:
                raise UsageError(f"{path} has more than {longest} characters; ECR allows no more")
            self._files[path] = text
        return self._files[path]


def _object_of(text: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name} is not a JSON object")
    return found


def merged(spec: RepositoryDocument | UnsetType, defaults: RepositoryDocument | UnsetType) -> RepositoryDocument:
    """*spec*, with the members of *defaults* where it has none."""
    if isinstance(spec, UnsetType) or isinstance(defaults, UnsetType):
        return given(spec) or given(defaults) or RepositoryDocument()
    own = {name: value for name in spec.__struct_fields__ if (value := getattr(spec, name)) is not UNSET}
    return msgspec.structs.replace(defaults, **own)


def first_given(*values: T | UnsetType) -> T | None:
    """The first of *values* that is given; None if none is."""
    return next((value for value in values if not isinstance(value, UnsetType)), None)


def given(value: T | UnsetType) -> T | None:
    """*value*; None if it is not given."""
    return None if isinstance(value, UnsetType) else value


#: The place of a member in a policy, and the problem with it.
Fault: TypeAlias = tuple[str, str]

#: The shortest and the longest text for SetRepositoryPolicy and PutLifecyclePolicy (ECR's service model).
LENGTHS = {"policy": (0, 10_240), "lifecycle_policy": (100, 30_720)}

#: Rules of a lifecycle policy (ECR's quotas page), and their tagStatus.
_MAX_RULES = 50
_TAG_STATUS = ("tagged", "untagged", "any")
_TAG_LISTS = ("tagPatternList", "tagPrefixList")


def faults_of(name: str, text: str, document: dict[str, Any]) -> Iterator[Fault]:
    """The problems of a ``policy`` or ``lifecycle_policy``; an empty place means all of it.

    This checks only what ECR's user guide requires of every rule: what it allows in addition grows over time.
    """
    least, most = LENGTHS[name]
    if len(text) > most:
        yield "", f"has {len(text)} characters; ECR allows {most}"
        return
    if len(text) < least:
        yield "", f"has {len(text)} characters; ECR requires {least} or more"
    yield from _lifecycle_faults(document) if name == "lifecycle_policy" else _policy_faults(document)


def _policy_faults(document: dict[str, Any]) -> Iterator[Fault]:
    statements = document.get("Statement")
    if not isinstance(statements, (list, dict)) or not statements:
        yield "Statement", "is missing: a policy has at least one statement"


def _lifecycle_faults(document: dict[str, Any]) -> Iterator[Fault]:
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        yield "rules", "is not a list of rules" if rules else "is missing: a lifecycle policy has at least one rule"
        return
    if len(rules) > _MAX_RULES:
        yield "rules", f"has {len(rules)} rules; ECR allows {_MAX_RULES}"
    seen: dict[int, str] = {}
    for at, rule in enumerate(rules):
        place = f"rules[{at}]"
        if not isinstance(rule, dict):
            yield place, "is not a mapping"
            continue
        priority = rule.get("rulePriority")
        if not _is_count(priority):
            yield member(place, "rulePriority"), _wanted(priority, "a number of at least 1")
        elif (other := seen.setdefault(priority, place)) != place:
            yield member(place, "rulePriority"), f"is {priority}, the same as that of {other}"
        yield from _selection_faults(rule.get("selection"), member(place, "selection"))
        yield from _action_faults(rule.get("action"), member(place, "action"))
    yield from _last_faults(rules)


def _selection_faults(selection: object, place: str) -> Iterator[Fault]:
    if not isinstance(selection, dict):
        yield place, _wanted(selection, "a mapping")
        return
    status = selection.get("tagStatus")
    if status not in _TAG_STATUS:
        yield member(place, "tagStatus"), _wanted(status, " or ".join(_TAG_STATUS))
    given = [name for name in _TAG_LISTS if name in selection]
    if status == "tagged" and not given:
        yield member(place, "tagPatternList"), "is missing: tagged needs it, or tagPrefixList"
    for name in given:
        if status in ("untagged", "any"):
            yield member(place, name), f"applies to tagged, not to {status}"
        elif not _is_texts(selection[name]):
            yield member(place, name), "is not a list of strings"
    kind = selection.get("countType")
    if not isinstance(kind, str) or not kind:
        yield member(place, "countType"), _wanted(kind, "a type such as imageCountMoreThan or sinceImagePushed")
    elif kind.startswith("since") and "countUnit" not in selection:
        yield member(place, "countUnit"), f"is missing: {kind} needs it (days)"
    if not _is_count(number := selection.get("countNumber")):
        yield member(place, "countNumber"), _wanted(number, "a number of at least 1")


def _action_faults(action: object, place: str) -> Iterator[Fault]:
    if not isinstance(action, dict):
        yield place, _wanted(action, "a mapping")
    elif not isinstance(kind := action.get("type"), str) or not kind:
        yield member(place, "type"), _wanted(kind, "a type such as expire")


def _last_faults(rules: list[Any]) -> Iterator[Fault]:
    """A rule for any image must come last."""
    priorities: dict[int, int] = {
        at: rule["rulePriority"]
        for at, rule in enumerate(rules)
        if isinstance(rule, dict) and _is_count(rule.get("rulePriority"))
    }
    for at, priority in priorities.items():
        selection = rules[at].get("selection")
        if isinstance(selection, dict) and selection.get("tagStatus") == "any" and priority < max(priorities.values()):
            yield f"rules[{at}].rulePriority", f"is {priority}, but a rule for any image needs the highest number"


def _wanted(value: object, wanted: str) -> str:
    return f"is missing: give {wanted}" if value is None else f"is {str(value)[:100]!r}: give {wanted}"


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)
