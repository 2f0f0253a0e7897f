"""Killed at any instant, a run leaves a journal that opens and has everything that was acknowledged to it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from anyio import to_thread

from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.model import OpenUpload, Upload
from support.journals import HOST, digest, layer
from support.places import TESTS

ROUNDS = int(os.environ.get("ASYNCPUSH_KILL_ROUNDS", "30"))
WRITERS = 8

#: Images of each writer that are looked at after each kill; of the others, the number must be right.
LOOK_BACK = 20

#: Steps of a writer for each image: a begun upload, two parts, the layer, the image.
STEPS = 5

# A process that imports once and forks for each round: its child writes until it is killed, and tells each step that
# the journal has acknowledged in one write, `WRITER STEP`.
WRITER = """
import os, pathlib, sys
import anyio
from asyncpush.journal import open_journal
from asyncpush.model import Upload
from support.journals import HOST, digest, layer
from journal.test_kills import STEPS, copy_of, identity_of

async def work(journal, writer, step):
    repository = f"{HOST}/app-{writer}"
    while True:
        number, kind = divmod(step, STEPS)
        identity, upload = identity_of(writer, number), Upload(f"{writer}-{number}", 10, 20)
        if kind == 0:
            await journal.upload_begun(repository, identity, upload, 10)
        elif kind in (1, 2):
            await journal.part_acknowledged(repository, identity, upload, 10 * kind)
        elif kind == 3:
            await journal.layer_completed(repository, identity, layer(identity))
        else:
            done = digest(identity)
            await journal.image_finished(copy_of(writer, number), source_digest=None, digest=done, outcome="pushed")
        os.write(1, b"%d %d\\n" % (writer, step))
        step += 1

async def main(path, steps):
    async with open_journal(path) as journal, anyio.create_task_group() as tg:
        await journal.begin_run("plan", fresh=False)
        for writer, step in enumerate(steps):
            tg.start_soon(work, journal, writer, step)

for line in sys.stdin:
    child = os.fork()
    if not child:
        anyio.run(main, pathlib.Path(sys.argv[1]), [int(word) for word in line.split()])
        os._exit(1)
    os.write(1, b"pid %d\\n" % child)
    _, status = os.waitpid(child, 0)
    os.write(1, b"ended %d\\n" % status)
"""


def identity_of(writer: int, number: int) -> str:
    return f"{writer}-{number}"


def copy_of(writer: int, number: int) -> str:
    return f"oci:app:{number} -> {HOST}/app-{writer}:{number}"


@dataclass(frozen=True)
class State:
    """What the journal knows of one writer."""

    layers: int
    images: int
    upload: tuple[int, int] | None

    @classmethod
    def after(cls, steps: int) -> State:
        """What it knows once the first *steps* are done."""
        number, kind = divmod(steps, STEPS)
        upload = (number, 10 * (kind - 1)) if 1 <= kind <= 3 else None
        return cls(number + (kind == 4), number, upload)


@contextmanager
def forge(path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def write_until_killed(stdin: IO[str], stdout: IO[str], steps: list[int], kill_after: int) -> list[int]:
    """Let a process write on from *steps*, kill it at its *kill_after*-th word, and return the steps it has told."""
    told = list(steps)
    stdin.write(" ".join(map(str, steps)) + "\n")
    stdin.flush()
    child, count = 0, 0
    for line in stdout:
        first, second = line.split()
        if first == "ended":
            assert int(second) == 9, "it ended by itself"
            return told
        if first == "pid":
            child = int(second)
        else:
            assert int(second) == told[int(first)]
            told[int(first)] += 1
            count += 1
        if count >= kill_after and child:
            os.kill(child, 9)
            kill_after = sys.maxsize
    raise AssertionError("the process that forks has ended")


async def states(journal: SqliteJournal, steps: list[int]) -> AsyncIterator[State]:
    """What the journal knows of each writer; all of it must be what that writer told it, up to the step under way."""
    for writer, told in enumerate(steps):
        repository = f"{HOST}/app-{writer}"
        completed, known = await journal.completed(repository), journal.known_images(repository)
        images = len(known)
        latest = range(max(0, told // STEPS - LOOK_BACK), told // STEPS + 2)
        uploads: list[tuple[int, int]] = []
        for number in latest:
            identity = identity_of(writer, number)
            assert (digest(identity) in completed) == (number < len(completed))
            assert (journal.compressed.get(identity) == layer(identity)) == (number < len(completed))
            assert (str(number) in known) == (copy_of(writer, number) in journal.finished) == (number < images)
            if (found := await journal.open_upload(repository, identity)) is not None:
                assert found == OpenUpload(Upload(f"{writer}-{number}", 10, 20), 10, found.received)
                uploads.append((number, found.received))
        assert len(uploads) <= 1
        yield State(len(completed), images, uploads[0] if uploads else None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_what_was_acknowledged_outlives_a_kill_at_any_instant(tmp_path: Path) -> None:
    dice = random.Random(os.environ.get("ASYNCPUSH_KILL_SEED"))
    path, steps = tmp_path / "run.journal", [0] * WRITERS
    with forge(path) as process:
        for number in range(ROUNDS):
            # 0 kills it while it opens the journal, and the first time while it makes it.
            kill_after = dice.choice((0, dice.randrange(20), dice.randrange(500)))
            steps = await to_thread.run_sync(
                write_until_killed, process.stdin, process.stdout, steps, 0 if number == 0 else kill_after
            )
            async with open_journal(path) as journal:
                await journal.begin_run("plan", fresh=False)
                found = [state async for state in states(journal, steps)]
            for writer, state in enumerate(found):
                # Of the step that was under way, the journal may have all, or nothing.
                assert state in (State.after(steps[writer]), State.after(steps[writer] + 1)), (writer, steps[writer])
                steps[writer] += state != State.after(steps[writer])

    assert min(steps) > STEPS
