"""Where an entry's images come from and where they go: both read from text; no two images go to one tag."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asyncpush.errors import InvalidReferenceError, SourceError
from asyncpush.migrate.plan.diagnostics import Problems
from asyncpush.migrate.plan.model import Goal, PlanEntry, PlanTarget
from asyncpush.reference import SCHEME, check_repository, destination, is_tag, parse_registry, parse_remote
from asyncpush.sources.names import KINDS, locate

_ARCHIVE = re.compile(r"\.(?:tar|tgz|txz|tzst|tar\.(?:gz|xz|zst|zstd))(?::|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A source, taken apart.

    Attributes:
        kind: ``registry`` or ``local``.
        location: what ``open_source`` takes.
        host: the registry's; empty for local sources.
        repository: as the registry knows it; empty for local sources.
        name: the repository's name where none is given; empty for local sources.
        tag: the tag that was written; None if none was.
        reference: the digest that was written, or else the tag.
        is_chosen: whether one image was chosen: by tag, by digest, or by what is behind a path.
    """

    kind: Literal["registry", "local"]
    location: str
    host: str = ""
    repository: str = ""
    name: str = ""
    tag: str | None = None
    reference: str | None = None
    is_chosen: bool = False


def read_origin(text: str, base: Path) -> ImageSource:
    """Read a source; blocks, since a path that exists is one.

    ``docker://`` may be left out: what begins with a host is a repository. Without a host it is a path if it says so
    (``oci:``, ``./``, ``.tar``) or exists, and else Docker Hub's.

    Args:
        text: the source.
        base: the directory that paths are relative to.

    Raises:
        InvalidReferenceError: it is not well formed.
        SourceError: there is nothing at its path.
    """
    if not text.strip() or text != text.strip():
        raise InvalidReferenceError(f"{text[:300]!r} is not a source", hint="write HOST/REPOSITORY[:TAG], or a path")
    if text == "-":
        raise InvalidReferenceError("standard input can't be a source in a plan", hint="give the path of the archive")
    if text.startswith(SCHEME) or not _is_local(text, base):
        return _remote(text.removeprefix(SCHEME))
    return _local(text, base)


def _remote(text: str) -> ImageSource:
    found = parse_remote(SCHEME + text)
    digest = str(found.digest) if found.digest else None
    # Without a tag it means `latest` elsewhere; here it may mean them all.
    tag = found.tag if ":" in text.partition("@")[0].rpartition("/")[2] else None
    reference = digest or tag
    suffix = f"@{digest}" if digest else f":{tag}" if tag else ""
    location = f"{SCHEME}{found.host}/{found.repository}{suffix}"
    return ImageSource("registry", location, found.host, found.repository, found.name, tag, reference, bool(reference))


def _local(text: str, base: Path) -> ImageSource:
    kind, colon, rest = text.partition(":")
    if colon and kind in KINDS:
        if rest in ("", "-"):
            raise InvalidReferenceError(f"{text!r} names no file", hint=f"write {kind}:PATH")
        location = f"{kind}:{base / rest}"
    else:
        location = str(base / text)
    try:
        found = locate(location)
    except SourceError as error:
        raise SourceError(f"{text[:300]} does not exist", hint="check the path; it is relative to the plan") from error
    return ImageSource("local", location, is_chosen=found.choice is not None)


def _is_local(text: str, base: Path) -> bool:
    if text.partition(":")[0] in KINDS or text.startswith(("/", "./", "../")) or _ARCHIVE.search(text):
        return True
    first, slash, _ = text.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return False
    return _exists(str(base / text))


def _exists(text: str) -> bool:
    try:
        locate(text)
    except (SourceError, InvalidReferenceError):
        return False
    return True


def read_to(text: str) -> tuple[str, str | None]:
    """Read ``REPOSITORY[:TAG]``.

    Raises:
        InvalidReferenceError: it is not well formed, or names a registry.
    """
    first, slash, _ = text.partition("/")
    if slash and _is_registry(first):
        raise InvalidReferenceError(f"{text[:300]!r} names a registry", hint="name the registry as a target")
    if "@" in text:
        raise InvalidReferenceError(f"{text[:300]!r} names a digest", hint="write REPOSITORY[:TAG]")
    name, _, tag = text.rpartition(":") if ":" in text else (text, "", None)
    if not name:
        raise InvalidReferenceError(
            f"{text[:300]!r} names no repository", hint="write REPOSITORY[:TAG]; a variable in it may be empty"
        )
    if tag is None:
        return name, None
    if not is_tag(tag):
        raise InvalidReferenceError(f"{tag[:140]!r} is not a tag", hint="write REPOSITORY[:TAG]")
    return name, tag


def _is_registry(text: str) -> bool:
    try:
        parse_registry(text)
    except InvalidReferenceError:
        return False
    return True


@dataclass(slots=True)
class Destinations:
    """Makes goals, and remembers which tags have a source already.

    Attributes:
        problems: takes what is wrong.
        notices: entries that say the same.
    """

    problems: Problems
    notices: list[str] = field(default_factory=list)
    _taken: dict[tuple[object, ...], PlanEntry] = field(default_factory=dict)

    def make(self, name: str, tag: str | None, targets: list[PlanTarget], place: str) -> tuple[Goal, ...]:
        """The goals of an entry, one for each of *targets*; wrong names are noted at *place*."""
        goals = []
        for target in targets:
            repository = f"{target.prefix}/{name}" if target.prefix else name
            with self.problems.at(place):
                check_repository(repository, target.registry.service)
                goals.append(Goal(target, repository, tag))
        return tuple(goals)

    def note(self, entry: PlanEntry) -> None:
        """See that none of *entry*'s tags, as far as they are known yet, comes from another entry's image."""
        for goal in entry.goals:
            tags = entry.tags.names if entry.reference is None else ()
            for tag in (goal.tag,) if goal.tag else tags:
                self._note(entry, goal, tag)

    def _note(self, entry: PlanEntry, goal: Goal, tag: str) -> None:
        registry, aws = goal.target.registry, goal.target.aws
        # Two targets can be one registry.
        account = (registry.id, registry.region or aws.region, aws.endpoint_url, None if registry.id else aws.profile)
        key = (registry.service, *account, goal.repository, tag)
        other = self._taken.setdefault(key, entry)
        if other is entry:
            return
        where = str(destination(registry, goal.repository, tag))
        if _image(other, tag) != _image(entry, tag):
            self.problems.add(
                entry.place,
                f"{where} comes from {entry.source[:300]}, but in {other.place} from {other.source[:300]}",
                hint="change one of the tags or repositories",
            )
        else:
            self.notices.append(f"{entry.place}: {where} is already in {other.place}")


def _image(entry: PlanEntry, tag: str) -> tuple[object, ...]:
    """What tells an entry's image from others; under one tag at the goal, it has one at the source."""
    if entry.kind == "local":
        return entry.kind, entry.location, frozenset(entry.platforms)
    return entry.host, entry.repository, entry.reference or tag, frozenset(entry.platforms)
