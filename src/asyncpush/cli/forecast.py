"""The forecast of a migration, as text and as JSON."""

from __future__ import annotations

from asyncpush.cli.report import Json
from asyncpush.migrate.forecast import Forecast, LimitForecast
from asyncpush.progress.lines import printable
from asyncpush.units import format_rate, size_text, time_text

_BASES = {"default": "ECR's default quota", "plan": "the plan's quota", "option": "--bandwidth", "assumed": "assumed"}

#: Seconds that a quota must hold a run up for the request of a higher one to be worth a line.
_WORTH_RAISING = 60.0


def forecast_lines(forecast: Forecast) -> list[str]:
    """The forecast, for people; the first line says how long the run takes, and what binds it."""
    binding = forecast.binding
    if binding is None:
        lines = ["forecast: nothing to send"]
    else:
        lines = [f"forecast: about {time_text(forecast.seconds)}; {binding.name} binds"]
        several = len(forecast.registries) > 1
        for registry in forecast.registries:
            if several:
                lines.append(f"  {printable(registry.address)}")
            lines += [_line(limit) for limit in registry.limits]
            if registry.blobs_mounted:
                lines.append(f"  mounts save {registry.blobs_mounted} layers, {size_text(registry.bytes_mounted)}")
        lines += [_line(forecast.transfer), f"  {'discovery':<53}{time_text(forecast.discovery):>10}  (this dry run)"]
        if (command := forecast.raise_quota) and binding.seconds >= _WORTH_RAISING:
            lines.append(f"  for a higher quota: {command}")
    for pulls in forecast.pulls:
        head = f"  {pulls.host} allows {pulls.limit}, of which {pulls.remaining} are left"
        if pulls.needed > pulls.remaining:
            lines.append(f"{head}: WARNING: the run needs {pulls.needed}; log in, or split it")
        else:
            lines.append(f"{head}; the run needs {pulls.needed}")
    return lines


def _line(limit: LimitForecast) -> str:
    if limit.name == "bytes":
        amount, rate = size_text(limit.amount), format_rate(limit.rate)
    else:
        amount, rate = f"{limit.amount:,}", f"{limit.rate:g}/s"
    return f"  {limit.name:<28}{amount:>12} at {rate:>9}{time_text(limit.seconds):>10}  ({_BASES[limit.basis]})"


def forecast_document(forecast: Forecast) -> Json:
    """The forecast as JSON."""
    binding = forecast.binding
    return {
        "seconds": round(forecast.seconds, 3),
        "binding": binding.name if binding else None,
        "registries": [
            {
                "registry": registry.address,
                "region": registry.region,
                "limits": [_limit(limit) for limit in registry.limits],
                "blobsMounted": registry.blobs_mounted,
                "bytesMounted": registry.bytes_mounted,
            }
            for registry in forecast.registries
        ],
        "transfer": _limit(forecast.transfer),
        "discoverySeconds": round(forecast.discovery, 3),
        "raiseQuota": forecast.raise_quota,
        "pulls": [
            {"host": pulls.host, "limit": pulls.limit, "remaining": pulls.remaining, "needed": pulls.needed}
            for pulls in forecast.pulls
        ],
    }


def _limit(limit: LimitForecast) -> Json:
    return {
        "name": limit.name,
        "amount": limit.amount,
        "rate": limit.rate,
        "basis": limit.basis,
        **({"quotaCode": limit.code} if limit.code else {}),
        "seconds": round(limit.seconds, 3),
    }
