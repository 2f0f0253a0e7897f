"""ECR's errors, as the emulator answers them: code, message, HTTP status and modelled members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from asyncpush.model import Digest


class AwsError(Exception):
    """Raised when a request is refused.

    Args:
        code: ECR's code, such as ``RepositoryNotFoundException``.
        message: ECR's message.
        status: the HTTP status; ECR's modelled errors are 400, all but ServerException (500).
        members: what the error's shape has beside its message, at the top level of the answer.
    """

    def __init__(
        self, code: str, message: str, *, status: int = 400, members: Mapping[str, str | int] | None = None
    ) -> None:
        self.code = code
        self.message = message
        self.status = status
        self.members = members or {}
        super().__init__(f"{code}: {message}")


def invalid_parameter(name: str, constraint: str) -> AwsError:
    """Input that breaks a rule of its shape or meaning."""
    return AwsError(
        "InvalidParameterException", f"Invalid parameter at '{name}' failed to satisfy constraint: '{constraint}'"
    )


def server_error(message: str) -> AwsError:
    """A fault on the emulator's side, such as a full disk."""
    return AwsError("ServerException", message, status=500)


def unknown_operation(name: str, reason: str) -> AwsError:
    """An operation that ECR does not have."""
    return AwsError("UnknownOperationException", f"The operation '{name}' {reason}")


def not_implemented(name: str) -> AwsError:
    """An operation of ECR's that the emulator does not implement; AWS clients do not retry this error."""
    return AwsError(
        "NotImplementedException", f"Amazon ECR has the operation '{name}', this emulator does not", status=501
    )


def repository_not_found(name: str, registry_id: str) -> AwsError:
    """A repository that was never created, or was deleted."""
    return AwsError(
        "RepositoryNotFoundException",
        f"The repository with name '{name}' does not exist in the registry with id '{registry_id}'",
    )


def repository_exists(name: str, registry_id: str) -> AwsError:
    """CreateRepository for a name that is taken."""
    return AwsError(
        "RepositoryAlreadyExistsException",
        f"The repository with name '{name}' already exists in the registry with id '{registry_id}'",
    )


def repository_not_empty(name: str, registry_id: str) -> AwsError:
    """DeleteRepository without force, of a repository with images."""
    return AwsError(
        "RepositoryNotEmptyException",
        f"The repository with name '{name}' in registry with id '{registry_id}' cannot be deleted "
        "because it still contains images",
    )


def registry_not_found(registry_id: str) -> AwsError:
    """A public registry id that is neither a known account nor a known alias."""
    return AwsError("RegistryNotFoundException", f"The registry with id '{registry_id}' does not exist")


def limit_exceeded(message: str) -> AwsError:
    """A service quota that is used up; retrying does not help."""
    return AwsError("LimitExceededException", message)


def upload_not_found(upload_id: str, name: str, registry_id: str) -> AwsError:
    """An upload id that is unknown, finished, or belongs to another repository."""
    return AwsError(
        "UploadNotFoundException",
        f"The upload with id '{upload_id}' in the repository with name '{name}' in registry with id "
        f"'{registry_id}' cannot be found",
    )


def empty_upload(upload_id: str, name: str, registry_id: str) -> AwsError:
    """CompleteLayerUpload before any part."""
    return AwsError(
        "EmptyUploadException",
        f"The upload with id '{upload_id}' in the repository with name '{name}' in registry with id "
        f"'{registry_id}' cannot be completed because it does not have any parts",
    )


def part_too_small() -> AwsError:
    """CompleteLayerUpload of an upload with a short part before its last."""
    return AwsError("LayerPartTooSmallException", "All layer parts except the last part should be at least 5MB")


def invalid_layer(claimed: str, actual: Digest) -> AwsError:
    """CompleteLayerUpload with a digest that does not match the bytes."""
    return AwsError(
        "InvalidLayerException",
        f"The layer digest '{claimed}' does not match the digest that Amazon ECR has calculated, '{actual}'",
    )


def layer_exists(digest: Digest, name: str, registry_id: str) -> AwsError:
    """CompleteLayerUpload of a layer that the repository has."""
    return AwsError(
        "LayerAlreadyExistsException",
        f"The layer with digest '{digest}' already exists in the repository with name '{name}' in registry with id "
        f"'{registry_id}'",
    )


def layer_missing(digest: str, name: str, registry_id: str) -> AwsError:
    """GetDownloadUrlForLayer of a layer that the repository lacks."""
    return AwsError(
        "LayersNotFoundException",
        f"The layer with digest '{digest}' does not exist within the repository with name '{name}' in the registry "
        f"with id '{registry_id}'",
    )


def layer_inaccessible(digest: str, name: str, registry_id: str) -> AwsError:
    """GetDownloadUrlForLayer of a layer that no image refers to."""
    return AwsError(
        "LayerInaccessibleException",
        f"The layer with digest '{digest}' in the repository with name '{name}' in the registry with id "
        f"'{registry_id}' is not associated with an image and can not be downloaded",
    )


def layer_discarded(digest: object) -> AwsError:
    """GetDownloadUrlForLayer of a layer whose bytes the emulator has discarded; ECR has no such case."""
    return AwsError(
        "LayerInaccessibleException",
        f"The layer with digest '{digest}' can not be downloaded: its bytes were discarded (serve --discard)",
    )


def layers_not_found(digests: Iterable[str], name: str, registry_id: str) -> AwsError:
    """PutImage of a manifest whose config or layers the repository lacks."""
    return AwsError("LayersNotFoundException", _required("Layers", digests, name, registry_id))


def referenced_images_not_found(digests: Iterable[str], name: str, registry_id: str) -> AwsError:
    """PutImage of an index whose manifests the repository lacks."""
    return AwsError("ReferencedImagesNotFoundException", _required("Images", digests, name, registry_id))


def _required(what: str, digests: Iterable[str], name: str, registry_id: str) -> str:
    return (
        f"{what} with digests '[{', '.join(digests)}]' required for pushing image into repository with name '{name}' "
        f"in the registry with id '{registry_id}' do not exist"
    )


def image_exists(digest: Digest, tag: str | None, name: str, registry_id: str) -> AwsError:
    """PutImage that would change nothing."""
    tagged = f" and tag '{tag}'" if tag else ""
    return AwsError(
        "ImageAlreadyExistsException",
        f"Image with digest '{digest}'{tagged} already exists in the repository with name '{name}' in registry with id "
        f"'{registry_id}'",
    )


def tag_exists(tag: str, name: str) -> AwsError:
    """PutImage of another image under an immutable tag."""
    return AwsError(
        "ImageTagAlreadyExistsException",
        f"The image tag '{tag}' already exists in the '{name}' repository and cannot be overwritten because the "
        "repository is immutable.",
    )


def image_digest_mismatch(claimed: str, name: str, registry_id: str) -> AwsError:
    """PutImage with a digest that is not that of the manifest's bytes."""
    return AwsError(
        "ImageDigestDoesNotMatchException",
        f"The image with digest '{claimed}' in repository '{name}' and registry ID '{registry_id}' does not match the "
        "image digest that Amazon ECR has calculated.",
    )


def image_not_found(digest: str | None, tag: str | None, name: str, registry_id: str) -> AwsError:
    """DescribeImages of an image that does not exist."""
    return AwsError(
        "ImageNotFoundException",
        f"The image with imageId {{imageDigest:'{digest or 'null'}', imageTag:'{tag or 'null'}'}} does not exist "
        f"within the repository with name '{name}' in the registry with id '{registry_id}'",
    )


def policy_not_found(kind: str, name: str, registry_id: str) -> AwsError:
    """A ``Repository`` or ``Lifecycle`` policy that was never set, or was deleted."""
    return AwsError(
        f"{kind}PolicyNotFoundException",
        f"{kind} policy does not exist for the repository with name '{name}' in the registry with id '{registry_id}'",
    )


def template_not_found(prefix: str, registry_id: str) -> AwsError:
    """A repository creation template that does not exist."""
    return AwsError(
        "TemplateNotFoundException",
        f"The repository creation template with prefix '{prefix}' does not exist in the registry with id "
        f"'{registry_id}'",
    )


def template_exists(prefix: str, registry_id: str) -> AwsError:
    """CreateRepositoryCreationTemplate for a prefix that has one."""
    return AwsError(
        "TemplateAlreadyExistsException",
        f"A repository creation template with prefix '{prefix}' already exists in the registry with id '{registry_id}'",
    )
