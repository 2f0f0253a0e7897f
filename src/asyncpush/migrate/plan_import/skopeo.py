"""``skopeo sync --src yaml``: registries by host, and images in them with all tags, by tag, pattern or version."""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.yaml_loader import Value, escape
from asyncpush.migrate.plan_import.builder import Piece, PlanBuilder, foreseen
from asyncpush.migrate.plan_import.config_reader import ConfigReader
from asyncpush.migrate.plan_import.patterns import ranges, regexes
from asyncpush.reference import is_tag

_KINDS = ("images", "images-by-tag-regex", "images-by-semver")


def is_skopeo(document: Mapping[str, Value]) -> bool:
    """Whether *document* is a configuration of skopeo sync: a mapping of hosts to mappings with images."""
    return bool(document) and all(isinstance(images, dict) for images in document.values()) and any(
        kind in images for images in document.values() if isinstance(images, dict) for kind in _KINDS
    )  # fmt: skip


def import_skopeo(document: Value, draft: PlanBuilder) -> None:
    """Import what skopeo would copy.

    Its repositories have the last part of the source's path as their name, or with ``--scoped`` all of it and the host.
    """
    draft.warn("skopeo copies one platform of an index, or all with --all; this plan takes all (platforms: chooses)")
    for host, value in ConfigReader(document, "", draft.warn).members():
        with foreseen(draft.warn_here, host):
            _import_registry(host, ConfigReader(value, host, draft.warn_here), draft)


def _import_registry(host: str, config: ConfigReader, draft: PlanBuilder) -> None:
    credentials = config.mapping("credentials")
    if credentials:
        draft.login(host, escape(credentials.text("username") or ""), credentials.text("password"))
        credentials.finish()
    if config.flag("tls-verify") is False:
        draft.trust(host, config.place("tls-verify"))
    if config.text("cert-dir"):
        draft.warn(f"{config.place('cert-dir')} can't be imported: name its files in registries, tls: ca, cert, key")
    by_name, by_regex, by_version = (config.mapping(kind) for kind in _KINDS)
    for name, tags in by_name.members() if by_name else ():
        _import_names(host, name, tags, draft)
    for name, pattern in by_regex.members() if by_regex else ():
        _import_pattern(host, name, "regex", pattern, draft)
    for name, version in by_version.members() if by_version else ():
        _import_pattern(host, name, "semver", version, draft)
    config.finish()


def _import_names(host: str, name: str, tags: Value, draft: PlanBuilder) -> None:
    place = f"{host}, {name}"
    with foreseen(draft.warn_here, place):
        if not isinstance(tags, (list, type(None))):
            raise UsageError("its tags are not a list of strings")
        names: list[Piece] = []
        digests: list[str] = []
        for tag in tags or ():
            # Skip an invalid tag, as skopeo does; if all tags are invalid, none is copied.
            with foreseen(draft.warn_here, place):
                (digests if _is_digest(tag, f"{host}/{name}") else names).append(str(tag))
        if names or not tags:
            draft.image(f"{host}/{name}", {"to": _goal(host, name, draft), "tags": names})
        for digest in digests:
            draft.image(f"{host}/{name}@{digest}", {"to": _goal(host, name, draft)})


def _is_digest(text: Value, repository: str) -> bool:
    """Whether *text* is a digest, and not a tag."""
    if not isinstance(text, str):
        raise UsageError("one of its tags is not text")
    if re.fullmatch("sha256:[0-9a-f]{64}", text):
        return True
    if is_tag(text):
        return False
    tag, at, digest = text.partition("@")
    if at and is_tag(tag) and digest.startswith("sha256:"):
        raise UsageError(
            f"{text[:300]!r} is a tag with a digest, which skopeo skips (an entry from: {repository}:{text} takes it)"
        )
    raise UsageError(f"{text[:140]!r} is neither a tag nor a digest of sha256, and skopeo skips it")


def _import_pattern(host: str, name: str, kind: str, pattern: Value, draft: PlanBuilder) -> None:
    place = f"{host}, {name}"
    with foreseen(draft.warn_here, place):
        if not isinstance(pattern, str):
            raise UsageError(f"its {kind} is not text")
        found = regexes([pattern], kind, anchored=False) if kind == "regex" else ranges([pattern], kind)
        if kind == "semver":
            draft.warn_of_versions()
        draft.image(f"{host}/{name}", {"to": _goal(host, name, draft), "tags": {kind: found[0]}})


def _goal(host: str, name: str, draft: PlanBuilder) -> str:
    return escape(f"{host}/{name}" if draft.scoped else name.rpartition("/")[2])
