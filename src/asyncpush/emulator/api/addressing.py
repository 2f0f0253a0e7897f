"""Which registry a request is about: the one that it names, else the caller's own."""

from __future__ import annotations

import re
from collections.abc import Collection

from asyncpush.emulator.auth.principal import Principal
from asyncpush.emulator.errors import AwsError, registry_not_found
from asyncpush.emulator.quirks import Quirks
from asyncpush.emulator.registry import DEFAULT_ACCOUNT, PRIVATE, PUBLIC, RegistryId, RequestTarget, ServiceName
from asyncpush.emulator.store.state import Store

_ACCOUNT = re.compile(r"[0-9]{12}")
_PUBLIC_REGIONS = ("us-east-1", "us-west-2")


class Addressing:
    """Finds the registry of each request.

    Args:
        store: whose repositories make an account known.
        quirks: how public aliases and regions are read.
        accounts: accounts that are known without a repository.
    """

    def __init__(self, store: Store, quirks: Quirks, accounts: Collection[str]) -> None:
        self._store = store
        self._quirks = quirks
        self._accounts = frozenset({DEFAULT_ACCOUNT, *accounts})

    def of(self, service: ServiceName, caller: Principal, registry_id: str | None) -> RequestTarget:
        """The registry that a request is about.

        Raises:
            AwsError: RegistryNotFoundException, UnsupportedCommandException; for ECR Public only.
        """
        named = registry_id or caller.account
        if service == PRIVATE:
            return RequestTarget(RegistryId(PRIVATE, named, caller.region), named)
        if self._quirks.public_regions == "documented" and caller.region not in _PUBLIC_REGIONS:
            raise AwsError(
                "UnsupportedCommandException", f"ECR Public is in {' and '.join(_PUBLIC_REGIONS)}, not {caller.region}"
            )
        return RequestTarget(RegistryId(PUBLIC, self._account(named, caller), ""), named)

    def _account(self, named: str, caller: Principal) -> str:
        if _ACCOUNT.fullmatch(named):
            if named == caller.account or named in self._accounts or self._has_repositories(named):
                return named
        elif self._quirks.unknown_alias == "caller":
            return caller.account
        raise registry_not_found(named)

    def _has_repositories(self, account: str) -> bool:
        return any(held for registry, held in self._store.repositories.items() if registry.account == account)
