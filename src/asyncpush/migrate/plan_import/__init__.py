"""Plans from the configurations of other tools: skopeo sync, regsync, image-syncer, dregsy, ocync, and plain lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.load import is_list, significant_lines, words_of
from asyncpush.migrate.plan.resolve import resolve
from asyncpush.migrate.plan.yaml_loader import RawScalar, Value, escape, parse_document
from asyncpush.migrate.plan_import.builder import (
    ImportedRegistry,
    Piece,
    PlanBuilder,
    comment,
    foreseen,
    split_host,
    write_plan,
)
from asyncpush.migrate.plan_import.dregsy import import_dregsy, is_dregsy
from asyncpush.migrate.plan_import.image_syncer import import_image_syncer, is_image_syncer
from asyncpush.migrate.plan_import.ocync import import_ocync, is_ocync
from asyncpush.migrate.plan_import.regsync import import_regsync, is_regsync
from asyncpush.migrate.plan_import.skopeo import import_skopeo, is_skopeo
from asyncpush.reference import Prefix
from asyncpush.sources.source import KINDS

Format = Literal["skopeo", "regsync", "image-syncer", "dregsy", "ocync", "list"]

FORMATS: tuple[Format, ...] = get_args(Format)

#: In this order: formats that one key identifies come before those that only their shape identifies.
_DETECTORS = (
    ("regsync", is_regsync),
    ("dregsy", is_dregsy),
    ("ocync", is_ocync),
    ("skopeo", is_skopeo),
    ("image-syncer", is_image_syncer),
)


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported plan.

    Attributes:
        format: the format of the configuration.
        text: the plan's document, in YAML.
        notes: what could not be imported, one line each; ``text`` has them as comments.
    """

    format: Format
    text: str
    notes: tuple[str, ...]


def import_plan(
    text: str,
    label: str,
    *,
    form: Format | None = None,
    to: Prefix | None = None,
    scoped: bool = False,
    auth: str | None = None,
    base: Path | None = None,
) -> Imported:
    """Convert another tool's configuration to a plan; blocks while it looks for the files that it names.

    Args:
        text: the configuration.
        label: its name in errors.
        form: its format; None to detect it.
        to: where all images go; None to leave that to the configuration.
        scoped: skopeo only: name repositories after the source's full path.
        auth: image-syncer only: the text of its credentials file.
        base: the directory that paths in the plan are relative to; None for the working directory.

    Raises:
        UsageError: it is not a configuration, or nothing in it can be imported.
    """
    draft = PlanBuilder(to, scoped)
    if form == "list" or (form is None and is_list(text)):
        form = "list"
        _import_list(text, draft)
    else:
        document = parse_document(text, label)
        form = form or _detect(document, label)
        _import_document(form, document, draft, label, auth)
    _drop_invalid(draft, base or Path(), label)
    head = f"Imported from {'a list' if form == 'list' else f'the configuration of {form}'} by asyncpush plan import."
    return Imported(form, write_plan(draft, head), tuple(comment(note) for note in draft.all_notes()))


def _detect(document: Value, label: str) -> Format:
    if isinstance(document, dict):
        if isinstance(document.get("images"), list):
            raise UsageError(f"{label} is already a plan", hint="check it with asyncpush plan check")
        for name, is_format in _DETECTORS:
            if is_format(document):
                return next(form for form in FORMATS if form == name)
    raise UsageError(f"{label} is none of {', '.join(FORMATS)}", hint="choose one with --format")


def _import_document(form: Format, document: Value, draft: PlanBuilder, label: str, auth: str | None) -> None:
    if not isinstance(document, dict):
        raise UsageError(f"{label} is not a mapping, as a configuration of {form} is")
    match form:
        case "skopeo":
            import_skopeo(document, draft)
        case "regsync":
            import_regsync(document, draft)
        case "dregsy":
            import_dregsy(document, draft)
        case "ocync":
            import_ocync(document, draft)
        case _:
            import_image_syncer(document, draft, parse_document(auth, "the file of --auth") if auth else None)


def _import_list(text: str, draft: PlanBuilder) -> None:
    """Import the lines ``SOURCE [DESTINATION]``; a source in a registry is ``latest`` where it has no tag."""
    for number, line in significant_lines(text):
        with foreseen(draft.warn_here, f"line {number}"):
            words = words_of(line)
            if len(words) not in (1, 2):
                raise UsageError(f"{line[:300]!r} is not SOURCE [DESTINATION]")
            source = words[0]
            is_local = source.partition(":")[0] in KINDS or source.startswith(("/", "./", "../"))
            if not is_local and ":" not in source.rpartition("/")[2] and "@" not in source:
                source = f"{source}:latest"
            host, path = split_host(words[1]) if len(words) == 2 else ("", "")
            draft.image(source, {"to": escape(path) or None}, host=host)


def _drop_invalid(draft: PlanBuilder, base: Path, label: str) -> None:
    """Drop entries that are invalid in a plan, with a note, and targets and registries that no entry needs."""
    while draft.images:
        used = {str(target) for image in draft.images for target in _texts(image.members["targets"])}
        draft.targets = {name: target for name, target in draft.targets.items() if name in used}
        problems = Problems()
        plan = resolve(_document(draft), _AnyVariable(), base, problems)
        hosts = {entry.host for entry in plan.entries}
        draft.registries = {host: registry for host, registry in draft.registries.items() if host in hosts}
        if not problems:
            return
        _drop(draft, problems, label)
    last = "; ".join(map(comment, draft.all_notes()[-5:]))
    raise UsageError(f"nothing in {label} can be imported" + (f" ({last})" if last else ""))


def _drop(draft: PlanBuilder, problems: Problems, label: str) -> None:
    images = draft.images
    wrong: dict[int, str] = {}
    for place, line in problems.lines():
        match = re.match(r"images\[([0-9]+)\]", place)
        host = next((known for known in draft.registries if place.startswith(member("registries", known))), None)
        text = line.removeprefix(f"{place}: ")
        if match:
            source = images[int(match[1])].members["from"]
            wrong.setdefault(id(images[int(match[1])]), f"{source}: {text}; not imported")
        elif host is not None:
            draft.registries[host] = ImportedRegistry(notes=[f"{line}; not imported"])
        elif not place.startswith("registries"):
            raise UsageError(f"{label} does not make a valid plan: {line}")
    draft.body = [wrong.get(id(part), part) for part in draft.body]


def _texts(piece: Piece) -> list[Piece]:
    return piece if isinstance(piece, list) else [piece]


def _document(draft: PlanBuilder) -> Value:
    """The document as a plan, with all targets."""
    registries = {host: _value(registry.members) for host, registry in draft.registries.items()}
    # Only the environment of a run tells which registry a variable stands for.
    targets = {
        name: _value({} if "${" in str(target.get("registry")) else target) for name, target in draft.targets.items()
    }
    images = [_value(image.members) for image in draft.images]
    return {"version": RawScalar("1"), "registries": registries, "targets": targets, "images": images}


def _value(piece: Piece | dict[str, Piece]) -> Value:
    if isinstance(piece, dict):
        return {name: _value(inner) for name, inner in piece.items()}
    if isinstance(piece, list):
        return [_value(inner) for inner in piece]
    return piece if isinstance(piece, str) else RawScalar(str(piece).lower())


class _AnyVariable(Mapping[str, str]):
    """An environment in which every variable is set."""

    def __getitem__(self, name: str) -> str:
        return "x"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
