"""Read a plan from a file or standard input: a document in YAML or JSON, or a plain list."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import anyio
from anyio import to_thread

from asyncpush import open_files
from asyncpush.errors import InvalidReferenceError, Position, UsageError
from asyncpush.migrate.plan.diagnostics import Problems
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.plan.references import Destinations, ImageSource, read_source
from asyncpush.migrate.plan.resolve import resolve
from asyncpush.migrate.plan.tags import TagRules
from asyncpush.migrate.plan.wildcards import check_placeholders, fill_in, has_placeholder
from asyncpush.migrate.plan.yaml_loader import MAX_DOCUMENT, STANDARD_INPUT, MiB, find_positions, parse_document
from asyncpush.reference import Destination, RegistryName, parse_destination

_BLOCK = MiB


async def read_plan(
    path: str | Path,
    *,
    stdin: BinaryIO | None = None,
    environ: Mapping[str, str] = os.environ,
    unset: list[str] | None = None,
) -> Plan:
    """Read a plan and check it without using the network.

    Args:
        path: the plan's file; ``-`` is *stdin*. It contains a document (``document.PlanDocument``) in YAML or JSON, or
            a list with ``SOURCE DESTINATION`` on each line; the format is detected.
        stdin: what ``-`` reads; None is the standard input of the process.
        environ: the variables that ``${NAME}`` refers to.
        unset: receives a line for each variable that is not set, and the plan lacks what depends on it; None raises
            such lines as problems.

    Raises:
        PlanError: the plan has problems; the error lists all of them.
        UsageError: it can't be read, or is not YAML, JSON or a list.
    """
    text = await read_text(path, stdin=stdin)
    file = None if str(path) == "-" else Path(path)
    return await to_thread.run_sync(partial(parse_plan, text, file, environ, unset=unset))


def parse_plan(text: str, path: Path | None, environ: Mapping[str, str], *, unset: list[str] | None = None) -> Plan:
    """Make a plan from its text; blocks while it looks for the files that the plan names.

    Args:
        text: a document or a list.
        path: the file that it was read from; paths in a document are relative to its directory.
        environ: the variables that ``${NAME}`` refers to.
        unset: as of ``read_plan``.

    Raises:
        PlanError: the plan has problems.
        UsageError: it is not YAML, JSON or a list.
    """
    label = name_of(path)
    problems = Problems(allows_unset=unset is not None)
    if not text.strip():
        raise UsageError(
            f"{label} is empty",
            hint="write images, or lines of SOURCE DESTINATION; if --failed-out wrote it, nothing had failed",
        )
    if next(significant_lines(text), None) is None:
        raise UsageError(
            f"{label} holds no image, only comments",
            hint="if --failed-out wrote them, a list can't name what failed: run the plan of that run with --failed",
        )
    if is_list(text):
        plan = read_list(text, Path(), problems)
    else:
        is_json = path is not None and path.suffix == ".json"
        document = parse_document(text, label, is_json=is_json)
        plan = resolve(document, environ, path.parent if path else Path(), problems)
    find = partial(_line_positions if is_list(text) else find_positions, text, path)
    problems.raise_any(label, find)
    if unset is not None:
        positions = find({place for place, _ in problems.unset}) if problems.unset else {}
        unset += dict.fromkeys(f"{positions.get(place, label)}: {line}" for place, line in problems.unset)
    return replace(plan, path=path)


def name_of(path: Path | None) -> str:
    """The name of a plan in errors."""
    return str(path) if path else STANDARD_INPUT


def _line_positions(_: str, file: Path | None, places: Collection[str]) -> dict[str, Position]:
    return {place: Position(file, int(place.removeprefix("line "))) for place in places if place}


async def read_text(path: str | Path, *, stdin: BinaryIO | None = None) -> str:
    """The text of a file or of standard input; a caller that waits for a pipe can be cancelled.

    Args:
        path: the file; ``-`` is *stdin*.
        stdin: what ``-`` reads; None is the standard input of the process.

    Raises:
        UsageError: it can't be read, is too long, or is not UTF-8 text.
    """
    label = name_of(None if str(path) == "-" else Path(path))
    try:
        if str(path) == "-":
            raw = await _read_stream(stdin or (sys.stdin.buffer if sys.stdin else None))
        else:
            raw = await _read_file(Path(path))
    except ValueError as error:
        raise UsageError(f"{label[:300]!r} can't be read: {error}") from error
    except OSError as error:
        raise UsageError(f"{label} can't be read: {open_files.reason(error)}", hint="name a file") from error
    if len(raw) > MAX_DOCUMENT:
        raise UsageError(f"{label} has more than {MAX_DOCUMENT // MiB} MiB", hint="split it into several plans")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{label} is not UTF-8 text (byte {error.start})") from error


async def _read_file(path: Path) -> bytes:
    # A named pipe without a writer would block here for ever; regular files ignore the flag.
    descriptor = await to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return await _drain(descriptor)
    finally:
        os.close(descriptor)


async def _read_stream(stream: BinaryIO | None) -> bytes:
    if stream is None:
        raise UsageError("standard input is closed")
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return await to_thread.run_sync(stream.read, MAX_DOCUMENT + 1)
    if await to_thread.run_sync(os.isatty, descriptor):
        raise UsageError("standard input is a terminal", hint="give a file or a pipe")
    return await _drain(descriptor)


async def _drain(descriptor: int) -> bytes:
    """All bytes of a file or pipe, but at most one more than allowed."""
    found = bytearray()
    while len(found) <= MAX_DOCUMENT:
        # A regular file refuses: it is always readable.
        with suppress(PermissionError):
            await anyio.wait_readable(descriptor)
        try:
            block = await to_thread.run_sync(os.read, descriptor, _BLOCK)
        except BlockingIOError:
            continue
        if not block:
            break
        found += block
    return bytes(found)


_KEY = re.compile(r"""["']?[A-Za-z0-9_./:*-]*["']?\s*:(?:\s|$)|["'{\[&!]|-\s|-$|---|%""")


def significant_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty or comments, with their numbers from 1."""
    for number, line in enumerate(text.splitlines(), 1):
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if words:
            yield number, words


def is_list(text: str) -> bool:
    """Whether *text* is a plain list and not YAML or JSON: its first line is neither ``KEY:`` nor an item."""
    first = next((line for _, line in significant_lines(text)), None)
    return first is not None and _KEY.match(first) is None


def words_of(line: str) -> list[str]:
    """The words of a line, separated by spaces or commas."""
    return [word for word in re.split(r"[\s,]+", line) if word]


def read_list(text: str, base: Path, problems: Problems) -> Plan:
    """Read a list; blocks while it looks for files. The plan is valid only if there are no problems.

    The tag of a source in a registry is ``latest`` by default; that of a destination is the source's, and its registry
    is the caller's own. ``{name}`` in a destination is the path of the source, as in a document.

    Args:
        text: the list.
        base: the directory that paths are relative to.
        problems: collects the problems.
    """
    targets: dict[RegistryName, PlanTarget] = {}
    goals = Destinations(problems)
    entries: list[PlanEntry] = []
    for number, line in significant_lines(text):
        place = f"line {number}"
        words = words_of(line)
        if len(words) != 2:
            problems.add(place, f"{' '.join(words)[:300]!r} is not SOURCE DESTINATION")
            continue
        with problems.at(place):
            check_placeholders(words[1])
            source_image = read_source(words[0], base)
            if source_image.is_pattern:
                raise InvalidReferenceError(
                    f"{words[0][:300]!r} is a pattern", hint="a list names single images: write a plan"
                )
            if has_placeholder(words[1]) and not source_image.name:
                raise InvalidReferenceError(f"{words[1][:300]!r} needs a source in a registry, which has a name")
            destination = parse_destination(fill_in(words[1], source_image.name))
            target = targets.setdefault(destination.registry, _target(destination.registry))
            entry = _entry(place, words[0], source_image, destination, target, goals)
            goals.note(entry)
            entries.append(entry)
    return Plan({}, tuple(targets.values()), tuple(entries), notices=tuple(goals.notices))


def _target(registry: RegistryName) -> PlanTarget:
    alias = f"/{registry.id}" if registry.service == "ecr-public" else ""
    return PlanTarget(f"{registry.host}{alias}" or "own", registry)


def _entry(
    place: str, source: str, source_image: ImageSource, to: Destination, target: PlanTarget, goals: Destinations
) -> PlanEntry:
    location, reference, tag = source_image.location, source_image.reference, source_image.tag
    if source_image.kind == "registry" and reference is None:
        reference = tag = "latest"
        location = f"{location}:latest"
    made = goals.make(to.repository, to.tag or tag, [target], place)
    if not made:
        raise InvalidReferenceError(f"{to} is not a destination")
    return PlanEntry(
        place=place,
        source=source,
        kind=source_image.kind,
        location=location,
        host=source_image.host,
        repository=source_image.repository,
        reference=reference,
        tags=TagRules(names=(reference,) if reference else ()),
        goals=made,
    )
