"""What a plan says of tags and platforms, checked."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET, UnsetType

from asyncpush.migrate.plan.document import AlternativeDocument, ExcludeDocument, TagsDocument, Texts
from asyncpush.migrate.plan.problems import Problems, member
from asyncpush.migrate.plan.repositories import given
from asyncpush.migrate.plan.tags import Alternative, Patterns, TagRules, check_glob, check_regex, is_tag
from asyncpush.migrate.plan.versions import VersionRange
from asyncpush.model import Platform


def tag_rules(said: str | list[str] | TagsDocument | UnsetType, place: str, problems: Problems) -> TagRules:
    """The rules that *said* stands for; what is wrong with them is noted at *place*."""
    if isinstance(said, UnsetType):
        return TagRules()
    if not isinstance(said, TagsDocument):
        return TagRules(names=_names(said, place, problems))
    names = _names(said.names, member(place, "names"), problems)
    whole = _alternative(said, place, problems)
    if said.any == []:
        problems.add(member(place, "any"), "is empty")
    alternatives = tuple(
        _alternative(each, f"{member(place, 'any')}[{at}]", problems) for at, each in enumerate(given(said.any) or ())
    )
    if names and (said.glob, said.regex, said.semver, said.any) == (UNSET, UNSET, UNSET, UNSET):
        for name in ("exclude", "newest"):
            if getattr(said, name) is not UNSET:
                problems.add(
                    member(place, name), "chooses among patterns, not names", hint='add glob: "*" for all tags'
                )
    return TagRules(
        names=names,
        patterns=whole.patterns,
        alternatives=alternatives,
        exclude=whole.exclude,
        exclude_names=whole.exclude_names,
        newest=given(said.newest),
    )


def _alternative(said: TagsDocument | AlternativeDocument, place: str, problems: Problems) -> Alternative:
    patterns = _patterns(said, place, problems)
    there, exclude = member(place, "exclude"), given(said.exclude) or ExcludeDocument()
    found = Alternative(
        patterns, _patterns(exclude, there, problems), _names(exclude.names, member(there, "names"), problems)
    )
    if isinstance(said, AlternativeDocument) and found == Alternative() and not problems.has_below(place):
        problems.add(place, "matches all tags", hint="give it glob, regex, semver or exclude")
    return found


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


def _patterns(said: TagsDocument | AlternativeDocument | ExcludeDocument, place: str, problems: Problems) -> Patterns:
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
