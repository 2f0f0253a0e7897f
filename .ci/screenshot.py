"""Makes `.github/push.svg`, the picture of the README: rich's, of a real push into the emulator in a real terminal.

    .venv/bin/python .ci/screenshot.py

It needs tmux, which is the terminal.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from asyncpush.demo.images import make_images

PICTURE = Path(__file__).parents[1] / ".github" / "push.svg"
WIDTH, HEIGHT = 92, 16

#: What is typed; the sources are those of the demo.
TYPED = "asyncpush push layout worker.tar --to mirror --create-repository"

#: The seconds that something on the screen may take.
LIMIT = 60


#: An emulator as far away as a region, on a line that lets one see the layers go.
SERVE = (sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--latency", "30ms", "--bandwidth", "8MB/s")


@contextmanager
def emulator(data: Path) -> Iterator[str]:
    """An emulator, until the block is left; its URL."""
    with subprocess.Popen(
        [*SERVE, "--data", data], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        try:
            assert run.stdout is not None
            yield run.stdout.readline().strip().partition("=")[2]
        finally:
            run.terminate()


@contextmanager
def terminal(folder: Path, environment: dict[str, str]) -> Iterator[Callable[..., str]]:
    """A terminal in *folder*; yields what calls tmux for it."""
    socket = folder.parent / "tmux"

    def tmux(*words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", socket, "-f", os.devnull, *words], capture_output=True, text=True, check=True
        )
        return done.stdout

    shell = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), "sh"]
    size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
    tmux("new-session", "-d", *size, "-c", str(folder), shlex.join(shell))
    try:
        yield tmux
    finally:
        tmux("kill-server")


def wait_for(condition: Callable[[str], bool], screen: Callable[[], str]) -> str:
    """The screen, once it is as *condition* says."""
    end = time.monotonic() + LIMIT
    while not condition(shown := screen()):
        if time.monotonic() > end:
            sys.exit(f"the screen did not become what the picture shows:\n{shown}")
        time.sleep(0.05)
    return shown


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        make_images(folder)
        with emulator(Path(temporary) / "ecr") as url:
            environment = {
                "AWS_ENDPOINT_URL_ECR": url,
                "AWS_REGION": "eu-west-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": temporary,
                "LANG": "C.UTF-8",
                "TERM": "xterm-256color",
                "PS1": "$ ",
            }
            with terminal(folder, environment) as tmux:
                tmux("send-keys", TYPED, "Enter")
                wait_for(lambda shown: shown.count("MiB/s") >= 4, lambda: tmux("capture-pane", "-p"))
                shown = tmux("capture-pane", "-e", "-p").rstrip("\n")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text.from_ansi(shown), no_wrap=True)
    PICTURE.write_text(console.export_svg(title="asyncpush"))


if __name__ == "__main__":
    main()
