"""Kill a migration at random instants, start it again with the same command, and count what is sent in all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import asdict, dataclass

from harness import ContenderError, progress
from stage import Target
from wire import Received, Wire, under_way

#: Seconds that the last run, which nobody kills, may take.
_LONGEST = 900

#: What may be received over what the undisturbed migration sends; parts in flight at kills come on top.
ALLOWED = 1.05


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        seconds: how long it lived.
        killed: whether it was killed.
        in_flight: bytes of the parts that were under way when it was killed.
        wire: what the target saw of it.
    """

    seconds: float
    killed: bool
    in_flight: int
    wire: Wire


@dataclass(frozen=True, slots=True)
class Outcome:
    """A migration that was killed again and again.

    Attributes:
        undisturbed: what the target saw of the same migration without kills.
        runs: all runs, in order; the last one ended by itself.
    """

    undisturbed: Wire
    runs: tuple[Run, ...]

    @property
    def kills(self) -> int:
        """The number of kills."""
        return sum(run.killed for run in self.runs)

    @property
    def received(self) -> Received:
        """Bytes of layers, over all runs."""
        each = [run.wire.received for run in self.runs]
        return Received(sum(one.kept for one in each), sum(one.refused for one in each), sum(one.cut for one in each))

    @property
    def in_flight(self) -> int:
        """Bytes of the parts that were under way at kills, in all."""
        return sum(run.in_flight for run in self.runs)

    @property
    def ratio(self) -> float:
        """Bytes that were kept, and refused beyond what was in flight at kills, over those of one undisturbed run.

        What was cut is not among them: its parts did not arrive. A part that arrived while its client died is refused
        when it comes again, and nobody can know that before.
        """
        answered = self.received.kept + max(0, self.received.refused - self.in_flight)
        return answered / self.undisturbed.received.all

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "kills": self.kills,
            "undisturbed": self.undisturbed.document(),
            "received": asdict(self.received),
            "in_flight": self.in_flight,
            "ratio": self.ratio,
            "allowed": ALLOWED,
            "runs": [{**asdict(run), "wire": run.wire.document()} for run in self.runs],
        }


@dataclass(frozen=True, slots=True)
class Pace:
    """Decides how long runs live, so that the kills spread over the whole migration.

    Attributes:
        startup: seconds before a run sends anything.
        seconds: those of the undisturbed migration.
        undisturbed: what the target saw of it.
    """

    startup: float
    seconds: float
    undisturbed: Wire

    def draw(self, done: Wire, kills: int, chance: random.Random) -> float:
        """Seconds until the next kill, with *kills* to come, this one among them."""
        shares = (
            done.received.all / self.undisturbed.received.all,
            done.target["PutImage"] / max(1, self.undisturbed.target["PutImage"]),
        )
        left = 1 - min(1.0, sum(shares) / len(shares))
        return self.startup * chance.uniform(0.5, 1.5) + self.seconds * left / (kills + 1) * chance.uniform(0, 2)


def measure_startup(command: tuple[str, ...], environment: dict[str, str]) -> float:
    """Seconds that *command* takes to start, as nearly as ``--help`` tells."""
    started = time.monotonic()
    subprocess.run((*command, "--help"), env=environment, capture_output=True, timeout=60, check=True)
    return time.monotonic() - started


def kill_again_and_again(
    command: tuple[str, ...], here: Target, kills: int, pace: Pace, chance: random.Random
) -> Outcome:
    """Run *command* until it ends by itself; before, it is killed *kills* times, or as often as it lives long enough.

    Raises:
        ContenderError: it fails, or hangs.
    """
    environment = {**here.endpoint.environment(), **here.environment}
    first = before = here.look()
    runs: list[Run] = []
    while True:
        left = kills - len(runs)
        retry = pace.draw(before.since(first), left, chance) if left else _LONGEST
        started = time.monotonic()
        in_flight = _run(command, environment, here, retry)
        seconds, after = time.monotonic() - started, here.look()
        runs.append(Run(seconds, in_flight is not None, in_flight or 0, after.since(before)))
        before = after
        if in_flight is None:
            return Outcome(pace.undisturbed, tuple(runs))
        if not left:
            raise ContenderError(f"a run that nobody wanted to kill did not end within {_LONGEST} s")
        progress.print(f"kill {len(runs)} after {seconds:.2f} s", highlight=False)


def _run(command: tuple[str, ...], environment: dict[str, str], here: Target, retry: float) -> int | None:
    """Run until the end, or kill it once its time is over, and say how many bytes were under way; None at the end."""
    log = here.folder / "run.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            status = process.wait(timeout=retry)
        except subprocess.TimeoutExpired:
            return under_way(here.endpoint)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ContenderError(f"the migration failed with exit status {status}: {' / '.join(said[-3:])[-600:]}")
    return None
