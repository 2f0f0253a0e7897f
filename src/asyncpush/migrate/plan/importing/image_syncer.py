"""image-syncer's files: images by source, with one or several destinations, and credentials by host."""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.importing.draft import Draft, Piece, bare_host, foreseen, regexes, split_host, words_in
from asyncpush.migrate.plan.importing.foreign import Foreign
from asyncpush.migrate.plan.reading import Value
from asyncpush.migrate.plan.variables import escape

_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


def is_image_syncer(document: Mapping[str, Value]) -> bool:
    """Whether *document* is one: images by source, or both files in one."""
    images = document.get("images") if isinstance(document.get("images"), dict) else document
    return isinstance(images, dict) and bool(images) and all(
        isinstance(each, (str, list)) and re.search(r"[./:]", name) for name, each in images.items()
    )  # fmt: skip


def import_image_syncer(document: Value, draft: Draft, auth: Value = None) -> None:
    """Take over what image-syncer would copy; *auth* is its other file, if it is there."""
    said = Foreign(document, "", draft.tell)
    images = said.mapping("images") if "images" in said else said
    for each in (said.value("auth") if "images" in said else None, auth):
        if each is not None:
            _import_logins(Foreign(each, "auth", draft.tell), draft)
    for source, destinations in images.members() if images else ():
        with foreseen(draft.say, source):
            texts = [destinations] if isinstance(destinations, str) else destinations
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UsageError("its destinations are no text")
            if not texts:
                raise UsageError("it has no destination")
            for text in texts:
                _import_image(source, str(text), draft)
    if images is not said:
        said.finish()


def _import_logins(said: Foreign, draft: Draft) -> None:
    # What is for a whole host comes first: a plan has one login for each.
    seen: set[str] = set()
    for name, value in sorted(said.members()):
        host, slash, _ = name.partition("/")
        with foreseen(draft.tell, f"auth, {name}"):
            login = Foreign(value, f"auth[{name}]", draft.tell)
            user, password, insecure = login.text("username"), login.text("password"), login.flag("insecure")
            if slash and host in seen:
                draft.tell(f"auth, {name}: a plan has one login for {host}; not carried over")
                continue
            seen.add(host)
            variables = [_VARIABLE.fullmatch(text or "") for text in (user, password)]
            name_there = f"${{{variables[0][1]}}}" if variables[0] else escape(user or "")
            draft.login(host, name_there, password, variables[1][1] if variables[1] else None)
            if insecure:
                draft.trust(host, login.place("insecure"))
            login.finish()


def _import_image(source: str, destination: str, draft: Draft) -> None:
    name, tags = _split(source)
    host, goal = split_host(destination)
    path, goal_tags = _split(goal)
    if tags.startswith("@"):
        tag = f":{goal_tags}" if goal_tags else ""
        draft.image(f"{name}{tags}", {"to": escape(f"{path}{tag}")}, host=host)
    elif match := re.fullmatch(r"/(.*)/", tags):
        found = regexes([match[1]], "its regex", anchored=False)
        draft.image(name, {"to": escape(path), "tags": {"regex": found}}, host=host)
    elif goal_tags:
        # Destination tags pair up with the source's, from left to right.
        theirs, ours = list(words_in(tags or "latest")), list(words_in(goal_tags))
        if len(theirs) != len(ours):
            raise UsageError(f"it has {len(theirs)} tags, and its destination {len(ours)}")
        for tag, goal_tag in zip(theirs, ours, strict=True):
            draft.image(f"{name}:{tag}", {"to": escape(f"{path}:{goal_tag}")}, host=host)
    else:
        names: list[Piece] = [escape(tag) for tag in words_in(tags)]
        draft.image(name, {"to": escape(path), "tags": names}, host=host)


def _split(reference: str) -> tuple[str, str]:
    """A name, and its tags, ``@DIGEST`` or ``/REGEX/``."""
    name, at, digest = reference.partition("@")
    if at:
        return name, f"@{digest}"
    first, slash, rest = reference.partition("/")
    host = f"{first}{slash}" if slash and bare_host(first) and re.search(r"[.:]|^localhost$", first) else ""
    path, _, tags = (rest if host else reference).partition(":")
    return f"{host}{path}", tags
