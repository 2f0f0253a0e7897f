"""migrate: 120 images of 40 repositories in two registries, by ``asyncpush migrate``, ``skopeo sync`` and ``regsync``.

    python benchmarks/migrate.py [--images DIR] [--keep DIR] [--kills 30]

Half of the repositories are served by docker-registry, half by an emulator; images share most of their layers. The
target is an emulator under the conditions of a distant ECR: latency, bandwidth, and ECR's request quotas. Each tool
migrates all of it into an empty target, and then again, when everything is there. What was sent is what the endpoints
say. Afterwards everything at the target is compared with the corpus. With ``--kills N``, the migration is killed N
times instead, at random instants, and started again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from corpus import Recipe
from endpoints import UnavailableError
from equality import Equality
from harness import Contender, ContenderError, Launch, Results, Sample, measure, progress
from kills import ALLOWED, Outcome, Pace, kill_again_and_again, measure_startup
from report import (
    CPU,
    ENDPOINT_CPU,
    PEAK,
    SECONDS,
    Figure,
    bars,
    options,
    parse_size,
    rounds,
    save,
    scratch,
    table,
    tool_versions,
)
from stage import Conditions, Sources, sources, target
from stock import find_layout
from tools import TOOLS, Checked, Stages, asyncpush_command, check, is_there
from wire import Received, Wire

from asyncpush.bench.figures import Spread
from asyncpush.bench.plot import Panel

MB = 1_000_000
MiB = 1024 * 1024

#: What a forecast may differ from the run, of the run.
_CLOSE = 0.2

TARGET_REQUESTS = Figure("requests", lambda sample: float(sample.requests), 0)
SOURCE_REQUESTS = Figure("at sources", lambda sample: _number(sample, "source_requests"), 0)
SENT = Figure("MB sent", lambda sample: _number(sample, "bytes_received") / MB, 1)
UNIQUE = Figure("sent / unique", lambda sample: _number(sample, "bytes_received") / sample.size, 3)
MOUNTED = Figure("mounted", lambda sample: _number(sample, "mounted"), 0)
THROTTLED = Figure("throttled", lambda sample: _number(sample, "throttled"), 0)
_FIGURES = (SECONDS, CPU, PEAK, ENDPOINT_CPU, TARGET_REQUESTS, SOURCE_REQUESTS, THROTTLED, MOUNTED, SENT, UNIQUE)


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure that has a limit."""

    name: str
    value: float
    limit: float

    @property
    def row(self) -> list[str]:
        """For a table."""
        return [self.name, f"{self.value:.3f}", f"{self.limit:g}", "yes" if self.value <= self.limit else "NO"]


def main() -> None:
    """Measure and report."""
    given = _parse()
    with scratch() as folder:
        layout = find_layout(given.images)
        recipe = Recipe(given.seed, given.size, given.repositories, given.tags, layout, given.largest)
        conditions = Conditions(given.latency, given.bandwidth, given.manifests)
        with sources(given.keep or folder / "corpus", recipe, partial(progress.print, highlight=False)) as origin:
            if given.kills:
                _kill(given, folder, origin, conditions)
            elif given.forecast:
                _forecast(given, folder, origin, conditions)
            else:
                _compete(given, folder, origin, conditions)


def _parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder with an OCI layout of real images")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the corpus stays for the next time")
    parser.add_argument("--size", type=parse_size, help="bytes of all layers, each counted once (600MB)")
    parser.add_argument("--largest", type=parse_size, help="bytes of a layer at most (30MiB)")
    parser.add_argument("--repositories", type=int, help="how many (40)")
    parser.add_argument("--tags", type=int, help="how many, of all repositories (120)")
    parser.add_argument("--seed", type=int, default=1, help="of the corpus, and of the instants of kills (1)")
    parser.add_argument("--latency", default="30ms", help="what each request to the target takes longer (30ms)")
    parser.add_argument("--bandwidth", default="30MB/s", help="of each connection to the target (30MB/s)")
    parser.add_argument("--manifests", type=int, default=10, help="manifests a second that /v2/ takes (10; 0: all)")
    parser.add_argument("--contenders", nargs="+", choices=TOOLS, help="all that are on the PATH")
    parser.add_argument("--transport", choices=["api", "v2", "auto"], default="api", help="of asyncpush (api)")
    parser.add_argument("--mounting", nargs="+", choices=["on", "off"], default=["on", "off"], help="BLOB_MOUNTING")
    kills = "kill asyncpush N times, and compare with nobody: 800MB, 6 repositories, 12 tags, layers of up to 256MiB"
    parser.add_argument("--kills", type=int, default=0, metavar="N", help=kills)
    parser.add_argument("--forecast", action="store_true", help="compare the forecast of a dry run with the run")
    parser.add_argument("--brake", metavar="RATE", help="with --forecast, asyncpush's --bandwidth (none)")
    given = parser.parse_args()
    # Kills need layers of many parts, and a migration that takes long enough to be killed often.
    usual = (800 * MB, 6, 12, 256 * MiB) if given.kills else (600 * MB, 40, 120, 30 * MiB)
    size, repositories, tags, largest = (40 * MB, 8, 24, 30 * MiB) if given.quick else usual
    given.size, given.largest = given.size or size, given.largest or largest
    given.repositories = given.repositories or repositories
    given.tags = given.tags or max(tags, given.repositories)
    if given.tags < given.repositories:
        parser.error(f"{given.repositories} repositories need at least as many tags")
    return given


def _compete(given: argparse.Namespace, folder: Path, origin: Sources, conditions: Conditions) -> None:
    tools = [tool for tool in TOOLS if tool in (given.contenders or TOOLS)]
    missing = [tool for tool in tools if not is_there(tool)]
    if missing and given.contenders:
        raise UnavailableError(f"{missing[0]} is not on the PATH")
    with Stages(folder, origin, conditions, ("--transport", given.transport)) as stages:
        mountings = [word == "on" for word in dict.fromkeys(given.mounting)]
        contenders = stages.contenders([tool for tool in tools if tool not in missing], mountings)
        results = measure(contenders, rounds(given), warm_up=[])
    judged = list(_judge(results, origin, mounting=mountings[0]))
    _report(given, results, origin, judged)
    _report_checks(stages.checked)
    for tool in missing:
        progress.print(f"skipped: {tool} is not on the PATH", highlight=False)
    versions = tool_versions(TOOLS[1:])
    more = {"tools": versions, "judged": [asdict(each) for each in judged], "corpus": _describe(origin)}
    cold = results.where(**{"pass": "cold"})
    again = Results(
        tuple(one for one in results.contenders if one.labels["pass"] != "cold"),
        tuple(one for one in results.samples if one.contender not in {each.name for each in cold.contenders}),
    )
    panels = [bars(cold, SECONDS, "cold"), bars(cold, TARGET_REQUESTS, "cold")]
    panels += [bars(cold, SENT, "cold")]
    panels += [bars(again, SECONDS, "again"), bars(again, TARGET_REQUESTS, "again")]
    save("migrate", given, results, panels, checked=[asdict(each) for each in stages.checked], **more)
    if wrong := [line for each in stages.checked for line in each.equality.wrong]:
        raise ContenderError("\n".join(["the target is not equal to the corpus:", *wrong[:10]]))


def _judge(results: Results, origin: Sources, *, mounting: bool) -> Iterator[Judged]:
    """The limits that asyncpush is held to; those against skopeo where both have run."""
    suffix = "" if mounting else ", no mounting"
    ours, theirs = f"asyncpush, cold{suffix}", f"skopeo, cold{suffix}"
    names = {contender.name for contender in results.contenders}
    if ours not in names:
        return
    warm = f"asyncpush, warm{suffix}"
    if mounting:
        yield Judged("bytes sent / unique bytes", results.median(ours, UNIQUE.value), 1.02)
    tags = origin.corpus.tags
    yield Judged("warm: requests a tag, at all ends", results.median(warm, _all_requests) / tags, 1.5)
    if theirs not in names:
        return
    yield Judged("cold: requests / skopeo's", results.ratio(ours, theirs, TARGET_REQUESTS.value), 0.5)
    yield Judged("cold: wall / skopeo's", results.ratio(ours, theirs, SECONDS.value), 0.5)
    yield Judged("warm: wall / skopeo's", results.ratio(warm, f"skopeo, warm{suffix}", SECONDS.value), 0.1)


def _report(given: argparse.Namespace, results: Results, origin: Sources, judged: Sequence[Judged]) -> None:
    corpus = origin.corpus
    title = (
        f"migrate: {corpus.tags} tags of {len(corpus.repositories)} repositories, {corpus.unique_bytes() / MB:,.1f} MB"
    )
    title += f" of unique blobs ({corpus.repository_bytes() / MB:,.0f} MB a repository); "
    title += f"{given.latency} a request, {given.bandwidth} a connection"
    rows = []
    for contender in results.contenders:
        values = (figure.show(results.values(contender.name, figure.value)) for figure in _FIGURES)
        rows.append([contender.shown, *values])
    table(title, ["contender", *(figure.title for figure in _FIGURES)], rows)
    for place in ("target", "sources"):
        _report_kinds(results, place)
    table("limits", ["asyncpush", "measured", "at most", "met"], [each.row for each in judged])


def _report_kinds(results: Results, place: str) -> None:
    """Requests by kind, of the first round."""
    seen: list[dict[str, Any]] = [_counts(results.of(one.name)[0], place) for one in results.contenders]
    kinds = sorted({kind for counts in seen for kind in counts})
    rows = [[kind, *(str(counts.get(kind, 0)) for counts in seen)] for kind in kinds]
    table(f"requests at the {place}, round 1", ["kind", *(one.shown for one in results.contenders)], rows)


def _report_checks(checked: Sequence[Checked]) -> None:
    rows = []
    for each in checked:
        found = each.equality
        name = f"{each.tool}{'' if each.mounting else ', no mounting'}"
        verdict = "equal" if not found.wrong else f"{len(found.wrong)} differences"
        counts = (str(found.tags), str(found.manifests), str(found.blobs), f"{found.bytes_hashed / MB:,.1f}")
        rows.append([name, *counts, verdict])
    columns = ["target of", "tags", "manifests", "blobs, a repository", "MB read and hashed", "verdict"]
    table("what is there afterwards, against the corpus (of skopeo without referrers)", columns, rows)


def _kill(given: argparse.Namespace, folder: Path, origin: Sources, conditions: Conditions) -> None:
    options = ("--transport", given.transport)
    undisturbed = Contender("undisturbed", partial(_undisturbed, folder, origin, conditions, options))
    results = measure([undisturbed], 1, warm_up=[])
    [sample] = results.samples
    with target(folder, origin, conditions, mounting=True) as here:
        command = asyncpush_command(here, *options)
        environment = {**here.endpoint.environment(), **here.environment}
        pace = Pace(measure_startup(command, environment), sample.seconds, _wire_of(sample))
        outcome = kill_again_and_again(command, here, given.kills, pace, random.Random(given.seed))
        equality = check(origin, here, referrers=True)
    _report_kills(outcome, equality, sample)
    document = {**outcome.document(), "equality": asdict(equality)}
    lived = {f"run {number}": Spread.of([run.seconds]) for number, run in enumerate(outcome.runs, 1)}
    sizes = {"undisturbed": outcome.undisturbed.received.all, **asdict(outcome.received)}
    sizes["in flight at kills"] = outcome.in_flight
    received = {name: Spread.of([size / MB]) for name, size in sizes.items()}
    panels = [Panel("seconds that each run lived", lived, better=""), Panel("MB of layers received", received)]
    save("migrate-kills", given, results, panels, kills=document)
    if equality.wrong:
        raise ContenderError("\n".join(["the target is not equal to the corpus:", *equality.wrong[:10]]))


@contextmanager
def _undisturbed(folder: Path, origin: Sources, conditions: Conditions, options: tuple[str, ...]) -> Iterator[Launch]:
    with target(folder, origin, conditions, mounting=True) as here:
        before = here.look()
        size = origin.corpus.unique_bytes()
        command = asyncpush_command(here, *options)
        yield Launch(command, here.endpoint, size, here.environment, lambda: here.look().since(before).document())


def _forecast(given: argparse.Namespace, folder: Path, origin: Sources, conditions: Conditions) -> None:
    """Compare the forecast of a dry run with the run that follows, in whole processes."""
    rows, rounds_made = [], []
    for number in range(1, rounds(given) + 1):
        with target(folder, origin, conditions, mounting=True) as here:
            braked = ("--bandwidth", given.brake) if given.brake else ()
            command = asyncpush_command(here, "--transport", given.transport, "--output", "json", *braked)
            environment = {**here.endpoint.environment(), **here.environment}
            forecast = _document([*command, "--dry-run"], environment)["forecast"]
            before, started = here.look(), time.monotonic()
            _document(list(command), environment)
            seconds = time.monotonic() - started
            requests = here.look().since(before).target
        expected = {limit["name"]: limit["amount"] for limit in forecast["registries"][0]["limits"]}
        off = forecast["seconds"] / seconds - 1
        counts = [f"{expected.get(name, 0)} / {requests.get(name, 0)}" for name in ("PutImage", "UploadLayerPart")]
        times = (f"{forecast['seconds']:.1f}", f"{seconds:.1f}", f"{100 * off:+.0f}")
        rows.append([f"round {number}", forecast["binding"], *times, *counts, "yes" if abs(off) <= _CLOSE else "NO"])
        rounds_made.append({"forecast": forecast, "seconds": seconds, "requests": requests})
    columns = ["forecast / run", "binds", "forecast, s", "run, s", "per cent off", "PutImage", "UploadLayerPart", "met"]
    table(f"forecast: at most {100 * _CLOSE:.0f} per cent from the run", columns, rows)
    given.out.mkdir(parents=True, exist_ok=True)
    written = {"benchmark": "migrate-forecast", "rounds": rounds_made, "corpus": _describe(origin)}
    text = json.dumps(written, indent=2, default=str)
    (given.out / "migrate-forecast.json").write_text(f"{text}\n", encoding="utf-8")


def _document(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ContenderError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _report_kills(outcome: Outcome, equality: Equality, sample: Sample) -> None:
    wires = [run.wire for run in outcome.runs]
    name, seconds = f"killed {outcome.kills} times", sum(run.seconds for run in outcome.runs)
    rows = [
        ["undisturbed", "1", f"{sample.seconds:.1f}", *_columns([outcome.undisturbed], 0)],
        [name, str(len(wires)), f"{seconds:.1f}", *_columns(wires, outcome.in_flight)],
    ]
    columns = [
        "migration",
        "runs",
        "seconds",
        "requests",
        "at sources",
        "MB kept",
        "refused",
        "cut",
        "in flight at kills",
    ]
    table("kills: bytes of layers that the target has received, over all runs", columns, rows)
    judged = [
        Judged("bytes received / undisturbed, but for parts in flight at kills", outcome.ratio, ALLOWED).row,
        Judged("differences from the corpus", float(len(equality.wrong)), 0).row,
    ]
    table("limits", ["asyncpush", "measured", "at most", "met"], judged)


def _columns(wires: Sequence[Wire], in_flight: int) -> list[str]:
    counts = [str(sum(wire.target.total() for wire in wires)), str(sum(wire.sources.total() for wire in wires))]
    received = [wire.received for wire in wires]
    kept, refused = sum(each.kept for each in received), sum(each.refused for each in received)
    sizes = (kept, refused, sum(each.cut for each in received), in_flight)
    return [*counts, *(f"{size / MB:,.1f}" for size in sizes)]


def _wire_of(sample: Sample) -> Wire:
    """What a sample's details say, as they were."""
    received = Received(*(int(_number(sample, f"bytes_{name}")) for name in ("kept", "refused", "cut")))
    wire = Wire(mounted=int(_number(sample, "mounted")), received=received)
    wire.target.update(_counts(sample, "target"))
    wire.sources.update(_counts(sample, "sources"))
    return wire


def _describe(origin: Sources) -> dict[str, object]:
    corpus = origin.corpus
    return {
        **asdict(corpus.recipe),
        "unique_bytes": corpus.unique_bytes(),
        "repository_bytes": corpus.repository_bytes(),
        "unique_blobs": len(corpus.blobs()),
        "manifests": sum(len(repository.manifests) for repository in corpus.repositories),
        "referrers": sum(len(repository.referrers) for repository in corpus.repositories),
        "cosign_tags": sum(len(repository.signatures) for repository in corpus.repositories),
    }


def _counts(sample: Sample, place: str) -> dict[str, int]:
    counts = sample.details[place]
    assert isinstance(counts, dict), "wire.py writes it so"
    return counts


def _number(sample: Sample, name: str) -> float:
    return float(str(sample.details[name]))


def _all_requests(sample: Sample) -> float:
    return sample.requests + _number(sample, "source_requests")


if __name__ == "__main__":
    main()
