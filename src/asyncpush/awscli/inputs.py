"""An operation's input: from the command line, from a JSON or YAML document, key by key, the command line first."""

from __future__ import annotations

import json

from botocore.exceptions import ParamValidationError
from botocore.validate import ParamValidator

from asyncpush.awscli.command import Command
from asyncpush.awscli.errors import ParameterError
from asyncpush.awscli.operations import Json, Members, Operation
from asyncpush.awscli.values import decode_blobs, read_document, read_value


def read_arguments(command: Command) -> Members:
    """The members that the command line gives; blocks while files are read.

    Raises:
        CommandError: one is written wrong, or its file can't be read.
    """
    return {
        option.member: read_value(option, command.words[option.member])
        for option in command.operation.options
        if option.member in command.words
    }


def read_input(command: Command, binary_format: str) -> Members:
    """The operation's whole input; blocks while files and standard input are read.

    Raises:
        CommandError: something in it is written wrong, or a file can't be read.
    """
    members = read_arguments(command)
    extras = command.extras
    if extras.json is not None:
        members = {**_from_json(read_document("--cli-input-json", extras.json)), **members}
    if extras.yaml is not None:
        members = {**_from_yaml(read_document("--cli-input-yaml", extras.yaml)), **members}
    return decoded(command.operation, members, binary_format)


def decoded(operation: Operation, members: Members, binary_format: str, *, files: bool = False) -> Members:
    """*members* with their blobs as bytes; with *files*, a blob may be ``fileb://PATH``, and it blocks.

    Raises:
        CommandError: one is not base64, or its file can't be read.
    """
    value = decode_blobs(members, operation.model.input_shape, binary_format, files=files)
    assert isinstance(value, dict)  # noqa: S101 - for the type
    return value


def validate(operation: Operation, members: Members) -> None:
    """See that nothing is missing or of a wrong type, as botocore does before it sends.

    Raises:
        ParamValidationError: something is.
    """
    report = ParamValidator().validate(members, operation.model.input_shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())


def _from_json(text: str) -> Members:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ParameterError("cli-input-json", "Invalid JSON received.") from error
    return _a_map("--cli-input-json", value)


def _from_yaml(text: str) -> Members:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError("--cli-input-yaml", f"Invalid YAML received: {error}") from error
    return _a_map("--cli-input-yaml", value)


def _a_map(option: str, value: Json) -> Members:
    if not isinstance(value, dict):
        raise ParameterError(option, f"Invalid type: expecting map, received {type(value)}")
    return value
