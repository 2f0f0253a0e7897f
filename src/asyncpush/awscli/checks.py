"""What ECR would refuse, found before anything is sent: the patterns, maxima and choices of the service model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from asyncpush.awscli.errors import CommandError
from asyncpush.awscli.operations import Json, Members, Operation, Option

#: Longer values are cut in messages.
_SHOWN = 80


def check(operation: Operation, members: Members) -> None:
    """See that *members* keep what the model says; they have passed botocore's validation.

    Raises:
        CommandError: they don't; it names each option, as it is written.
    """
    problems = list(find_problems(operation, members))
    if problems:
        raise CommandError("\n".join([*problems, "Nothing was sent; --no-cli-validate sends it as it is."]))


def find_problems(operation: Operation, members: Members) -> Iterator[str]:
    """What is wrong with *members*, a line each, headed by the option."""
    for option in operation.options:
        if option.member in members:
            yield from _problems(option, "", option.shape, members[option.member])


def _problems(option: Option, path: str, shape: Any, value: Json) -> Iterator[str]:
    where = f"{option.name} ({path.lstrip('.')})" if path else option.name
    if isinstance(value, dict) and shape.type_name == "structure":
        for name, inner in shape.members.items():
            if name in value:
                yield from _problems(option, f"{path}.{name}", inner, value[name])
        return
    if (words := _too_much(shape, value)) is not None:
        yield f"{where}: {words}"
    elif isinstance(value, list):
        for position, each in enumerate(value):
            yield from _problems(option, f"{path}[{position}]", shape.member, each)
    elif isinstance(value, str):
        if shape.enum and value not in shape.enum:
            yield f"{where}: {_show(value)} is none of {', '.join(shape.enum)}"
        pattern = shape.metadata.get("pattern")
        if pattern and not _compiled(pattern).fullmatch(value):
            yield f"{where}: {_show(value)} does not match {pattern}"


def _too_much(shape: Any, value: Json) -> str | None:
    most = shape.metadata.get("max")
    if most is None:
        return None
    if isinstance(value, int):
        return f"{value} is more than {most}" if value > most else None
    if not isinstance(value, (str, bytes, bytearray, list)) or len(value) <= most:
        return None
    unit = "elements" if isinstance(value, list) else "characters" if isinstance(value, str) else "bytes"
    return f"{len(value)} {unit}, and {most} is the most"


def _show(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
