"""One repository of ECR, as the engine needs it: typed operations, whose lost replies are recovered from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Literal

from anyio import CapacityLimiter

from asyncpush.ecr.client import NOT_ALLOWED, EcrClient, TrackedCall, map_batches
from asyncpush.ecr.part_body import JsonPartEncoder, OutgoingPart
from asyncpush.ecr.raw_body import RawPartEncoder
from asyncpush.ecr.v2_blobs import V2Blobs
from asyncpush.errors import (
    InvalidLayerError,
    InvalidLayerPartError,
    ManifestError,
    RepositoryNotFoundError,
    ServiceError,
    TagImmutableError,
    UploadNotFoundError,
)
from asyncpush.manifest import ACCEPTED_TYPES, Manifest, parse_manifest
from asyncpush.model import ARCHIVED, Digest, TagMutability, Upload, restoring
from asyncpush.protocols import Part, RandomAccess, StoredImage
from asyncpush.settings import DEFAULT_PART_SIZE, MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE
from asyncpush.single_flight import CachedResult

#: Requests of DescribeImages that are sent to ECR Public at once.
_MAX_DESCRIBE_REQUESTS = 16


class EcrRepository:
    """A repository in ECR or ECR Public (a ``Repository``).

    Args:
        api: sends requests to ECR's API.
        name: the repository's name.
        registry: the address of its registry.
        pull_host: finds the host that images of the registry are pulled from, if it is known.
        v2: mounts layers from other repositories of the registry, and uploads them if the settings say so.
    """

    def __init__(
        self, api: EcrClient, name: str, *, registry: str, pull_host: Callable[[], str | None], v2: V2Blobs
    ) -> None:
        self._api = api
        self._name = name
        self._registry = registry
        self._pull_host = pull_host
        self._v2 = v2
        self._mutability = CachedResult(self._describe_mutability)
        self._archived: set[str] = set()  # tags and digests

    @property
    def name(self) -> str:
        """The repository's name."""
        return self._name

    @property
    def registry(self) -> str:
        """The address of its registry."""
        return self._registry

    @property
    def address(self) -> str:
        """The repository's unique address, ``REGISTRY/NAME``."""
        return f"{self._registry}/{self._name}"

    @property
    def pull_name(self) -> str | None:
        """See ``Repository``."""
        host = self._pull_host()
        return f"{host}/{self._name}" if host else None

    async def available(self, digests: Collection[Digest]) -> frozenset[Digest]:
        """Which of *digests* the repository holds as layers (BatchCheckLayerAvailability, 100 a call).

        A layer is missing unless ECR reports it as AVAILABLE: so are those that it reports as UNAVAILABLE or ARCHIVED,
        or as a failure, and those that it does not mention.
        """
        return frozenset().union(*await map_batches(self._check_layers, digests))

    async def _check_layers(self, digests: list[Digest]) -> set[Digest]:
        answer = await self._call("BatchCheckLayerAvailability", layerDigests=[str(digest) for digest in digests])
        available: set[Digest] = set()
        with self._api.parsing("BatchCheckLayerAvailability"):
            for layer in answer.get("layers", ()):
                if layer.get("layerAvailability") == "AVAILABLE":
                    with suppress(ValueError):  # of another algorithm: it was not asked for
                        available.add(Digest.parse(layer["layerDigest"]))
        return available

    async def begin_upload(self) -> Upload:
        """Open an upload (InitiateLayerUpload; at ``/v2/`` if that is the transport)."""
        if await self._v2.is_chosen():
            return await self._v2.begin(self._name)
        answer = await self._call("InitiateLayerUpload")
        with self._api.parsing("InitiateLayerUpload"):
            size = self._api.uplink.part_size(_part_size(answer.get("partSize")))
            return Upload(str(answer["uploadId"]), size, MAX_PARTS[self._api.service])

    async def find_received(self, upload: Upload, acknowledged: int, size: int) -> int:
        """How many bytes ECR has of an upload, of a layer of *size* bytes, that an earlier run has begun.

        The earlier run may have ended before it got the answers to its last parts. ECR's API has no operation that
        tells. But it refuses a part of one byte that can't follow any other, and names the last byte that it has: this
        costs less than sending a whole part to learn it.

        Returns:
            *acknowledged* if ECR does not tell: then the answer to the next part decides.

        Raises:
            UploadNotFoundError: ECR does not know the upload, or has fewer bytes than it had acknowledged.
        """
        if upload.is_v2:
            return await self._v2.find_received(upload, acknowledged)
        encoder = self.encoder(upload, 2 * size + MAX_PART_SIZE)
        encoder.add(memoryview(b"\0"))
        try:
            await self.send_part(upload, encoder.finish())
        except UploadNotFoundError:
            raise
        except InvalidLayerPartError as error:
            last = error.last_valid_byte
            received = last + 1 if last and last > 0 else 0
        except ServiceError:
            return acknowledged
        else:
            received = -1  # it has accepted a byte that is not the layer's
        if received < acknowledged:
            raise UploadNotFoundError("UploadLayerPart", "BytesLost", f"{acknowledged} bytes were acknowledged")
        return received

    def encoder(
        self, upload: Upload, first: int, content: RandomAccess | None = None
    ) -> JsonPartEncoder | RawPartEncoder:
        """Create the encoder of the part that begins at byte *first* (UploadLayerPart; PATCH at ``/v2/``).

        With *content*, the part's bytes are read from it again when the part is sent; without, they stay in memory.
        """
        if upload.is_v2:
            return RawPartEncoder(first, content)
        return JsonPartEncoder(self._api.registry_id, self._name, upload, first, content)

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        """Send a part and check that ECR has all of it (UploadLayerPart; PATCH at ``/v2/``).

        If the reply to a part was lost, ECR refuses the second try and reports the last byte that it has received.

        Args:
            upload: the upload that the part belongs to.
            part: the part.
            on_sent: called each time that the whole part has left.
        """
        if upload.is_v2:
            await self._v2.send_part(upload, part, on_sent)
            return
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
        """Complete an upload (CompleteLayerUpload; PUT at ``/v2/``); ``present`` if the repository has the layer."""
        try:
            return await (self._v2.complete if upload.is_v2 else self._complete)(upload, digest)
        except UploadNotFoundError:
            # The reply to an earlier try may have been lost; then the layer is present, and the upload ID is used up.
            if digest in await self.available([digest]):
                return "pushed"
            raise

    async def _complete(self, upload: Upload, digest: Digest) -> Literal["pushed", "present"]:
        """Send CompleteLayerUpload. ECR compares the sha256 before it answers LayerAlreadyExistsException, too."""
        try:
            answer = await self._call("CompleteLayerUpload", uploadId=upload.id, layerDigests=[str(digest)])
        except ServiceError as error:
            if error.code == "LayerAlreadyExistsException":
                return "present"
            raise
        with self._api.parsing("CompleteLayerUpload"):
            stored = answer["layerDigest"]
        if stored != str(digest):
            raise InvalidLayerError("CompleteLayerUpload", "WrongDigest", f"{digest} was sent, {stored} was stored")
        return "pushed"

    async def mount(self, digest: Digest, source: str) -> bool:
        """Mount a layer from repository *source* of the same registry (``POST /v2/NAME/blobs/uploads/?mount=``).

        False if ECR does not mount it: mounting is off, or no image in *source* refers to the layer (yet).

        Raises:
            RegistryError: the registry's host refuses the caller, or can't be reached.
        """
        return await self._v2.mount(self._name, digest, source)

    async def find_images(self, *, tags: Collection[str], digests: Collection[Digest]) -> tuple[StoredImage, ...]:
        """Which of these images the repository holds (BatchGetImage, 100 a call); missing ones are left out.

        If the caller may push but not read, the result is empty.
        """
        ids = [{"imageTag": tag} for tag in tags] + [{"imageDigest": str(digest)} for digest in digests]
        batches = await map_batches(self._find_images, ids)
        return tuple(image for batch in batches for image in batch)

    async def _find_images(self, ids: list[dict[str, str]]) -> Iterable[StoredImage]:
        try:
            if self._api.service == "ecr-public":
                return await self._describe_images(ids)
            return await self._get_images(ids)
        except ServiceError as error:
            if error.code not in NOT_ALLOWED:
                raise
            return ()

    async def _get_images(self, ids: list[dict[str, str]]) -> Iterable[StoredImage]:
        answer = await self._call("BatchGetImage", imageIds=ids, acceptedMediaTypes=list(ACCEPTED_TYPES))
        with self._api.parsing("BatchGetImage"):
            self._note_account(answer.get("images", ()))
            for failure in answer.get("failures", ()):
                if failure.get("failureCode") == ARCHIVED:
                    self._archived.update(failure.get("imageId", {}).values())
            return [_stored_image(image) for image in answer.get("images", ())]

    async def _describe_images(self, ids: list[dict[str, str]]) -> Iterable[StoredImage]:
        """Find images at ECR Public, one a call: it has no BatchGetImage, and one missing ID fails DescribeImages."""
        limiter = CapacityLimiter(_MAX_DESCRIBE_REQUESTS)

        async def describe(batch: list[dict[str, str]]) -> list[StoredImage]:
            [image_id] = batch
            try:
                async with limiter:
                    answer = await self._call("DescribeImages", imageIds=batch)
            except ServiceError as error:
                if error.code != "ImageNotFoundException":
                    raise
                return []
            with self._api.parsing("DescribeImages"):
                return [
                    StoredImage(Digest.parse(detail["imageDigest"]), image_id.get("imageTag"), None)
                    for detail in answer.get("imageDetails", ())
                ]

        return [image for images in await map_batches(describe, ids, size=1) for image in images]

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
        call = TrackedCall(self._api, "PutImage", members)
        try:
            answer = await call.send()
        except ServiceError as error:
            return await self._outcome_of(error, manifest, tag, is_reply_lost=call.is_reply_lost)
        with self._api.parsing("PutImage"):
            self._note_account([answer["image"]])
            stored = answer["image"].get("imageId", {}).get("imageDigest", str(manifest.digest))
        if stored != str(manifest.digest):
            raise ServiceError("PutImage", "WrongDigest", f"{manifest.digest} was put, {stored} was stored")
        return "pushed"

    async def _outcome_of(
        self, error: ServiceError, manifest: Manifest, tag: str | None, *, is_reply_lost: bool
    ) -> Literal["pushed", "present"]:
        """The outcome of a refused PutImage if the repository has the image in spite of that; raises otherwise."""
        if error.code == "ImageAlreadyExistsException":
            if self._archived & {tag, str(manifest.digest)}:
                name = f"{self._name}:{tag}" if tag else f"{self._name}@{manifest.digest}"
                hint = f"restore it first: {restoring(self._name, tag or str(manifest.digest))}"
                raise ServiceError("PutImage", ARCHIVED, f"{name} is archived, so nobody can pull it", hint=hint)
            # After a lost reply, it was this client that put the image.
            return "pushed" if is_reply_lost else "present"
        if error.code == "ImageTagAlreadyExistsException" and tag:
            images = await self.find_images(tags=[tag], digests=())
            stored = next((image.digest for image in images if image.tag == tag), None)
            if stored == manifest.digest:
                return "present"
            raise TagImmutableError(self._name, tag, manifest.digest, stored) from error
        raise error

    async def tag_mutability(self) -> TagMutability:
        """Which tags can't be moved; cached after the first call, since PutImage has the last word in any case."""
        return await self._mutability.get()

    async def _describe_mutability(self) -> TagMutability:
        if self._api.service == "ecr-public":
            return TagMutability()
        try:
            answer = await self._api.call("DescribeRepositories", repositoryNames=[self._name])
        except ServiceError as error:
            if error.code in NOT_ALLOWED:
                return TagMutability()
            raise
        with self._api.parsing("DescribeRepositories"):
            settings = answer["repositories"][0]
            filters = tuple(rule["filter"] for rule in settings.get("imageTagMutabilityExclusionFilters", ()))
            return TagMutability(str(settings.get("imageTagMutability", "MUTABLE")), filters)

    async def create(self) -> bool:
        """Create the repository with ECR's defaults (CreateRepository); False if it exists already."""
        try:
            await self._call("CreateRepository")
        except ServiceError as error:
            if error.code == "RepositoryAlreadyExistsException":
                return False
            raise
        return True

    async def delete(self, *, force: bool = False) -> bool:
        """Delete the repository (DeleteRepository), with *force* even its images; False if it does not exist."""
        try:
            await self._call("DeleteRepository", force=force)
        except RepositoryNotFoundError:
            return False
        return True

    def _note_account(self, images: Iterable[dict[str, Any]]) -> None:
        for image in images:
            self._api.account = self._api.account or image.get("registryId")

    async def _call(self, operation: str, **members: Any) -> dict[str, Any]:
        return await self._api.call(operation, repositoryName=self._name, **members)


def _part_size(value: Any) -> int:
    """The part size of an answer, within ECR's limits; the default if the answer has no usable one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return DEFAULT_PART_SIZE
    return min(max(value, MIN_PART_SIZE), MAX_PART_SIZE)


def _stored_image(image: dict[str, Any]) -> StoredImage:
    image_id = image.get("imageId", {})
    manifest: Manifest | None = None
    # A stored manifest may be of a kind that can't be pushed any more; it is only compared.
    with suppress(ManifestError):
        manifest = parse_manifest(image["imageManifest"].encode(), media_type=image.get("imageManifestMediaType"))
    return StoredImage(Digest.parse(image_id["imageDigest"]), image_id.get("imageTag"), manifest)
