"""Whose credentials sign: STS's GetCallerIdentity, which no policy has to allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import botocore.session
from anyio import from_thread, to_thread
from botocore.config import Config
from botocore.parsers import ResponseParserError

from asyncpush.ecr.configuration import configured, readable_configuration, variables
from asyncpush.ecr.credentials import signing
from asyncpush.ecr.errors import translated
from asyncpush.ecr.rate_limit import is_aws
from asyncpush.errors import AsyncpushError
from asyncpush.settings import AwsConfiguration

#: A network without STS must not hold up a run for long: it is asked last, and once.
_ASKING = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    """Asks STS, with the credentials of a client.

    Attributes:
        client: a client of ECR that ``open_client`` has opened.
        aws: what is set over the AWS configuration of the environment.
    """

    client: Any = field(repr=False)
    aws: AwsConfiguration

    async def account(self) -> str | None:
        """The caller's account; None if STS refuses, or can't be reached."""
        keys = await signing(self.client).get_frozen_credentials()
        try:
            return await to_thread.run_sync(self._ask, keys)
        except (AsyncpushError, ResponseParserError):
            return None

    def _ask(self, keys: Any) -> str | None:
        region, endpoint = self.client.meta.region_name, self.client.meta.endpoint_url
        session = configured(botocore.session.Session(session_vars=variables()), self.aws, region)
        session.register("before-send", lambda **_: from_thread.check_cancelled())

        def opened(endpoint_url: str | None) -> Any:
            with readable_configuration():
                return session.create_client(
                    "sts",
                    region_name=region,
                    endpoint_url=endpoint_url,
                    aws_access_key_id=keys.access_key,
                    aws_secret_access_key=keys.secret_key,
                    aws_session_token=keys.token,
                    config=_ASKING,
                )

        sts = opened(None)
        if is_aws(sts.meta.endpoint_url) and not is_aws(endpoint):
            # AWS does not know the keys of whoever stands in for ECR, and they are not meant for it.
            sts.close()
            sts = opened(endpoint)
        try:
            with translated("GetCallerIdentity", sts.meta.endpoint_url):
                account = sts.get_caller_identity().get("Account")
        finally:
            sts.close()
        return account if isinstance(account, str) and account else None
