"""peers: the same images, pushed to the emulator by asyncpush, over both of its transports, and by its peers.

    python benchmarks/peers.py [IMAGES] [--synthetic 1GiB] [--schemes http https]

IMAGES is a folder of OCI layouts, OCI archives and docker-archives; without it, those of ``asyncpush demo`` are made.
One image is pushed from a registry, too. Each run is a whole process, as a user starts it, against an emulator with one
empty repository, which checks signatures, passwords and digests.

Peers push to ``/v2/``, as ``--transport v2`` does. ECR's JSON API, the default, costs more than that: a layer's bytes
become base64, 4/3 of them go over the wire, and the signature needs a second sha256 over the encoded bytes, which the
client computes and ECR's end decodes. The emulator shares this machine's processors with the client.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from cases import Case, alone, find_images, in_registry, make_cases, synthetic
from data import GiB, MiB
from endpoints import Certificate, UnavailableError, make_certificate
from harness import Contender, ContenderError, Launch, Results, measure, probe, progress
from pushers import API, PUSHERS, V2, Pusher, push_target
from report import (
    CPU,
    CPU_PER_GIB,
    ENDPOINT_CPU,
    PEAK,
    REQUESTS,
    SECONDS,
    bars,
    compare,
    options,
    parse_size,
    rounds,
    save,
    scratch,
    tool_versions,
)


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("images", type=Path, nargs="?", metavar="IMAGES", help="a folder of images")
    parser.add_argument("--synthetic", type=parse_size, default=GiB, help="bytes of one more image (1GiB; 0: none)")
    parser.add_argument("--schemes", nargs="+", choices=["http", "https"], default=["https"], help="(https)")
    parser.add_argument("--without", nargs="+", default=[], help="tools to leave out, such as aws")
    given = parser.parse_args()
    skipped: dict[str, str] = {}
    with scratch() as folder, ExitStack() as stack:
        cases = find_images(given.images) if given.images else make_cases(folder / "made", small=given.quick)
        if given.synthetic and not given.quick:
            cases.append(synthetic(folder / "synthetic", given.synthetic))
        cases = [alone(case, folder / f"image-{number}") for number, case in enumerate(cases)]
        certificate = make_certificate(folder) if "https" in given.schemes else None
        contenders: list[Contender] = []
        for scheme in given.schemes:
            tls = certificate if scheme == "https" else None
            chosen = cases[:1] if given.quick else [*cases, *_in_registry(stack, cases, folder / scheme, tls, skipped)]
            for case in chosen:
                contenders += _entrants(folder, case, scheme, _tools(given, skipped), tls, skipped)
        results = measure(contenders, rounds(given), warm_up=[])
    _report(given, results, skipped)


def _in_registry(
    stack: ExitStack, cases: list[Case], folder: Path, tls: Certificate | None, skipped: dict[str, str]
) -> list[Case]:
    """The largest image of a layout, in a registry, where there is one."""
    layouts = sorted((case for case in cases if case.kind == "oci"), key=lambda case: case.size)
    folder.mkdir()
    try:
        return [stack.enter_context(in_registry(case, folder, tls)) for case in layouts[-1:]]
    except UnavailableError as error:
        skipped["images in a registry"] = str(error)
        return []


def _tools(given: argparse.Namespace, skipped: dict[str, str]) -> list[Pusher]:
    """The tools that can run here; why the others can't is *skipped*."""
    tools = []
    for pusher in PUSHERS:
        if pusher.program in given.without or (given.quick and pusher.program == "aws"):
            skipped[pusher.name] = "left out"
        elif not shutil.which(pusher.program):
            skipped[pusher.name] = f"{pusher.program} is not on the PATH"
        else:
            tools.append(pusher)
    return tools


def _entrants(
    folder: Path, case: Case, scheme: str, tools: list[Pusher], tls: Certificate | None, skipped: dict[str, str]
) -> Iterator[Contender]:
    """Who pushes *case*; the run that proves that they can is their warm-up."""
    for pusher in tools:
        name = f"{pusher.name}: {case.name}, {scheme}"
        labels: dict[str, str | float] = {"shown": pusher.name, "case": case.name, "scheme": scheme, "size": case.size}
        contender = Contender(name, partial(_fresh_push, folder, case, pusher, tls), labels)
        try:
            probe(contender)
        except (ContenderError, UnavailableError) as error:
            if pusher in (API, V2):
                raise
            skipped[name] = str(error)
        else:
            yield contender


@contextmanager
def _fresh_push(folder: Path, case: Case, pusher: Pusher, tls: Certificate | None) -> Iterator[Launch]:
    with push_target(folder, tls, options=pusher.serve) as target:
        command = pusher.command(case, target)
        if command is None:
            raise UnavailableError(f"{pusher.name} does not read {case.kind}")
        yield Launch(command, target.endpoint, case.size, target.environment)


def _report(given: argparse.Namespace, results: Results, skipped: dict[str, str]) -> None:
    figures = (SECONDS, CPU, CPU_PER_GIB, PEAK, ENDPOINT_CPU, REQUESTS)
    panels = []
    groups = dict.fromkeys((contender.labels["case"], contender.labels["scheme"]) for contender in results.contenders)
    for case, scheme in groups:
        found = results.where(case=case, scheme=scheme)
        ours = f"{V2.name}: {case}, {scheme}"
        size = found.contenders[0].labels["size"]
        title = f"peers: {case} ({float(size) / MiB:,.1f} MiB), cold, over {scheme}"
        compare(title, found, figures, reference=ours, ratios=(SECONDS, CPU))
        panels.append(bars(found, SECONDS, f"{case}, {scheme}"))
    for name, reason in skipped.items():
        progress.print(f"skipped: {name}: {reason}", highlight=False, soft_wrap=True)
    save(
        "peers", given, results, panels, skipped=skipped, tools=tool_versions(pusher.program for pusher in PUSHERS[2:])
    )


if __name__ == "__main__":
    main()
