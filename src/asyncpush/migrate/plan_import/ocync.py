"""ocync's configuration: registries by name, groups of targets, defaults and mappings."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.tags import Alternative, Patterns, check_glob
from asyncpush.migrate.plan.yaml_loader import Value, escape
from asyncpush.migrate.plan_import.builder import Piece, PlanBuilder, bare_host, foreseen, is_ecr, split_host
from asyncpush.migrate.plan_import.config_reader import ConfigReader
from asyncpush.migrate.plan_import.patterns import ocync_range

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}")

#: Tags that ocync excludes unless ``include`` selects them.
_PRERELEASES = "(?i:.*-(?:rc|alpha|beta|pre|snapshot|nightly).*)"


@dataclass(slots=True)
class _Names:
    """What the names in a configuration stand for: addresses and logins of registries, and groups of them."""

    addresses: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    logins: dict[str, tuple[str, str]] = field(default_factory=dict)
    anonymous: set[str] = field(default_factory=set)

    def targets(self, names: list[str]) -> list[str]:
        """The names of the registries that *names* stand for."""
        return [target for name in names for target in self.groups.get(name, [name])]

    def address(self, name: str) -> str:
        if name not in self.addresses:
            raise UsageError(f"there is no registry {name[:100]!r}")
        return self.addresses[name]


def is_ocync(document: Mapping[str, Value]) -> bool:
    """Whether *document* is a configuration of ocync."""
    return isinstance(document.get("mappings"), list)


def import_ocync(document: Value, draft: PlanBuilder) -> None:
    """Import what ocync would copy."""
    config = ConfigReader(document, "", draft.warn)
    config.drop("global")
    names = _Names()
    registries = config.mapping("registries")
    for name, value in registries.members() if registries else ():
        with foreseen(draft.warn, f"registries, {name}"):
            _import_registry(name, ConfigReader(value, f"registries[{name}]", draft.warn), names)
    groups = config.mapping("target_groups")
    for name in groups.names() if groups else ():
        with foreseen(draft.warn, f"target_groups, {name}"):
            names.groups[name] = groups.texts(name) if groups else []
    defaults = config.mapping("defaults") or ConfigReader({}, "defaults", draft.warn)
    default_tags = defaults.mapping("tags") or ConfigReader({}, "defaults.tags", draft.warn)
    for place, value in config.items("mappings"):
        with foreseen(draft.warn_here, place):
            _import_mapping(ConfigReader(value, place, draft.warn_here), defaults, default_tags, names, draft)
    defaults.drop("source", "targets", "tags", "platforms", "artifacts")
    defaults.finish()
    config.finish()


def _import_registry(name: str, config: ConfigReader, names: _Names) -> None:
    url = config.text("url")
    if not url:
        raise UsageError("it has no url")
    names.addresses[name] = url.partition("://")[2] or url
    if profile := config.text("aws_profile"):
        names.profiles[name] = profile
    if login := config.mapping("credentials"):
        names.logins[name] = (login.text("username") or "", login.text("password") or "")
    if config.text("auth_type") == "anonymous":
        names.anonymous.add(name)
    config.drop("head_first", "max_concurrent")
    config.finish()


def _import_mapping(
    config: ConfigReader, defaults: ConfigReader, default_tags: ConfigReader, names: _Names, draft: PlanBuilder
) -> None:
    path = (config.text("from") or "").strip("/")
    to = (config.text("to") or path).strip("/")
    source_name = config.text("source") or defaults.text("source")
    if not path or not source_name:
        raise UsageError("it has no from, or no source")
    source = names.address(source_name)
    _import_source(source, source_name, names, draft)
    own_tags = config.mapping("tags") or ConfigReader({}, config.place("tags"), draft.warn_here)
    tags = _TagRules(own_tags, default_tags)
    members: dict[str, Piece | None] = {
        "min_tags": tags.min_tags,
        "tags": tags.rules(draft),
        "platforms": [
            _with_variables(platform) for platform in config.texts("platforms") or defaults.texts("platforms")
        ],
        "referrers": _referrers(config.mapping("artifacts") or defaults.mapping("artifacts")),
    }
    targets = names.targets(config.texts("targets") or defaults.texts("targets"))
    if not targets:
        raise UsageError("it has no targets")
    config.finish()
    for name in targets:
        host, goal = split_host(f"{names.address(name).rstrip('/')}/{to}")
        draft.image(
            _with_variables(f"{source.rstrip('/')}/{path}"),
            {**members, "to": _with_variables(goal)},
            host=_with_variables(host),
            profile=names.profiles.get(name),
            is_escaped=True,
        )


def _import_source(address: str, name: str, names: _Names, draft: PlanBuilder) -> None:
    host = bare_host(address)
    if "$" in host:
        if name in names.logins or name in names.profiles or name in names.anonymous:
            draft.warn(f"registries[{name}] has a variable for its host, so its login is not imported")
        return
    if name in names.logins:
        user, password = names.logins[name]
        variable = _VARIABLE.fullmatch(password)
        is_variable = variable is not None and variable["default"] is None
        draft.login(host, _with_variables(user), password, variable["name"] if variable and is_variable else None)
    registry = draft.registry(host)
    if registry is None:
        return
    if is_ecr(host) and name in names.profiles:
        registry.members["credentials"] = {"ecr": {"profile": _with_variables(names.profiles[name])}}
    elif name in names.anonymous:
        registry.members["credentials"] = {"anonymous": True}


@dataclass(frozen=True, slots=True)
class _TagRules:
    """The tags of a mapping; the defaults apply to what it lacks, but ``exclude`` of both applies."""

    own: ConfigReader
    defaults: ConfigReader

    def rules(self, draft: PlanBuilder) -> dict[str, Piece]:
        """The rules of the plan that select the same tags."""
        hard, soft = _globs(self.own, "exclude"), _globs(self.defaults, "exclude")
        glob = _globs(self._of("glob"), "glob")
        names, include = self._include(hard)
        found: dict[str, Piece] = {"names": names, "semver": self._semver(draft), "newest": self._newest(draft) or ""}
        if include:
            # Only the excludes of the defaults and the built-in one do not apply to it.
            excluded: dict[str, Piece] = {"glob": soft, "regex": _PRERELEASES} if soft else {"regex": _PRERELEASES}
            found["any"] = [{"glob": glob or "*", "exclude": excluded}, {"glob": include}]
            found["exclude"] = {"glob": hard} if hard else ""
        else:
            found["glob"] = glob or ("*" if names and not found["semver"] else "")
            excludes = [*hard, *soft]
            found["exclude"] = {"glob": excludes, "regex": _PRERELEASES} if excludes else {"regex": _PRERELEASES}
        if names:
            draft.warn("include: a tag by name that is not there is passed over by ocync, and fails here")
        for config in (self.own, self.defaults):
            if config.value("immutable_tags") is not None:
                draft.warn(f"{config.place('immutable_tags')} can't be imported")
            config.drop("glob", "include", "semver", "exclude", "sort", "latest", "min_tags")
            config.refuse()
        return {name: value for name, value in found.items() if value}

    @property
    def min_tags(self) -> int | None:
        """How many tags must match."""
        return self._of("min_tags").number("min_tags")

    def _of(self, key: str) -> ConfigReader:
        return self.own if key in self.own else self.defaults

    def _include(self, hard: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """The names of ``include`` that the mapping's own excludes do not match, and its patterns."""
        config = self._of("include")
        patterns = Patterns(glob=tuple(map(str, hard)))
        names = [text for text in config.texts("include") if not re.search(r"[*?[]", text)]
        left = [name for name in names if not hard or Alternative(patterns).refuses(name)]
        return [*map(_with_variables, left)], _globs(config, "include", but=names)

    def _semver(self, draft: PlanBuilder) -> list[Piece]:
        config = self._of("semver")
        text = config.text("semver")
        if text is None:
            return []
        draft.warn_of_versions()
        return [ocync_range(text, config.place("semver"))]

    def _newest(self, draft: PlanBuilder) -> int | None:
        newest, order = self._of("latest").number("latest"), self._of("sort").text("sort")
        if newest and order != "semver":
            config = self._of("sort")
            draft.warn(f"{config.place('sort')} is {(order or 'missing')[:60]!r}; newest goes by version here")
        return newest


def _globs(config: ConfigReader, key: str, *, but: Collection[str] = ()) -> list[Piece]:
    place = config.place(key)
    found: list[Piece] = []
    for text in config.texts(key):
        if text in but:
            continue
        if re.search(r"[{\\]", _VARIABLE.sub("", text)):
            raise UsageError(f"{place}: {text[:100]!r} has braces or a backslash")
        # A negated set is spelled differently here.
        spelled = text.replace("[^", "[!")
        try:
            check_glob(spelled)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error
        found.append(_with_variables(spelled))
    return found


def _with_variables(text: str) -> str:
    """*text* with its variables in a plan's notation; only those in braces are variables."""
    found: list[str] = []
    at = 0
    for match in _VARIABLE.finditer(text):
        # Without a default, an unset variable fails a plan, as :? does.
        default = f":-{match['default']}" if match["default"] is not None else ""
        found += [escape(text[at : match.start()]), f"${{{match['name']}{default}}}"]
        at = match.end()
    return "".join([*found, escape(text[at:])])


def _referrers(config: ConfigReader | None) -> bool | None:
    if config is None:
        return None
    enabled = config.flag("enabled")
    config.finish()
    return enabled
