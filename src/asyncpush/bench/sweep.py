"""The sweep: each turn of the plan in a repository and over a connection of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from asyncpush.api import connect
from asyncpush.bench.layers import LayerMaker
from asyncpush.bench.measure import Recorder, Sample, measure
from asyncpush.bench.plan import Plan, Turn
from asyncpush.bench.target import Place, Target, own_repository
from asyncpush.connection import Registry
from asyncpush.errors import AsyncpushError, RepositoryNotFoundError
from asyncpush.events import Emit, ImagePlanned, Notice
from asyncpush.model import Digest


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        plan: what was to be pushed.
        place: where to.
        samples: the counted pushes, in order.
        failure: why it ended early, in one line; None if it did not.
    """

    plan: Plan
    place: Place
    samples: tuple[Sample, ...]
    failure: str | None

    @property
    def heading(self) -> str:
        """What measured, on what, and against what."""
        return f"asyncpush {version('asyncpush')}, {os.cpu_count()} CPUs, to {self.place}"


class Sweep:
    """Pushes what a plan says.

    Args:
        plan: what to push.
        target: where to.
        home: a connection to it that is not measured.
        emit: hears of all that happens.
        say: tells the user what must not be missed.
    """

    def __init__(self, plan: Plan, target: Target, home: Registry, *, emit: Emit, say: Callable[[str], None]) -> None:
        self._samples: list[Sample] = []
        self._turn: Turn | None = None
        self._plan = plan
        self._target = target
        self._home = home
        self._emit = emit
        self._say = say
        self._prefix = f"asyncpush-bench-{secrets.token_hex(4)}"
        self._maker = LayerMaker()

    async def run(self) -> Outcome:
        """Push all of it. A failure ends it; once there are figures, it is told beside them.

        Raises:
            AsyncpushError: a push failed, or a repository is left behind, before the first counted push was done.
        """
        failure = None
        try:
            await self._run()
        except AsyncpushError as error:
            if not self._samples:
                raise
            failure = f"{self._turn}: {error}"
        return Outcome(self._plan, Place.of(self._target, self._home), tuple(self._samples), failure)

    async def _run(self) -> None:
        await self._knock()
        turns = [(f"{self._prefix}/{number}", turn) for number, turn in enumerate(self._plan.turns(), 1)]
        for name, turn in turns:
            self._emit(ImagePlanned(name, turn.combination.layers, turn.combination.total, 0, 0))
        for name, turn in turns:
            if self._turn is None or turn.round != self._turn.round:
                self._emit(Notice(f"round {turn.round} of {self._plan.rounds}" if turn.round else "warming up"))
            self._turn = turn
            sample = await self._push(name, turn)
            if turn.round:
                self._samples.append(sample)

    async def _knock(self) -> None:
        """Ask something harmless: if nobody answers, or the credentials are wrong, no repository need be looked for."""
        try:
            await self._home.repository(f"{self._prefix}/1").available([Digest.of(b"")])
        except RepositoryNotFoundError:
            return

    async def _push(self, name: str, turn: Turn) -> Sample:
        layers = await self._maker.make(turn.combination.layers, turn.combination.size)
        recorder = Recorder(self._emit)
        settings = self._plan.settings(turn.combination)
        # A repository of its own each time: the endpoint never holds more than one push.
        async with (
            own_repository(self._home, self._target, name, self._say),
            connect(self._target.registry, aws=self._target.aws, settings=settings, emit=recorder) as registry,
        ):
            return await measure(turn, registry, registry.repository(name), layers, recorder)
