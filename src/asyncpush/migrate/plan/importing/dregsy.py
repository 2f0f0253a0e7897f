"""dregsy's configuration: tasks of a source, a target and mappings between them."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.importing.draft import Draft, Piece, foreseen, is_ecr, ranges, regexes, split_host
from asyncpush.migrate.plan.importing.foreign import Foreign
from asyncpush.migrate.plan.reading import Value
from asyncpush.migrate.plan.variables import escape


def is_dregsy(document: Mapping[str, Value]) -> bool:
    """Whether *document* is one."""
    return isinstance(document.get("tasks"), list)


def import_dregsy(document: Value, draft: Draft) -> None:
    """Take over what dregsy would copy; mappings of patterns (``regex:``) can't be."""
    said = Foreign(document, "", draft.tell)
    said.drop("relay", "skopeo", "docker", "watch", "lister", "dockerhost", "api-version")
    draft.tell("dregsy copies one platform of an index where a mapping names none; this plan takes all")
    for place, value in said.items("tasks"):
        with foreseen(draft.say, place):
            _import_task(Foreign(value, place, draft.say), draft)
    said.finish()


def _import_task(task: Foreign, draft: Draft) -> None:
    task.drop("name", "interval", "verbose")
    source, target = task.mapping("source"), task.mapping("target")
    if source is None or target is None:
        raise UsageError("it has no source or no target")
    host, goal = (each.text("registry") or "" for each in (source, target))
    if not host or not goal:
        raise UsageError("its source or target has no registry")
    _import_login(host, source, draft)
    target.drop("auth", "auth-refresh", "skip-tls-verify")
    target.finish()
    for place, value in task.items("mappings"):
        with foreseen(draft.say, place):
            _import_mapping(host, goal, Foreign(value, place, draft.say), draft, place)
    task.finish()


def _import_login(host: str, source: Foreign, draft: Draft) -> None:
    auth = source.text("auth")
    source.drop("auth-refresh")
    if auth and not is_ecr(host):
        try:
            login = Foreign(json.loads(base64.b64decode(auth, validate=True)), source.place("auth"), draft.tell)
        except (binascii.Error, ValueError, RecursionError, UsageError):
            draft.tell(f"{source.place('auth')} is not what dregsy reads; not carried over")
        else:
            draft.login(host, escape(login.text("username") or ""), login.text("password"))
    if source.flag("skip-tls-verify"):
        draft.trust(host, source.place("skip-tls-verify"))
    source.finish()


def _import_mapping(host: str, goal: str, said: Foreign, draft: Draft, place: str) -> None:
    source = (said.text("from") or "").strip("/")
    to = (said.text("to") or source).strip("/")
    for text in (source, to):
        if not text or text.startswith("regex:"):
            raise UsageError("it maps by regular expression" if text else "it has no from")
    platform = said.text("platform")
    platforms: list[Piece] | None = [escape(platform)] if platform and platform != "all" else None
    tags, digests = _tags(said.texts("tags"), place, draft)
    said.finish()
    registry, path = split_host(f"{goal}/{to}")
    members: dict[str, Piece | None] = {"to": escape(path), "platforms": platforms}
    if tags or not digests:
        draft.image(f"{host}/{source}", {**members, "tags": tags}, host=registry)
    for tag, digest in digests:
        one: dict[str, Piece | None] = {**members, "to": escape(f"{path}:{tag}" if tag else path)}
        draft.image(f"{host}/{source}@{digest}", one, host=registry)


def _tags(texts: list[str], place: str, draft: Draft) -> tuple[dict[str, Piece], list[tuple[str, str]]]:
    """The rules, and images by digest with the tag that each gets."""
    rules: dict[str, list[Piece]] = {"names": [], "regex": [], "semver": [], "denied": []}
    digests: list[tuple[str, str]] = []
    newest: int | None = None
    for text in texts:
        kind, colon, rest = text.partition(":")
        if "@sha256:" in text:
            tag, _, digest = text.partition("@")
            digests.append((tag, digest))
        elif not colon:
            rules["names"].append(escape(text))
        elif kind == "keep":
            newest = _kept(rest.strip())
        else:
            into, found = _pattern(kind, rest.strip())
            rules[into] += found
    denied = rules.pop("denied")
    if rules["regex"] and rules["semver"]:
        draft.say(f"{place}: a tag must match the regex and the semver here")
    found_rules: dict[str, Piece] = {kind: each for kind, each in rules.items() if each}
    if (denied or newest) and list(found_rules) == ["names"]:
        found_rules["glob"] = "*"
    if denied:
        found_rules["exclude"] = {"regex": denied}
    if newest:
        found_rules["newest"] = newest
    return found_rules, digests


def _pattern(kind: str, text: str) -> tuple[str, list[Piece]]:
    """Which rule a filter belongs to, and its patterns."""
    if kind == "semver":
        return kind, ranges([text], kind)
    if kind == "regex":
        into = "denied" if text.startswith("!") else "regex"
        return into, regexes([text.removeprefix("!").strip()], kind, anchored=False)
    raise UsageError(f"there are no tags {kind[:60]!r}")


def _kept(text: str) -> int:
    match = re.fullmatch(r"latest\s+([1-9][0-9]{0,5})", text)
    if match is None:
        raise UsageError(f"keep: {text[:100]!r} can't be carried over")
    return int(match[1])
