"""Applies one fault configuration to requests: counts them, delays them, and refuses, cuts or alters their answers."""

from __future__ import annotations

import math
import random
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import anyio
import msgspec
from aiohttp import web

from asyncpush.emulator.api.dispatch import refusal
from asyncpush.emulator.errors import AwsError, layers_not_found, referenced_images_not_found, server_error
from asyncpush.emulator.faults.operations import Call
from asyncpush.emulator.faults.rules import Action, Fault, FaultConfig
from asyncpush.emulator.faults.throttles import Throttles
from asyncpush.emulator.v2.answers import V2Error, token_expired, unauthorized
from asyncpush.emulator.v2.answers import refusal as v2_refusal
from asyncpush.emulator.v2.receiver import BodyFault, inject

Work = Callable[[], Awaitable[web.StreamResponse]]

#: Expires the upload that a request names.
Expire = Callable[[Call], Awaitable[None]]

#: SO_LINGER on, with no time: closing then resets the connection instead of ending it in order.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class HitCount:
    """A rule or throttle, as it is written, and how many requests it acted on."""

    rule: str
    count: int


class FaultInjector:
    """Applies a fault configuration, and keeps its counts and token buckets.

    Args:
        fault_config: the configuration.
        expire: expires an upload.
    """

    def __init__(self, fault_config: FaultConfig, expire: Expire) -> None:
        self.fault_config = fault_config
        self._expire = expire
        self._throttles = Throttles(fault_config)
        self._rules = [_Rule(fault, _chance(fault_config, place)) for place, fault in enumerate(fault_config.faults)]
        self._jitter = _chance(fault_config, "jitter")
        self._longest_lag = max((fault.lag or 0.0 for fault in fault_config.faults), default=0.0)
        self._completed: dict[tuple[str, str], float] = {}

    @property
    def hit_counts(self) -> tuple[HitCount, ...]:
        """How often each throttle, the quotas and each rule fired, in this order."""
        throttles = zip(self.fault_config.throttles, self._throttles.refused, strict=True)
        quotas = [HitCount("quotas=aws", self._throttles.refused_by_quotas)] if self.fault_config.quotas else []
        rules = [HitCount(str(rule.fault), rule.hits) for rule in self._rules]
        return (*(HitCount(str(throttle), refused) for throttle, refused in throttles), *quotas, *rules)

    def asks_for_members(self, call: Call) -> bool:
        """Whether a request's body must be read to decide what happens to it."""
        if call.is_v2:
            return False
        return self._throttles.meters(call.service, call.operation) or any(
            rule.fault.is_particular and rule.fault.selects(call.operation) for rule in self._rules
        )

    async def answer(self, request: web.Request, call: Call, work: Work) -> web.StreamResponse:
        """Delay a request, and then answer it by *work*, or as a fault says."""
        await self._let_time_pass()
        if self._throttles.refuses(call.service, call.operation, call.registry_id):
            return throttled(call)
        rule = self._choose(call)
        if rule is None:
            return await self._worked(call, work)
        rule.hits += 1
        answer = _v2_refusal(request, rule.fault) or refused(rule.fault.action, call, self._missing(call, rule.fault))
        return await self._disturbed(request, call, rule.fault, work) if answer is None else answer

    async def _disturbed(self, request: web.Request, call: Call, fault: Fault, work: Work) -> web.StreamResponse:
        """Answer a request by *work*, with what a fault does before and after it."""
        of_body = BodyFault(fault.size or sys.maxsize, refused=fault.action == "range-invalid")
        inject(request, of_body)
        match fault.action:
            case "reset-before":
                return cut(request, reset=True)
            case "upload-expired":
                await self._expire(call)
            case "stall":
                await anyio.sleep(fault.seconds or 0.0)
        response = await self._worked(call, work)
        if of_body.was_cut:
            return cut(request, reset=True)
        match fault.action:
            case "reset-after" | "lost-reply":
                return cut(request, reset=fault.action == "reset-after")
            case "slow-reply":
                await anyio.sleep(fault.seconds or 0.0)
            case "availability":
                return with_availability(response, available=bool(fault.available))
        return response

    async def _let_time_pass(self) -> None:
        fault_config = self.fault_config
        seconds = fault_config.latency + self._jitter.uniform(-fault_config.jitter, fault_config.jitter)
        if seconds > 0:
            await anyio.sleep(seconds)

    def _choose(self, call: Call) -> _Rule | None:
        """Count the request at all rules that select it; returns the first one that fires."""
        firing = [
            rule for rule in self._rules if rule.selects(call) and self._applies(call, rule.fault) and rule.count()
        ]
        return firing[0] if firing else None

    async def _worked(self, call: Call, work: Work) -> web.StreamResponse:
        response = await work()
        if self._longest_lag and call.operation == "CompleteLayerUpload" and isinstance(response, web.Response):
            self._remember(response)
        return response

    def _remember(self, response: web.Response) -> None:
        now = time.monotonic()
        for layer in [layer for layer, then in self._completed.items() if then < now - self._longest_lag]:
            del self._completed[layer]
        if response.status == 200:
            document = read_answer(response)
            self._completed[document["repositoryName"], document["layerDigest"]] = now

    def _applies(self, call: Call, fault: Fault) -> bool:
        return fault.action != "layers-not-found" or bool(self._missing(call, fault))

    def _missing(self, call: Call, fault: Fault) -> list[str]:
        """The blobs of a manifest that the fault still hides: all of them, or those that were completed lately."""
        if call.manifest is None:
            return []
        named = list(dict.fromkeys(each.digest for each in call.manifest.blobs or call.manifest.children))
        if fault.lag is None:
            return named
        since = time.monotonic() - fault.lag
        return [digest for digest in named if self._completed.get((call.repository, digest), since) > since]


class _Rule:
    """A fault and its count."""

    def __init__(self, fault: Fault, chance: random.Random) -> None:
        self.fault = fault
        self.hits = 0
        self._seen = 0
        self._chance = chance

    def selects(self, call: Call) -> bool:
        fault = self.fault
        return fault.selects(call.operation) and fnmatchcase(call.repository, fault.repository)

    def count(self) -> bool:
        """Count a request that it selects, and say whether its conditions hold."""
        self._seen += 1
        fault, number = self.fault, self._seen
        return (
            fault.nth in (None, number)
            and number % (fault.every or 1) == 0
            and number <= (fault.first or number)
            and number > (fault.after or 0)
            and (fault.limit is None or self.hits < fault.limit)
            # Drawn last, for requests that meet all other conditions: one seed then means the same requests.
            and (fault.probability is None or self._chance.random() < fault.probability)
        )


def _chance(fault_config: FaultConfig, purpose: object) -> random.Random:
    """A generator for each purpose: one more rule does not change what the others do."""
    return random.Random(None if fault_config.seed is None else f"{fault_config.seed}/{purpose}")  # noqa: S311 - no secret


def refused(action: Action, call: Call, missing: list[str]) -> web.Response | None:
    """The answer of an action that replaces the work; None for actions that leave it to be done.

    Args:
        action: the action.
        call: the request.
        missing: the digests that ``layers-not-found`` names.
    """
    match action:
        case "throttle":
            return throttled(call)
        case "server-error":
            return _failed(call)
        case "unavailable":
            # A load balancer answers so while its service is away: no client has a model of this error.
            return web.Response(status=503, text="Service Unavailable\n")
        case "bad-gateway":
            return web.Response(status=502, text=_BAD_GATEWAY, content_type="text/html")
        case "expired-token":
            return _token_expired(call)
        case "access-denied":
            return _access_denied(call)
        case "layers-not-found":
            return _not_found_yet(call, missing)
        case _:
            return None


#: What a proxy says whose server does not answer.
_BAD_GATEWAY = "<html>\n<head><title>502 Bad Gateway</title></head>\n<body><h1>502 Bad Gateway</h1></body>\n</html>\n"


def _v2_refusal(request: web.Request, fault: Fault) -> web.Response | None:
    """The answer of an action that exists below ``/v2/`` only."""
    match fault.action:
        case "unauthorized":
            return v2_refusal(unauthorized(request))
        case "retry-after":
            wait = {"Retry-After": str(math.ceil(fault.seconds or 0.0))}
            return v2_refusal(V2Error(429, "TOOMANYREQUESTS", "Rate exceeded", wait))
        case _:
            return None


def throttled(call: Call) -> web.Response:
    """Too many requests; both APIs use the same words (ECR's common errors)."""
    if call.is_v2:
        return v2_refusal(V2Error(429, "TOOMANYREQUESTS", "Rate exceeded"))
    return _refused(call, AwsError("ThrottlingException", "Rate exceeded"))


def _failed(call: Call) -> web.Response:
    """An internal error of the registry."""
    if call.is_v2:
        return v2_refusal(V2Error(500, "UNKNOWN", "Internal server error"))
    return _refused(call, server_error("Service failed to process the request"))


def _token_expired(call: Call) -> web.Response:
    """Expired credentials, or an expired token of ``/v2/``."""
    if call.is_v2:
        return v2_refusal(token_expired())
    message = "The security token included in the request is expired"
    return _refused(call, AwsError("ExpiredTokenException", message))


def _access_denied(call: Call) -> web.Response:
    """An action that no policy allows."""
    if call.is_v2:
        return v2_refusal(V2Error(403, "DENIED", f"requested access to repository {call.repository} is denied"))
    where = f"repository/{call.repository}" if call.repository else "*"
    action = f"ecr:{call.operation}"
    message = (
        f"User: arn:aws:iam::000000000000:user/asyncpush is not authorized to perform: {action} on resource: "
        f"arn:aws:ecr:us-east-1:000000000000:{where} because no identity-based policy allows the {action} action"
    )
    return _refused(call, AwsError("AccessDeniedException", message))


def _not_found_yet(call: Call, digests: list[str]) -> web.Response:
    """PutImage while its layers are not visible yet; of an index, while its images are not."""
    is_index = call.manifest is not None and bool(call.manifest.children)
    error = referenced_images_not_found if is_index else layers_not_found
    return _refused(call, error(digests, call.repository, call.registry_id or "000000000000"))


def with_availability(response: web.StreamResponse, available: bool) -> web.StreamResponse:
    """BatchCheckLayerAvailability's answer with all layers available, or none; other answers unchanged."""
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
    """The JSON document of an answer of the emulator's."""
    body = response.body
    return cast("dict[str, Any]", msgspec.json.decode(body if isinstance(body, bytes) else b"{}"))


def cut(request: web.Request, *, reset: bool) -> web.Response:
    """Close the connection without an answer: in order, as a proxy does, or by a reset.

    Returns:
        What the handler must return; the client does not receive it.
    """
    transport = request.transport
    if transport is not None:
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    return web.Response()


def _refused(call: Call, error: AwsError) -> web.Response:
    return refusal(call.operation, error).to_http()
