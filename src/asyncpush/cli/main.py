"""The commands by name; each is imported when it is called."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnusedCliTokensError

from asyncpush.awscli.global_options import is_aws_command
from asyncpush.cli.streams import STANDARD_INPUT, say, standard_streams

app = App(
    name="asyncpush",
    help="Push container images into Amazon ECR, many layers at once.",
    help_epilogue=(
        "Results go to standard output, all else to standard error. "
        "Exit status: 0 done, 1 something failed, 2 wrong usage (nothing was sent), 130 interrupted (143 by SIGTERM)."
    ),
    help_format="plaintext",
    version=lambda: f"asyncpush {version('asyncpush')}",
    version_flags=["--version", "-V"],
    default_parameter=None,
)
app.command("asyncpush.cli.push:app", name="push", help="Push images into ECR.")
app.command("asyncpush.cli.push:layers_app", name="layers", help="Push files as layers; print their digests.")
app.command("asyncpush.cli.migrate:app", name="migrate", help="Migrate what a plan lists, journaled and resumable.")
app.command("asyncpush.cli.plan:app", name="plan", help="Check a plan, or import another tool's configuration.")
app.command("asyncpush.cli.journal:app", name="journal", help="Show, export or prune a journal.")
app.command("asyncpush.cli.verify:app", name="verify", help="Prove that an image is whole in ECR.")
app.command("asyncpush.cli.serve:app", name="serve", help="Run the emulator: a local ECR, on disk.")
app.command("asyncpush.cli.ecr:app", name="ecr", help="ECR's layer operations, as `aws ecr` does them; and in bulk.")
app.command("asyncpush.cli.ecr:public_app", name="ecr-public", help="The same of ECR Public.")
app.command("asyncpush.cli.bench:app", name="bench", help="Measure pushes into an endpoint, over sizes and limits.")
app.command("asyncpush.cli.demo:app", name="demo", help="Show the main job against the emulator; nothing to set up.")
app.command("asyncpush.cli.help:app", name="help", help="Show the manual.")
app.command("asyncpush.cli.completion:app", name="completion", help="Print a completion script for a shell.")


def run_app(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        Its exit status; 2 for arguments that it does not take, 130 if it is interrupted before it has begun.
    """
    if is_aws_command(arguments):
        # In aws's own notation, which is argparse's.
        from asyncpush.cli.ecr import run_aws

        with standard_streams():
            return run_aws(arguments)
    tokens = [STANDARD_INPUT if each == "-" else each for each in arguments]
    with standard_streams():
        try:
            status = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        except CycloptsError as error:
            say(f"asyncpush: error: {_words(error)}")
            return 2
        except OSError as error:  # a command catches its own: this is the help, which can't be written
            say(f"asyncpush: error: {error.strerror or error}")
            return 1
        except KeyboardInterrupt:
            say("asyncpush: interrupted")
            return 130
        except Exception as error:  # noqa: BLE001 - Python itself would show it as it is
            say(traceback.format_exc().rstrip())
            say(f"asyncpush: error: this is a bug, please report it: {type(error).__name__}")
            return 1
        return status if isinstance(status, int) else 0


def _words(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        text = f"unexpected argument {error.unused_tokens[0]!r}"
    else:
        text = " ".join(str(error).split()).rstrip(".")
    return f"{text}; see {' '.join(['asyncpush', *(error.command_chain or ())])} --help"
