"""ocync's configuration: registries by name, groups of targets, defaults and mappings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.importing.draft import Draft, Piece, bare_host, foreseen, is_ecr, ranges, split_host
from asyncpush.migrate.plan.importing.foreign import Foreign
from asyncpush.migrate.plan.reading import Value
from asyncpush.migrate.plan.tags import check_glob
from asyncpush.migrate.plan.variables import escape


@dataclass(slots=True)
class _Names:
    """What the names in a document stand for: registries' addresses, and groups of registries."""

    addresses: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def targets(self, names: list[str]) -> list[str]:
        """The names of the registries that *names* stand for."""
        return [each for name in names for each in self.groups.get(name, [name])]

    def address(self, name: str) -> str:
        if name not in self.addresses:
            raise UsageError(f"there is no registry {name[:100]!r}")
        return self.addresses[name]


def is_ocync(document: Mapping[str, Value]) -> bool:
    """Whether *document* is one."""
    return isinstance(document.get("mappings"), list)


def import_ocync(document: Value, draft: Draft) -> None:
    """Take over what ocync would copy."""
    said = Foreign(document, "", draft.tell)
    said.drop("global")
    names = _Names()
    registries = said.mapping("registries")
    for name, value in registries.members() if registries else ():
        with foreseen(draft.tell, f"registries, {name}"):
            _import_registry(name, Foreign(value, f"registries[{name}]", draft.tell), names)
    groups = said.mapping("target_groups")
    for name in groups.names() if groups else ():
        with foreseen(draft.tell, f"target_groups, {name}"):
            names.groups[name] = groups.texts(name) if groups else []
    defaults = said.mapping("defaults") or Foreign({}, "defaults", draft.tell)
    for place, value in said.items("mappings"):
        with foreseen(draft.say, place):
            _import_mapping(Foreign(value, place, draft.say), defaults, names, draft)
    defaults.drop("source", "targets", "tags", "platforms", "artifacts")
    defaults.finish()
    said.finish()


def _import_registry(name: str, said: Foreign, names: _Names) -> None:
    url = said.text("url")
    if not url:
        raise UsageError("it has no url")
    names.addresses[name] = url.partition("://")[2] or url
    if profile := said.text("aws_profile"):
        names.profiles[name] = profile
    said.drop("auth_type", "head_first", "max_concurrent")
    said.finish()


def _import_mapping(said: Foreign, defaults: Foreign, names: _Names, draft: Draft) -> None:
    path = (said.text("from") or "").strip("/")
    to = (said.text("to") or path).strip("/")
    source_name = said.text("source") or defaults.text("source")
    if not path or not source_name:
        raise UsageError("it has no from, or no source")
    source = names.address(source_name)
    _import_source(source, source_name, names, draft)
    tags = said.mapping("tags") or defaults.mapping("tags")
    members: dict[str, Piece | None] = {
        "tags": _tags(tags, draft) if tags else None,
        "platforms": [escape(each) for each in said.texts("platforms") or defaults.texts("platforms")],
        "referrers": _referrers(said.mapping("artifacts") or defaults.mapping("artifacts")),
    }
    targets = names.targets(said.texts("targets") or defaults.texts("targets"))
    if not targets:
        raise UsageError("it has no targets")
    said.finish()
    for name in targets:
        host, goal = split_host(f"{names.address(name).rstrip('/')}/{to}")
        draft.image(
            f"{source.rstrip('/')}/{path}", {**members, "to": escape(goal)}, host=host, profile=names.profiles.get(name)
        )


def _import_source(address: str, name: str, names: _Names, draft: Draft) -> None:
    host = bare_host(address)
    if is_ecr(host) and name in names.profiles:
        registry = draft.registry(host)
        if registry is not None:
            registry.members["credentials"] = {"ecr": {"profile": escape(names.profiles[name])}}


def _tags(said: Foreign, draft: Draft) -> dict[str, Piece]:
    found: dict[str, Piece] = {
        "glob": _globs(said.texts("glob"), said.place("glob")),
        "semver": ranges(said.texts("semver"), said.place("semver")),
    }
    if exclude := _globs(said.texts("exclude"), said.place("exclude")):
        found["exclude"] = {"glob": exclude}
    if newest := said.number("latest"):
        found["newest"] = newest
    if (order := said.text("sort")) and order != "semver":
        draft.tell(f"{said.place('sort')} is {order[:60]!r}; newest goes by version here")
    for key in ("include", "min_tags", "immutable_tags"):
        if said.value(key) is not None:
            draft.tell(f"{said.place(key)} can't be carried over")
    said.refuse()
    return {name: value for name, value in found.items() if value}


def _globs(texts: list[str], place: str) -> list[Piece]:
    for text in texts:
        if "{" in text:
            raise UsageError(f"{place}: {text[:100]!r} has braces")
        try:
            check_glob(text)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error
    return [escape(text) for text in texts]


def _referrers(said: Foreign | None) -> bool | None:
    if said is None:
        return None
    enabled = said.flag("enabled")
    said.finish()
    return enabled
