"""What the discarding endpoint answers to the requests of a push, as ECR's API and ``/v2/`` do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import uuid
from typing import Any
from urllib.parse import unquote

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
        case "DescribeRegistry":
            return {"registryId": "000000000000", "replicationConfiguration": {"rules": []}}
        case "GetAuthorizationToken":
            token = base64.b64encode(b"AWS:nobody-checks-it").decode()
            grant = {"authorizationToken": token, "expiresAt": time.time() + 12 * 3600, "proxyEndpoint": "https://sink"}
            return {"authorizationData": [grant]}
        case "CreateRepository":
            return {"repository": {**common, "imageTagMutability": "MUTABLE"}}
    raise RefusalError("UnknownOperationException", f"{operation} is not an operation of a push")


_RANGE = re.compile(r"(?im)^content-range: *(\d+)-(\d+)\s*$")


def answer_v2(head: str, length: int) -> tuple[int, dict[str, str], int]:
    """Answer a request of an upload below ``/v2/`` (OCI distribution-spec): POST, PATCH of chunks, PUT.

    Args:
        head: the request's line and headers.
        length: the body's length in bytes; it is a layer's, as it is.

    Returns:
        The HTTP status, headers, and the bytes of a layer that the request brought.
    """
    method, path = head.split(" ", 2)[:2]
    location, _, query = path.partition("?")
    match method:
        case "POST":
            return 202, {"Location": f"{location.rstrip('/')}/{uuid.uuid4()}", "Range": "0-0"}, length
        case "PATCH":
            found = _RANGE.search(head)
            if found is None or int(found[2]) - int(found[1]) + 1 != length:
                return 416, {"Location": path, "Range": "0-0"}, 0
            return 202, {"Location": path, "Range": f"0-{found[2]}"}, length
        case "PUT":
            digest = unquote(query.rpartition("digest=")[2])
            return 201, {"Location": location, "Docker-Content-Digest": digest}, length
    return (200 if path == "/v2/" else 404), {}, 0
