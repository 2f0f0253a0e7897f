"""``--generate-cli-skeleton``: an input to fill in, as JSON or as YAML with comments, or a made-up answer."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from botocore.utils import ArgumentGenerator

from asyncpush.awscli.operations import Json, Members, Operation

_TAG = re.compile(r"<[^>]*>")
_SPACES = re.compile(r"\s+")
_SENTENCE = re.compile(r"(.*?\.)(?:\s|$)")


class _Generator(ArgumentGenerator):  # type: ignore[misc] # botocore is untyped
    """botocore's, but that of several choices it takes the first, where that takes any: the same skeleton each time."""

    def _generate_skeleton(self, shape: Any, stack: list[str], name: str = "") -> Json:
        if shape.type_name == "string" and shape.enum and not self._use_member_names:
            return str(shape.enum[0])
        skeleton: Json = super()._generate_skeleton(shape, stack, name)
        return skeleton


def input_skeleton(operation: Operation) -> str:
    """An empty input, as JSON."""
    return json.dumps(_Generator().generate_skeleton(operation.model.input_shape), indent=4) + "\n"


def output_skeleton(operation: Operation) -> Members:
    """An answer in which each member says its name."""
    members: Members = _Generator(use_member_names=True).generate_skeleton(operation.model.output_shape)
    return members


def yaml_skeleton(operation: Operation) -> str:
    """An empty input, as YAML, with a comment on each member: whether it is required, and what it is."""
    return "".join(f"{line}\n" for line in _structure(operation.model.input_shape, ""))


def first_sentence(documentation: str) -> str:
    """The first sentence of a piece of the model's documentation, which is HTML."""
    text = plain_text(documentation)
    found = _SENTENCE.match(text)
    return found[1] if found else text


def plain_text(documentation: str) -> str:
    """A piece of the model's documentation without its HTML."""
    return _SPACES.sub(" ", html.unescape(_TAG.sub("", documentation))).strip()


def _structure(shape: Any, indent: str) -> Iterator[str]:
    for position, (name, member) in enumerate(shape.members.items()):
        # The aws CLI's YAML writer puts two spaces before the first comment of a map, and one before the others.
        gap = " " if position else "  "
        yield f"{indent}{name}:{_scalar(member)}{gap}# {_comment(shape, name)}"
        yield from _inner(member, indent)


def _inner(shape: Any, indent: str) -> Iterator[str]:
    if shape.type_name == "structure":
        yield from _structure(shape, f"{indent}  ")
    elif shape.type_name == "list":
        if shape.member.type_name != "structure":
            yield f"{indent}-{_scalar(shape.member)}"
            return
        for position, line in enumerate(_structure(shape.member, f"{indent}  ")):
            yield f"{indent}- {line.lstrip()}" if position == 0 else line


def _scalar(shape: Any) -> str:
    match shape.type_name:
        case "structure" | "list":
            return ""
        case "boolean":
            return " true"
        case "integer" | "long":
            return " 0"
        case "string" if shape.enum:
            return f" {shape.enum[0]}"
    return " ''"


def _comment(parent: Any, name: str) -> str:
    shape = parent.members[name]
    words = ["[REQUIRED]"] if name in parent.required_members else []
    words.append(first_sentence(shape.documentation))
    if shape.type_name == "string" and shape.enum:
        words.append(f"Valid values are: {', '.join(shape.enum)}.")
    return " ".join(words)
