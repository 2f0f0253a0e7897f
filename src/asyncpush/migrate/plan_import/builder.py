"""Builds a plan from what importers find, with notes on what they can't import."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from asyncpush.errors import AsyncpushError, InvalidReferenceError, UsageError
from asyncpush.migrate.plan.resolve import OWN
from asyncpush.migrate.plan.yaml_loader import escape
from asyncpush.migrate.plan_import.config_reader import Warn
from asyncpush.reference import ECR_PUBLIC, Prefix, RegistryName, canonical_host, parse_registry

#: A value of a plan's document; text is already escaped where it must be.
Piece: TypeAlias = "str | int | bool | list[Piece] | dict[str, Piece]"


#: The members of an entry, in the order in which they are written.
_ORDER = ("from", "to", "tags", "min_tags", "platforms", "referrers", "targets")


@dataclass(slots=True)
class ImportedImage:
    """An entry of the plan."""

    members: dict[str, Piece]


@dataclass(slots=True)
class ImportedRegistry:
    """A source registry: its members in the plan, and notes for the user."""

    members: dict[str, Piece] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class PlanBuilder:
    """The plan so far.

    Attributes:
        to: where all images go; None to leave that to the configuration.
        scoped: name repositories after the source's full path, as ``skopeo sync --scoped``.
        registries: the source registries, by host.
        targets: the targets, by name.
        body: the entries, and between them notes on what could not be imported there.
        notes: notes on the whole configuration.
    """

    to: Prefix | None = None
    scoped: bool = False
    registries: dict[str, ImportedRegistry] = field(default_factory=dict)
    targets: dict[str, dict[str, Piece]] = field(default_factory=dict)
    body: list[ImportedImage | str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _known: dict[str, ImportedImage] = field(default_factory=dict)

    @property
    def images(self) -> list[ImportedImage]:
        """The entries."""
        return [part for part in self.body if isinstance(part, ImportedImage)]

    def warn(self, text: str) -> None:
        """Add a note on the whole configuration; the same note is added once."""
        if text not in self.notes:
            self.notes.append(text)

    def warn_of_versions(self) -> None:
        """Note which tags match a range here but not in other tools."""
        self.warn("semver: a tag such as 1.2.3.4, or 1.2.3_4 (which means 1.2.3+4), is a version here")

    def warn_here(self, text: str) -> None:
        """Add a note on what could not be imported, after the entries so far."""
        self.body.append(text)

    def all_notes(self) -> list[str]:
        """All notes, in the order of the plan."""
        of_registries = [note for registry in self.registries.values() for note in registry.notes]
        return [*self.notes, *of_registries, *(part for part in self.body if isinstance(part, str))]

    def registry(self, host: str) -> ImportedRegistry | None:
        """The registry at *host*, to add members to; None, with a note, if *host* is invalid."""
        try:
            return self.registries.setdefault(canonical_host(bare_host(host)), ImportedRegistry())
        except InvalidReferenceError as error:
            self.warn(f"{error.message}, so its settings are not imported")
            return None

    def login(self, host: str, username: str | None, password: str | None, variable: str | None = None) -> None:
        """Add a user and a password; the plan gets a variable instead of the password.

        Args:
            host: the source's host.
            username: the user.
            password: the password; ignored if there is a *variable*.
            variable: the environment variable that already contains it.
        """
        registry = self.registry(host)
        if registry is None or (not username and not password and not variable):
            return
        if is_ecr(host):
            registry.notes.append(f"{host} is ECR: its password comes from the AWS configuration, not from the plan")
            return
        if not username or not (password or variable):
            registry.notes.append(
                f"the credentials for {host} have no {'password' if username else 'user'}: not imported"
            )
            return
        if variable is None:
            variable = _variable(host)
            registry.notes.append(
                f"the password for {host} is not in the plan: set the environment variable {variable}"
            )
        registry.members["credentials"] = {"username": username, "password": f"${{{variable}}}"}

    def trust(self, host: str, place: str) -> None:
        """Do not verify the certificate of *host*."""
        registry = self.registry(host)
        if registry is not None:
            registry.members["tls"] = {"verify": False}
            registry.notes.append(f"{place}: if {host} speaks HTTP, set plain_http: true instead of tls")

    def image(
        self,
        source: str,
        members: Mapping[str, Piece | None],
        *,
        host: str = "",
        profile: str | None = None,
        is_escaped: bool = False,
    ) -> None:
        """Add an entry.

        Args:
            source: the source.
            members: its other members; None is left out.
            host: the registry of the destination, as in the configuration; empty for the caller's own, or ``to``.
            profile: the profile of the AWS configuration for that registry.
            is_escaped: whether the source has variables, and is already escaped.
        """
        target = self._target(host, profile)
        given: dict[str, Piece | None] = {
            "from": source if is_escaped else escape(source),
            **members,
            "targets": [target],
        }
        image: dict[str, Piece] = {
            name: value for name in _ORDER if (value := given.get(name)) is not None and value not in ([], {})
        }
        key = json.dumps({**image, "targets": None})
        same = self._known.setdefault(key, ImportedImage(image))
        if same.members is image:
            self.body.append(same)
            return
        new, known = image["targets"], same.members["targets"]
        if isinstance(new, list) and isinstance(known, list):
            known += [target for target in new if target not in known]

    def _target(self, host: str, profile: str | None) -> str:
        if self.to is not None:
            registry, prefix = self.to.registry, self.to.path.strip("/")
            own: dict[str, Piece] = {"registry": _written(registry)} if registry.host else {}
            self.targets[_name(registry)] = own | ({"prefix": escape(prefix)} if prefix else {})
            return _name(registry)
        if not host:
            return self._own()
        if "${" in host:
            name = "-".join(re.findall("[A-Za-z0-9_]+", host)) + (f"-{profile}" if profile else "")
            of_profile: dict[str, Piece] = {"profile": escape(profile)} if profile else {}
            self.targets[name] = {"registry": host, **of_profile}
            return name
        try:
            registry = parse_registry(host)
        except InvalidReferenceError:
            self.warn(f"{host} is not an ECR registry; its images go to your own registry (--to names another)")
            return self._own()
        members: dict[str, Piece] = {"registry": _written(registry)}
        if profile:
            members["profile"] = escape(profile)
        name = _name(registry) + (f"-{profile}" if profile else "")
        self.targets[name] = members
        return name

    def _own(self) -> str:
        self.targets[OWN] = {}
        return OWN


def split_host(reference: str) -> tuple[str, str]:
    """The registry of a destination, and the rest; ECR Public's alias belongs to the registry.

    Raises:
        UsageError: the rest names no repository.
    """
    whole = reference.removeprefix("docker://")
    host, slash, rest = whole.partition("/")
    if not slash or not (host == "localhost" or "." in host or ":" in host):
        host, rest = "", whole
    if host == ECR_PUBLIC:
        alias, _, rest = rest.partition("/")
        host = f"{host}/{alias}"
    if rest[:1] in ("", ":", "@"):
        raise UsageError(f"the destination {reference[:300]!r} names no repository")
    return host, rest


def bare_host(text: str) -> str:
    """A host without scheme and path, which some tools add: ``https://index.docker.io/v1/``."""
    return re.sub(r"^https?://", "", text).partition("/")[0]


def is_ecr(host: str) -> bool:
    """Whether *host* is a private registry of ECR."""
    try:
        return parse_registry(bare_host(host)).service == "ecr"
    except InvalidReferenceError:
        return False


def foreseen(warn: Warn, place: str) -> _Foreseen:
    """For a block that reads one part of a configuration: its error becomes a note, and the rest continues."""
    return _Foreseen(warn, place)


class _Foreseen:
    def __init__(self, warn: Warn, place: str) -> None:
        self._warn = warn
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, AsyncpushError):
            self._warn(f"{self._place}: {error.message}; not imported")
        return isinstance(error, AsyncpushError)


def _written(registry: RegistryName) -> str:
    return f"{registry.host}/{registry.id}" if registry.service == "ecr-public" else registry.host


def _name(registry: RegistryName) -> str:
    if registry.service == "ecr-public":
        return f"public-{registry.id}"
    return f"{registry.region}-{registry.id}" if registry.host else OWN


def _variable(host: str) -> str:
    words = "_".join(re.findall(r"[A-Z0-9]+", bare_host(host).upper()))
    return f"{'REGISTRY_' if words[:1].isdigit() else ''}{words}_PASSWORD"


def words_in(text: str, separator: str = ",") -> Iterator[str]:
    """The words of *text*, stripped of spaces."""
    return filter(None, (word.strip() for word in text.split(separator)))


# Text that needs no quotes in any YAML version, even between brackets.
_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*(?::[A-Za-z0-9_./@+-]+)*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})

# USER:PASSWORD@ before a host; a tag before a digest does not match.
_PASSWORD = re.compile(r"(?<![^\s'\"/(\[])([^\s'\"/@:]+):[^\s/@]+@(?!sha256:)")

# Characters that YAML readers refuse, or read as the end of a line.
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def write_plan(draft: PlanBuilder, head: str) -> str:
    """The plan as YAML; *head* is its first comment."""
    return "".join(f"{line}\n" for line in _lines(draft, head))


def _lines(draft: PlanBuilder, head: str) -> Iterator[str]:
    yield f"# {head}"
    yield from _comments(draft.notes, "")
    yield "version: 1"
    registries = {host: registry for host, registry in draft.registries.items() if registry.members or registry.notes}
    if registries:
        yield "registries:"
        for host, registry in registries.items():
            yield from _comments(registry.notes, "  ")
            yield f"  {_flow(host)}:{'' if registry.members else ' {}'}"
            yield from (f"    {name}: {_flow(value)}" for name, value in registry.members.items())
    if draft.targets != {OWN: {}}:
        yield "targets:"
        yield from (f"  {_flow(name)}: {_flow(target)}" for name, target in draft.targets.items())
    yield "images:"
    for part in draft.body:
        if isinstance(part, ImportedImage):
            yield from _entry(part, has_choice=len(draft.targets) > 1)
        else:
            yield from _comments([part], "  ")


def _entry(image: ImportedImage, *, has_choice: bool) -> Iterator[str]:
    members = [(name, value) for name, value in image.members.items() if name != "targets" or has_choice]
    for at, (name, value) in enumerate(members):
        yield f"  {'  ' if at else '- '}{name}: {_text(value) if isinstance(value, str) else _flow(value)}"


def _comments(notes: list[str], indent: str) -> Iterator[str]:
    return (f"{indent}# note: {comment(note)}" for note in notes)


def comment(text: str) -> str:
    """*text* in one line that YAML's readers bear, without the password of an address in it."""
    return _UNPRINTABLE.sub("?", _PASSWORD.sub(r"\1:***@", " ".join(text.split())))


def _flow(value: Piece) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(name)}: {_flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"' if ":" in value and _BARE.fullmatch(value) else _text(value)
    return json.dumps(value)


def _text(value: str) -> str:
    if _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return _UNPRINTABLE.sub(_escaped, json.dumps(value, ensure_ascii=False))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
