"""The document of a plan, as it is written; ``resolve`` makes the plan from it.

``asyncpush plan schema`` takes its descriptions from the docstrings.
"""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from asyncpush.settings import Encryption, Mutability, TransportChoice

Texts: TypeAlias = str | list[str]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]


class AwsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Overrides of the AWS configuration of the environment.

    Attributes:
        profile: The profile of the AWS configuration to use.
        region: The region.
        endpoint_url: An endpoint to use instead of AWS's own, such as the emulator's.
    """

    profile: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    endpoint_url: str | UnsetType = UNSET


class CredentialsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to log in to a source registry: username and password, helper, ecr, or anonymous.

    Attributes:
        username: The user name.
        password: The password or token, preferably from the environment: "${NAME}".
        helper: Get credentials from the program docker-credential-HELPER.
        ecr: Get a password from ECR, with the AWS configuration of the environment (true) or with overrides.
        anonymous: Do not log in, even if credentials are found.
    """

    username: str | UnsetType = UNSET
    password: str | UnsetType = UNSET
    helper: str | UnsetType = UNSET
    ecr: bool | AwsDocument | UnsetType = UNSET
    anonymous: bool | UnsetType = UNSET


class TlsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """TLS settings of a source registry; paths are relative to the plan.

    Attributes:
        verify: Verify the certificate and the host name.
        ca: Certificate authorities to trust in addition to the system's (PEM).
        cert: The client certificate (PEM).
        key: The private key of cert, if that file does not contain it (PEM).
    """

    verify: bool | UnsetType = UNSET
    ca: str | UnsetType = UNSET
    cert: str | UnsetType = UNSET
    key: str | UnsetType = UNSET


class RegistryDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to reach a source registry; by default, with the configuration of docker and podman.

    Attributes:
        credentials: How to log in.
        tls: TLS settings.
        plain_http: Use HTTP instead of HTTPS.
        connections: The maximum number of requests at once.
        requests_per_second: The maximum number of requests that start in a second.
    """

    credentials: CredentialsDocument | UnsetType = UNSET
    tls: TlsDocument | UnsetType = UNSET
    plain_http: bool | UnsetType = UNSET
    connections: Positive | UnsetType = UNSET
    requests_per_second: Positive | UnsetType = UNSET


class QuotasDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="pascal"):
    """Requests a second that ECR grants the account in the region, where they are not ECR's defaults.

    Attributes:
        PutImage: Manifests and tags; ECR's default is 10.
        InitiateLayerUpload: Layers that are begun or mounted.
        UploadLayerPart: Parts of layers.
        CompleteLayerUpload: Layers that are completed.
        BatchCheckLayerAvailability: Questions for layers.
        BatchGetImage: Questions for manifests.
    """

    put_image: Positive | UnsetType = UNSET
    initiate_layer_upload: Positive | UnsetType = UNSET
    upload_layer_part: Positive | UnsetType = UNSET
    complete_layer_upload: Positive | UnsetType = UNSET
    batch_check_layer_availability: Positive | UnsetType = UNSET
    batch_get_image: Positive | UnsetType = UNSET


class TargetDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A registry that images go to. Credentials come from the AWS configuration.

    Attributes:
        registry: ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS; by default, your own registry.
        prefix: The prefix of the repository names in it.
        profile: The profile of the AWS configuration to use.
        region: The region, if the registry does not name one.
        endpoint_url: An endpoint to use instead of AWS's own, such as the emulator's.
        transport: How layers are sent: api, v2 or auto; by default, what --transport says.
        quotas: Requests a second that ECR grants this account in this region; they override those of the plan.
    """

    registry: str | UnsetType = UNSET
    prefix: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    region: str | UnsetType = UNSET
    endpoint_url: str | UnsetType = UNSET
    transport: TransportChoice | UnsetType = UNSET
    quotas: QuotasDocument | UnsetType = UNSET


class ExcludeDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Tags to exclude: those that any of these matches.

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
    """One of several sets of patterns: one pattern of each kind must match.

    Attributes:
        glob: Shell wildcards, such as v2.*.
        regex: Regular expressions; each must match the whole tag.
        semver: Ranges of versions.
        exclude: Tags to exclude from those that match.
    """

    glob: Texts | UnsetType = UNSET
    regex: Texts | UnsetType = UNSET
    semver: Texts | UnsetType = UNSET
    exclude: ExcludeDocument | UnsetType = UNSET


class TagsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which tags to migrate: those that are named, and those that match one pattern of each kind.

    Attributes:
        names: Tags by name; each must exist.
        glob: Shell wildcards, such as v2.*.
        regex: Regular expressions; each must match the whole tag.
        semver: Ranges of versions, such as ">=2.40 <3". A range matches pre-releases only if it names one.
        any: Sets of patterns, of which one must match, in addition to glob, regex and semver if they are given.
        exclude: Tags to exclude from those that match.
        newest: Of the remaining tags, migrate only this many, the highest versions.
    """

    names: Texts | UnsetType = UNSET
    glob: Texts | UnsetType = UNSET
    regex: Texts | UnsetType = UNSET
    semver: Texts | UnsetType = UNSET
    any: list[AlternativeDocument] | UnsetType = UNSET
    exclude: ExcludeDocument | UnsetType = UNSET
    newest: Positive | UnsetType = UNSET


class RepositoryDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whether repositories that do not exist are created, and with which settings.

    Attributes:
        create: Create repositories that do not exist. By default, a missing repository is a failure, except with like.
        like: source gives new repositories the settings of the source, which must be in ECR: mutability, scanning,
            encryption, policies and resource tags. Other members replace those of the source. none overrides the
            default.
        mutability: Whether tags are mutable.
        exclusions: Wildcards for tags that are excluded from mutability; at most five.
        scan_on_push: Scan images when they are pushed.
        encryption: The encryption of the repository.
        kms_key: The key for KMS or KMS_DSSE; by default, a key that AWS manages. With like, the key for repositories
            whose source has such an encryption.
        tags: The resource tags of the repository.
        policy: The repository policy, or the path of a JSON file, relative to the plan.
        lifecycle_policy: The lifecycle policy, or the path of a JSON file, relative to the plan.
    """

    create: bool | UnsetType = UNSET
    like: Literal["source", "none"] | UnsetType = UNSET
    mutability: Mutability | UnsetType = UNSET
    exclusions: list[str] | UnsetType = UNSET
    scan_on_push: bool | UnsetType = UNSET
    encryption: Encryption | UnsetType = UNSET
    kms_key: str | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET
    policy: str | dict[str, Any] | UnsetType = UNSET
    lifecycle_policy: str | dict[str, Any] | UnsetType = UNSET


class DefaultsDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Defaults for entries.

    Attributes:
        targets: The names of targets; by default, the only target.
        tags: Which tags to migrate: names, or rules. By default, all tags.
        min_tags: Fail an entry whose rules match fewer tags, and push nothing of it.
        platforms: The platforms to migrate from indexes, such as linux/arm64; or all.
        referrers: Migrate signatures, attestations and SBOMs (the default).
        repository: Whether and how to create repositories that do not exist.
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
            relative to the plan; or docker-daemon:NAME, containers-storage:NAME, s3://BUCKET/KEY. HOST/PATTERN with the
            wildcards *, ? and [...] is all repositories of the registry that match; * also matches slashes.
        exclude: Patterns of repositories to leave out of those that from matches.
        to: The repository that they go to, after the target's prefix; by default, the path of the source. {name} in
            it is that path, {basename} the last part of it. For a single tag, also REPOSITORY:TAG.
        targets: The names of targets.
        tags: Which tags to migrate: names, or rules.
        min_tags: Fail the entry if it matches fewer tags, and push nothing of it; 0 overrides the default.
        platforms: The platforms to migrate from indexes, such as linux/arm64; or all.
        referrers: Migrate signatures, attestations and SBOMs.
        repository: Whether and how to create the repository; each member overrides that of the defaults.
    """

    source: str = msgspec.field(name="from")
    exclude: Texts | UnsetType = UNSET
    to: str | UnsetType = UNSET


class PlanDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A migration into Amazon ECR: which images to copy from where to where.

    Attributes:
        version: The version of this format.
        registries: How to reach source registries, by host.
        targets: The registries that images go to, by a name that the plan chooses; by default, your own registry.
        quotas: Requests a second that ECR grants every target, where they are not ECR's defaults.
        defaults: Defaults for entries.
        images: The entries: what to migrate.
    """

    version: Literal[1]
    registries: dict[str, RegistryDocument] | UnsetType = UNSET
    targets: dict[str, TargetDocument] | UnsetType = UNSET
    quotas: QuotasDocument | UnsetType = UNSET
    defaults: DefaultsDocument | UnsetType = UNSET
    images: list[EntryDocument]


#: Where each member belongs, for hints about a member in the wrong place.
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
    """The JSON Schema of a plan, in the 2020-12 dialect, with the descriptions of the document's classes.

    Numbers and booleans may also be written as ``${NAME}``, which it does not express.
    """
    (reference,), components = msgspec.json.schema_components([PlanDocument], ref_template="#/$defs/{name}")
    for component in components.values():
        _describe(component)
    title = reference["$ref"].rpartition("/")[2]
    whole = components.pop(title)
    return {
        "$schema": _DIALECT,
        **whole,
        "title": "asyncpush migration plan",
        "examples": [_EXAMPLE],
        "$defs": dict(sorted(components.items())),
    }


def _describe(component: dict[str, Any]) -> None:
    """Describe the members with their part of the class's docstring."""
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
