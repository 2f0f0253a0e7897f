"""start: what does a push cost that has next to nothing to send, from the start of the process to its end?

    python benchmarks/start.py [IMAGE] [--before PYTHON]

IMAGE is one that ``asyncpush push`` reads; without it, one with a layer of 1 MiB is made. It is pushed to an emulator
that is running: into a repository that does not exist, and again when everything is there. Beside these, the commands
that do nothing, and the imports that no asyncpush can do without. All modules are compiled before, as pip does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from data import MiB, Plan, oci_layout
from endpoints import Endpoint, emulator, make_certificate
from harness import Contender, Launch, measure
from report import PEAK, PROCESS_CPU, REQUESTS, SECONDS, bars, compare, options, rounds, save, scratch

#: The imports of asyncpush's stack, which the other contenders are compared with.
FLOOR = "import aioboto3, anyio, rich"


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="what to push, such as oci:DIR or an archive")
    parser.add_argument("--tls", action="store_true", help="push over HTTPS")
    parser.add_argument("--before", metavar="PYTHON", help="also measure the asyncpush of another installation")
    given = parser.parse_args()
    with scratch() as folder:
        size = 64 * 1024 if given.quick else MiB
        image = given.image or oci_layout(folder / "image", [Plan("small", "1", (size,))])
        tls = make_certificate(folder) if given.tls else None
        with emulator(folder / "ecr", tls) as endpoint:
            contenders = list(_contenders(given.before, image, folder, endpoint))
            results = measure(contenders, rounds(given), warm_up=[] if given.quick else None)
    figures = (SECONDS, PROCESS_CPU, PEAK, REQUESTS)
    compare("start: whole processes", results, figures, reference=FLOOR, ratios=(SECONDS, PROCESS_CPU))
    save("start", given, results, [bars(results, figure, "whole processes") for figure in (SECONDS, PROCESS_CPU)])


def _contenders(before: str | None, image: str, folder: Path, endpoint: Endpoint) -> Iterator[Contender]:
    numbers = count(1)
    interpreters = {"": sys.executable} | ({", before": before} if before else {})
    environment = {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}

    @contextmanager
    def launch(command: Callable[[], tuple[str, ...]]) -> Iterator[Launch]:
        yield Launch(command(), endpoint, 0, environment)

    def push(interpreter: str, to: Callable[[], str]) -> tuple[str, ...]:
        return (interpreter, "-m", "asyncpush", "push", image, f"start/{to()}:1", "--create-repository")

    for words in ("push", "push again", "--help", "--version"):
        for which, interpreter in interpreters.items():
            run: Callable[[], tuple[str, ...]]
            if words == "push":
                run = partial(push, interpreter, lambda: f"image-{next(numbers)}")
            elif words == "push again":
                run = partial(push, interpreter, lambda: "again")
            else:
                run = partial(tuple, (interpreter, "-m", "asyncpush", words))
            yield Contender(f"{words}{which}", partial(launch, run))
    yield Contender(FLOOR, partial(launch, partial(tuple, (sys.executable, "-c", FLOOR))))


if __name__ == "__main__":
    main()
