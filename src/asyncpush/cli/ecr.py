"""``asyncpush ecr``: one operation as ``aws ecr`` runs it, or with ``--batch`` many inputs of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path

import anyio
from anyio import to_thread
from cyclopts import App

from asyncpush import open_files
from asyncpush.awscli.batch import Batch, Tally
from asyncpush.awscli.batch_input import BatchInput
from asyncpush.awscli.call import Configuration, aws_configuration, call, open_for, prepare, read_configuration, single
from asyncpush.awscli.command import Command, HelpWanted, VersionWanted, check_combination, read_command
from asyncpush.awscli.errors import CommandError, explain
from asyncpush.awscli.formats import OperationOutput, Query, printable, render
from asyncpush.awscli.inputs import check, read_arguments, read_input, validate
from asyncpush.awscli.layer_file import check_whole, find_layer_file, upload_file
from asyncpush.awscli.manual import input_skeleton, operation_manual, output_skeleton, service_manual, yaml_skeleton
from asyncpush.awscli.operations import Members
from asyncpush.cli.run import DONE, FAILED, INTERRUPTED, run_quietly, say_error
from asyncpush.cli.streams import STANDARD_INPUT, debug_log, say, write_as_it_is
from asyncpush.units import count_text

#: They only list the commands; argparse parses their arguments (``awscli.command``).
app = App(name="ecr", help_flags=(), version_flags=())
public_app = App(name="ecr-public", help_flags=(), version_flags=())


def run_aws(words: Sequence[str]) -> int:
    """Run a command of the aws CLI; every error becomes a message on standard error and an exit status."""
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
    if int(command.page_words.get("MaxItems", 1)) <= 0:
        say("warning: Non-positive values for --max-items may result in undefined behavior.")
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
    """End as the aws CLI does after Ctrl-C: with a newline on standard output."""
    write_as_it_is("\n")
    return status


#: Seconds between two updates of the progress line.
_PERIOD = 0.2


def run_batch(command: Command, configuration: Configuration, query: Query) -> int:
    """Run a batch.

    Returns:
        1 if any input failed.

    Raises:
        CommandError: the file can't be opened, or an argument is invalid.
        AsyncpushError: the client can't be created.
    """
    began = time.monotonic()
    batch = Batch(command, read_arguments(command), configuration, query)
    in_flight = command.extras.max_requests

    async def main(inputs: BatchInput) -> int:
        async with open_for(command, in_flight, None) as client, anyio.create_task_group() as tg:
            if sys.stderr.isatty():
                tg.start_soon(_show, batch.tally, began)
            await batch.run(client, inputs, partial(write_as_it_is, needed=True))
            tg.cancel_scope.cancel()
        return FAILED if batch.tally.outcomes["failed"] else DONE

    with _opened(command.extras.batch or "-") as descriptor:
        status = run_quietly(partial(main, BatchInput(descriptor)))
    if batch.lost is not None:
        say_error(batch.lost, about=f"only the first {batch.tally.outcomes.total()} inputs were sent")
    say(_summary(batch.tally, time.monotonic() - began))
    return status


@contextmanager
def _opened(name: str) -> Iterator[int]:
    if name in ("-", STANDARD_INPUT):
        yield sys.stdin.fileno()
        return
    path = Path(os.path.expandvars(name.removeprefix("file://"))).expanduser()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError(f"Unable to read the batch {name}: {open_files.reason(error)}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _show(tally: Tally, began: float) -> None:
    try:
        while True:
            await anyio.sleep(_PERIOD)
            rate = tally.outcomes.total() / (time.monotonic() - began)
            await to_thread.run_sync(_write_over, f"{_counts(tally)}; {rate:.0f} a second")
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(_write_over, "")


def _write_over(text: str) -> None:
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def _counts(tally: Tally) -> str:
    outcomes = tally.outcomes
    return (
        f"{count_text(outcomes.total(), 'input')}: {outcomes['done']} done, {outcomes['present']} already there, "
        f"{outcomes['failed']} failed"
    )


def _summary(tally: Tally, seconds: float) -> str:
    requests = tally.requests
    return (
        f"asyncpush: {_counts(tally)}; {count_text(requests.total(), 'request')} ({requests['throttled']} throttled) "
        f"in {seconds:.1f} s"
    )
