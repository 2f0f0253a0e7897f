"""A plan's document, member by member as it is written; what it means is ``resolve``'s to say.

The docstrings are what ``asyncpush plan schema`` gives as descriptions.
"""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from asyncpush.settings import Encryption, Mutability

Texts: TypeAlias = str | list[str]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]


class AwsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is set over the AWS configuration of the environment.

    Attributes:
        profile: A profile of the shared configuration.
        region: The region.
        endpoint_url: Another endpoint than AWS's own, such as the emulator's.
    """

    profile: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    endpoint_url: str | UnsetType = UNSET


class CredentialsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to log in at a source: a user and a password, or a helper, or ecr, or anonymous.

    Attributes:
        username: The user.
        password: The password or token, best from the environment: "${NAME}".
        helper: Ask the program docker-credential-HELPER.
        ecr: Ask ECR, with the AWS configuration of the environment (true) or a changed one.
        anonymous: Log in nowhere, whatever credentials are found.
    """

    username: str | UnsetType = UNSET
    password: str | UnsetType = UNSET
    helper: str | UnsetType = UNSET
    ecr: bool | AwsDocument | UnsetType = UNSET
    anonymous: bool | UnsetType = UNSET


class TlsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """TLS at a source; paths are relative to the plan.

    Attributes:
        verify: Check the certificate, host name included.
        ca: Authorities to trust beside the system's (PEM).
        cert: What to present when the registry asks (PEM).
        key: Its key, where that file does not hold it, too (PEM).
    """

    verify: bool | UnsetType = UNSET
    ca: str | UnsetType = UNSET
    cert: str | UnsetType = UNSET
    key: str | UnsetType = UNSET


class RegistryDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a registry is reached that images are read from; without it, as docker and podman would.

    Attributes:
        credentials: How to log in.
        tls: What certificates count.
        plain_http: Speak HTTP instead of HTTPS.
        connections: Requests at once, at the most.
    """

    credentials: CredentialsDocument | UnsetType = UNSET
    tls: TlsDocument | UnsetType = UNSET
    plain_http: bool | UnsetType = UNSET
    connections: Positive | UnsetType = UNSET


class TargetDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A registry that images go to; credentials are those of the AWS configuration.

    Attributes:
        registry: ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS; left out, the caller's own.
        prefix: What the repositories' names begin with there.
        profile: A profile of the shared configuration.
        region: The region, where the registry names none.
        endpoint_url: Another endpoint than AWS's own, such as the emulator's.
    """

    registry: str | UnsetType = UNSET
    prefix: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    endpoint_url: str | UnsetType = UNSET


class ExcludeDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Tags to leave out: those that anything of this matches.

    Attributes:
        names: Tags by name.
        glob: Shell wildcards.
        regex: Regular expressions; each must match the whole tag.
        semver: Ranges of versions.
    """

    names: Texts | UnsetType = UNSET
    glob: Texts | UnsetType = UNSET
    regex: Texts | UnsetType = UNSET
    semver: Texts | UnsetType = UNSET


class AlternativeDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of several sets of patterns: of each kind that it has, one must match.

    Attributes:
        glob: Shell wildcards, such as v2.*.
        regex: Regular expressions; each must match the whole tag.
        semver: Ranges of versions.
        exclude: Tags to leave out of those that these patterns match.
    """

    glob: Texts | UnsetType = UNSET
    regex: Texts | UnsetType = UNSET
    semver: Texts | UnsetType = UNSET
    exclude: ExcludeDocument | UnsetType = UNSET


class TagsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which tags are taken: those by name, and those that one pattern of each kind matches.

    Attributes:
        names: Tags by name; each must be there.
        glob: Shell wildcards, such as v2.*.
        regex: Regular expressions; each must match the whole tag.
        semver: Ranges of versions, such as ">=2.40 <3"; pre-releases only where the range names one.
        any: Sets of patterns, of which one is enough; with glob, regex or semver beside it, those must match, too.
        exclude: Tags to leave out of those that the patterns match.
        newest: Of what is left, the last so many by the order of versions.
    """

    names: Texts | UnsetType = UNSET
    glob: Texts | UnsetType = UNSET
    regex: Texts | UnsetType = UNSET
    semver: Texts | UnsetType = UNSET
    any: list[AlternativeDocument] | UnsetType = UNSET
    exclude: ExcludeDocument | UnsetType = UNSET
    newest: Positive | UnsetType = UNSET


class RepositoryDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What becomes of repositories that do not exist, and what they are created with.

    Attributes:
        create: Create them; by default that is a failure.
        mutability: Whether tags can be moved.
        exclusions: Wildcards of tags that are excluded from mutability, five at the most.
        scan_on_push: Scan images when they are pushed.
        encryption: How ECR encrypts them.
        kms_key: The key of the encryption KMS or KMS_DSSE; left out, AWS's own.
        tags: The repository's resource tags.
        policy: The repository policy, or the path of its file, relative to the plan.
        lifecycle_policy: The lifecycle policy, likewise.
    """

    create: bool | UnsetType = UNSET
    mutability: Mutability | UnsetType = UNSET
    exclusions: list[str] | UnsetType = UNSET
    scan_on_push: bool | UnsetType = UNSET
    encryption: Encryption | UnsetType = UNSET
    kms_key: str | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET
    policy: str | dict[str, Any] | UnsetType = UNSET
    lifecycle_policy: str | dict[str, Any] | UnsetType = UNSET


class DefaultsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What counts for each entry that does not say otherwise.

    Attributes:
        targets: Names of the plan's targets; may be left out where there is one.
        tags: Which tags are taken: names, or rules. Left out, all tags.
        min_tags: Fail an entry that takes fewer tags by its rules, and push nothing of it.
        platforms: Of indexes, the images to take, such as linux/arm64; or all.
        referrers: Take signatures, attestations and SBOMs along (the default).
        repository: What becomes of repositories that do not exist.
    """

    targets: Texts | UnsetType = UNSET
    tags: str | list[str] | TagsDocument | UnsetType = UNSET
    min_tags: Count | UnsetType = UNSET
    platforms: Texts | UnsetType = UNSET
    referrers: bool | UnsetType = UNSET
    repository: RepositoryDocument | UnsetType = UNSET


class EntryDocument(DefaultsDocument, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Images of one repository or archive, and where they go.

    Attributes:
        from: A repository, HOST/REPOSITORY[:TAG|@DIGEST]; or oci:DIR, oci-archive:FILE, docker-archive:FILE or a path,
            relative to the plan.
        to: The repository that they go to, behind the target's prefix; by default the source's own path. With one
            tag, also REPOSITORY:TAG.
        targets: Names of the plan's targets.
        tags: Which tags are taken: names, or rules.
        min_tags: Fail the entry if it takes fewer tags, and push nothing of it; 0 takes back what the defaults say.
        platforms: Of indexes, the images to take, such as linux/arm64; or all.
        referrers: Take signatures, attestations and SBOMs along.
        repository: What becomes of a repository that does not exist; each member replaces that of the defaults.
    """

    source: str = msgspec.field(name="from")
    to: str | UnsetType = UNSET


class PlanDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A migration into Amazon ECR: which images, from where, to where.

    Attributes:
        version: Of this notation.
        registries: How registries are reached that images are read from, by host.
        targets: Registries that images go to, by a name of the plan's own; left out, the caller's own registry.
        defaults: What counts for each entry that does not say otherwise.
        images: What is to be migrated.
    """

    version: Literal[1]
    registries: dict[str, RegistryDocument] | UnsetType = UNSET
    targets: dict[str, TargetDocument] | UnsetType = UNSET
    defaults: DefaultsDocument | UnsetType = UNSET
    images: list[EntryDocument]


#: Where members stand, by their names, for those who have put one elsewhere.
HOMES: dict[str, str] = {
    name: home
    for home, kind in (
        ("targets", TargetDocument),
        ("registries", RegistryDocument),
        ("repository", RepositoryDocument),
        ("tags", TagsDocument),
        ("an entry of images", EntryDocument),
        ("defaults, or an entry of images", DefaultsDocument),
    )
    for name in kind.__struct_encode_fields__
}

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_EXAMPLE = {
    "version": 1,
    "registries": {"docker.io": {"credentials": {"username": "${HUB_USER}", "password": "${HUB_TOKEN}"}}},
    "targets": {"eu": {"registry": "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "prefix": "mirror"}},
    "defaults": {"repository": {"create": True, "mutability": "IMMUTABLE", "exclusions": ["latest"]}},
    "images": [
        {"from": "docker.io/library/nginx", "tags": ["1.25", "1.26"]},
        {"from": "quay.io/prometheus/prometheus", "tags": {"semver": ">=2.40 <3", "newest": 5}},
        {"from": "ghcr.io/team/app:1.4", "to": "team/app:1.4", "platforms": ["linux/amd64"]},
    ],
}


def plan_schema() -> dict[str, Any]:
    """The schema, in the 2020-12 dialect; descriptions are those of the document's classes.

    Numbers and truth values may be written as ``${NAME}`` too, which it does not say.
    """
    (reference,), components = msgspec.json.schema_components([PlanDocument], ref_template="#/$defs/{name}")
    for component in components.values():
        _describe(component)
    title = reference["$ref"].rpartition("/")[2]
    whole = components.pop(title)
    return {
        "$schema": _DIALECT,
        **whole,
        "title": "A plan of asyncpush",
        "examples": [_EXAMPLE],
        "$defs": dict(sorted(components.items())),
    }


def _describe(component: dict[str, Any]) -> None:
    """Give the members their part of the class's docstring."""
    text = inspect.cleandoc(component.get("description", ""))
    summary, _, attributes = text.partition("\n\nAttributes:\n")
    component["description"] = " ".join(summary.split())
    for match in re.finditer(r"^    (\w+): (.+(?:\n {8,}.+)*)", attributes, re.MULTILINE):
        member = component["properties"].get(match[1])
        if member is not None:
            member["description"] = " ".join(match[2].split())
    component["title"] = component["title"].removesuffix("Document")
    for member in component["properties"].values():
        # msgspec notes that a member without a default may be left out; a schema says so by not requiring it.
        member.pop("default", None)
