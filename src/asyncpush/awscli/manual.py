"""``help`` and ``--generate-cli-skeleton``: what an operation does and takes, from botocore's service model."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from botocore.utils import ArgumentGenerator

from asyncpush.awscli.global_options import GLOBAL_OPTIONS, GlobalOption
from asyncpush.awscli.operations import Json, Members, Operation, Option, operations
from asyncpush.reference import Service

_WIDTH = 80

_INPUT = (
    ("--cli-input-json (string)", ("The input as JSON: the text, file://PATH, or - for standard input. "
     "Options on the command line override its members.")),
    ("--cli-input-yaml (string)", "The input as YAML."),
    ("--generate-cli-skeleton (string)", ("Print an input to fill in (input, the default, or yaml-input), or check the "
     "input and print a sample response (output). Nothing is sent.")),
)  # fmt: skip

_OWN = (
    ("--no-cli-validate (boolean)", "Do not check values before sending: let ECR reject them."),
    ("--batch (string)", ("A file with many inputs, or - for standard input: JSON lines, or a JSON or YAML array. Many "
     "are sent at once, as fast as ECR allows; each result is one line of JSON. A layer that "
     "exists already is a success. Exit status 1 if any input failed.")),
    ("--unordered (boolean)", "With --batch: print results in the order in which they arrive."),
    ("--max-requests (integer)", "With --batch: the number of requests in flight (default 64)."),
)  # fmt: skip

_OWN_PARTS = (
    ("--layer-file (string)", ("A file to upload completely, part by part. It replaces --part-first-byte, "
     "--part-last-byte and --layer-part-blob.")),
    ("--part-size (integer)", "With --layer-file: the size of a part in bytes (default 10485760)."),
)  # fmt: skip


def service_manual(service: Service) -> str:
    """Help on *service*."""
    return _text(
        ("NAME", [service]),
        ("SYNOPSIS", [f"asyncpush {service} <operation> [<options>]", f"asyncpush {service} <operation> help"]),
        ("AVAILABLE COMMANDS", [f"o {name}" for name in operations(service)]),
        ("GLOBAL OPTIONS", _global_options()),
        ("EXIT STATUS", _EXIT_STATUS),
    )


def operation_manual(operation: Operation) -> str:
    """Help on *operation*."""
    own = [*_OWN, *(_OWN_PARTS if operation.needs_upload_body else ())]
    return _text(
        ("NAME", [operation.name]),
        ("DESCRIPTION", textwrap.wrap(plain_text(operation.model.documentation), _WIDTH - 7)),
        ("SYNOPSIS", synopsis(operation)),
        ("OPTIONS", [line for option in _shown(operation) for line in _described(*_option(option))]
         + [line for entry in _INPUT for line in _described(*entry)]),
        ("OPTIONS OF ASYNCPUSH", [line for entry in own for line in _described(*entry)]),
        ("GLOBAL OPTIONS", _global_options()),
        ("EXIT STATUS", _EXIT_STATUS),
    )  # fmt: skip


def synopsis(operation: Operation) -> list[str]:
    """The lines of the synopsis, as in ``aws ... help``: the operation's options first, then all others."""
    lines = [f"  {operation.name}"]
    for option in _shown(operation):
        words = f"{option.name} <value>"
        lines.append(words if option.required else f"[{words}]")
    if operation.paging:
        lines += ["[--starting-token <value>]", "[--page-size <value>]", "[--max-items <value>]"]
    lines += ["[--cli-input-json | --cli-input-yaml]", "[--generate-cli-skeleton <value>]"]
    return lines + [
        f"[{option.name} <value>]" if option.kind in ("text", "integer") else f"[{option.name}]"
        for option in GLOBAL_OPTIONS
    ]


_EXIT_STATUS = [
    "0    success",
    "1    some inputs of a batch failed",
    "130  interrupted",
    "252  the command or its input is invalid; nothing was sent",
    "253  no region or no credentials were found",
    "254  ECR returned an error",
    "255  anything else, such as no connection",
]


def _shown(operation: Operation) -> list[Option]:
    return [option for option in operation.options if option.shown]


def _option(option: Option) -> tuple[str, str]:
    required = " [required]" if option.required else ""
    return f"{option.name} ({option.shape.type_name}){required}", first_sentence(option.shape.documentation)


def _global_options() -> list[str]:
    return [line for option in GLOBAL_OPTIONS for line in _described(_heading(option), option.help)]


def _heading(option: GlobalOption) -> str:
    kind = {"text": "string", "integer": "int"}.get(option.kind, "boolean")
    return f"{option.name} ({kind}){': ' if option.choices else ''}{' | '.join(option.choices)}"


def _described(heading: str, words: str) -> Iterator[str]:
    yield heading
    yield from textwrap.wrap(words, _WIDTH - 14, initial_indent="    ", subsequent_indent="    ")


def _text(*sections: tuple[str, list[str]]) -> str:
    lines: list[str] = []
    for title, content in sections:
        lines += [title, *(f"       {line}" for line in content), ""]
    return "\n".join(lines)


_TAG = re.compile(r"<[^>]*>")
_SPACES = re.compile(r"\s+")
_SENTENCE = re.compile(r"(.*?\.)(?:\s|$)")


class _Generator(ArgumentGenerator):  # type: ignore[misc] # botocore is untyped
    """botocore's generator, but it selects the first of several choices, so that a skeleton is always the same."""

    def _generate_skeleton(self, shape: Any, stack: list[str], name: str = "") -> Json:
        if shape.type_name == "string" and shape.enum and not self._use_member_names:
            return str(shape.enum[0])
        skeleton: Json = super()._generate_skeleton(shape, stack, name)
        return skeleton


def input_skeleton(operation: Operation) -> str:
    """An empty input, as JSON."""
    return json.dumps(_Generator().generate_skeleton(operation.model.input_shape), indent=4) + "\n"


def output_skeleton(operation: Operation) -> Members:
    """A response in which the value of each member is its name."""
    members: Members = _Generator(use_member_names=True).generate_skeleton(operation.model.output_shape)
    return members


def yaml_skeleton(operation: Operation) -> str:
    """An empty input as YAML, with a comment on each member: what it is, and whether it is required."""
    return "".join(f"{line}\n" for line in _structure(operation.model.input_shape, ""))


def first_sentence(documentation: str) -> str:
    """The first sentence of a documentation text of the model, which is HTML."""
    text = plain_text(documentation)
    found = _SENTENCE.match(text)
    return found[1] if found else text


def plain_text(documentation: str) -> str:
    """A documentation text of the model without HTML."""
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
