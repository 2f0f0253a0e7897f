"""``asyncpush completion``: what a shell offers."""

from __future__ import annotations

import shutil
import subprocess
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


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    file = tmp_path_factory.mktemp("completion") / "bash"
    done = run_here("completion", "bash")
    assert done.status == 0, done.err
    file.write_text(done.out)
    return file


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
def test_bash_offers_operations_options_and_choices(script: Path, line: str, offered: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", _TRY, "bash", script, *line.split()], capture_output=True, text=True, check=True
    )

    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_scripts(shell: str, tmp_path: Path) -> None:
    file = tmp_path / "script"
    done = run_here("completion", shell)
    file.write_text(done.out)

    assert "complete-layer-upload" in done.out
    assert "layer-digests" in done.out
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", file], check=False).returncode == 0
