"""regsync's configuration: credentials, defaults, and images or repositories to sync."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.yaml_loader import Value, escape
from asyncpush.migrate.plan_import.builder import Piece, PlanBuilder, bare_host, foreseen, split_host
from asyncpush.migrate.plan_import.config_reader import ConfigReader
from asyncpush.migrate.plan_import.patterns import regexes, regsync_range

_ENV = re.compile(r"\{\{\s*env\s+[\"`]([A-Za-z_][A-Za-z0-9_]*)[\"`]\s*\}\}")

# Members for a service that runs repeatedly, or for regsync itself.
_SCHEDULE = (
    "interval",
    "schedule",
    "parallel",
    "cacheCount",
    "cacheTime",
    "skipDockerConfig",
    "userAgent",
    "fastCheck",
)


def is_regsync(document: Mapping[str, Value]) -> bool:
    """Whether *document* is a configuration of regsync."""
    return isinstance(document.get("sync"), list)


def import_regsync(document: Value, draft: PlanBuilder) -> None:
    """Import what regsync would copy; templates other than ``env`` and ``file`` can't be imported."""
    config = ConfigReader(document, "", draft.warn)
    config.drop("version", *(name for name in config.names() if name.startswith("x-")))
    for place, value in config.items("creds"):
        with foreseen(draft.warn, place):
            _import_login(ConfigReader(value, place, draft.warn), draft)
    defaults = config.mapping("defaults") or ConfigReader({}, "defaults", draft.warn)
    referrers = _Referrers.of(defaults)
    for place, value in config.items("sync"):
        with foreseen(draft.warn_here, place):
            _import_sync(ConfigReader(value, place, draft.warn_here), referrers, draft)
    defaults.drop(*_SCHEDULE)
    defaults.finish()
    config.finish()


def _import_login(config: ConfigReader, draft: PlanBuilder) -> None:
    host = bare_host(_plain(config.text("registry") or "", config.place("registry")))
    user, password = config.text("user"), config.text("pass")
    if user or password:
        match = _ENV.fullmatch(password or "")
        name = _with_variables(user or "")
        draft.login(host, None if "{{" in name else name, password, match[1] if match else None)
    registry = draft.registry(host)
    if registry is None:
        return
    if helper := config.text("credHelper"):
        registry.members["credentials"] = {"helper": escape(helper.removeprefix("docker-credential-"))}
    match config.text("tls"):
        case "disabled":
            registry.members["plain_http"] = True
        case "insecure":
            draft.trust(host, config.place("tls"))
    if connections := config.number("reqConcurrent"):
        registry.members["connections"] = connections
    config.drop("blobChunk", "blobMax", "repoAuth", "credExpire", "credHost")
    config.finish()


def _import_sync(config: ConfigReader, defaults: _Referrers, draft: PlanBuilder) -> None:
    source, goal = (_plain(config.text(name) or "", config.place(name)) for name in ("source", "target"))
    kind = config.text("type")
    if kind not in ("image", "repository") or not source or not goal:
        raise UsageError(f"its type is {kind!r}" if source and goal else "it has no source or no target")
    platforms = [escape(platform) for platform in (*config.texts("platform"), *config.texts("platforms"))]
    if config.texts("platforms"):
        draft.warn("regsync keeps an index of which it takes some platforms; this plan makes a new one of them")
    referrers_flag = _Referrers.of(config).over(defaults)
    if referrers_flag is None:
        draft.warn("regsync copies signatures and referrers only on request; this plan copies them")
    members: dict[str, Piece | None] = {"platforms": [*platforms], "referrers": referrers_flag}
    host, path = split_host(goal)
    # Without a registry, the target is Docker Hub.
    host = host or "docker.io"
    if kind == "repository":
        members |= {"to": escape(path), "tags": _tags(config, draft)}
    else:
        has_tag = ":" in source.partition("@")[0].rpartition("/")[2] or "@" in source
        members["to"] = escape(path if ":" in path else f"{path}:latest")
        source = source if has_tag or source.startswith("ocidir://") else f"{source}:latest"
    config.drop(*_SCHEDULE)
    config.finish()
    draft.image(re.sub("^ocidir://", "oci:", source), members, host=host)


def _tags(config: ConfigReader, draft: PlanBuilder) -> Piece | None:
    """The tags that any of the sets selects; without any set, all tags."""
    found: list[Piece] = []
    for place, value in config.items("tagSets"):
        found.append(_set(ConfigReader(value, place, draft.warn_here), draft))
    # An empty set in the list selects all tags; here it selects none.
    if (tags := config.mapping("tags")) and (own := _set(tags, draft)):
        found.append(own)
    if not found or {} in found:
        return None
    return found[0] if len(found) == 1 else {"any": found}


def _set(config: ConfigReader, draft: PlanBuilder) -> dict[str, Piece]:
    semver_place = config.place("semverRange")
    found: dict[str, Piece] = {
        "regex": regexes(config.texts("allow"), config.place("allow"), anchored=True),
        "semver": [regsync_range(text, semver_place) for text in config.texts("semverRange") if text],
    }
    if deny := regexes(config.texts("deny"), config.place("deny"), anchored=True):
        found["exclude"] = {"regex": deny}
    config.refuse()
    if found["semver"]:
        draft.warn_of_versions()
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class _Referrers:
    """The two options for referrers: those of OCI, and digest tags such as cosign's."""

    referrers: bool | None
    digest_tags: bool | None

    @classmethod
    def of(cls, config: ConfigReader) -> _Referrers:
        return cls(config.flag("referrers"), config.flag("digestTags"))

    def over(self, defaults: _Referrers) -> bool | None:
        pairs = ((self.referrers, defaults.referrers), (self.digest_tags, defaults.digest_tags))
        flags = [own if own is not None else default for own, default in pairs]
        return any(flags) if flags != [None, None] else None


def _plain(text: str, place: str) -> str:
    if "{{" in text:
        raise UsageError(f"{place} is a template")
    return text


def _with_variables(text: str) -> str:
    """*text* with its ``env`` templates as variables."""
    return _ENV.sub(r"${\1}", escape(text))
