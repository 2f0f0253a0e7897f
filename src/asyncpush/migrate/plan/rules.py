"""What a plan says of tags and platforms, checked."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET, UnsetType

from asyncpush.migrate.plan.document import ExcludeDocument, TagsDocument, Texts
from asyncpush.migrate.plan.problems import Problems, member
from asyncpush.migrate.plan.repositories import given
from asyncpush.migrate.plan.tags import Patterns, TagRules, check_glob, check_regex, is_tag
from asyncpush.migrate.plan.versions import VersionRange
from asyncpush.model import Platform


def tag_rules(said: str | list[str] | TagsDocument | UnsetType, place: str, problems: Problems) -> TagRules:
    """The rules that *said* stands for; what is wrong with them is noted at *place*."""
    if isinstance(said, UnsetType):
        return TagRules()
    if not isinstance(said, TagsDocument):
        return TagRules(names=_names(said, place, problems))
    names = _names(said.names, member(place, "names"), problems)
    patterns = _patterns(said, place, problems)
    exclude = given(said.exclude) or ExcludeDocument()
    there = member(place, "exclude")
    if names and not patterns and said.names is not UNSET:
        for name in ("exclude", "newest"):
            if getattr(said, name) is not UNSET and (said.glob, said.regex, said.semver) == (UNSET, UNSET, UNSET):
                problems.add(
                    member(place, name), "chooses among patterns, not names", hint='add glob: "*" for all tags'
                )
    return TagRules(
        names=names,
        patterns=patterns,
        exclude=_patterns(exclude, there, problems),
        exclude_names=_names(exclude.names, member(there, "names"), problems),
        newest=given(said.newest),
    )


def platforms(said: Texts | UnsetType, place: str, problems: Problems) -> tuple[Platform, ...]:
    """The platforms that *said* names; none for all of them."""
    if isinstance(said, UnsetType) or said in ("all", ["all"]):
        return ()
    if not said:
        problems.add(place, "is empty", hint="name a platform, or all")
    found: dict[Platform, None] = {}
    for at, text in enumerate(texts(said)):
        with problems.at(_item(said, place, at)):
            found[Platform.parse(text)] = None
    return tuple(found)


def texts(said: Texts | UnsetType) -> list[str]:
    """A list of what may be one text or many."""
    if isinstance(said, UnsetType):
        return []
    return [said] if isinstance(said, str) else said


def _names(said: Texts | UnsetType, place: str, problems: Problems) -> tuple[str, ...]:
    if said == []:
        problems.add(place, "is empty", hint="name a tag, or leave it out for all tags")
    for at, name in enumerate(texts(said)):
        if not is_tag(name):
            is_digest = name.startswith("sha256:")
            hint = "an image by digest is an entry of its own: from: REPOSITORY@DIGEST"
            problems.add(_item(said, place, at), f"{name[:140]!r} is not a tag", hint=hint if is_digest else None)
    return tuple(dict.fromkeys(texts(said)))


def _patterns(said: TagsDocument | ExcludeDocument, place: str, problems: Problems) -> Patterns:
    ranges = []
    for at, text in enumerate(texts(said.semver)):
        with problems.at(_item(said.semver, member(place, "semver"), at)):
            ranges.append(VersionRange.parse(text))
    _check(said.glob, check_glob, member(place, "glob"), problems)
    _check(said.regex, check_regex, member(place, "regex"), problems)
    if said.semver == []:
        problems.add(member(place, "semver"), "is empty")
    return Patterns(tuple(texts(said.glob)), tuple(texts(said.regex)), tuple(ranges))


def _check(said: Texts | UnsetType, check: Callable[[str], None], place: str, problems: Problems) -> None:
    if said == []:
        problems.add(place, "is empty")
    for at, text in enumerate(texts(said)):
        with problems.at(_item(said, place, at)):
            check(text)


def _item(said: Texts | UnsetType, place: str, at: int) -> str:
    return f"{place}[{at}]" if isinstance(said, list) else place
