"""``asyncpush completion``: what a shell offers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from support.commands import run_here

_TRY = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_asyncpush
printf '%s\\n' "${COMPREPLY[@]}"
"""


Scripts = Callable[[str], Path]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """The script for a shell, printed once."""

    @cache
    def printed(shell: str) -> Path:
        file = tmp_path_factory.mktemp(shell) / "_asyncpush"
        done = run_here("completion", shell)
        assert done.status == 0, done.err
        file.write_text(done.out)
        return file

    return printed


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("asyncpush pu", {"push"}),
        ("asyncpush help ec", {"ecr-facts"}),
        ("asyncpush ecr complete", {"complete-layer-upload"}),
        ("asyncpush ecr batch-", {"batch-check-layer-availability", "batch-get-image"}),
        ("asyncpush ecr-public batch-", {"batch-check-layer-availability"}),
        ("asyncpush ecr complete-layer-upload --layer", {"--layer-digests"}),
        ("asyncpush ecr upload-layer-part --layer", {"--layer-part-blob", "--layer-file"}),
        ("asyncpush ecr describe-images --output ya", {"yaml", "yaml-stream"}),
    ],
)
def test_bash_offers_operations_options_and_choices(scripts: Scripts, line: str, offered: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", _TRY, "bash", scripts("bash"), *line.split()], capture_output=True, text=True, check=True
    )

    assert set(done.stdout.split()) == offered


def test_bash_offers_files_where_nothing_else_is_offered(scripts: Scripts) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", 'source "$1"; complete -p asyncpush', "bash", scripts("bash")],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "complete -o default -F _asyncpush asyncpush\n"


#: Types a line into an interactive zsh, then Tab, and prints what the line is then.
_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; unsetopt beep; autoload -Uz compinit && compinit -u -D'
if [[ -d $1 ]]; then zpty -w shell "fpath=($1 \$fpath); compinit -u -D"; else zpty -w shell "source $1"; fi
zpty -w shell "cd $2"
zpty -w shell 'show() { print -r -- "COM""PLETED:${BUFFER}:"; exit }; zle -N show; bindkey "^X" show'
zpty -w -n shell "$3"$'\t\x18'
zpty -r shell out '*COMPLETED:*:*'
out=${out##*COMPLETED:}
print -r -- ${out%%:*}
"""

_COMPLETED = [
    ("asyncpush pu", "asyncpush push "),
    ("asyncpush ecr complete-l", "asyncpush ecr complete-layer-upload "),
    ("asyncpush push --tran", "asyncpush push --transport "),
    ("asyncpush push ima", "asyncpush push image.tar "),
    ("asyncpush plan check ima", "asyncpush plan check image.tar "),
    ("asyncpush push --journal ima", "asyncpush push --journal image.tar "),
]


@pytest.mark.parametrize(
    ("line", "completed", "is_sourced"), [*((*each, False) for each in _COMPLETED), (*_COMPLETED[0], True)]
)
def test_zsh_completes_commands_options_and_files(
    need: Callable[[str], str], scripts: Scripts, tmp_path: Path, line: str, completed: str, *, is_sourced: bool
) -> None:
    zsh = need("zsh")
    script = scripts("zsh")
    (tmp_path / "image.tar").touch()
    words = [str(script if is_sourced else script.parent), str(tmp_path), line]

    done = subprocess.run(
        [zsh, "-f", "-c", _ZSH, "zsh", *words], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == f"{completed}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("asyncpush pu", {"push"}),
        ("asyncpush plan ", {"batch", "check", "import", "schema"}),
        ("asyncpush push ima", {"image.tar"}),
        ("asyncpush push --journal ima", {"image.tar"}),
        ("asyncpush push --transport ", {"api", "v2", "auto"}),
        ("asyncpush ecr complete", {"complete-layer-upload"}),
    ],
)
def test_fish_offers_commands_and_files_where_they_belong(
    need: Callable[[str], str], scripts: Scripts, tmp_path: Path, line: str, offered: set[str]
) -> None:
    fish = need("fish")
    (tmp_path / "image.tar").touch()

    done = subprocess.run(
        [fish, "--no-config", "-c", f"source {scripts('fish')}; complete -C '{line}'"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert {shown.partition("\t")[0] for shown in done.stdout.splitlines()} == offered
    assert not done.stderr
