"""regsync's configuration: credentials, defaults, and images or repositories to sync."""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.importing.draft import Draft, Piece, bare_host, foreseen, ranges, regexes, split_host
from asyncpush.migrate.plan.importing.foreign import Foreign
from asyncpush.migrate.plan.reading import Value
from asyncpush.migrate.plan.variables import escape

_ENV = re.compile(r"\{\{\s*env\s+[\"`]([A-Za-z_][A-Za-z0-9_]*)[\"`]\s*\}\}")

# What belongs to a service that runs again and again, or to regsync's own ways.
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
    """Whether *document* is one."""
    return isinstance(document.get("sync"), list)


def import_regsync(document: Value, draft: Draft) -> None:
    """Take over what regsync would copy; templates but ``env`` and ``file`` can't be."""
    said = Foreign(document, "", draft.tell)
    said.drop("version", "x-")
    for place, value in said.items("creds"):
        with foreseen(draft.tell, place):
            _import_login(Foreign(value, place, draft.tell), draft)
    defaults = said.mapping("defaults") or Foreign({}, "defaults", draft.tell)
    referrers = _referrers(defaults)
    for place, value in said.items("sync"):
        with foreseen(draft.say, place):
            _import_sync(Foreign(value, place, draft.say), referrers, draft)
    defaults.drop(*_SCHEDULE)
    defaults.finish()
    said.finish()


def _import_login(said: Foreign, draft: Draft) -> None:
    host = bare_host(_plain(said.text("registry") or "", said.place("registry")))
    user, password = said.text("user"), said.text("pass")
    if user or password:
        match = _ENV.fullmatch(password or "")
        name = _with_variables(user or "")
        draft.login(host, None if "{{" in name else name, password, match[1] if match else None)
    registry = draft.registry(host)
    if registry is None:
        return
    if helper := said.text("credHelper"):
        registry.members["credentials"] = {"helper": escape(helper.removeprefix("docker-credential-"))}
    match said.text("tls"):
        case "disabled":
            registry.members["plain_http"] = True
        case "insecure":
            draft.trust(host, said.place("tls"))
    if connections := said.number("reqConcurrent"):
        registry.members["connections"] = connections
    said.drop("blobChunk", "blobMax", "repoAuth", "credExpire", "credHost")
    said.finish()


def _import_sync(said: Foreign, referrers: bool | None, draft: Draft) -> None:
    source, goal = (_plain(said.text(name) or "", said.place(name)) for name in ("source", "target"))
    kind = said.text("type")
    if kind not in ("image", "repository") or not source or not goal:
        raise UsageError(f"its type is {kind!r}" if source and goal else "it has no source or no target")
    own = _referrers(said)
    members: dict[str, Piece | None] = {
        "platforms": [escape(each) for each in (*said.texts("platform"), *said.texts("platforms"))],
        "referrers": referrers if own is None else own,
    }
    host, path = split_host(goal)
    if said.value("tagSets"):
        raise UsageError("it has tagSets")
    if kind == "repository":
        members |= {"to": escape(path), "tags": _tags(said.mapping("tags"))}
    else:
        has_tag = ":" in source.partition("@")[0].rpartition("/")[2] or "@" in source
        members["to"] = escape(path if ":" in path else f"{path}:latest")
        source = source if has_tag or source.startswith("ocidir://") else f"{source}:latest"
    said.drop(*_SCHEDULE)
    said.finish()
    draft.image(re.sub("^ocidir://", "oci:", source), members, host=host)


def _tags(said: Foreign | None) -> Piece | None:
    if said is None:
        return None
    found: dict[str, Piece] = {
        "regex": regexes(said.texts("allow"), said.place("allow"), anchored=True),
        "semver": ranges(said.texts("semverRange"), said.place("semverRange")),
    }
    if deny := regexes(said.texts("deny"), said.place("deny"), anchored=True):
        found["exclude"] = {"regex": deny}
    said.refuse()
    return {name: value for name, value in found.items() if value}


def _referrers(said: Foreign) -> bool | None:
    flags = [said.flag("referrers"), said.flag("digestTags")]
    return any(flags) if flags != [None, None] else None


def _plain(text: str, place: str) -> str:
    if "{{" in text:
        raise UsageError(f"{place} is a template")
    return text


def _with_variables(text: str) -> str:
    """*text* with its ``env`` templates as variables."""
    return _ENV.sub(r"${\1}", escape(text))
