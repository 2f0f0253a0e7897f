"""Addresses that give a layer to whoever has them, for an hour, as the presigned ones of GetDownloadUrlForLayer do."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

import pybase64

from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store, now
from asyncpush.model import Digest

#: The path below which they lie.
PREFIX = "/_emulator/layers/"

#: Seconds that an address works.
_LIFE = 3600


class Downloads:
    """Makes and reads the addresses; those of an earlier emulator are worth nothing to another."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._secret = secrets.token_bytes(32)

    def path(self, repository: RepositoryState, digest: Digest) -> str:
        """The path of a layer's address."""
        registry = repository.registry
        named = [registry.service, registry.account, registry.region, repository.name, digest.hex, now() + _LIFE]
        text = pybase64.urlsafe_b64encode(json.dumps(named).encode()).decode()
        return f"{PREFIX}{text}.{self._proof(text)}"

    def open(self, token: str) -> Path | None:
        """The file of the layer that a path names behind its prefix; None if it is forged, too old, or gone."""
        text, _, proof = token.partition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(text).encode()):
            return None
        service, account, region, name, layer, expires = json.loads(pybase64.urlsafe_b64decode(text))
        repository = self._store.held(RegistryId(service, account, region)).get(name)
        digest = Digest(layer)
        if repository is None or digest not in repository.layers or expires < now():
            return None
        return repository.blob_path(digest)

    def _proof(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
