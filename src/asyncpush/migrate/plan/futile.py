"""What a plan says in vain: it is well formed, but takes nothing, or changes nothing. A user should read of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from asyncpush.migrate.plan.problems import member
from asyncpush.migrate.plan.tags import Alternative, Patterns, TagRules
from asyncpush.settings import RepositorySettings


def futile_rules(rules: TagRules, place: str) -> Iterator[str]:
    """What of the rules of tags at *place* can't do what it seems to be for."""
    for name in rules.names:
        if name in rules.exclude_names:
            yield f"{place}: {name} is taken by name, so that excluding it by name means nothing"
    yield from _futile(Alternative(rules.patterns, rules.exclude), place)
    for at, each in enumerate(rules.alternatives):
        yield from _futile(each, f"{member(place, 'any')}[{at}]")


def futile_settings(settings: RepositorySettings, place: str, *, create: bool) -> Iterator[str]:
    """Whether the settings at *place* are for repositories that nobody creates."""
    if not create and settings != RepositorySettings():
        yield f"{place}: its settings count only with create: true, or migrate --create-repository"


def _futile(said: Alternative, place: str) -> Iterator[str]:
    yield from _impossible(said.patterns, place)
    yield from _impossible(said.exclude, member(place, "exclude"))
    for kind in ("glob", "regex"):
        wanted, unwanted = getattr(said.patterns, kind), getattr(said.exclude, kind)
        everything = {"glob": "*", "regex": ".*"}[kind]
        if everything in unwanted or (wanted and set(wanted) <= set(unwanted)):
            yield f"{place}: exclude has all of {kind}, so that no tag is taken"


def _impossible(patterns: Patterns, place: str) -> Iterator[str]:
    """Patterns that match no tag, whatever its name."""
    for glob in patterns.glob:
        odd = re.search(r"[^A-Za-z0-9_.*?-]", re.sub(r"\[[^]]+\]", "", glob))
        if odd:
            hint = "; Helm writes _ for it" if odd[0] == "+" else ""
            yield f"{member(place, 'glob')}: {glob[:100]!r} matches no tag, since none has {odd[0]!r}{hint}"
    for regex in patterns.regex:
        if re.search(r"(?<!\\)\$[A-Za-z0-9_]", re.sub(r"\[[^]]*\]", "", regex)):
            why = "since $ is the end of one (a variable is ${NAME})"
            yield f"{member(place, 'regex')}: {regex[:100]!r} matches no tag, {why}"
    for version_range in patterns.semver:
        if version_range.is_empty:
            yield f"{member(place, 'semver')}: no version is in {version_range.text!r}"
