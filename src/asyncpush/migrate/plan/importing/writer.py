"""A plan's document as YAML, with what could not be carried over as comments where it belongs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from asyncpush.migrate.plan.importing.draft import Draft, Image, Piece
from asyncpush.migrate.plan.resolve import OWN

# What means itself in every YAML, without quotes; between brackets, too.
_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*(?::[A-Za-z0-9_./@+-]+)*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})

# USER:PASSWORD@ before a host; a tag before a digest is none.
_PASSWORD = re.compile(r"(?<![^\s'\"/(\[])([^\s'\"/@:]+):[^\s/@]+@(?!sha256:)")

# What YAML's readers refuse, or take for the end of a line.
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def write_plan(draft: Draft, head: str) -> str:
    """The document; *head* is its first comment."""
    return "".join(f"{line}\n" for line in _lines(draft, head))


def _lines(draft: Draft, head: str) -> Iterator[str]:
    yield f"# {head}"
    yield from _comments(draft.notes, "")
    yield "version: 1"
    registries = {host: each for host, each in draft.registries.items() if each.members or each.notes}
    if registries:
        yield "registries:"
        for host, registry in registries.items():
            yield from _comments(registry.notes, "  ")
            yield f"  {_flow(host)}:{'' if registry.members else ' {}'}"
            yield from (f"    {name}: {_flow(value)}" for name, value in registry.members.items())
    if draft.targets != {OWN: {}}:
        yield "targets:"
        yield from (f"  {_flow(name)}: {_flow(said)}" for name, said in draft.targets.items())
    yield "images:"
    for each in draft.body:
        if isinstance(each, Image):
            yield from _entry(each, has_choice=len(draft.targets) > 1)
        else:
            yield from _comments([each], "  ")


def _entry(image: Image, *, has_choice: bool) -> Iterator[str]:
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
        return "{" + ", ".join(f"{_flow(name)}: {_flow(each)}" for name, each in value.items()) + "}"
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
