"""The plan of a sweep: the combinations of its lists, and the order of its trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from asyncpush.errors import UsageError
from asyncpush.settings import MiB, Settings

#: A layer must have room for the bytes that make it different from all others.
MIN_LAYER_SIZE = 1024

#: ECR's quota "maximum layer size".
MAX_LAYER_SIZE = 52_000 * MiB

_UNITS = (("GiB", 1024 * MiB), ("MiB", MiB), ("KiB", 1024))


@dataclass(frozen=True, slots=True)
class Combination:
    """The parameters of one push.

    Attributes:
        layers: layers that are pushed together, as far as ``max_layers`` allows.
        size: bytes of each.
        max_layers: ``Settings.max_layers``.
        part_size: ``Settings.part_size``; None is what the endpoint asks for.
    """

    layers: int
    size: int
    max_layers: int
    part_size: int | None

    @property
    def total(self) -> int:
        """Bytes of all its layers."""
        return self.layers * self.size

    def __str__(self) -> str:
        parts = f", --part-size {size_word(self.part_size)}" if self.part_size else ""
        return f"{self.layers} x {size_word(self.size)}, --max-layers {self.max_layers}{parts}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One push of the sweep: its round, 0 while warming up, and its parameters."""

    round: int
    combination: Combination

    def __str__(self) -> str:
        return f"{f'round {self.round}' if self.round else 'warming up'}, {self.combination}"


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """The plan of a sweep.

    Attributes:
        combinations: what is compared.
        warm_up: pushes of each that do not count.
        rounds: pushes of each that do.
        max_memory: ``Settings.max_memory`` of every push.
    """

    combinations: tuple[Combination, ...]
    warm_up: int
    rounds: int
    max_memory: int

    def trials(self) -> Iterator[Trial]:
        """All pushes in order, A B C, A B C, so that what changes with time affects all alike."""
        for number in range(1 - self.warm_up, self.rounds + 1):
            for combination in self.combinations:
                yield Trial(max(number, 0), combination)

    def settings(self, combination: Combination) -> Settings:
        """The limits of a push of *combination*.

        Raises:
            UsageError: they are out of range.
        """
        return Settings(max_layers=combination.max_layers, part_size=combination.part_size, max_memory=self.max_memory)

    @property
    def total(self) -> int:
        """Bytes of layers that all pushes send, the uncounted ones too."""
        return (self.warm_up + self.rounds) * sum(combination.total for combination in self.combinations)


def make_plan(
    *,
    layers: Sequence[int],
    sizes: Sequence[int],
    max_layers: Sequence[int],
    part_sizes: Sequence[int | None],
    warm_up: int,
    rounds: int,
    max_memory: int,
) -> TrialPlan:
    """Plan the product of the lists; duplicates count once.

    Raises:
        UsageError: a value is one that can't be pushed.
    """
    for count in layers:
        if count < 1:
            raise UsageError(f"--layers is {count}", hint="give 1 or more")
    for size in sizes:
        if not MIN_LAYER_SIZE <= size <= MAX_LAYER_SIZE:
            raise UsageError(
                f"--size is {size} bytes", hint=f"give {size_word(MIN_LAYER_SIZE)} to {size_word(MAX_LAYER_SIZE)}"
            )
    if rounds < 1:
        raise UsageError(f"--rounds is {rounds}", hint="give 1 or more")
    if warm_up < 0:
        raise UsageError(f"--warm-up is {warm_up}", hint="give 0 or more")
    combinations = tuple(
        Combination(*values)
        for values in product(
            dict.fromkeys(layers), dict.fromkeys(sizes), dict.fromkeys(max_layers), dict.fromkeys(part_sizes)
        )
    )
    plan = TrialPlan(combinations, warm_up, rounds, max_memory)
    for combination in combinations:
        plan.settings(combination)
    return plan


def size_word(size: int) -> str:
    """*size* exactly, as an option takes it: ``64MiB``, ``1000``."""
    for unit, factor in _UNITS:
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
