"""From the document of a plan to the plan; checks everything that needs no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import UNSET, UnsetType

from asyncpush.errors import InvalidReferenceError
from asyncpush.migrate.plan.convert import convert
from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.document import (
    AlternativeDocument,
    DefaultsDocument,
    EntryDocument,
    ExcludeDocument,
    PlanDocument,
    QuotasDocument,
    RegistryDocument,
    RepositoryDocument,
    TagsDocument,
    TargetDocument,
    Texts,
)
from asyncpush.migrate.plan.model import Goal, Plan, PlanEntry, PlanTarget
from asyncpush.migrate.plan.references import Destinations, ImageSource, read_destination, read_source
from asyncpush.migrate.plan.registries import (
    DEFAULTS,
    Repositories,
    first_given,
    given,
    make_target,
    merged,
    quotas_of,
    source_registry,
)
from asyncpush.migrate.plan.tags import Alternative, Patterns, TagRules, check_glob, check_regex
from asyncpush.migrate.plan.versions import VersionRange
from asyncpush.migrate.plan.wildcards import RepositoryPattern, check_placeholders, fill_in, has_placeholder
from asyncpush.migrate.plan.yaml_loader import Expanded, Value, expand
from asyncpush.model import Platform
from asyncpush.reference import canonical_host, check_repository_pattern, is_tag
from asyncpush.settings import RepositorySettings, SourceRegistry
from asyncpush.sources.registry import has_ecr_api
from asyncpush.units import count_text, some_text

#: The name of the target of a plan that names none: the caller's own registry.
OWN = "own"

#: Entries that a message lists.
_SHOWN = 5


def resolve(document: Value, environ: Mapping[str, str], base: Path, problems: Problems) -> Plan:
    """Make a plan from a document; blocks while it looks for files. The plan is valid only if there are no problems.

    Args:
        document: the parsed document.
        environ: the variables that it can refer to.
        base: the directory that paths are relative to.
        problems: collects the problems.
    """
    if not isinstance(document, dict):
        problems.add("", "the plan is not a mapping", hint="write version: 1 and images: [...]")
        return Plan({}, (), ())
    return _Resolver(base, problems).plan(expand(document, environ, "", problems))


@dataclass(slots=True)
class _Resolver:
    base: Path
    problems: Problems
    defaults: DefaultsDocument = field(default_factory=DefaultsDocument)
    default_tags: TagRules = field(default_factory=TagRules)
    default_platforms: tuple[Platform, ...] = ()
    quotas: QuotasDocument = field(default_factory=QuotasDocument)
    default_settings: RepositorySettings | None = None
    is_ambiguous: bool = False
    repositories: Repositories = field(init=False)
    sources: dict[str, SourceRegistry] = field(default_factory=dict)
    targets: dict[str, PlanTarget] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    used_defaults: set[str] = field(default_factory=set)
    futile: list[str] = field(default_factory=list)
    unlike: dict[str, list[str]] = field(default_factory=dict)
    destinations: Destinations = field(init=False)

    def __post_init__(self) -> None:
        self.repositories = Repositories(self.base, self.problems)
        self.destinations = Destinations(self.problems)

    def plan(self, document: Expanded) -> Plan:
        """The plan. Members are converted one by one, so that the problems of one do not hide those of others."""
        members = dict(document) if isinstance(document, dict) else {}
        registries, targets, images = (members.pop(name, UNSET) for name in ("registries", "targets", "images"))
        defaults, quotas = members.pop("defaults", {}), members.pop("quotas", {})
        if images is UNSET:
            self.problems.add("", "has no images")
        self._check_head({**members, "images": []})
        self.quotas = convert(quotas, QuotasDocument, "quotas", self.problems) or QuotasDocument()
        sources = self.sources = self._registries(registries)
        self._targets(targets)
        self.defaults = convert(defaults, DefaultsDocument, "defaults", self.problems) or DefaultsDocument()
        self.default_tags = tag_rules(self.defaults.tags, "defaults.tags", self.problems)
        self.futile += futile_rules(self.default_tags, "defaults.tags")
        self.default_platforms = platforms(self.defaults.platforms, "defaults.platforms", self.problems)
        self._target_names(self.defaults.targets, "defaults.targets")
        entries = self._entries(images)
        return Plan(sources, tuple(self.targets.values()), entries, notices=self._notices(sources))

    def _check_head(self, members: dict[str, Expanded]) -> None:
        convert(members, PlanDocument, "", self.problems)

    def _registries(self, spec: Expanded | UnsetType) -> dict[str, SourceRegistry]:
        found: dict[str, SourceRegistry] = {}
        for name, value in self._named(spec, "registries"):
            place = member("registries", name)
            with self.problems.at(place):
                host = canonical_host(name)
                if host in found:
                    raise InvalidReferenceError(f"is {host}, which is configured already")
                document = convert(value, RegistryDocument, place, self.problems) or RegistryDocument()
                found[host] = source_registry(host, document, self.base, place, self.problems)
        return found

    def _targets(self, spec: Expanded | UnsetType) -> None:
        if isinstance(spec, UnsetType):
            self.targets[OWN] = PlanTarget(OWN, quotas=quotas_of(self.quotas))
        for name, value in self._named(spec, "targets"):
            place = member("targets", name)
            document = convert(value, TargetDocument, place, self.problems) or TargetDocument()
            self.targets[name] = make_target(name, document, place, self.problems, self.quotas)
        if spec == {}:
            self.problems.add("targets", "is empty", hint="leave it out for your own registry")

    def _named(self, spec: Expanded | UnsetType, place: str) -> list[tuple[str, Expanded]]:
        if isinstance(spec, dict):
            return list(spec.items())
        if not isinstance(spec, UnsetType):
            self.problems.add(place, "is not a mapping of names")
        return []

    def _entries(self, spec: Expanded | UnsetType) -> tuple[PlanEntry, ...]:
        if isinstance(spec, UnsetType):
            return ()
        if not isinstance(spec, list):
            self.problems.add("images", "is not a list", hint="begin each entry with '- from:'")
            return ()
        if not spec:
            self.problems.add("images", "is empty", hint="add at least one entry")
        entries = (self._entry(value, f"images[{at}]") for at, value in enumerate(spec))
        return tuple(entry for entry in entries if entry)

    def _entry(self, value: Expanded, place: str) -> PlanEntry | None:
        if isinstance(value, dict) and isinstance(value.get("to"), dict):
            self.problems.add(member(place, "to"), "is a mapping", hint="put a value with {name} between quotes")
            value = {**value, "to": "{name}"}
        spec = convert(value, EntryDocument, place, self.problems)
        if spec is None:
            return None
        source: ImageSource | None = None
        with self.problems.at(member(place, "from")):
            source = read_source(spec.source, self.base)
        rules = self._tags(spec, source, place)
        repository = merged(spec.repository, self.defaults.repository)
        settings = self._settings(spec, place)
        wanted = platforms(spec.platforms, member(place, "platforms"), self.problems)
        targets = self._target_names(spec.targets, member(place, "targets")) or self._default_targets(place)
        if source is None:
            return None
        self.hosts.add(source.host)
        like_source = self._is_like_source(spec, repository, source, targets, place)
        create = repository.create is True or (like_source and repository.create is UNSET)
        settings_place = DEFAULTS if spec.repository is UNSET else member(place, "repository")
        self.futile += futile_settings(settings, settings_place, create=create, like_source=like_source)
        entry = PlanEntry(
            place=place,
            source=spec.source,
            kind=source.kind,
            location=source.location,
            host=source.host,
            repository=source.repository,
            pattern=self._pattern(spec, source, place),
            reference=source.reference,
            tags=rules,
            min_tags=self._min_tags(spec, rules, place),
            goals=self._goals(spec, source, rules, targets, place),
            platforms=self.default_platforms if spec.platforms is UNSET else wanted,
            referrers=first_given(spec.referrers, self.defaults.referrers) is not False,
            create=create,
            like_source=like_source,
            repository_settings=settings,
        )
        self.destinations.note(entry)
        return entry

    def _pattern(self, spec: EntryDocument, source: ImageSource, place: str) -> RepositoryPattern | None:
        exclude_place = member(place, "exclude")
        if not source.is_pattern:
            if spec.exclude is not UNSET:
                self.problems.add(
                    exclude_place,
                    "leaves out repositories, but from names a single source",
                    hint="write tags: {exclude: ...} to leave out tags",
                )
            return None
        if spec.exclude == []:
            self.problems.add(exclude_place, "is empty")
        for at, text in enumerate(texts(spec.exclude)):
            with self.problems.at(_item(spec.exclude, exclude_place, at)):
                check_repository_pattern(text)
        return RepositoryPattern(source.repository, tuple(texts(spec.exclude)))

    def _is_like_source(
        self,
        spec: EntryDocument,
        repository: RepositoryDocument,
        source: ImageSource,
        targets: list[PlanTarget],
        place: str,
    ) -> bool:
        """Whether new repositories get the settings of the source; only private ones of ECR have any to give."""
        if repository.like != "source":
            return False
        lacking = ""
        if source.kind != "registry" or not has_ecr_api(source.host, self.sources.get(source.host)):
            lacking = f"{source.host or 'a layout or archive'} is not a registry of ECR"
        elif any(target.registry.service == "ecr-public" for target in targets):
            lacking = "ECR Public has other settings than ECR"
        if not lacking:
            return True
        own = spec.repository
        if not isinstance(own, UnsetType) and own.like == "source":
            self.problems.add(f"{place}.repository.like", f"is source, but {lacking}")
        else:
            self.unlike.setdefault(lacking, []).append(place)
        return False

    def _tags(self, spec: EntryDocument, source: ImageSource | None, place: str) -> TagRules:
        if source is not None and source.is_chosen:
            if spec.tags is not UNSET:
                self.problems.add(member(place, "tags"), f"is not allowed, since {spec.source[:300]} names one image")
            return TagRules(names=(source.reference,) if source.reference else ())
        if spec.tags is UNSET:
            self.used_defaults.add("tags")
            return self.default_tags
        rules = tag_rules(spec.tags, member(place, "tags"), self.problems)
        self.futile += futile_rules(rules, member(place, "tags"))
        return rules

    def _min_tags(self, spec: EntryDocument, rules: TagRules, place: str) -> int | None:
        """How many tags must match; the default applies only to rules, since tags that are named must exist anyway."""
        if spec.min_tags is UNSET:
            if not rules.needs_listing:
                return None
            self.used_defaults.add("min_tags")
            return given(self.defaults.min_tags)
        most = None if rules.needs_listing else len(rules.names)
        if rules.newest is not None:
            most = len(rules.names) + rules.newest
        if most is not None and spec.min_tags > most:
            self.problems.add(
                member(place, "min_tags"),
                f"is {spec.min_tags}, but the entry has at most {count_text(most, 'tag')}",
            )
        return spec.min_tags

    def _settings(self, spec: EntryDocument, place: str) -> RepositorySettings:
        if spec.repository is not UNSET:
            return self.repositories.settings(spec.repository, self.defaults.repository, member(place, "repository"))
        if self.default_settings is None:
            self.default_settings = self.repositories.settings(UNSET, self.defaults.repository, DEFAULTS)
        return self.default_settings

    def _target_names(self, spec: str | list[str] | UnsetType, place: str) -> list[PlanTarget]:
        found: dict[str, PlanTarget] = {}
        for name in texts(spec):
            if name in self.targets:
                found[name] = self.targets[name]
            else:
                known = ", ".join(self.targets) or "the plan's targets"
                self.problems.add(place, f"there is no target {name[:100]!r}", hint=f"use one of {known}")
        if spec == []:
            self.problems.add(place, "is empty", hint="name a target, or leave it out")
        return list(found.values())

    def _default_targets(self, place: str) -> list[PlanTarget]:
        if self.defaults.targets is not UNSET:
            return [self.targets[name] for name in dict.fromkeys(texts(self.defaults.targets)) if name in self.targets]
        if len(self.targets) > 1 and not self.is_ambiguous:
            self.is_ambiguous = True
            self.problems.add(
                "defaults.targets",
                f"the plan has several targets, and {place} names none of them",
                hint="name them in defaults.targets, or in each entry",
            )
        return list(self.targets.values())

    def _goals(
        self, spec: EntryDocument, source: ImageSource, rules: TagRules, targets: list[PlanTarget], place: str
    ) -> tuple[Goal, ...]:
        self.used.update(target.name for target in targets)
        destination_place, name, tag = member(place, "from"), source.name, source.tag
        if isinstance(spec.to, str):
            destination_place = member(place, "to")
            with self.problems.at(destination_place):
                check_placeholders(spec.to)
                if has_placeholder(spec.to) and not source.name:
                    raise InvalidReferenceError(f"is {spec.to[:300]!r}, but a layout or archive has no name")
                if source.is_pattern and not has_placeholder(spec.to):
                    raise InvalidReferenceError(
                        f"is {spec.to[:300]!r} for all repositories that match", hint=f"write {spec.to[:300]}/{{name}}"
                    )
                name, given_tag = read_destination(spec.to if source.is_pattern else fill_in(spec.to, source.name))
                tag = given_tag or tag
                if given_tag and source.kind == "registry" and not _is_one(source, rules):
                    self.problems.add(
                        destination_place, "names one tag, but the source has several", hint="leave it out"
                    )
        elif not source.name:
            self.problems.add(place, "has no to", hint="name the repository that a layout or archive goes to")
            return ()
        if not name:
            return ()
        return self.destinations.make(name, tag, targets, destination_place)

    def _notices(self, sources: Mapping[str, SourceRegistry]) -> tuple[str, ...]:
        unused = [f"registries: no entry reads from {host}" for host in sources if host not in self.hosts]
        idle = [f"targets: no entry goes to {name}" for name in self.targets if name not in self.used]
        unread = [
            f"defaults.{name}: every entry has its own" if name == "tags" else f"defaults.{name}: no entry uses it"
            for name in ("tags", "min_tags")
            if getattr(self.defaults, name) is not UNSET and name not in self.used_defaults
        ]
        unlike = [
            f"defaults.repository.like: no effect on {some_text(places, _SHOWN)}, since {reason}"
            for reason, places in self.unlike.items()
        ]
        return (*unused, *idle, *unread, *unlike, *dict.fromkeys(self.futile), *self.destinations.notices)


def _is_one(source: ImageSource, rules: TagRules) -> bool:
    return source.is_chosen or (len(rules.names) == 1 and not rules.needs_listing)


def futile_rules(rules: TagRules, place: str) -> Iterator[str]:
    """Messages about rules for tags at *place* that have no effect."""
    for name in rules.names:
        if name in rules.exclude_names:
            yield f"{place}: {name} is included by name, so excluding it has no effect"
    yield from _futile(Alternative(rules.patterns, rules.exclude), place)
    for at, alternative in enumerate(rules.alternatives):
        yield from _futile(alternative, f"{member(place, 'any')}[{at}]")


def futile_settings(
    settings: RepositorySettings, place: str, *, create: bool, like_source: bool = False
) -> Iterator[str]:
    """A message if the settings at *place* are for repositories that are not created."""
    if not create and (like_source or settings != RepositorySettings()):
        yield f"{place}: the settings have no effect without create: true or migrate --create-repository"


def _futile(spec: Alternative, place: str) -> Iterator[str]:
    yield from _impossible(spec.patterns, place)
    yield from _impossible(spec.exclude, member(place, "exclude"))
    for kind in ("glob", "regex"):
        wanted, unwanted = getattr(spec.patterns, kind), getattr(spec.exclude, kind)
        everything = {"glob": "*", "regex": ".*"}[kind]
        if everything in unwanted or (wanted and set(wanted) <= set(unwanted)):
            yield f"{place}: exclude matches every tag that {kind} matches, so no tag is left"


def _impossible(patterns: Patterns, place: str) -> Iterator[str]:
    """Messages about patterns that can't match any tag."""
    for glob in patterns.glob:
        odd = re.search(r"[^A-Za-z0-9_.*?-]", re.sub(r"\[[^]]+\]", "", glob))
        if odd:
            hint = " (Helm writes _ instead)" if odd[0] == "+" else ""
            yield f"{member(place, 'glob')}: {glob[:100]!r} matches no tag: tags can't contain {odd[0]!r}{hint}"
    for regex in patterns.regex:
        if re.search(r"(?<!\\)\$[A-Za-z0-9_]", re.sub(r"\[[^]]*\]", "", regex)):
            why = "$ is the end of a tag (write ${NAME} for a variable)"
            yield f"{member(place, 'regex')}: {regex[:100]!r} matches no tag: {why}"
    for version_range in patterns.semver:
        if version_range.is_empty:
            yield f"{member(place, 'semver')}: {version_range.text!r} contains no version"


def tag_rules(spec: str | list[str] | TagsDocument | UnsetType, place: str, problems: Problems) -> TagRules:
    """The rules that *spec* describes; their problems are noted at *place*."""
    if isinstance(spec, UnsetType):
        return TagRules()
    if not isinstance(spec, TagsDocument):
        return TagRules(names=_names(spec, place, problems))
    names = _names(spec.names, member(place, "names"), problems)
    base = _alternative(spec, place, problems)
    if spec.any == []:
        problems.add(member(place, "any"), "is empty")
    alternatives = tuple(
        _alternative(alternative, f"{member(place, 'any')}[{at}]", problems)
        for at, alternative in enumerate(given(spec.any) or ())
    )
    if names and (spec.glob, spec.regex, spec.semver, spec.any) == (UNSET, UNSET, UNSET, UNSET):
        for name in ("exclude", "newest"):
            if getattr(spec, name) is not UNSET:
                problems.add(
                    member(place, name), "applies to patterns, not to names", hint='add glob: "*" for all tags'
                )
    return TagRules(
        names=names,
        patterns=base.patterns,
        alternatives=alternatives,
        exclude=base.exclude,
        exclude_names=base.exclude_names,
        newest=given(spec.newest),
    )


def _alternative(spec: TagsDocument | AlternativeDocument, place: str, problems: Problems) -> Alternative:
    patterns = _patterns(spec, place, problems)
    exclude_place, exclude = member(place, "exclude"), given(spec.exclude) or ExcludeDocument()
    found = Alternative(
        patterns,
        _patterns(exclude, exclude_place, problems),
        _names(exclude.names, member(exclude_place, "names"), problems),
    )
    if isinstance(spec, AlternativeDocument) and found == Alternative() and not problems.has_below(place):
        problems.add(place, "matches all tags", hint="add glob, regex, semver or exclude")
    return found


def platforms(spec: Texts | UnsetType, place: str, problems: Problems) -> tuple[Platform, ...]:
    """The platforms that *spec* names; empty for all."""
    if isinstance(spec, UnsetType) or spec in ("all", ["all"]):
        return ()
    if not spec:
        problems.add(place, "is empty", hint="name a platform, or write all")
    found: dict[Platform, None] = {}
    for at, text in enumerate(texts(spec)):
        with problems.at(_item(spec, place, at)):
            found[Platform.parse(text)] = None
    return tuple(found)


def texts(spec: Texts | UnsetType) -> list[str]:
    """One text or several, as a list."""
    if isinstance(spec, UnsetType):
        return []
    return [spec] if isinstance(spec, str) else spec


def _names(spec: Texts | UnsetType, place: str, problems: Problems) -> tuple[str, ...]:
    if spec == []:
        problems.add(place, "is empty", hint="name a tag, or leave it out for all tags")
    for at, name in enumerate(texts(spec)):
        if not is_tag(name):
            is_digest = name.startswith("sha256:")
            hint = "write a separate entry for an image by digest: from: REPOSITORY@DIGEST"
            problems.add(_item(spec, place, at), f"{name[:140]!r} is not a tag", hint=hint if is_digest else None)
    return tuple(dict.fromkeys(texts(spec)))


def _patterns(spec: TagsDocument | AlternativeDocument | ExcludeDocument, place: str, problems: Problems) -> Patterns:
    ranges = []
    for at, text in enumerate(texts(spec.semver)):
        with problems.at(_item(spec.semver, member(place, "semver"), at)):
            ranges.append(VersionRange.parse(text))
    _check(spec.glob, check_glob, member(place, "glob"), problems)
    _check(spec.regex, check_regex, member(place, "regex"), problems)
    if spec.semver == []:
        problems.add(member(place, "semver"), "is empty")
    return Patterns(tuple(texts(spec.glob)), tuple(texts(spec.regex)), tuple(ranges))


def _check(spec: Texts | UnsetType, check: Callable[[str], None], place: str, problems: Problems) -> None:
    if spec == []:
        problems.add(place, "is empty")
    for at, text in enumerate(texts(spec)):
        with problems.at(_item(spec, place, at)):
            check(text)


def _item(spec: Texts | UnsetType, place: str, at: int) -> str:
    return f"{place}[{at}]" if isinstance(spec, list) else place
