"""What the emulator answers by: quirks for what ECR's documentation leaves open, ECR's quotas, and part sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, Self, get_args, get_type_hints

from asyncpush.emulator.registry import RegistryId
from asyncpush.errors import UsageError

MiB = 1024 * 1024

#: ECR's minimum for all parts but the last.
MIN_PART = 5 * MiB

#: The longest manifest, in bytes (ECR's model counts the characters of PutImage's imageManifest).
MAX_MANIFEST = 4 * MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """How the emulator answers where ECR's own answer is not known, and quotas that a rehearsal may lower.

    Attributes:
        large_parts: a part above the partSize that InitiateLayerUpload gave, of up to 20 MiB: ``taken``, or ``refused``
            (InvalidLayerPartException).
        repeated_part: a part with the range and the length of the last one: ``refused`` (InvalidLayerPartException), or
            ``ignored``, answered like the first time.
        first_cursor: lastValidByteReceived before any part: ``0``, ``-1`` or ``absent``.
        retried_complete: CompleteLayerUpload again after it succeeded: ``upload-not-found``, ``layer-already-exists``,
            or ``success``. Uploads are remembered only under the last two.
        other_digests: a completing digest that is not sha256: ``taken`` unseen, or ``refused``
            (InvalidParameterException).
        several_digests: of several completing digests, ``all`` must be right, or ``any`` of them.
        unreferenced_layers: BatchCheckLayerAvailability of layers that no image names: ``available`` or
            ``unavailable``.
        upload_lifetime: seconds after which an upload expires; 0 keeps it.
        create_on_initiate: InitiateLayerUpload into a repository that is missing: ``no``, or ``template``, which
            creates it where a repository creation template says CREATE_ON_PUSH.
        missing_subject: PutImage of a referrer whose subject does not exist: ``taken``, or ``refused``
            (ReferencedImagesNotFoundException).
        same_immutable_tag: an immutable tag put again with the image that it names: ``image-already-exists`` or
            ``image-tag-already-exists``.
        unaccepted_manifest: BatchGetImage of an image whose type is not in acceptedMediaTypes: ``given`` as it is, or
            ``image-not-found``.
        patch_status: what a PATCH of an upload below ``/v2/`` is answered with: ``202``, as the specification has it,
            or ``201``, as observed at ECR.
        patch_range: the Range of a PATCH's answer: ``received``, all bytes that have arrived, or ``stale`` from the
            second chunk on, without those of this PATCH, as observed at ECR.
        upload_location: where an upload below ``/v2/`` is continued: a ``relative`` location, an ``absolute`` one, or
            one ``with-query``, which is absolute and which later requests must repeat as a whole.
        upload_status: what GET of an upload below ``/v2/`` is answered with: ``204``, as the specification has it, or
            ``404`` or ``405`` where the status can't be asked for.
        short_chunk: a chunk below 5 MiB that is not the last one is refused ``at-end``, by the completing PUT, or
            ``at-next``, by the request with the next bytes.
        oci_conformance: ``yes`` accepts what ECR refuses and the OCI distribution-spec requires, so that its
            conformance suite passes: blobs of 0 bytes and chunks below 5 MiB through ``/v2/``, images without layers.
        unknown_alias: a public registryId that is not an account's: ``caller``, whose own alias it is taken for, or
            ``not-found`` (RegistryNotFoundException).
        public_regions: ECR Public in ``any`` region, or in the ``documented`` ones (us-east-1, us-west-2), others
            being refused with UnsupportedCommandException.
        max_layers: layers of an image; 0 is no limit. ECR has one (an image of about 300 layers was refused).
        max_parts: parts of a layer; 0 is the service's quota (4,200; public 1,000).
        max_layer_size: bytes of a layer; 0 is the service's quota (52,000 MiB; public 10,000 MiB).
        max_images: images of a repository; 0 is the service's quota (100,000).
        max_tags: tags of an image; 0 is the service's quota (1,000).
        max_repositories: repositories of a registry; 0 is the service's quota (100,000; public 10,000).
    """

    large_parts: Literal["taken", "refused"] = "taken"
    repeated_part: Literal["refused", "ignored"] = "refused"
    first_cursor: Literal["0", "-1", "absent"] = "0"
    retried_complete: Literal["upload-not-found", "layer-already-exists", "success"] = "upload-not-found"
    other_digests: Literal["taken", "refused"] = "taken"
    several_digests: Literal["all", "any"] = "all"
    unreferenced_layers: Literal["available", "unavailable"] = "available"
    upload_lifetime: int = 0
    create_on_initiate: Literal["no", "template"] = "no"
    missing_subject: Literal["taken", "refused"] = "taken"
    same_immutable_tag: Literal["image-already-exists", "image-tag-already-exists"] = "image-already-exists"
    unaccepted_manifest: Literal["given", "image-not-found"] = "given"
    patch_status: Literal["202", "201"] = "202"
    patch_range: Literal["received", "stale"] = "received"
    upload_location: Literal["relative", "absolute", "with-query"] = "relative"
    upload_status: Literal["204", "404", "405"] = "204"
    short_chunk: Literal["at-end", "at-next"] = "at-end"
    oci_conformance: Literal["no", "yes"] = "no"
    unknown_alias: Literal["caller", "not-found"] = "caller"
    public_regions: Literal["any", "documented"] = "any"
    max_layers: int = 0
    max_parts: int = 0
    max_layer_size: int = 0
    max_images: int = 0
    max_tags: int = 0
    max_repositories: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if hint is int:
                if not isinstance(value, int) or value < 0:
                    raise UsageError(f"invalid quota {_option(name)}={value}", hint="use a whole number, 0 or more")
            elif value not in get_args(hint):
                raise UsageError(f"invalid quirk {_option(name)}={value}", hint=f"use {' or '.join(get_args(hint))}")

    @classmethod
    def parse(cls, quirks: Iterable[str], quotas: Iterable[str] = ()) -> Self:
        """Read the words of ``--quirk`` and ``--quota``: ``NAME=VALUE`` each; a name may have hyphens.

        Raises:
            UsageError: a name that no quirk or quota has, or a value that it can't have.
        """
        given: dict[str, str | int] = {}
        for kind, words in (("quirk", quirks), ("quota", quotas)):
            names = [field.name for field in fields(cls) if isinstance(field.default, int) == (kind == "quota")]
            for word in words:
                option, equals, value = word.partition("=")
                name = option.strip().replace("-", "_")
                if not equals or name not in names:
                    raise UsageError(
                        f"unknown {kind} {word!r}",
                        hint=f"use NAME=VALUE, NAME one of: {', '.join(map(_option, names))}",
                    )
                is_number = kind == "quota" and value.isascii() and value.isdigit()
                given[name] = int(value) if is_number else value
        return cls(**given)  # type: ignore[arg-type]  # checked by __post_init__


def _option(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Quotas:
    """The service quotas of a registry; sizes in bytes, 0 is no limit."""

    parts: int
    layer_size: int
    layers: int
    images: int
    tags: int
    repositories: int


_PRIVATE = Quotas(parts=4_200, layer_size=52_000 * MiB, layers=0, images=100_000, tags=1_000, repositories=100_000)

_PUBLIC = Quotas(parts=1_000, layer_size=10_000 * MiB, layers=0, images=100_000, tags=1_000, repositories=10_000)


@dataclass(frozen=True, slots=True)
class Limits:
    """What all registries of one emulator answer by.

    Attributes:
        endpoint_url: ``http://HOST:PORT``, or ``https``.
        part_size: bytes, as InitiateLayerUpload answers them.
        quirks: the readings of open questions.
    """

    endpoint_url: str
    part_size: int
    quirks: Quirks

    @property
    def authority(self) -> str:
        """``HOST:PORT``."""
        return self.endpoint_url.partition("://")[2]

    @property
    def min_part(self) -> int:
        """The least bytes of all parts but the last: ECR's 5 MiB, or the part size where that is smaller."""
        return min(MIN_PART, self.part_size)

    def quotas(self, registry: RegistryId) -> Quotas:
        """The quotas of a registry: its service's, or those that the quirks lower."""
        base, chosen = _PUBLIC if registry.is_public else _PRIVATE, self.quirks
        return Quotas(
            parts=chosen.max_parts or base.parts,
            layer_size=chosen.max_layer_size or base.layer_size,
            layers=chosen.max_layers,
            images=chosen.max_images or base.images,
            tags=chosen.max_tags or base.tags,
            repositories=chosen.max_repositories or base.repositories,
        )
