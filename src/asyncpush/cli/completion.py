"""``asyncpush completion``: scripts that let a shell complete commands, operations and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Literal

from cyclopts import App, Parameter

from asyncpush.awscli.global_options import GLOBAL_OPTIONS
from asyncpush.awscli.manual import first_sentence
from asyncpush.awscli.operations import Operation, operations
from asyncpush.cli import ecr
from asyncpush.cli.options import command
from asyncpush.cli.run import DONE
from asyncpush.cli.streams import write_as_it_is
from asyncpush.reference import Service

#: The options of ``asyncpush ecr`` that are not members of an input: with a value, and without.
_VALUED = ("--cli-input-json", "--cli-input-yaml", "--batch", "--max-requests")
_ALONE = ("--no-cli-validate", "--unordered")
_SKELETONS = ("input", "yaml-input", "output")

app = command(
    "completion",
    usage="asyncpush completion bash|zsh|fish",
    epilogue="""
Examples
  source <(asyncpush completion bash)                      # in ~/.bashrc
  asyncpush completion zsh > "${fpath[1]}/_asyncpush"
  asyncpush completion fish > ~/.config/fish/completions/asyncpush.fish
""",
)


@app.default
def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a completion script.

    Args:
        shell: The shell.
    """
    from asyncpush.cli.main import app as whole

    _describe(ecr.app, "ecr")
    _describe(ecr.public_app, "ecr-public")
    write_as_it_is(whole.generate_completion(prog_name="asyncpush", shell=shell))
    return DONE


def _describe(service_app: App, service: Service) -> None:
    """Tell cyclopts about the operations. argparse parses their arguments, but completion is the same."""
    for name, operation in operations(service).items():
        if name not in service_app:
            service_app.command(_stand_in(operation), name=name, help=first_sentence(operation.model.documentation))


def _stand_in(operation: Operation) -> Callable[..., None]:
    """A function whose parameters are the operation's options; it is never called."""
    parameters = {option.name: _annotation(option.name, str) for option in operation.options if option.shown}
    parameters |= {name: _annotation(name, str) for name in (*_VALUED, *_paging(operation), *_parts(operation))}
    parameters |= {name: _annotation(name, bool) for name in _ALONE}
    parameters["--generate-cli-skeleton"] = _annotation("--generate-cli-skeleton", Literal[_SKELETONS])
    for option in GLOBAL_OPTIONS:
        kind: object = Literal[option.choices] if option.choices else bool if option.kind in ("on", "off") else str
        parameters[option.name] = _annotation(option.name, kind, option.help)

    def stand_in(**_: object) -> None:
        """Stand in."""

    by_name = {name.strip("-").replace("-", "_"): annotation for name, annotation in parameters.items()}
    stand_in.__annotations__ = dict(by_name)
    stand_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # functions may have one
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in by_name.items()
        ]
    )
    return stand_in


def _annotation(name: str, kind: object, words: str = "") -> object:
    return Annotated[kind, Parameter(name=name, negative="", help=words)]


def _paging(operation: Operation) -> tuple[str, ...]:
    return ("--starting-token", "--page-size", "--max-items") if operation.paging else ()


def _parts(operation: Operation) -> tuple[str, ...]:
    return ("--layer-file", "--part-size") if operation.needs_upload_body else ()
