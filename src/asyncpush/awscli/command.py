"""Parses a command of the aws CLI: its service, its operation and its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, NoReturn

from asyncpush.awscli.errors import CommandError, WordsError
from asyncpush.awscli.global_options import GLOBAL_OPTIONS, SERVICES, Globals
from asyncpush.awscli.operations import Operation, operations
from asyncpush.reference import Service

Skeleton = Literal["input", "yaml-input", "output"]

HELP = ("help", "--help", "-h")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The options of the command that are not members of the input.

    Attributes:
        json: ``--cli-input-json``.
        yaml: ``--cli-input-yaml``.
        skeleton: ``--generate-cli-skeleton``.
        validate: whether patterns and maxima are checked before sending.
        batch: a file of inputs, or ``-``.
        unordered: whether the results of a batch are printed in the order in which they arrive.
        max_requests: the requests of a batch in flight at once.
        layer_file: a file to upload completely.
        part_size: the size of its parts, in bytes.
    """

    json: str | None = None
    yaml: str | None = None
    skeleton: Skeleton | None = None
    validate: bool = True
    batch: str | None = None
    unordered: bool = False
    max_requests: int = 64
    layer_file: str | None = None
    part_size: int | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed command.

    Attributes:
        operation: the operation.
        words: the text given for each member of the input.
        page_words: the values of ``--starting-token``, ``--page-size`` and ``--max-items``.
        extras: the options that are not members of the input.
        options: the global options.
    """

    operation: Operation
    words: dict[str, str | list[str]]
    page_words: dict[str, str | int]
    extras: Extras
    options: Globals


@dataclass(frozen=True, slots=True)
class HelpWanted:
    """A request for help on a service or an operation."""

    service: Service
    operation: Operation | None


@dataclass(frozen=True, slots=True)
class VersionWanted:
    """A request for the version."""


def read_command(words: Sequence[str]) -> Command | HelpWanted | VersionWanted:
    """Parse *words*.

    Raises:
        CommandError: they are not a valid command.
    """
    options, rest = _globals(words)
    if isinstance(options, VersionWanted):
        return options
    service: Service = "ecr-public" if rest[0] == "ecr-public" else "ecr"
    known = operations(service)
    if rest[1:2] and rest[1] in HELP:
        return HelpWanted(service, None)
    parser = _Parser()
    parser.add_argument("operation", choices=list(known))
    chosen, rest = parser.parse_known_args(rest[1:])
    operation = known[chosen.operation]
    if len(rest) == 1 and rest[0] in HELP:
        return HelpWanted(service, operation)
    return _operation(operation, rest, options)


def _globals(words: Sequence[str]) -> tuple[Globals | VersionWanted, list[str]]:
    parser = _Parser()
    for option in GLOBAL_OPTIONS:
        match option.kind:
            case "on" | "off":
                action = "store_true" if option.kind == "on" else "store_false"
                parser.add_argument(option.name, dest=option.member, action=action, default=argparse.SUPPRESS)
            case kind:
                parser.add_argument(
                    option.name,
                    dest=option.member,
                    type=int if kind == "integer" else str,
                    choices=option.choices or None,
                    default=argparse.SUPPRESS,
                )
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", choices=SERVICES)
    if "--version" in words:
        return VersionWanted(), []
    found, rest = parser.parse_known_args(list(words))
    given = vars(found)
    return Globals(**{option.name: given[option.name] for option in fields(Globals) if option.name in given}), [
        found.command,
        *rest,
    ]


def _operation(operation: Operation, words: list[str], options: Globals) -> Command:
    parser = _Parser()
    # As in the aws CLI, required options are optional if the words name another source of the input.
    optional = any(word.partition("=")[0] in ("--cli-input-json", "--cli-input-yaml", "--batch") for word in words)
    optional = optional or _skeleton_of_input(words)
    for option in operation.options:
        parser.add_argument(
            option.name,
            dest=option.attribute,
            nargs="*" if option.shape.type_name == "list" else None,
            required=option.required and not optional and not _cut_by_us(option.member, words),
        )
    if operation.paging:
        parser.add_argument("--starting-token", dest="page:StartingToken")
        parser.add_argument("--page-size", dest="page:PageSize", type=int)
        parser.add_argument("--max-items", dest="page:MaxItems", type=int)
    _add_extras(parser, operation)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise WordsError(f"Unknown options: {', '.join(unknown)}")
    given = {name: value for name, value in vars(found).items() if value is not None}
    extras = Extras(**{option.name: given[option.name] for option in fields(Extras) if option.name in given})
    return Command(operation, _under("member:", given), _under("page:", given), extras, options)


def _under(prefix: str, given: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


def _skeleton_of_input(words: list[str]) -> bool:
    """Whether a skeleton is requested that needs no arguments; the output skeleton needs all of them."""
    if "--generate-cli-skeleton" not in words:
        return any(word in ("--generate-cli-skeleton=input", "--generate-cli-skeleton=yaml-input") for word in words)
    return words[words.index("--generate-cli-skeleton") + 1 :][:1] != ["output"]


def _cut_by_us(member: str, words: list[str]) -> bool:
    """Whether ``--layer-file`` provides *member*."""
    given = any(word.partition("=")[0] == "--layer-file" for word in words)
    return given and member in ("partFirstByte", "partLastByte", "layerPartBlob")


def _add_extras(parser: _Parser, operation: Operation) -> None:
    parser.add_argument("--cli-input-json", dest="json")
    parser.add_argument("--cli-input-yaml", dest="yaml")
    parser.add_argument(
        "--generate-cli-skeleton", dest="skeleton", nargs="?", const="input", choices=("input", "yaml-input", "output")
    )
    parser.add_own("--no-cli-validate", dest="validate", action="store_false")
    parser.add_own("--batch", dest="batch")
    parser.add_own("--unordered", dest="unordered", action="store_true")
    parser.add_own("--max-requests", dest="max_requests", type=_positive)
    if operation.needs_upload_body:
        parser.add_own("--layer-file", dest="layer_file")
        parser.add_own("--part-size", dest="part_size", type=_positive)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


class _Parser(argparse.ArgumentParser):
    """argparse as the aws CLI uses it; errors are raised."""

    def __init__(self) -> None:
        super().__init__(prog="asyncpush", add_help=False, usage=argparse.SUPPRESS)
        self._own: set[str] = set()

    def add_own(self, name: str, **settings: Any) -> None:
        """Add an option that the aws CLI lacks; it can't be abbreviated, so that aws's abbreviations still work."""
        self._own.add(name)
        self.add_argument(name, **settings)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        found = super()._get_option_tuples(option_string)
        return [match for match in found if not self._own.intersection(match[0].option_strings)]

    def error(self, message: str) -> NoReturn:
        raise WordsError(f"asyncpush: error: {message}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        message = f"Invalid choice, valid choices are: {', '.join(choices)}"
        if near := get_close_matches(str(value), choices, cutoff=0.8):
            message += f"; maybe you meant: {', '.join(near)}"
        raise argparse.ArgumentError(action, message)


def check_combination(command: Command) -> None:
    """Check that the options can be combined.

    Raises:
        CommandError: they can't.
    """
    extras = command.extras
    if extras.json and extras.yaml:
        raise CommandError("Only one --cli-input- parameter may be specified.")
    if extras.batch and (extras.json or extras.yaml or extras.skeleton or extras.layer_file):
        raise CommandError("--batch can't be combined with another input, a skeleton or --layer-file.")
    if extras.batch and command.options.output not in (None, "json"):
        raise CommandError(f"--batch prints JSON lines; it does not support --output {command.options.output}.")
    if extras.unordered and not extras.batch:
        raise CommandError("--unordered needs --batch.")
    if extras.layer_file and extras.skeleton:
        raise CommandError("--layer-file can't be combined with a skeleton.")
    if extras.part_size and not extras.layer_file:
        raise CommandError("--part-size needs --layer-file.")
    if extras.layer_file and (command.words.keys() & {"partFirstByte", "partLastByte", "layerPartBlob"}):
        raise CommandError(
            "--layer-file can't be combined with --part-first-byte, --part-last-byte or --layer-part-blob."
        )
