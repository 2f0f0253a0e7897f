"""What an account has beside its repositories: settings, and templates for repositories that a push creates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio

from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.catalog import Catalog
from asyncpush.emulator.store.records import TemplateRecord

#: A template's prefix for all repositories that no other template is for.
ROOT: Final = "ROOT"

CREATE_ON_PUSH: Final = "CREATE_ON_PUSH"


class AccountSettings:
    """Settings and templates of all registries: read in memory, changed in the catalog first.

    Changes block; they are made one at a time, under ``lock``.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.lock = anyio.Lock()
        self._catalog = catalog
        self._settings = {(registry, name): value for registry, name, value in catalog.settings()}
        self._templates: dict[RegistryId, dict[str, TemplateRecord]] = {}
        for registry, record in catalog.templates():
            self._templates.setdefault(registry, {})[record.prefix] = record

    def setting(self, registry: RegistryId, name: str) -> str | None:
        """An account setting, None if it was never put."""
        return self._settings.get((registry, name))

    def set(self, registry: RegistryId, name: str, value: str) -> None:
        """Put an account setting."""
        with self._catalog.writing() as writes:
            writes.set_setting(registry, name, value)
        self._settings[registry, name] = value

    def templates(self, registry: RegistryId) -> Mapping[str, TemplateRecord]:
        """A registry's templates by prefix."""
        return self._templates.get(registry, {})

    def put_template(self, registry: RegistryId, record: TemplateRecord) -> None:
        """Create or replace a template."""
        with self._catalog.writing() as writes:
            writes.set_template(registry, record)
        self._templates.setdefault(registry, {})[record.prefix] = record

    def remove_template(self, registry: RegistryId, prefix: str) -> None:
        """Remove a template."""
        with self._catalog.writing() as writes:
            writes.remove_template(registry, prefix)
        del self._templates[registry][prefix]

    def registry_for(self, name: str) -> RegistryId | None:
        """Where a push that names no registry creates a repository: the default one, else the first with a template."""
        creating = [registry for registry in self._templates if self.template_for(registry, name)]
        return RegistryId() if RegistryId() in creating else min(creating, default=None)

    def template_for(self, registry: RegistryId, name: str) -> TemplateRecord | None:
        """The template by which a push creates a repository: the longest namespace that *name* is in, else ROOT's."""
        pushing = [each for each in self.templates(registry).values() if CREATE_ON_PUSH in each.applied_for]
        prefixed = [each for each in pushing if f"{name}/".startswith(f"{each.prefix.rstrip('/')}/")]
        rooted = [each for each in pushing if each.prefix == ROOT]
        return max(prefixed, key=lambda each: len(each.prefix.rstrip("/")), default=rooted[0] if rooted else None)
