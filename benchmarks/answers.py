"""What the discarding endpoint answers to each of ECR's operations of a push: ECR's members, nothing behind them."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any

Document = dict[str, object]

_FIRST = re.compile(rb'"partFirstByte" *: *(\d+)')
_LAST = re.compile(rb'"partLastByte" *: *(\d+)')


class RefusalError(Exception):
    """Raised for a request that ECR would refuse, too; *code* is ECR's."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def answer(operation: str, body: bytes, length: int, part_size: int) -> tuple[Document, int]:
    """Answer one request.

    Args:
        operation: the operation's name.
        body: the body; of a part only its ends.
        length: the body's length in bytes.
        part_size: what InitiateLayerUpload answers.

    Returns:
        The answer, and the bytes of a layer that the request brought.

    Raises:
        RefusalError: it is not a request that ECR would take.
    """
    if operation == "UploadLayerPart":
        return _part(body, length)
    try:
        request = json.loads(body or b"{}")
    except ValueError as error:
        raise RefusalError("SerializationException", str(error)) from error
    common: Document = {"registryId": "000000000000", "repositoryName": request.get("repositoryName", "")}
    try:
        return _small(operation, request, common, part_size), 0
    except LookupError as error:
        raise RefusalError("InvalidParameterException", f"{error} is needed") from error


def _part(body: bytes, length: int) -> tuple[Document, int]:
    first, last = _FIRST.search(body), _LAST.search(body)
    if first is None or last is None:
        raise RefusalError("InvalidParameterException", "partFirstByte and partLastByte are needed")
    size = int(last[1]) - int(first[1]) + 1
    # Cheap, and it catches a contender that is fast because it does not send what it says that it sends.
    if not size or not 0 <= length - 4 * ((size + 2) // 3) < 4096:
        raise RefusalError("InvalidLayerPartException", f"{size} bytes were announced, the body has {length}")
    return {"registryId": "000000000000", "lastByteReceived": int(last[1])}, size


def _small(operation: str, request: dict[str, Any], common: Document, part_size: int) -> Document:
    match operation:
        case "InitiateLayerUpload":
            return {"uploadId": str(uuid.uuid4()), "partSize": part_size}
        case "CompleteLayerUpload":
            return {**common, "uploadId": request["uploadId"], "layerDigest": request["layerDigests"][0]}
        case "BatchCheckLayerAvailability":
            layers = [{"layerDigest": digest, "layerAvailability": "UNAVAILABLE"} for digest in request["layerDigests"]]
            return {"layers": layers, "failures": []}
        case "BatchGetImage":
            reason = {"failureCode": "ImageNotFound", "failureReason": "Requested image not found"}
            return {"images": [], "failures": [{"imageId": image_id, **reason} for image_id in request["imageIds"]]}
        case "PutImage":
            manifest = str(request["imageManifest"])
            digest = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"
            image_id = {"imageDigest": digest, "imageTag": request.get("imageTag", "")}
            return {"image": {**common, "imageId": image_id, "imageManifest": manifest}}
        case "CreateRepository":
            return {"repository": {**common, "imageTagMutability": "MUTABLE"}}
    raise RefusalError("UnknownOperationException", f"{operation} is not an operation of a push")
