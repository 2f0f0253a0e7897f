"""What a fault answers instead of the work: refusals in the shape of the face that was asked, or a cut connection."""

from __future__ import annotations

import socket
import struct
import uuid
from typing import Any, cast

import msgspec
from aiohttp import web

from asyncpush.emulator.api.dispatch import refusal
from asyncpush.emulator.errors import AwsError, layers_not_found, referenced_images_not_found, server_error
from asyncpush.emulator.faults.operations import Call
from asyncpush.emulator.faults.rules import Action

#: On, and no time to linger: closing then resets the connection instead of ending it in order.
_RESET = struct.pack("ii", 1, 0)


def refused(action: Action, call: Call, lost: list[str]) -> web.Response | None:
    """What an action answers instead of the work; None if it leaves that to be done.

    Args:
        action: the action.
        call: what was asked.
        lost: the digests that ``layers-not-found`` names.
    """
    match action:
        case "throttle":
            return throttled(call)
        case "server-error":
            return _failed(call)
        case "unavailable":
            # What stands before a service answers while that is away: no error that any client has a model of.
            return web.Response(status=503, text="Service Unavailable\n")
        case "expired-token":
            return _token_expired(call)
        case "access-denied":
            return _access_denied(call)
        case "layers-not-found":
            return _not_found_yet(call, lost)
        case _:
            return None


def throttled(call: Call) -> web.Response:
    """Too many requests; both faces say it in the same words (ECR's common errors)."""
    if call.is_v2:
        return _v2_refused(429, "TOOMANYREQUESTS", "Rate exceeded")
    return _refused(call, AwsError("ThrottlingException", "Rate exceeded"))


def _failed(call: Call) -> web.Response:
    """A fault on the registry's side."""
    if call.is_v2:
        return _v2_refused(500, "UNKNOWN", "Internal server error")
    return _refused(call, server_error("Service failed to process the request"))


def _token_expired(call: Call) -> web.Response:
    """Credentials, or a registry's token, whose time is over."""
    if call.is_v2:
        message = "Your authorization token has expired. Reauthenticate and try again."
        return _v2_refused(403, "DENIED", message)
    message = "The security token included in the request is expired"
    return _refused(call, AwsError("ExpiredTokenException", message))


def _access_denied(call: Call) -> web.Response:
    """An action that no policy allows."""
    if call.is_v2:
        return _v2_refused(403, "DENIED", f"requested access to repository {call.repository} is denied")
    where = f"repository/{call.repository}" if call.repository else "*"
    action = f"ecr:{call.operation}"
    message = (
        f"User: arn:aws:iam::000000000000:user/asyncpush is not authorized to perform: {action} on resource: "
        f"arn:aws:ecr:us-east-1:000000000000:{where} because no identity-based policy allows the {action} action"
    )
    return _refused(call, AwsError("AccessDeniedException", message))


def _not_found_yet(call: Call, digests: list[str]) -> web.Response:
    """PutImage before its layers are seen; of an index, before its images are."""
    is_index = call.manifest is not None and bool(call.manifest.children)
    error = referenced_images_not_found if is_index else layers_not_found
    return _refused(call, error(digests, call.repository, call.registry_id or "000000000000"))


def with_availability(response: web.StreamResponse, available: bool) -> web.StreamResponse:
    """BatchCheckLayerAvailability's answer with another word for all of its layers; other answers as they are."""
    if response.status != 200 or not isinstance(response, web.Response):
        return response
    document = read_answer(response)
    for layer in document["layers"]:
        if available != (layer["layerAvailability"] == "AVAILABLE"):
            digest = layer["layerDigest"]
            layer.clear()
            layer.update(layerDigest=digest, layerAvailability="AVAILABLE" if available else "UNAVAILABLE")
    response.body = msgspec.json.encode(document)
    return response


def read_answer(response: web.Response) -> dict[str, Any]:
    """The JSON of an answer that the emulator made."""
    body = response.body
    return cast("dict[str, Any]", msgspec.json.decode(body if isinstance(body, bytes) else b"{}"))


def cut(request: web.Request, *, reset: bool) -> web.Response:
    """Close the connection without an answer: in order, as a proxy does, or by a reset.

    Returns:
        What the handler must return; it reaches nobody.
    """
    transport = request.transport
    if transport is not None:
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    return web.Response()


def _refused(call: Call, error: AwsError) -> web.Response:
    answer = refusal(call.operation, error)
    headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": str(uuid.uuid4())}
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def _v2_refused(status: int, code: str, message: str) -> web.Response:
    document = {"errors": [{"code": code, "message": message}]}
    headers = {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}
    return web.Response(body=msgspec.json.encode(document), status=status, headers=headers)
