"""Shards: a plan divided between machines by target repository, so that no two of them write to the same one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.model import Plan

#: What stands for the shard in the name of a file or object.
PLACEHOLDER = "{shard}"

_HINT = "write I/N, such as 0/64 to 63/64, or auto in an array job of AWS Batch, Slurm or Kubernetes"

#: A shard in the name of a file (``Shard.name``).
_NAME = re.compile(r"(?<![0-9])([0-9]{1,7})-of-([0-9]{1,7})(?![0-9])")

_SHARE = re.compile(r"1/([1-9][0-9]{0,6})")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One of ``count`` parts of a plan, counted from 0: the repositories whose names' hash falls to it.

    The name alone decides, not the registry: a repository goes to the same shard however the plan spells its registry,
    and repositories of the same name in several registries get their layers from one reading.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UsageError(f"shard {self.index}/{self.count} does not exist: shards count from 0", hint=_HINT)

    def takes(self, repository: str) -> bool:
        """Whether the shard has the repository with this name."""
        digest = hashlib.sha256(repository.encode()).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index

    def part_of(self, plan: Plan) -> Plan:
        """*plan* with only what goes to the repositories of the shard."""
        entries = []
        for entry in plan.entries:
            goals = tuple(goal for goal in entry.goals if self.takes(goal.repository))
            if goals:
                entries.append(entry if len(goals) == len(entry.goals) else replace(entry, goals=goals))
        return replace(plan, entries=tuple(entries))

    @property
    def name(self) -> str:
        """The shard in the name of a file, such as ``3-of-64``."""
        return f"{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def repositories_of(plan: Plan) -> Collection[str]:
    """The names of the repositories that *plan* goes to."""
    return dict.fromkeys(goal.repository for entry in plan.entries for goal in entry.goals)


def parse_shard(text: str, environ: Mapping[str, str]) -> Shard:
    """Read ``--shard``: ``I/N``, or ``auto`` or ``auto/N``, which takes the index of the array job that this is.

    Args:
        text: the text.
        environ: the variables of AWS Batch, Slurm or Kubernetes.

    Raises:
        UsageError: there is no such shard, or this is not an array job.
    """
    index, slash, count = text.strip().partition("/")
    if index == "auto":
        return _of_job(_number(count, f"--shard {text!r}") if slash else None, environ)
    if not slash:
        raise UsageError(f"--shard {text!r} is not a shard", hint=_HINT)
    return Shard(_number(index, f"--shard {text!r}"), _number(count, f"--shard {text!r}"))


def _of_job(count: int | None, environ: Mapping[str, str]) -> Shard:
    """The shard of the array job that this process belongs to."""
    if "AWS_BATCH_JOB_ARRAY_INDEX" in environ:
        size = _variable(environ, "AWS_BATCH_JOB_ARRAY_SIZE") if "AWS_BATCH_JOB_ARRAY_SIZE" in environ else count
        return _checked(_variable(environ, "AWS_BATCH_JOB_ARRAY_INDEX"), size, count, "AWS Batch")
    if "SLURM_ARRAY_TASK_ID" in environ:
        return _of_slurm(count, environ)
    if "JOB_COMPLETION_INDEX" in environ:
        return _checked(_variable(environ, "JOB_COMPLETION_INDEX"), count, count, "a Kubernetes Job")
    raise UsageError(
        "--shard auto finds no array job: AWS_BATCH_JOB_ARRAY_INDEX, SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are "
        "not set",
        hint="write --shard I/N",
    )


def _of_slurm(count: int | None, environ: Mapping[str, str]) -> Shard:
    task = _variable(environ, "SLURM_ARRAY_TASK_ID")
    if count is not None:
        return Shard(task, count)  # some tasks of an array that run again keep their numbers
    first, size = _variable(environ, "SLURM_ARRAY_TASK_MIN"), _variable(environ, "SLURM_ARRAY_TASK_COUNT")
    index = task - first
    last = _variable(environ, "SLURM_ARRAY_TASK_MAX") if "SLURM_ARRAY_TASK_MAX" in environ else first + size - 1
    if last - first + 1 != size or not 0 <= index < size:
        raise UsageError(
            f"the Slurm array from {first} to {last} has {size} tasks, so they do not number shards",
            hint="submit with --array=0-63, or write --shard auto/64 to run some tasks again",
        )
    return Shard(index, size)


def _checked(index: int, size: int | None, count: int | None, engine: str) -> Shard:
    if size is None:
        raise UsageError(
            f"--shard auto can't tell how many shards there are: {engine} does not say", hint="write --shard auto/N"
        )
    if count is not None and count != size:
        raise UsageError(
            f"--shard auto/{count} does not match the array job, which has {size} tasks", hint="write --shard auto"
        )
    return Shard(index, size)


def _variable(environ: Mapping[str, str], name: str) -> int:
    if name not in environ:
        raise UsageError(f"--shard auto needs {name}, which is not set", hint="write --shard auto/N")
    return _number(environ[name], name)


def _number(text: str, name: str) -> int:
    word = text.strip()
    if not (word.isascii() and word.isdigit() and len(word) <= 7):
        raise UsageError(f"{name}: {text[:100]!r} is not a number", hint=_HINT)
    return int(word)


def parse_share(text: str) -> float:
    """Read ``--share``: ``1/P``, the part of every quota for one of P machines that run at once.

    Raises:
        UsageError: it has another form.
    """
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--share {text[:100]!r} is not a share", hint="write 1/P, where P is how many shards run at once"
        )
    return 1 / int(match[1])


def at_shard(text: str, shard: Shard | None, option: str) -> str:
    """The value of an option that names a file, with ``{shard}`` replaced.

    Raises:
        UsageError: it has the placeholder, and there is no shard.
    """
    if PLACEHOLDER not in text:
        return text
    if shard is None:
        raise UsageError(f"{option} contains {PLACEHOLDER}, but there is no shard", hint="give --shard or another name")
    return text.replace(PLACEHOLDER, shard.name)


def journal_beside(plan: Path, shard: Shard | None) -> Path:
    """The journal that a plan has if none is named."""
    return plan.with_suffix(f".{shard.name}.journal" if shard else ".journal")


def missing_shards(names: Collection[str]) -> list[Shard]:
    """The shards that files lack whose names tell of shards (``Shard.name``), if all are of one division."""
    found = [_NAME.search(name.rpartition("/")[2]) for name in names]
    if not found or not all(found):
        return []
    numbers = {(int(match[1]), int(match[2])) for match in found if match}
    counts = {count for _, count in numbers}
    if len(counts) != 1:
        return []
    [count] = counts
    return [Shard(index, count) for index in range(count) if (index, count) not in numbers]
