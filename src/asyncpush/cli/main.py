"""The commands by name. Each is imported only when it is called, so that the command line starts quickly."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError, UnusedCliTokensError

from asyncpush.awscli.global_options import is_aws_command
from asyncpush.cli.streams import STANDARD_INPUT, say, standard_streams
from asyncpush.errors import AsyncpushError
from asyncpush.second_signal import release

app = App(
    name="asyncpush",
    help="Push container images into Amazon ECR, many layers at once.",
    help_epilogue=(
        "Results go to standard output, everything else to standard error. "
        "Exit status: 0 success, 1 something failed, 2 wrong usage (nothing sent), 4 credentials or permissions are "
        "missing, 130 interrupted (143 by SIGTERM)."
    ),
    help_format="plaintext",
    version=lambda: f"asyncpush {_version()}",
    version_flags=["--version", "-V"],
    default_parameter=None,
)
app.command("asyncpush.cli.push:app", name="push", help="Push images into ECR.")
app.command("asyncpush.cli.push:layers_app", name="layers", help="Push files as layers, and print their digests.")
app.command(
    "asyncpush.cli.migrate:app", name="migrate", help="Migrate the images of a plan; an interrupted run resumes."
)
app.command("asyncpush.cli.plan:app", name="plan", help="Check a migration plan, or import one from another tool.")
app.command("asyncpush.cli.journal:app", name="journal", help="Show, export, prune or merge journals.")
app.command("asyncpush.cli.run_report:app", name="report", help="Make a page for browsers of a migration's run.")
app.command("asyncpush.cli.verify:app", name="verify", help="Verify that images in ECR are complete.")
app.command("asyncpush.cli.doctor:app", name="doctor", help="Check what a push or migration needs, and say what to do.")
app.command("asyncpush.cli.serve:app", name="serve", help="Run the emulator: a local ECR that keeps its data on disk.")
app.command("asyncpush.cli.ecr:app", name="ecr", help="Call ECR's layer operations as `aws ecr` does, or in bulk.")
app.command("asyncpush.cli.ecr:public_app", name="ecr-public", help="Do the same for ECR Public.")
app.command("asyncpush.cli.bench:app", name="bench", help="Measure pushes with different sizes and limits.")
app.command("asyncpush.cli.demo:app", name="demo", help="Push and verify sample images in the emulator.")
app.command("asyncpush.cli.help:app", name="help", help="Show the manual.")
app.command("asyncpush.cli.completion:app", name="completion", help="Print a completion script for a shell.")


def run_app(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        Its exit status; 2 for arguments that it does not take, 130 if it is interrupted before it starts.
    """
    if is_aws_command(arguments):
        # These take their arguments as the aws CLI does, with argparse, and read their input without an event loop.
        release()
        with _no_default_authorities():
            from asyncpush.cli.ecr import run_aws

        with standard_streams():
            return run_aws(arguments)
    tokens = [STANDARD_INPUT if argument == "-" else argument for argument in arguments]
    with standard_streams():
        try:
            with _no_default_authorities():  # the command's modules are imported here
                command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
            status = command(*bound.args, **bound.kwargs)
        except CycloptsError as error:
            say(f"asyncpush: error: {_words(error)}")
            return 2
        except AsyncpushError as error:  # commands catch their own; these print a page or a script, and can't write it
            say(f"asyncpush: error: {error}")
            return 1
        except OSError as error:  # likewise, the help
            say(f"asyncpush: error: the help can't be written: {error.strerror or error}")
            return 1
        except KeyboardInterrupt:
            say("asyncpush: interrupted")
            return 130
        except Exception as error:  # noqa: BLE001 - Python itself would show it as it is
            say(traceback.format_exc().rstrip())
            say(f"asyncpush: error: this is a bug, please report it: {type(error).__name__}")
            return 1
        return status if isinstance(status, int) else 0


@contextmanager
def _no_default_authorities() -> Iterator[None]:
    """Let aiohttp, if it is imported in this block, load no certificate authorities.

    At import, aiohttp loads those of the system twice, which takes a sixth of a short push, into two contexts of its
    own. No connection uses these: asyncpush makes a context for each client, when that first speaks TLS. A connection
    that did use them would trust nobody.
    """
    names = () if "aiohttp" in sys.modules else ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _version() -> str:
    from importlib.metadata import version  # takes longer to import than it takes to print the help

    return version("asyncpush")


#: How cyclopts' list of commands begins.
_COMMANDS = " Available commands: "


def _words(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        text = f"unexpected argument {error.unused_tokens[0]!r}"
    else:
        text = " ".join(str(error).split())
        if isinstance(error, UnknownCommandError) and error.app is not None:
            names = [name for name in error.app if error.app[name].show and not name.startswith("-")]
            text = f"{text.partition(_COMMANDS)[0]}{_COMMANDS}{', '.join(names)}"  # cyclopts names only the first eight
        text = text.rstrip(".")
    return f"{text}; see {' '.join(['asyncpush', *(error.command_chain or ())])} --help"
