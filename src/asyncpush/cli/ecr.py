"""``asyncpush ecr``: one operation as ``aws ecr`` does it, or a batch of them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version

from cyclopts import App

from asyncpush.awscli.call import call, prepare, single
from asyncpush.awscli.checks import check
from asyncpush.awscli.command import Command, HelpWanted, VersionWanted, check_combination, read_command
from asyncpush.awscli.configuration import Configuration, aws_configuration, read_configuration
from asyncpush.awscli.errors import explain
from asyncpush.awscli.formats import OperationOutput, Query, printable, render
from asyncpush.awscli.inputs import read_input, validate
from asyncpush.awscli.layer_file import check_whole, find_layer_file, upload_file
from asyncpush.awscli.manual import operation_manual, service_manual
from asyncpush.awscli.operations import Members
from asyncpush.awscli.skeleton import input_skeleton, output_skeleton, yaml_skeleton
from asyncpush.cli.ecr_batch import run_batch
from asyncpush.cli.run import DONE, INTERRUPTED, run_quietly
from asyncpush.cli.streams import debug_log, say, write_as_it_is

#: They say that the commands are there; their words are never cyclopts's to take apart.
app = App(name="ecr", help_flags=(), version_flags=())
public_app = App(name="ecr-public", help_flags=(), version_flags=())


def run_aws(words: Sequence[str]) -> int:
    """Run a command of ``aws``'s; all that can go wrong ends as a text on standard error and an exit status."""
    try:
        wanted = read_command(words)
        match wanted:
            case VersionWanted():
                write_as_it_is(f"asyncpush {version('asyncpush')}\n", needed=True)
            case HelpWanted(operation=None):
                write_as_it_is(service_manual(wanted.service), needed=True)
            case HelpWanted(operation=operation) if operation:
                write_as_it_is(operation_manual(operation), needed=True)
            case Command():
                with debug_log() if wanted.options.debug else nullcontext():
                    return _run(wanted)
    except Exception as error:  # noqa: BLE001 - as in the aws CLI, whatever it is ends with 255
        fault = explain(error)
        say(f"\n{fault}")
        return fault.status
    except KeyboardInterrupt:
        return _interrupted(INTERRUPTED)
    return DONE


def _run(command: Command) -> int:
    extras = command.extras
    query = Query(command.options.query)
    check_combination(command)
    aws_configuration(command.options)
    configuration = read_configuration(command.options)
    if extras.skeleton == "input":
        write_as_it_is(input_skeleton(command.operation), needed=True)
        return DONE
    if extras.skeleton == "yaml-input":
        write_as_it_is(yaml_skeleton(command.operation), needed=True)
        return DONE
    if extras.batch:
        return run_batch(command, configuration, query)
    members = read_input(command, configuration.binary_format)
    if extras.layer_file:
        return _upload_file(command, members, query, configuration)
    _check(command, members)
    if extras.skeleton == "output":
        _print(command, single(output_skeleton(command.operation)), query, configuration)
        return DONE
    prepared = prepare(command.operation, members)
    return _answer(command, lambda: call(command, prepared, configuration), query, configuration)


def _upload_file(command: Command, members: Members, query: Query, configuration: Configuration) -> int:
    content = find_layer_file(command.extras.layer_file or "")
    check_whole(command, members, content.size)
    return _answer(command, lambda: upload_file(command, members, content), query, configuration)


def _answer(
    command: Command, ask: Callable[[], Awaitable[OperationOutput]], query: Query, configuration: Configuration
) -> int:
    answers: list[OperationOutput] = []

    async def main() -> int:
        answers.append(await ask())
        return DONE

    status = run_quietly(main)
    if not answers:
        return _interrupted(status)
    _print(command, answers[0], query, configuration)
    return DONE


def _check(command: Command, members: Members) -> None:
    validate(command.operation, members)
    if command.extras.validate:
        check(command.operation, members)


def _print(command: Command, answer: OperationOutput, query: Query, configuration: Configuration) -> None:
    def texts(members: Members) -> Members:
        return {name: printable(value, wire=configuration.wire_times) for name, value in members.items()}

    printed = OperationOutput(texts(answer.whole), tuple(texts(page) for page in answer.pages))
    color = command.options.color
    colored = color == "on" or (color == "auto" and sys.stdout.isatty())
    text = render(printed, configuration.output, query, command.operation.model.name, colored=colored)
    write_as_it_is(text, needed=True)


def _interrupted(status: int) -> int:
    """End as the aws CLI does after Ctrl-C: with a line end on standard output."""
    write_as_it_is("\n")
    return status
