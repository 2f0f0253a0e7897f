"""dregsy's configuration: tasks of a source, a target and mappings between them."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.tags import check_regex
from asyncpush.migrate.plan.versions import Version, version_order
from asyncpush.migrate.plan.yaml_loader import Value, escape
from asyncpush.migrate.plan_import.builder import Piece, PlanBuilder, foreseen, is_ecr, split_host
from asyncpush.migrate.plan_import.config_reader import ConfigReader, Warn
from asyncpush.migrate.plan_import.patterns import dregsy_range, other_than, whole_match
from asyncpush.reference import is_tag


def is_dregsy(document: Mapping[str, Value]) -> bool:
    """Whether *document* is a configuration of dregsy."""
    return isinstance(document.get("tasks"), list)


def import_dregsy(document: Value, draft: PlanBuilder) -> None:
    """Import what dregsy would copy; mappings by pattern (``regex:``) can't be imported."""
    config = ConfigReader(document, "", draft.warn)
    config.drop("relay", "skopeo", "docker", "watch", "lister", "dockerhost", "api-version")
    draft.warn("dregsy copies one platform of an index where a mapping names none; this plan takes all")
    for place, value in config.items("tasks"):
        with foreseen(draft.warn_here, place):
            _import_task(ConfigReader(value, place, draft.warn_here), draft)
    config.finish()


def _import_task(task: ConfigReader, draft: PlanBuilder) -> None:
    task.drop("name", "interval", "verbose")
    source, target = task.mapping("source"), task.mapping("target")
    if source is None or target is None:
        raise UsageError("it has no source or no target")
    host, goal = (side.text("registry") or "" for side in (source, target))
    if not host or not goal:
        raise UsageError("its source or target has no registry")
    _import_login(host, source, draft)
    target.drop("auth", "auth-refresh", "skip-tls-verify")
    target.finish()
    for place, value in task.items("mappings"):
        with foreseen(draft.warn_here, place):
            _import_mapping(host, goal, ConfigReader(value, place, draft.warn_here), draft, place)
    task.finish()


def _import_login(host: str, source: ConfigReader, draft: PlanBuilder) -> None:
    auth = source.text("auth")
    source.drop("auth-refresh")
    if auth == "none":
        registry = draft.registry(host)
        if registry is not None:
            registry.members["credentials"] = {"anonymous": True}
    elif auth and not is_ecr(host):
        try:
            login = ConfigReader(json.loads(base64.b64decode(auth, validate=True)), source.place("auth"), draft.warn)
        except (binascii.Error, ValueError, RecursionError, UsageError):
            draft.warn(f"{source.place('auth')} is not what dregsy reads; not imported")
        else:
            draft.login(host, escape(login.text("username") or ""), login.text("password"))
    if source.flag("skip-tls-verify"):
        draft.trust(host, source.place("skip-tls-verify"))
    source.finish()


def _import_mapping(host: str, goal: str, config: ConfigReader, draft: PlanBuilder, place: str) -> None:
    source = (config.text("from") or "").strip("/")
    to = (config.text("to") or source).strip("/")
    for text in (source, to):
        if not text or text.startswith("regex:"):
            raise UsageError("it maps by regular expression" if text else "it has no from")
    platform = config.text("platform")
    platforms: list[Piece] | None = [escape(platform)] if platform and platform != "all" else None
    tags = _TagFilters(place, draft.warn_here)
    for text in config.texts("tags"):
        tags.add(text.strip())
    config.finish()
    if tags.ranges:
        draft.warn_of_versions()
    registry, path = split_host(f"{goal}/{to}")
    members: dict[str, Piece | None] = {"to": escape(path), "platforms": platforms}
    rules = tags.rules()
    if rules is not None:
        draft.image(f"{host}/{source}", {**members, "tags": rules}, host=registry)
    for tag, digest in tags.digests:
        one: dict[str, Piece | None] = {**members, "to": escape(f"{path}:{tag}" if tag else path)}
        draft.image(f"{host}/{source}@{digest}", one, host=registry)


@dataclass(slots=True)
class _TagFilters:
    """The tags of a mapping: those that any filter matches and all of ``keep`` keep, and those by name.

    Attributes:
        place: the place of the mapping.
        warn: takes notes on what can't be imported as it is.
        names: tags by name.
        digests: images by digest, each with its new tag.
        regexes: filters, as this plan has them.
        ranges: filters, as this plan has them.
        pruned: what ``keep`` removes.
        newest: how many versions are kept.
        is_lacking: whether an invalid name was left out.
    """

    place: str
    warn: Warn
    names: list[str] = field(default_factory=list)
    digests: list[tuple[str, str]] = field(default_factory=list)
    regexes: list[Piece] = field(default_factory=list)
    ranges: list[Piece] = field(default_factory=list)
    pruned: list[Piece] = field(default_factory=list)
    newest: int | None = None
    is_lacking: bool = False

    def add(self, text: str) -> None:
        """Add one text of the list; its beginning tells its kind."""
        if match := re.fullmatch(r"(?:(.*)@)?(sha256:[0-9a-f]{64})", text):
            self.digests.append((match[1] or "", match[2]))
        elif text.startswith("semver:"):
            self.ranges.append(dregsy_range(text.removeprefix("semver:"), "semver"))
        elif text.startswith("regex:"):
            self.regexes.append(self._whole(text.removeprefix("regex:"), is_wanted=True))
        elif match := re.match(r"keep:\s+latest\s+([0-9]+)$", text):
            self.newest = int(match[1]) or None
        elif text.startswith("keep:"):
            self.pruned.append(self._whole(text.removeprefix("keep:"), is_wanted=False))
        elif is_tag(text):
            self.names.append(text)
        else:
            self.is_lacking = True
            self.warn(f"{self.place}: {text[:140]!r} is not a tag; not imported")

    def _whole(self, text: str, *, is_wanted: bool) -> Piece:
        pattern = text.strip()
        is_inverted = pattern.startswith("!")
        try:
            whole = whole_match(pattern.removeprefix("!"), anchored=True)
            whole = whole if is_inverted != is_wanted else other_than(whole)
            check_regex(whole)
        except ValueError as error:
            raise UsageError(f"regex: {error}") from error
        return escape(whole)

    def rules(self) -> dict[str, Piece] | None:
        """The rules of the plan; empty for all tags, None for no tags."""
        names = self.names
        has_filters = bool(self.regexes or self.ranges)
        if not has_filters and (names or self.digests or self.is_lacking):
            if self.newest is not None:
                names = _newest(names, self.newest)
            return {"names": list(names)} if names else None
        found: dict[str, Piece] = {"names": list(names)}
        if self.regexes and self.ranges:
            found["any"] = [{"semver": self.ranges}, {"regex": self.regexes}]
        else:
            found |= {"regex": self.regexes, "semver": self.ranges}
        if self.pruned:
            found["exclude"] = {"regex": self.pruned}
        if self.newest is not None:
            found["newest"] = self.newest
            if any(map(Version.parse, names)) or not self.ranges or self.regexes:
                self.warn(
                    f"{self.place}: keep: latest {self.newest} is of versions to dregsy, those by name among them, and "
                    "keeps all other tags; newest is of what the patterns match here"
                )
        return {name: value for name, value in found.items() if value}


def _newest(names: list[str], number: int) -> list[str]:
    """The newest of *names* that are versions, and all others; without versions, the last names."""
    versions = [name for name in names if Version.parse(name)]
    if not versions:
        return sorted(names)[-number:]
    kept = sorted(versions, key=version_order)[-number:]
    return [name for name in names if name in kept or name not in versions]
