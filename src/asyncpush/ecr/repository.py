"""One repository of ECR, as the engine needs it: operations typed and retried, lost replies made good."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Literal

import anyio
from anyio import CapacityLimiter

from asyncpush.ecr.client import NOT_ALLOWED, EcrClient, batches
from asyncpush.ecr.errors import verdict
from asyncpush.ecr.mount import Mounts
from asyncpush.ecr.part_body import JsonPartEncoder, OutgoingPart
from asyncpush.errors import (
    InvalidLayerError,
    InvalidLayerPartError,
    ManifestError,
    RegistryError,
    RepositoryNotFoundError,
    ServiceError,
    TagImmutableError,
    UploadNotFoundError,
    only_cause,
)
from asyncpush.manifest import ACCEPTED_TYPES, Manifest, parse_manifest
from asyncpush.model import Digest, TagMutability, Upload
from asyncpush.protocols import Part, RandomAccess, StoredImage
from asyncpush.settings import DEFAULT_PART_SIZE, MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE

#: DescribeImages of ECR Public that are asked at once.
_DESCRIBED_AT_ONCE = 16


class EcrRepository:
    """A repository in ECR or ECR Public (a ``Repository``).

    Args:
        calls: sends its requests; its client is one that ``wire.install`` has prepared.
        name: the repository's name.
        registry: the address of its registry.
        mounts: takes over layers from other repositories of it.
    """

    def __init__(self, calls: EcrClient, name: str, *, registry: str, mounts: Mounts) -> None:
        self._calls = calls
        self._name = name
        self._registry = registry
        self._mounts = mounts
        self._asking = anyio.Lock()
        self._mutability: TagMutability | None = None

    @property
    def name(self) -> str:
        """The repository's name."""
        return self._name

    @property
    def address(self) -> str:
        """What tells it from all others: ``REGISTRY/NAME``."""
        return f"{self._registry}/{self._name}"

    async def available(self, digests: Collection[Digest]) -> frozenset[Digest]:
        """Which of *digests* the repository holds as layers (BatchCheckLayerAvailability, 100 a call).

        Whatever is not AVAILABLE counts as missing: UNAVAILABLE, ARCHIVED, a failure, or no word of it.
        """
        found: set[Digest] = set()

        async def ask(batch: list[Digest]) -> None:
            answer = await self._call("BatchCheckLayerAvailability", layerDigests=[str(digest) for digest in batch])
            for layer in answer.get("layers", ()):
                if layer.get("layerAvailability") == "AVAILABLE":
                    with suppress(ValueError):
                        found.add(Digest.parse(layer["layerDigest"]))

        with only_cause():
            async with anyio.create_task_group() as tg:
                for batch in batches(digests):
                    tg.start_soon(ask, batch)
        return frozenset(found)

    async def begin_upload(self) -> Upload:
        """Open an upload (InitiateLayerUpload)."""
        answer = await self._call("InitiateLayerUpload")
        with self._calls.understood("InitiateLayerUpload"):
            asked = _part_size(answer.get("partSize"))
            size = self._calls.uplink.part_size(asked)
            return Upload(str(answer["uploadId"]), size, MAX_PARTS[self._calls.service])

    def encoder(self, upload: Upload, first: int, content: RandomAccess | None = None) -> JsonPartEncoder:
        """Make the body of the part that begins at byte *first* (UploadLayerPart); held if there is no *content*."""
        return JsonPartEncoder(self._calls.registry_id, self._name, upload, first, content)

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        """Send a part and check that ECR has all of it (UploadLayerPart).

        When the reply to a part was lost, ECR refuses the part at the second try and says which byte it received last.

        Args:
            upload: the upload that the part belongs to.
            part: the part.
            on_sent: called each time that the whole part has left.
        """
        try:
            answer = await self._call(
                "UploadLayerPart",
                uploadId=upload.id,
                partFirstByte=part.first,
                partLastByte=part.last,
                layerPartBlob=OutgoingPart(part, on_sent),
            )
        except InvalidLayerPartError as error:
            if error.last_valid_byte != part.last:
                raise
            return
        received = answer.get("lastByteReceived")
        if received is not None and received != part.last:
            raise ServiceError(
                "UploadLayerPart", "WrongLastByte", f"bytes up to {part.last} were sent, up to {received} were received"
            )

    async def complete_upload(self, upload: Upload, digest: Digest) -> Literal["pushed", "present"]:
        """Close an upload (CompleteLayerUpload); ``present`` if the repository had the layer already.

        ECR has compared a sha256 with the bytes by the time that it says LayerAlreadyExistsException.
        """
        try:
            answer = await self._call("CompleteLayerUpload", uploadId=upload.id, layerDigests=[str(digest)])
        except UploadNotFoundError:
            # The reply to an earlier try may have been lost: then the layer is there, and the id is used up.
            if digest in await self.available([digest]):
                return "pushed"
            raise
        except ServiceError as error:
            if error.code == "LayerAlreadyExistsException":
                return "present"
            raise
        with self._calls.understood("CompleteLayerUpload"):
            stored = answer["layerDigest"]
        if stored != str(digest):
            raise InvalidLayerError("CompleteLayerUpload", "WrongDigest", f"{digest} was sent, {stored} was stored")
        return "pushed"

    async def mount(self, digest: Digest, source: str) -> bool:
        """Take over a layer from repository *source* of the same registry (``POST /v2/NAME/blobs/uploads/?mount=``).

        False if ECR won't: mounting is off, or no image in *source* refers to the layer (yet).

        Raises:
            RegistryError: the registry's host refuses the caller, or can't be reached.
        """
        return await self._mounts.mount(self._name, digest, source)

    async def find_images(self, *, tags: Collection[str], digests: Collection[Digest]) -> tuple[StoredImage, ...]:
        """Which of these images the repository holds (BatchGetImage, 100 a call); the others are left out.

        A caller who may push but not read is told that nothing is there.
        """
        ids = [{"imageTag": tag} for tag in tags] + [{"imageDigest": str(digest)} for digest in digests]
        found: list[list[StoredImage]] = []
        find = self._describe_images if self._calls.service == "ecr-public" else self._get_images

        async def ask(batch: list[dict[str, str]], place: list[StoredImage]) -> None:
            try:
                place += await find(batch)
            except ServiceError as error:
                if error.code not in NOT_ALLOWED:
                    raise

        with only_cause():
            async with anyio.create_task_group() as tg:
                for batch in batches(ids):
                    place: list[StoredImage] = []
                    found.append(place)
                    tg.start_soon(ask, batch, place)
        return tuple(image for place in found for image in place)

    async def put_image(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        """Put a manifest, under *tag* if given (PutImage); ``present`` if nothing had to change."""
        members = {
            "repositoryName": self._name,
            "imageManifest": manifest.raw.decode(),
            "imageManifestMediaType": manifest.media_type,
            "imageDigest": str(manifest.digest),
        }
        if tag:
            members["imageTag"] = tag
        reply_lost = False

        async def put() -> dict[str, Any]:
            nonlocal reply_lost
            try:
                return await self._calls.send("PutImage", members)
            except RegistryError as error:
                reply_lost = reply_lost or verdict(error) == "transient"
                raise

        try:
            answer = await self._calls.retries.call("PutImage", put)
        except ServiceError as error:
            return await self._judge_refusal(error, manifest, tag, reply_lost=reply_lost)
        with self._calls.understood("PutImage"):
            stored = answer["image"].get("imageId", {}).get("imageDigest", str(manifest.digest))
        if stored != str(manifest.digest):
            raise ServiceError("PutImage", "WrongDigest", f"{manifest.digest} was put, {stored} was stored")
        return "pushed"

    async def is_immutable(self, tag: str) -> bool:
        """Whether *tag* can't be moved to another image (DescribeRepositories); False if that can't be learnt."""
        return (await self._ask_mutability()).is_immutable(tag)

    async def tag_mutability(self) -> TagMutability:
        """Which tags can't be moved, as it was when somebody first asked: PutImage is the judge of what has changed."""
        async with self._asking:
            if self._mutability is None:
                self._mutability = await self._ask_mutability()
        return self._mutability

    async def _ask_mutability(self) -> TagMutability:
        if self._calls.service == "ecr-public":
            return TagMutability()
        try:
            answer = await self._calls.call("DescribeRepositories", repositoryNames=[self._name])
        except ServiceError as error:
            if error.code in NOT_ALLOWED:
                return TagMutability()
            raise
        with self._calls.understood("DescribeRepositories"):
            settings = answer["repositories"][0]
        filters = tuple(rule["filter"] for rule in settings.get("imageTagMutabilityExclusionFilters", ()))
        return TagMutability(str(settings.get("imageTagMutability", "MUTABLE")), filters)

    async def create(self) -> bool:
        """Create the repository with ECR's defaults (CreateRepository); False if somebody else was faster."""
        try:
            await self._call("CreateRepository")
        except ServiceError as error:
            if error.code == "RepositoryAlreadyExistsException":
                return False
            raise
        return True

    async def delete(self, *, force: bool = False) -> bool:
        """Delete the repository (DeleteRepository), by *force* with all that is in it; False if there was none."""
        try:
            await self._call("DeleteRepository", force=force)
        except RepositoryNotFoundError:
            return False
        return True

    async def _judge_refusal(
        self, error: ServiceError, manifest: Manifest, tag: str | None, *, reply_lost: bool
    ) -> Literal["pushed", "present"]:
        """Whether ECR refused because the very image is there already."""
        if error.code == "ImageAlreadyExistsException":
            # After a lost reply this is the image that we have put ourselves.
            return "pushed" if reply_lost else "present"
        if error.code == "ImageTagAlreadyExistsException" and tag:
            stored = await self.find_images(tags=[tag], digests=())
            present = next((image.digest for image in stored if image.tag == tag), None)
            if present == manifest.digest:
                return "present"
            raise TagImmutableError(self._name, tag, manifest.digest, present) from error
        raise error

    async def _get_images(self, ids: list[dict[str, str]]) -> Iterable[StoredImage]:
        answer = await self._call("BatchGetImage", imageIds=ids, acceptedMediaTypes=list(ACCEPTED_TYPES))
        with self._calls.understood("BatchGetImage"):
            return [_stored(image) for image in answer.get("images", ())]

    async def _describe_images(self, ids: list[dict[str, str]]) -> Iterable[StoredImage]:
        """ECR Public has no BatchGetImage, and one missing id fails all of a DescribeImages call."""
        found: dict[int, list[StoredImage]] = {}
        at_once = CapacityLimiter(_DESCRIBED_AT_ONCE)

        async def ask(position: int, image_id: dict[str, str]) -> None:
            async with at_once:
                try:
                    answer = await self._call("DescribeImages", imageIds=[image_id])
                except ServiceError as error:
                    if error.code != "ImageNotFoundException":
                        raise
                    return
            with self._calls.understood("DescribeImages"):
                found[position] = [
                    StoredImage(Digest.parse(each["imageDigest"]), image_id.get("imageTag"), None)
                    for each in answer.get("imageDetails", ())
                ]

        with only_cause():
            async with anyio.create_task_group() as tg:
                for position, image_id in enumerate(ids):
                    tg.start_soon(ask, position, image_id)
        return [image for position in sorted(found) for image in found[position]]

    async def _call(self, operation: str, **members: Any) -> dict[str, Any]:
        return await self._calls.call(operation, repositoryName=self._name, **members)


def _part_size(said: Any) -> int:
    """Bytes a part, as an answer asks for them: what can't be meant is not heeded."""
    if not isinstance(said, int) or isinstance(said, bool):
        return DEFAULT_PART_SIZE
    return min(max(said, MIN_PART_SIZE), MAX_PART_SIZE)


def _stored(image: dict[str, Any]) -> StoredImage:
    image_id = image.get("imageId", {})
    manifest: Manifest | None = None
    # What is stored may be older than any manifest that can be pushed today; it is only compared.
    with suppress(ManifestError):
        manifest = parse_manifest(image["imageManifest"].encode(), media_type=image.get("imageManifestMediaType"))
    return StoredImage(Digest.parse(image_id["imageDigest"]), image_id.get("imageTag"), manifest)
