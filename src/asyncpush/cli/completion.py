"""``asyncpush completion``: scripts that let a shell complete commands, operations and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import zip_longest
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

#: Calls the function of the script for zsh, which is sourced, or loaded by the completion system as `_asyncpush`.
_CALL = """
if [[ $funcstack[1] == _asyncpush ]]; then
  _cyclopts_asyncpush "$@"
else
  compdef _cyclopts_asyncpush asyncpush
fi
"""

app = command(
    "completion",
    usage="asyncpush completion bash|zsh|fish",
    epilogue="""
Examples
  source <(asyncpush completion bash)                      # in ~/.bashrc
  source <(asyncpush completion zsh)                       # in ~/.zshrc, after compinit
  asyncpush completion zsh > "${fpath[1]}/_asyncpush"      # or once
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
    script = whole.generate_completion(prog_name="asyncpush", shell=shell)
    finish: dict[str, Callable[[str], str]] = {"bash": _finish_bash, "zsh": _finish_zsh, "fish": _finish_fish}
    write_as_it_is(finish[shell](script))
    return DONE


def _finish_bash(script: str) -> str:
    """Offer files where cyclopts offers nothing."""
    return script.replace("\ncomplete -F ", "\ncomplete -o default -F ")


def _finish_zsh(script: str) -> str:
    """Offer files as arguments, and call the function: cyclopts only defines it."""
    lines = []
    for line, following in zip_longest(script.splitlines(), script.splitlines()[1:], fillvalue=""):
        lines.append(line)
        if line.strip() == "_arguments \\" and not following.lstrip().startswith(('"1:', "'1:")):
            lines.append(f"{line[: -len(line.lstrip())]}  '*:file:_files' \\")
    return "\n".join(lines) + _CALL


def _finish_fish(script: str) -> str:
    """Offer no files where a command is expected."""
    from asyncpush.cli.main import app as whole

    names = [name for name in whole if not name.startswith("-")]
    groups = [name for name in names if any(not inner.startswith("-") for inner in whole[name])]
    conditions = ["__fish_use_subcommand", *(f"'__fish_asyncpush_using_command {name}'" for name in groups)]
    return script + "".join(f"complete -c asyncpush -f -n {condition}\n" for condition in conditions)


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
