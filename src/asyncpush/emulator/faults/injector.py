"""One fault configuration at work: what it has seen and done so far, and what it does to the next request."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import anyio
from aiohttp import web

from asyncpush.emulator.faults import answers
from asyncpush.emulator.faults.operations import Call
from asyncpush.emulator.faults.rules import Fault, FaultConfig
from asyncpush.emulator.faults.throttles import Throttles

Work = Callable[[], Awaitable[web.StreamResponse]]

#: Makes the upload that a request names be gone.
Expire = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HitCount:
    """A rule or throttle, as it is written, and how many requests it has acted on."""

    rule: str
    hit_counts: int


class _Rule:
    """A fault and its count."""

    def __init__(self, fault: Fault, chance: random.Random) -> None:
        self.fault = fault
        self.hit_counts = 0
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
            and (fault.limit is None or self.hit_counts < fault.limit)
            # Drawn for each request that comes so far: the same seed then means the same requests.
            and (fault.probability is None or self._chance.random() < fault.probability)
        )


class FaultInjector:
    """A fault configuration, its counts and its buckets.

    Args:
        fault_config: what it is to be.
        expire: makes an upload be gone.
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
        """How often each throttle, the quotas and each rule have fired, in this order."""
        throttles = zip(self.fault_config.throttles, self._throttles.refused, strict=True)
        quotas = [HitCount("quotas=aws", self._throttles.refused_by_quotas)] if self.fault_config.quotas else []
        rules = [HitCount(str(rule.fault), rule.hit_counts) for rule in self._rules]
        return (*(HitCount(str(throttle), refused) for throttle, refused in throttles), *quotas, *rules)

    def asks_for_members(self, call: Call) -> bool:
        """Whether it takes a request's body to tell what is to be done with it."""
        if call.is_v2:
            return False
        return self._throttles.meters(call.service, call.operation) or any(
            rule.fault.is_particular and rule.fault.selects(call.operation) for rule in self._rules
        )

    async def answer(self, request: web.Request, call: Call, work: Work) -> web.StreamResponse:
        """Let time pass, and then *work*, or something else."""
        await self._let_time_pass()
        if self._throttles.refuses(call.service, call.operation, call.registry_id):
            return answers.throttled(call)
        rule = self._choose(call)
        if rule is None:
            return await self._worked(call, work)
        rule.hit_counts += 1
        refusal = answers.refused(rule.fault.action, call, self._lost(call, rule.fault))
        return await self._disturbed(request, call, rule.fault, work) if refusal is None else refusal

    async def _disturbed(self, request: web.Request, call: Call, fault: Fault, work: Work) -> web.StreamResponse:
        """Do the work, or not, with what a fault does before and after it."""
        if fault.action == "reset-before":
            return answers.cut(request, reset=True)
        if fault.action == "upload-expired":
            await self._expire(call)
        response = await self._worked(call, work)
        match fault.action:
            case "reset-after" | "lost-reply":
                return answers.cut(request, reset=fault.action == "reset-after")
            case "slow-reply":
                await anyio.sleep(fault.seconds or 0.0)
            case "availability":
                return answers.with_availability(response, available=bool(fault.available))
        return response

    async def _let_time_pass(self) -> None:
        fault_config = self.fault_config
        seconds = fault_config.latency + self._jitter.uniform(-fault_config.jitter, fault_config.jitter)
        if seconds > 0:
            await anyio.sleep(seconds)

    def _choose(self, call: Call) -> _Rule | None:
        """Count the request at all rules that select it; of those that fire, the first."""
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
            document = answers.read_answer(response)
            self._completed[document["repositoryName"], document["layerDigest"]] = now

    def _applies(self, call: Call, fault: Fault) -> bool:
        return fault.action != "layers-not-found" or bool(self._lost(call, fault))

    def _lost(self, call: Call, fault: Fault) -> list[str]:
        """What a manifest names that the fault lets nobody see yet: all, or what was completed a short time ago."""
        if call.manifest is None:
            return []
        named = list(dict.fromkeys(each.digest for each in call.manifest.blobs or call.manifest.children))
        if fault.lag is None:
            return named
        since = time.monotonic() - fault.lag
        return [digest for digest in named if self._completed.get((call.repository, digest), since) > since]


def _chance(fault_config: FaultConfig, purpose: object) -> random.Random:
    """Each purpose draws of its own: a rule more does not change what the others do."""
    return random.Random(None if fault_config.seed is None else f"{fault_config.seed}/{purpose}")  # noqa: S311 - no secret
