"""peers: the same images by asyncpush into the emulator, and by skopeo and others into docker-registry.

    python benchmarks/peers.py [IMAGES] [--synthetic 1GiB] [--schemes http https]

IMAGES is a folder of OCI layouts, OCI archives and docker-archives; without it, those of ``asyncpush demo`` are made.
Each run is a whole process, as a user starts it, against an endpoint with an empty directory.

The comparison is not of equals, and leans to the peers. ECR's JSON API costs more than a raw PUT to ``/v2/``: a layer's
bytes become base64, 4/3 of them go over the wire, and the signature needs a second sha256 over the encoded bytes, which
the client computes and ECR's end decodes. The emulator checks every digest, as docker-registry does; it is Python, and
docker-registry is Go. Both share this machine's processors with the client.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cases import Case, find_images, make_cases, synthetic
from data import GiB, MiB
from endpoints import (
    Certificate,
    Endpoint,
    UnavailableError,
    docker_registry,
    emulator,
    make_certificate,
    refuses_v2_pushes,
)
from harness import HERE, Contender, ContenderError, Launch, Results, measure, probe, progress
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
)

Start = Callable[[Path, Certificate | None], AbstractContextManager[Endpoint]]

#: Bytes that are pushed by one command of the aws CLI a part: each takes a second.
_MOST_BY_COMMANDS = 256 * MiB

#: Builds a command that pushes an image to an endpoint; None where the tool can't read such a source.
Command = Callable[[Case, Endpoint], tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool, the program that it needs on the PATH, where it pushes to, and its command."""

    tool: str
    program: str
    endpoint: str
    start: Start
    command: Command

    @property
    def shown(self) -> str:
        """How tables call it."""
        return f"{self.tool} to {self.endpoint}"


def _asyncpush(case: Case, _endpoint: Endpoint) -> tuple[str, ...]:
    command = (sys.executable, "-m", "asyncpush", "push", case.source, "bench/image:1")
    return (*command, "--create-repository", "--quiet")


def _skopeo(case: Case, endpoint: Endpoint) -> tuple[str, ...]:
    trust = () if endpoint.ca else ("--dest-tls-verify=false",)
    return (
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        *trust,
        case.source,
        f"docker://{endpoint.host}/bench/image:1",
    )


def _crane(case: Case, endpoint: Endpoint) -> tuple[str, ...] | None:
    kind, _, path = case.source.partition(":")
    trust = () if endpoint.ca else ("--insecure",)
    return ("crane", "push", *trust, path, f"{endpoint.host}/bench/image:1") if kind == "docker-archive" else None


def _oras(case: Case, endpoint: Endpoint) -> tuple[str, ...] | None:
    kind, _, name = case.source.partition(":")
    trust = () if endpoint.ca else ("--to-plain-http",)
    target = f"{endpoint.host}/bench/image:1"
    return ("oras", "cp", "--from-oci-layout", *trust, name, target) if kind == "oci" else None


def _regctl(case: Case, endpoint: Endpoint) -> tuple[str, ...] | None:
    kind, _, name = case.source.partition(":")
    trust = () if endpoint.ca else ("--host", f"reg={endpoint.host},tls=disabled")
    target = f"{endpoint.host}/bench/image:1"
    return ("regctl", *trust, "image", "copy", f"ocidir://{name}", target) if kind == "oci" else None


def _aws_loop(case: Case, _endpoint: Endpoint) -> tuple[str, ...] | None:
    kind, _, name = case.source.partition(":")
    layout, _, tag = name.rpartition(":")
    script = str(HERE / "clients" / "aws_loop.py")
    return (sys.executable, script, layout, tag, "bench/image") if kind == "oci" else None


OURS = Peer("asyncpush", sys.executable, "emulator", emulator, _asyncpush)
PEERS = (
    OURS,
    Peer("skopeo", "skopeo", "emulator", emulator, _skopeo),
    Peer("skopeo", "skopeo", "docker-registry", docker_registry, _skopeo),
    Peer("crane", "crane", "docker-registry", docker_registry, _crane),
    Peer("oras", "oras", "docker-registry", docker_registry, _oras),
    Peer("regctl", "regctl", "docker-registry", docker_registry, _regctl),
    Peer("aws ecr, a loop", "aws", "emulator", emulator, _aws_loop),
)


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("images", type=Path, nargs="?", metavar="IMAGES", help="a folder of images")
    parser.add_argument("--synthetic", type=parse_size, default=GiB, help="bytes of one more image (1GiB; 0: none)")
    parser.add_argument("--schemes", nargs="+", choices=["http", "https"], default=["http", "https"])
    parser.add_argument("--without", nargs="+", default=[], help="tools to leave out, such as aws")
    given = parser.parse_args()
    with scratch() as folder:
        cases = find_images(given.images) if given.images else make_cases(folder / "made", small=given.quick)
        if given.synthetic and not given.quick:
            cases.append(synthetic(folder / "synthetic", given.synthetic))
        certificate = make_certificate(folder) if "https" in given.schemes else None
        skipped: dict[str, str] = {}
        tools = _tools(folder, given, skipped)
        contenders = [
            contender
            for case in (cases[:1] if given.quick else cases)
            for scheme in given.schemes
            for contender in _entrants(folder, case, scheme, tools, certificate, skipped)
        ]
        results = measure(contenders, rounds(given), warm_up=[])
    _report(given, results, skipped)


def _tools(folder: Path, given: argparse.Namespace, skipped: dict[str, str]) -> list[Peer]:
    """The peers that can run here; why the others can't is *skipped*."""
    tools = []
    for peer in PEERS:
        reason = None if shutil.which(peer.program) else f"{peer.program} is not on the PATH"
        if peer.program in given.without or (given.quick and peer.program == "aws"):
            reason = "left out: a second a command" if peer.program == "aws" else "left out"
        elif not reason and peer.endpoint == "docker-registry" and not shutil.which("docker-registry"):
            reason = "docker-registry is not on the PATH"
        elif not reason and peer.endpoint == "emulator" and peer.program == "skopeo":
            with tempfile.TemporaryDirectory(dir=folder) as data, emulator(Path(data)) as endpoint:
                reason = refuses_v2_pushes(endpoint)
        if reason:
            skipped[peer.shown] = reason
        else:
            tools.append(peer)
    return tools


def _entrants(
    folder: Path, case: Case, scheme: str, tools: list[Peer], certificate: Certificate | None, skipped: dict[str, str]
) -> Iterator[Contender]:
    """Who pushes *case*; the run that proves that they can is their warm-up."""
    tls = certificate if scheme == "https" else None
    for peer in tools:
        name = f"{peer.shown}: {case.name}, {scheme}"
        labels: dict[str, str | float] = {"shown": peer.shown, "case": case.name, "scheme": scheme, "size": case.size}
        contender = Contender(name, partial(_fresh_push, folder, case, peer, tls), labels)
        try:
            probe(contender)
        except (ContenderError, UnavailableError) as error:
            if peer is OURS:
                raise
            skipped[name] = str(error)
        else:
            yield contender


@contextmanager
def _fresh_push(folder: Path, case: Case, peer: Peer, tls: Certificate | None) -> Iterator[Launch]:
    with tempfile.TemporaryDirectory(dir=folder) as data, peer.start(Path(data), tls) as endpoint:
        command = peer.command(case, endpoint)
        if peer.command is _aws_loop and case.size > _MOST_BY_COMMANDS:
            raise UnavailableError("a command a part: minutes")
        if command is None:
            raise UnavailableError(f"{peer.tool} does not read {case.source.partition(':')[0]}")
        if peer.endpoint == "emulator" and peer.command is _skopeo:
            endpoint.create_repository("bench/image")
        yield Launch(command, endpoint, case.size)


def _report(given: argparse.Namespace, results: Results, skipped: dict[str, str]) -> None:
    figures = (SECONDS, CPU, CPU_PER_GIB, PEAK, ENDPOINT_CPU, REQUESTS)
    panels = []
    groups = dict.fromkeys((contender.labels["case"], contender.labels["scheme"]) for contender in results.contenders)
    for case, scheme in groups:
        found = results.where(case=case, scheme=scheme)
        ours = f"{OURS.shown}: {case}, {scheme}"
        size = found.contenders[0].labels["size"]
        title = f"peers: {case} ({float(size) / MiB:,.1f} MiB), cold, over {scheme}"
        compare(title, found, figures, reference=ours, ratios=(SECONDS, CPU))
        panels.append(bars(found, SECONDS, title=f"{case}, {scheme}: wall, s"))
    for name, reason in skipped.items():
        progress.print(f"skipped: {name}: {reason}", highlight=False, soft_wrap=True)
    save("peers", given, results, panels, skipped=skipped)


if __name__ == "__main__":
    main()
