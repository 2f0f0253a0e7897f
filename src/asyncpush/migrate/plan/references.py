"""Where an entry's images come from and where they go: both read from text; no two images go to one tag."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asyncpush.errors import InvalidReferenceError, SourceError
from asyncpush.migrate.plan.diagnostics import Problems
from asyncpush.migrate.plan.model import Goal, PlanEntry, PlanTarget
from asyncpush.migrate.plan.wildcards import fill_in
from asyncpush.reference import (
    ECR_PUBLIC,
    HUB,
    SCHEME,
    Service,
    check_repository,
    destination,
    is_remote_pattern,
    is_tag,
    parse_registry,
    parse_remote,
    parse_remote_pattern,
)
from asyncpush.sources.source import KINDS, locate
from asyncpush.sources.streams import EngineImage, check_stream, is_stream

_ARCHIVE = re.compile(r"\.(?:tar|tgz|txz|tzst|tar\.(?:gz|xz|zst|zstd))(?P<choice>:|$)", re.IGNORECASE)

#: Registries that list no repositories to anybody.
_WITHOUT_CATALOG = {HUB: "Docker Hub", "ghcr.io": "GHCR", ECR_PUBLIC: "ECR Public"}

#: Stands for a name that is not known yet, where a destination is checked.
_ANY_NAME = "xx"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A parsed source.

    Attributes:
        kind: ``registry``, or ``local`` for everything that is opened as a whole; see ``PlanEntry``.
        location: what ``open_source`` takes.
        host: the registry's; empty for local sources.
        repository: as the registry knows it; empty for local sources.
        name: the default name of the repository at the target; empty for layouts and archives, which have none.
        tag: the tag, if it is written; None otherwise.
        reference: the digest if it is written, else the tag.
        is_chosen: whether it selects one image: by tag, by digest, or after a path.
        is_pattern: whether ``repository`` is a pattern, so that it names many.
    """

    kind: Literal["registry", "local"]
    location: str
    host: str = ""
    repository: str = ""
    name: str = ""
    tag: str | None = None
    reference: str | None = None
    is_chosen: bool = False
    is_pattern: bool = False


def read_source(text: str, base: Path) -> ImageSource:
    """Parse a source; blocks, since it checks whether a path exists.

    ``docker://`` is optional: what begins with a host is a repository. Without a host it is a path if it looks like one
    (``oci:``, ``./``, ``.tar``) or exists, and otherwise a repository of Docker Hub.

    Args:
        text: the source.
        base: the directory that paths are relative to.

    Raises:
        InvalidReferenceError: it is not well formed.
        SourceError: its path does not exist.
    """
    if not text.strip() or text != text.strip():
        raise InvalidReferenceError(f"{text[:300]!r} is not a source", hint="write HOST/REPOSITORY[:TAG], or a path")
    if text == "-":
        raise InvalidReferenceError("standard input can't be a source in a plan", hint="give the path of the archive")
    if is_stream(text):
        return _stream(text)
    if text.startswith(SCHEME) or not _is_local(text, base):
        return _pattern(text) if is_remote_pattern(text) else _remote(text.removeprefix(SCHEME))
    return _local(text, base)


def _pattern(text: str) -> ImageSource:
    found = parse_remote_pattern(text)
    if found.host in _WITHOUT_CATALOG:
        raise InvalidReferenceError(
            f"{_WITHOUT_CATALOG[found.host]} does not list its repositories, so that {text[:300]!r} can't be looked up",
            hint="write an entry for each repository",
        )
    location = f"{SCHEME}{found.host}/{found.glob}"
    return ImageSource("registry", location, found.host, found.glob, "{name}", is_pattern=True)


def _remote(text: str) -> ImageSource:
    found = parse_remote(SCHEME + text)
    digest = str(found.digest) if found.digest else None
    # Without a tag, a reference means `latest` elsewhere; here it may mean all tags.
    tag = found.tag if ":" in text.partition("@")[0].rpartition("/")[2] else None
    reference = digest or tag
    suffix = f"@{digest}" if digest else f":{tag}" if tag else ""
    location = f"{SCHEME}{found.host}/{found.repository}{suffix}"
    return ImageSource("registry", location, found.host, found.repository, found.name, tag, reference, bool(reference))


def _stream(text: str) -> ImageSource:
    parsed = check_stream(text)
    # Only S3 knows where a key ends; what follows the name of an archive is a choice.
    archive = _ARCHIVE.search(text)
    is_chosen = isinstance(parsed, EngineImage) or (archive is not None and archive["choice"] == ":")
    name = parsed.repository or "" if isinstance(parsed, EngineImage) else ""
    return ImageSource("local", text, name=name, is_chosen=is_chosen)


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


def read_destination(text: str) -> tuple[str, str | None]:
    """Parse ``REPOSITORY[:TAG]``.

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
    """Makes goals, and remembers which image goes to each tag.

    Attributes:
        problems: collects the problems.
        notices: messages about entries that repeat others.
    """

    problems: Problems
    notices: list[str] = field(default_factory=list)
    _taken: dict[tuple[object, ...], PlanEntry] = field(default_factory=dict)

    def make(self, name: str, tag: str | None, targets: list[PlanTarget], place: str) -> tuple[Goal, ...]:
        """The goals of an entry, one for each of *targets*; invalid names are problems at *place*."""
        goals = []
        for target in targets:
            repository = f"{target.prefix}/{name}" if target.prefix else name
            with self.problems.at(place):
                _check_repository(repository, target.registry.service)
                goals.append(Goal(target, repository, tag))
        return tuple(goals)

    def note(self, entry: PlanEntry) -> None:
        """Check that no known tag of *entry* comes from another entry's image."""
        for goal in entry.goals:
            tags = entry.tags.names if entry.reference is None and entry.pattern is None else ()
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


def _check_repository(name: str, service: Service) -> None:
    """Check a name, which may have placeholders."""
    try:
        check_repository(fill_in(name, _ANY_NAME), service)
    except InvalidReferenceError as error:
        raise InvalidReferenceError(f"{name[:300]!r} is not a repository name", hint=error.hint) from error


def _image(entry: PlanEntry, tag: str) -> tuple[object, ...]:
    """What identifies the image of an entry that goes to *tag*."""
    if entry.kind == "local":
        return entry.kind, entry.location, frozenset(entry.platforms)
    return entry.host, entry.repository, entry.reference or tag, frozenset(entry.platforms)
