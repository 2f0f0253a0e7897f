"""image-syncer's files: images by source, with one or several destinations, and credentials by host.

Environment variables are replaced in destinations and in the credentials file, but not in sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.yaml_loader import Value, escape
from asyncpush.migrate.plan_import.builder import Piece, PlanBuilder, bare_host, foreseen, split_host, words_in
from asyncpush.migrate.plan_import.config_reader import ConfigReader
from asyncpush.migrate.plan_import.patterns import regexes

# What Go's os.ExpandEnv reads as a variable: a name, or one of the shell's special characters.
_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[A-Za-z0-9_]+)\}|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|(?P<odd>\{|[0-9*#$@!?-]))", re.ASCII
)


def is_image_syncer(document: Mapping[str, Value]) -> bool:
    """Whether *document* is a configuration of image-syncer: images by source, or both files in one."""
    images = document.get("images") if isinstance(document.get("images"), dict) else document
    return isinstance(images, dict) and bool(images) and all(
        isinstance(destinations, (str, list)) and re.search(r"[./:]", name) for name, destinations in images.items()
    )  # fmt: skip


def import_image_syncer(document: Value, draft: PlanBuilder, auth: Value = None) -> None:
    """Import what image-syncer would copy; *auth* is its credentials file, if there is one."""
    config = ConfigReader(document, "", draft.warn)
    images = config.mapping("images") if "images" in config else config
    # Variables are replaced only in a separate credentials file.
    for logins, expands in ((config.value("auth") if "images" in config else None, False), (auth, True)):
        if logins is not None:
            _import_logins(ConfigReader(logins, "auth", draft.warn), draft, expands=expands)
    for source, destinations in images.members() if images else ():
        with foreseen(draft.warn_here, source):
            texts = [destinations] if isinstance(destinations, str) else destinations
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UsageError("its destinations are not text")
            if not texts:
                raise UsageError("it has no destination")
            for text in texts:
                _import_image(source, str(text), draft)
    if images is not config:
        config.finish()


def _import_logins(config: ConfigReader, draft: PlanBuilder, *, expands: bool) -> None:
    # Credentials for a whole host come first: a plan has one login for each host.
    seen: set[str] = set()
    for name, value in sorted(config.members()):
        host, slash, _ = name.partition("/")
        with foreseen(draft.warn, f"auth, {name}"):
            login = ConfigReader(value, f"auth[{name}]", draft.warn)
            user, password, insecure = login.text("username"), login.text("password"), login.flag("insecure")
            if slash and host in seen:
                draft.warn(f"auth, {name}: a plan has one login for {host}; not imported")
                continue
            seen.add(host)
            name_there = _with_variables(user or "") if expands else escape(user or "")
            variable = _VARIABLE.fullmatch(password or "") if expands else None
            draft.login(host, name_there, password, variable and (variable["braced"] or variable["bare"]))
            if insecure:
                draft.trust(host, login.place("insecure"))
            login.finish()


def _import_image(source: str, destination: str, draft: PlanBuilder) -> None:
    name, tags = _split(source)
    host, goal = split_host(destination)
    path, target_tags = _split(goal)
    first, slash, _ = destination.partition("/")
    if slash and "$" in first and not host:
        raise UsageError(f"{first[:300]} may be a registry or a part of a name: write out which it is")
    # Without a registry, the destination is Docker Hub.
    host, to = _with_variables(host or "docker.io"), _with_variables(path)
    if tags.startswith("@"):
        # With a digest, a tag has no effect.
        if target_tags.startswith("@") and target_tags != tags:
            raise UsageError("it has one digest, and its destination another")
        tag = f":{_with_variables(target_tags)}" if target_tags and not target_tags.startswith("@") else ""
        draft.image(f"{_without_tag(name)}{tags}", {"to": f"{to}{tag}"}, host=host)
        return
    if target_tags.startswith("@"):
        raise UsageError("its destination is a digest")
    source_tags, target_tag_names = list(words_in(tags)), list(words_in(target_tags))
    if target_tag_names and (tags.startswith("/") or not source_tags):
        raise UsageError(f"it may have any number of tags, and its destination has {len(target_tag_names)}")
    if match := re.fullmatch(r"/(.*)/", tags, re.DOTALL):
        found = regexes([match[1]], "its regex", anchored=False)
        draft.image(name, {"to": to, "tags": {"regex": found}}, host=host)
    elif target_tag_names:
        # Destination tags pair up with the source's, from left to right.
        if len(source_tags) != len(target_tag_names):
            raise UsageError(f"it has {len(source_tags)} tags, and its destination {len(target_tag_names)}")
        for tag, target_tag in zip(source_tags, target_tag_names, strict=True):
            draft.image(f"{name}:{tag}", {"to": f"{to}:{_with_variables(target_tag)}"}, host=host)
    else:
        names: list[Piece] = [escape(tag) for tag in source_tags]
        draft.image(name, {"to": to, "tags": names}, host=host)


def _with_variables(text: str) -> str:
    """*text* with the variables ``$NAME`` and ``${NAME}`` in a plan's notation, and other dollar signs escaped."""
    found: list[str] = []
    at = 0
    for match in _VARIABLE.finditer(text):
        if match["odd"] or (match["braced"] or "")[:1].isdigit():
            raise UsageError(f"{text[:100]!r} has {match[0]}, which is not a plan variable")
        found += [escape(text[at : match.start()]), f"${{{match['braced'] or match['bare']}}}"]
        at = match.end()
    return "".join([*found, escape(text[at:])])


def _without_tag(name: str) -> str:
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def _split(reference: str) -> tuple[str, str]:
    """A name, and its tags, ``@DIGEST`` or ``/REGEX/``."""
    name, at, digest = reference.partition("@")
    if at:
        return name, f"@{digest}"
    first, slash, rest = reference.partition("/")
    host = f"{first}{slash}" if slash and bare_host(first) and re.search(r"[.:]|^localhost$", first) else ""
    path, _, tags = (rest if host else reference).partition(":")
    return f"{host}{path}", tags
