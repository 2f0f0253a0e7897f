"""The contenders of ``migrate``: ``asyncpush migrate``, ``skopeo sync`` and ``regsync``, cold and warm."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from equality import Equality, compare, copy_sample
from harness import Contender, Launch
from stage import Conditions, Sources, Target, target, write_plan, write_regsync_yaml, write_skopeo_yaml

Tool = Literal["asyncpush", "skopeo", "regsync"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
Pass = Literal["cold", "warm", "recheck"]

#: What else a tool is run for, once a cold run is done.
WARM: dict[Tool, tuple[Pass, ...]] = {"asyncpush": ("warm", "recheck"), "skopeo": ("warm",), "regsync": ("warm",)}

#: Who finds referrers by itself.
FINDS_REFERRERS = frozenset({"asyncpush", "regsync"})


@dataclass(frozen=True, slots=True)
class Checked:
    """What a tool has left at a target, compared with the corpus."""

    tool: Tool
    mounting: bool
    equality: Equality


def asyncpush_command(here: Target, *options: str) -> tuple[str, ...]:
    """The command of ``asyncpush migrate``; its journal stays with the target."""
    plan = write_plan(here.folder / "plan.yaml", here.sources, here.endpoint)
    journal = ("--journal", str(here.folder / "journal.sqlite"))
    return (sys.executable, "-m", "asyncpush", "migrate", str(plan), *journal, "--progress", "none", *options)


def skopeo_command(here: Target) -> tuple[str, ...]:
    """The command of ``skopeo sync``: both sources in one file; ``--all`` takes indexes whole."""
    images = write_skopeo_yaml(here.folder / "images.yaml", here.sources)
    access = ("--dest-tls-verify=false", f"--dest-creds=AWS:{here.registry.password}")
    options = ("--src", "yaml", "--dest", "docker", "--all", "--retry-times", "3", *access)
    return ("skopeo", "--insecure-policy", "sync", *options, str(images), f"{here.endpoint.host}/mirror")


def regsync_command(here: Target) -> tuple[str, ...]:
    """The command of ``regsync``, which goes through its jobs once."""
    registry = here.registry
    jobs = write_regsync_yaml(here.folder / "regsync.yaml", here.sources, here.endpoint, registry.password)
    return ("regsync", "--verbosity", "error", "once", "--config", str(jobs))


def is_there(tool: Tool) -> bool:
    """Whether the tool can run here."""
    return tool == "asyncpush" or shutil.which(tool) is not None


@dataclass(slots=True)
class Stages:
    """The target at hand: a cold run starts a new one, and warm runs find what the cold one has left.

    What is there when the next one starts, or at the end, is compared with the corpus.

    Attributes:
        folder: where targets have their data.
        origin: the sources.
        conditions: the conditions at targets.
        options: further options of ``asyncpush migrate``.
        checked: the comparisons so far.
    """

    folder: Path
    origin: Sources
    conditions: Conditions
    options: tuple[str, ...] = ()
    checked: list[Checked] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _here: Target | None = None
    _whose: tuple[Tool, bool] = ("asyncpush", True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._check()

    def contenders(self, tools: list[Tool], mountings: list[bool]) -> list[Contender]:
        """Who competes; warm runs where blobs can be mounted, since there they are the same without."""
        found = []
        for mounting in mountings:
            for tool in tools:
                passes: tuple[Pass, ...] = ("cold", *(WARM[tool] if mounting == mountings[0] else ()))
                for which in passes:
                    name = f"{tool}, {which}{'' if mounting else ', no mounting'}"
                    labels: dict[str, str | float] = {"tool": tool, "pass": which, "mounting": float(mounting)}
                    found.append(Contender(name, partial(self._run, tool, which, mounting), labels))
        return found

    @contextmanager
    def _run(self, tool: Tool, which: Pass, mounting: bool) -> Iterator[Launch]:
        if which == "cold":
            self._check()
            self._stack.close()
            self._here = self._stack.enter_context(target(self.folder, self.origin, self.conditions, mounting=mounting))
            self._whose = (tool, mounting)
        here = self._here
        assert here is not None, "a cold run comes first"
        if tool == "asyncpush":
            command = asyncpush_command(here, *(("--recheck",) if which == "recheck" else ()), *self.options)
        else:
            command = skopeo_command(here) if tool == "skopeo" else regsync_command(here)
        before = here.look()
        size = self.origin.corpus.unique_bytes(with_referrers=tool in FINDS_REFERRERS)
        yield Launch(command, here.endpoint, size, here.environment, lambda: here.look().since(before).document())

    def _check(self) -> None:
        if self._here is not None:
            self.checked.append(
                Checked(*self._whose, check(self.origin, self._here, referrers=self._whose[0] in FINDS_REFERRERS))
            )
            self._here = None


def check(origin: Sources, here: Target, *, referrers: bool) -> Equality:
    """Compare a target with the corpus, without latency; skopeo reads some of it, too, where it is installed."""
    here.clear_faults()
    found = compare(origin.corpus, here.registry, here.ecr, referrers=referrers)
    if found.wrong or shutil.which("skopeo") is None:
        return found
    environment = {**here.endpoint.environment(), **here.environment}
    wrong = tuple(copy_sample(origin.corpus, here.registry, here.folder, environment))
    return Equality(wrong, found.tags, found.manifests, found.blobs, found.bytes_hashed)
