"""An operation's input: read from the command line and from documents, decoded, validated and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from botocore.exceptions import ParamValidationError
from botocore.validate import ParamValidator

from asyncpush.awscli.command import Command
from asyncpush.awscli.errors import CommandError, ParameterError
from asyncpush.awscli.operations import Json, Members, Operation, Option
from asyncpush.awscli.values import decode_blobs, read_document, read_value


def read_arguments(command: Command) -> Members:
    """The members given on the command line; blocks while files are read.

    Raises:
        CommandError: one is invalid, or its file can't be read.
    """
    return {
        option.member: read_value(option, command.words[option.member])
        for option in command.operation.options
        if option.member in command.words
    }


def read_input(command: Command, binary_format: str) -> Members:
    """The complete input of the operation; blocks while files and standard input are read.

    Raises:
        CommandError: a member is invalid, or a file can't be read.
    """
    members = read_arguments(command)
    extras = command.extras
    if extras.json is not None:
        members = {**_from_json(read_document("--cli-input-json", extras.json)), **members}
    if extras.yaml is not None:
        members = {**_from_yaml(read_document("--cli-input-yaml", extras.yaml)), **members}
    return decoded(command.operation, members, binary_format)


def decoded(operation: Operation, members: Members, binary_format: str, *, files: bool = False) -> Members:
    """*members* with blobs as bytes; with *files*, a blob can be ``fileb://PATH``, and this blocks.

    Raises:
        CommandError: one is not base64, or its file can't be read.
    """
    value = decode_blobs(members, operation.model.input_shape, binary_format, files=files)
    assert isinstance(value, dict)  # noqa: S101 - for the type
    return value


def validate(operation: Operation, members: Members) -> None:
    """Check for missing members and wrong types, as botocore does before it sends.

    Raises:
        ParamValidationError: there are some.
    """
    report = ParamValidator().validate(members, operation.model.input_shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())


def _from_json(text: str) -> Members:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError("cli-input-json", "Invalid JSON received.") from error
    return _a_map("--cli-input-json", value)


def _from_yaml(text: str) -> Members:
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ParameterError("--cli-input-yaml", f"Invalid YAML received: {error}") from error
    return _a_map("--cli-input-yaml", value)


def _a_map(option: str, value: Json) -> Members:
    if not isinstance(value, dict):
        raise ParameterError(option, f"Invalid type: expecting map, received {type(value)}")
    return value


#: Characters of a value that a message shows.
_SHOWN = 80


def check(operation: Operation, members: Members) -> None:
    """Check the patterns, maxima and choices of the service model, for *members* that passed ``validate``.

    Raises:
        CommandError: a value does not fit; the message names each option.
    """
    problems = list(find_problems(operation, members))
    if problems:
        raise CommandError("\n".join([*problems, "Nothing was sent. To send it anyway, add --no-cli-validate."]))


def find_problems(operation: Operation, members: Members) -> Iterator[str]:
    """The problems of *members*, one line each, beginning with the option."""
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
            yield f"{where}: {_show(value)} is not one of {', '.join(shape.enum)}"
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
    return f"{len(value)} {unit}; the maximum is {most}"


def _show(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
