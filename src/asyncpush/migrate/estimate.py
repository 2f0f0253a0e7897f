"""From a dry run to the forecast of the run: the requests and bytes that it asks of each registry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from asyncpush.migrate.forecast import Forecast, LimitForecast, PullForecast, RegistryForecast
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.report import CopyResult
from asyncpush.migrate.targets import OpenTarget

#: Bytes a second that uploads are assumed to reach where no bandwidth is given.
_ASSUMED_RATE = 100_000_000

#: base64 sends four bytes for three.
_BASE64 = 4 / 3

#: The questions that a dry run asks as often as the run itself.
_QUESTIONS = ("BatchCheckLayerAvailability", "BatchGetImage")


def make_forecast(context: MigrationContext, seconds: float) -> Forecast:
    """The forecast of a migration whose dry run *context* is; it took *seconds*."""
    planned: dict[str, list[CopyResult]] = defaultdict(list)
    targets: dict[str, OpenTarget] = {}
    wire = 0.0
    for target in context.targets.values():
        targets.setdefault(target.registry.address, target)
    for result in context.results.values():
        if result.outcome == "planned":
            target = context.targets[result.copy.goal.target]
            planned[target.registry.address].append(result)
            wire += result.bytes_sent * (_BASE64 if _uses_api(target) else 1)
    bandwidth = context.push.settings.bandwidth
    given = bandwidth.rate_now() if bandwidth else None
    return Forecast(
        tuple(_registry(address, target, planned[address]) for address, target in targets.items()),
        LimitForecast("bytes", round(wire), given or _ASSUMED_RATE, "option" if given else "assumed"),
        tuple(
            PullForecast(host, limit.limit, limit.remaining, needed)
            for host, (limit, needed) in context.source_pool.pulls.items()
        ),
        seconds,
    )


def _registry(address: str, target: OpenTarget, results: Iterable[CopyResult]) -> RegistryForecast:
    results = list(results)
    limits = sorted(_limits(target, results), key=lambda limit: -limit.seconds)
    return RegistryForecast(
        address,
        target.registry.region,
        target.registry.name.service,
        tuple(limits),
        sum(result.layers_mounted for result in results),
        sum(result.bytes_mounted for result in results),
    )


def _limits(target: OpenTarget, results: list[CopyResult]) -> Iterator[LimitForecast]:
    pace = target.registry.pace
    asked = {one.operation: one.sent for one in pace.statistics()}
    requests = {operation: asked.get(operation, 0) for operation in _QUESTIONS}
    requests["PutImage"] = sum(result.manifests for result in results)
    # ECR meters a mount as InitiateLayerUpload.
    requests["InitiateLayerUpload"] = sum(result.layers_mounted for result in results)
    if _uses_api(target):
        sent = sum(result.layers_sent for result in results)
        requests["InitiateLayerUpload"] += sent
        requests["CompleteLayerUpload"] = sent
        requests["UploadLayerPart"] = sum(result.parts for result in results)
    for operation, amount in requests.items():
        quota = pace.quota(operation)
        if quota is not None and amount:
            yield LimitForecast(operation, amount, quota.rate, "plan" if quota.is_stated else "default", quota.code)


def _uses_api(target: OpenTarget) -> bool:
    """Whether layers go through ECR's API; requests to ``/v2/`` have no documented quotas."""
    return target.registry.settings.transport == "api"
