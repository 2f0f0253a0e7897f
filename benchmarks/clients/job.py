"""What a contender is given, and the measured section of its work."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec


class Layer(msgspec.Struct, frozen=True):
    """A file to push as a layer, and its size in bytes."""

    path: str
    size: int


class Job(msgspec.Struct, frozen=True):
    """What to push where.

    Attributes:
        url: the endpoint.
        repository: the repository's name, or what the names of several begin with.
        concurrency: layers in flight at most.
        layers: files to push as layers.
        sources: sources of images to push; all images of each.
        passes: how often the images are pushed, each time over a new connection.
        create: make the repositories beforehand.
        at_once: push the images together, not one after the other.
        variant: what the contender may do in more than one way.
        transport: how layers are sent: ``api`` or ``v2``.
        watch_loop: time the event loop's callbacks, too.
    """

    url: str
    repository: str = "bench/layers"
    concurrency: int = 8
    layers: tuple[Layer, ...] = ()
    sources: tuple[str, ...] = ()
    passes: int = 1
    create: bool = False
    at_once: bool = True
    variant: str = ""
    transport: Literal["api", "v2"] = "api"
    watch_loop: bool = False


def read_job() -> Job:
    """The job that the harness has passed as the only argument."""
    return msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)


@contextmanager
def measured() -> Iterator[dict[str, object]]:
    """The section that counts: its wall and processor time are written for the harness, with what is put into the dict.

    Interpreter start, imports, clients and credentials come before it; connections are made within it.
    """
    details: dict[str, object] = {}
    cpu, wall = _cpu(), time.perf_counter()
    yield details
    seconds, used = time.perf_counter() - wall, _cpu() - cpu
    document = {"seconds": seconds, "cpu": used, "details": details}
    Path(os.environ["BENCHMARK_RESULT"]).write_text(json.dumps(document), encoding="utf-8")


def _cpu() -> float:
    """Processor seconds of this process, all threads, and of the children that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))
