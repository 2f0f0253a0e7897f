"""GetAuthorizationToken: the password for ``/v2/``."""

from __future__ import annotations

from asyncpush.emulator.documents import Document
from asyncpush.emulator.registry import Target
from asyncpush.emulator.rules import Rules
from asyncpush.emulator.settings_requests import GetAuthorizationToken
from asyncpush.emulator.tokens import Tokens


class TokenApi:
    """ECR's operation on tokens.

    Args:
        tokens: what makes them.
        rules: the address that they are for.
    """

    def __init__(self, tokens: Tokens, rules: Rules) -> None:
        self._tokens = tokens
        self._rules = rules

    async def authorize(self, request: GetAuthorizationToken, target: Target) -> Document:
        """GetAuthorizationToken: an entry for each registry that is asked for; ECR Public's is one, without address."""
        own = target.registry.account
        if target.registry.is_public:
            return {"authorizationData": self._grant(own)}
        address = {"proxyEndpoint": self._rules.endpoint_url}
        return {"authorizationData": [{**self._grant(each), **address} for each in request.registry_ids or [own]]}

    def _grant(self, account: str) -> Document:
        token = self._tokens.grant(account)
        return {"authorizationToken": token.text, "expiresAt": token.expires}
