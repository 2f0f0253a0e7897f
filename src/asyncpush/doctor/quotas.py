"""The request rates that Service Quotas has for the account and region; the defaults where it does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import botocore.exceptions as bce
import botocore.session
from anyio import from_thread, to_thread
from botocore.config import Config

from asyncpush.doctor.findings import Finding
from asyncpush.ecr.configuration import configure_session, session_variables, translate_configuration_errors
from asyncpush.ecr.credentials import credentials_of
from asyncpush.ecr.quotas import QUOTAS
from asyncpush.ecr.regions import is_aws
from asyncpush.settings import AwsConfiguration

#: The codes of the rates that bind most runs ("Amazon ECR service quotas").
_CODES = {"PutImage": "L-AD52DFB2", "InitiateLayerUpload": "L-95B28F8D", "UploadLayerPart": "L-A1670B10"}

_CONFIG = Config(connect_timeout=3, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 1})


async def check_quotas(client: Any, aws: AwsConfiguration) -> list[Finding]:
    """How many requests a second ECR accepts, for the operations that bind most runs.

    Args:
        client: an aiobotocore client of ECR that ``open_client`` has opened.
        aws: overrides the AWS configuration of the environment.
    """
    service = client.meta.service_model.service_name
    defaults = {name: float(rate) for name, rate in QUOTAS[service].items() if name in _CODES}
    if service == "ecr-public":
        return [Finding("quotas", "ok", f"AWS's defaults, {_rates(defaults)}")]
    keys = await credentials_of(client).get_frozen_credentials()
    ecr = (client.meta.region_name, client.meta.endpoint_url)
    try:
        # It is given up with its check: its own limits end it soon.
        applied = await to_thread.run_sync(_ask, ecr, aws, keys, abandon_on_cancel=True)
    except (bce.BotoCoreError, bce.ClientError) as error:
        code = error.response["Error"]["Code"] if isinstance(error, bce.ClientError) else type(error).__name__
        text = f"Service Quotas does not tell the account's own ({code}); AWS's defaults are {_rates(defaults)}"
        return [Finding("quotas", "unknown", text, "to see them here, allow servicequotas:GetServiceQuota")]
    if applied is None:
        text = "this is not AWS, so asyncpush assumes none until requests are throttled"
        return [Finding("quotas", "ok", text)]
    lower = [name for name, rate in applied.items() if rate < defaults[name]]
    text = f"{_rates({**defaults, **applied})}, in this account and region"
    if lower:
        advice = f"ask for more in Service Quotas ({', '.join(_CODES[name] for name in lower)})"
        return [Finding("quotas", "note", f"{text}: lower than AWS's defaults", advice)]
    return [Finding("quotas", "ok", text)]


def _rates(rates: Mapping[str, float]) -> str:
    listed = ", ".join(f"{rates[name]:g} {name}" for name in _CODES if name in rates)
    return f"{listed} requests a second"


def _ask(ecr: tuple[str, str], aws: AwsConfiguration, keys: Any) -> Mapping[str, float] | None:
    """The rates that were changed for the account, by operation; None if no endpoint may receive the keys; blocks."""
    region, endpoint = ecr
    session = configure_session(botocore.session.Session(session_vars=session_variables()), aws, region)
    session.register("before-send", lambda **_: from_thread.check_cancelled())
    with translate_configuration_errors():
        client = session.create_client(
            "service-quotas",
            region_name=region,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            aws_session_token=keys.token,
            config=_CONFIG,
        )
    try:
        if is_aws(client.meta.endpoint_url) and not is_aws(endpoint):
            return None  # the keys belong to an emulator, and AWS must not receive them
        applied: dict[str, float] = {}
        for name, code in _CODES.items():
            try:
                applied[name] = float(client.get_service_quota(ServiceCode="ecr", QuotaCode=code)["Quota"]["Value"])
            except client.exceptions.NoSuchResourceException:
                continue  # it has AWS's default
        return applied
    finally:
        client.close()
