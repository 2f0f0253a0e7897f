"""Results on standard output: lines for people and pipes, or one JSON document for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from asyncpush import open_files
from asyncpush.cli.options import OutputFormat
from asyncpush.cli.streams import is_terminal, say, write_document, write_lines
from asyncpush.errors import AsyncpushError, UnforeseenError, UsageError, origin_of
from asyncpush.files import check_writable, write_small
from asyncpush.model import LeftOut
from asyncpush.results import ImageFailure, ImageResult, LayerFailure, LayerResult, ReferrerResult
from asyncpush.timeline import Timeline
from asyncpush.traffic import Traffic
from asyncpush.units import count_text, size_text, time_text

#: Goes up when a member of the document changes its name or meaning; new members may be added at any time.
_VERSION = 1

#: The words for outcomes of images in summaries.
OUTCOME_WORDS = {
    "pushed": "pushed",
    "present": "already there",
    "finished": "finished before",
    "planned": "to be sent",
    "refused": "refused by ECR",
    "left": "left for later",
    "failed": "failed",
}

Json: TypeAlias = Mapping[
    str, "str | int | float | Json | Mapping[str, int] | Mapping[str, float] | Sequence[Json] | Sequence[str] | None"
]


def print_images(
    results: Sequence[ImageResult | ImageFailure],
    output: OutputFormat,
    traffic: Traffic | None = None,
    timeline: Timeline | None = None,
    stopped: AsyncpushError | None = None,
    *,
    each: bool = False,
) -> None:
    """Print image results: ``HOST/REPOSITORY:TAG@DIGEST`` a line for each that did not fail; or everything as JSON.

    Args:
        results: the results.
        output: the format.
        traffic: the requests of the run.
        timeline: its course.
        stopped: why it ended early.
        each: whether a person wants to see each line, also of images that were there already.
    """
    if output == "json":
        totals = [result for result in results if isinstance(result, ImageResult)]
        referrers = [referrer for result in totals for referrer in result.referrers]
        print_document(
            {
                "images": [_image(result) for result in results],
                "totals": {
                    "images": len(results),
                    "failed": len(results) - len(totals),
                    "referrers": len(referrers),
                    "referrersFailed": sum(referrer.outcome == "failed" for referrer in referrers),
                    "layersSent": sum(result.layers_sent for result in totals),
                    "bytesSent": sum(result.bytes_sent for result in totals),
                    "layersPresent": sum(result.layers_present for result in totals),
                    "bytesPresent": sum(result.bytes_present for result in totals),
                    "layersShared": sum(result.layers_shared for result in totals),
                    "bytesShared": sum(result.bytes_shared for result in totals),
                    **(traffic.document() if traffic else {}),
                    **({"seconds": timeline.seconds} if timeline else {}),
                },
                **({"timeline": msgspec.to_builtins(timeline)} if timeline else {}),
                **stopped_document(stopped),
            }
        )
        return
    pushed = [result for result in results if isinstance(result, ImageResult)]
    write_lines(_line(result) for result in pushed if is_listed(result.outcome, len(results), each=each))


def is_listed(outcome: str, results: int, *, each: bool) -> bool:
    """Whether one of so many results gets a line: a person at a terminal need not see what was there already.

    Programs get them all.
    """
    return each or results == 1 or outcome not in ("present", "finished") or not is_terminal()


def retries_text(traffic: Traffic) -> str:
    """How many requests were sent again and throttled, and the pace that throttling holds them to; empty for none."""
    retries, throttled = sum(traffic.retries.values()), sum(traffic.throttled.values())
    if not (retries or throttled):
        return ""
    text = count_text(retries, "retry", "retries") + (f" ({throttled} throttled)" if throttled else "")
    slow = sorted(operation for operation in traffic.pace if traffic.throttled.get(operation))
    held = [f"{operation} {traffic.pace[operation]:.1f}/s" for operation in slow]
    return f"{text}, held to {', '.join(held)}" if held else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the last line of a run says.

    Attributes:
        images: images by their outcomes, in words.
        referrers: their signatures, attestations and SBOMs, likewise.
        sizes: bytes of layers by what became of them, in words; none are left out.
        traffic: the requests.
        seconds: how long it took.
    """

    images: Mapping[str, int]
    referrers: Mapping[str, int]
    sizes: Mapping[str, int]
    traffic: Traffic
    seconds: float

    def __str__(self) -> str:
        images, referrers = sum(self.images.values()), sum(self.referrers.values())
        words = _counted(self.images)
        if images == 1:
            words = [word for word, count in self.images.items() if count]
        if referrers:
            words.append(f"{count_text(referrers, 'referrer')} ({', '.join(_counted(self.referrers))})")
        sizes = ", ".join(f"{size_text(size)} {word}" for word, size in self.sizes.items() if size) or "nothing sent"
        requests = sum(self.traffic.requests.values())
        retries = retries_text(self.traffic)
        return (
            f"{count_text(images, 'image')}: {', '.join(words) or 'nothing to do'}; {sizes}; "
            f"{count_text(requests, 'request')} in {time_text(self.seconds)}" + (f", {retries}" if retries else "")
        )


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [f"{count} {word}" for word, count in counts.items() if count]


def say_summary(summary: Summary, *, each: bool) -> None:
    """Write the totals of a run to standard error, as its last line; before it, each operation's requests if asked."""
    traffic = summary.traffic
    for operation, requests in sorted(traffic.requests.items()) if each else ():
        words = [count_text(requests, "request")]
        for counts, word in ((traffic.retries, "sent again"), (traffic.throttled, "throttled")):
            if count := counts.get(operation):
                words.append(f"{count} {word}")
        if rate := traffic.pace.get(operation):
            words.append(f"held to {rate:.1f}/s")
        say(f"asyncpush: {operation}: {', '.join(words)}")
    say(f"asyncpush: {summary}")


def print_layers(
    results: Sequence[LayerResult | LayerFailure], output: OutputFormat, stopped: AsyncpushError | None = None
) -> None:
    """Print layer results: ``DIGEST  FILE`` a line, as sha256sum does; or everything as JSON."""
    if output == "json":
        print_document({"layers": [_layer(result) for result in results], **stopped_document(stopped)})
        return
    write_lines(f"{layer.digest}  {layer.file}" for layer in results if isinstance(layer, LayerResult))


def _line(result: ImageResult) -> str:
    name = result.reference or (f"{result.destination}@{result.digest}" if result.digest else result.destination)
    if result.outcome != "planned":
        return name
    return (
        f"{name}  would send {result.layers_sent} blobs, {result.bytes_sent} bytes; "
        f"{result.layers_present} are already there"
    )


def _image(result: ImageResult | ImageFailure) -> Json:
    if isinstance(result, ImageFailure):
        return {
            "source": result.source,
            "destination": result.destination or None,
            "outcome": "failed",
            "error": error_document(result.error),
        }
    return {
        "source": result.source,
        "destination": result.destination,
        "outcome": result.outcome,
        "digest": str(result.digest) if result.digest else None,
        "reference": result.reference,
        "mediaType": result.media_type,
        "layersSent": result.layers_sent,
        "bytesSent": result.bytes_sent,
        "layersPresent": result.layers_present,
        "bytesPresent": result.bytes_present,
        "layersShared": result.layers_shared,
        "bytesShared": result.bytes_shared,
        "seconds": round(result.seconds, 3),
        "referrers": [_referrer(referrer) for referrer in result.referrers],
        "leftOut": left_out_document(result.left_out),
    }


def left_out_document(left_out: Iterable[LeftOut]) -> Sequence[Json]:
    """What was left out of a source, for a JSON report."""
    return [
        {"name": item.name, "digest": str(item.digest) if item.digest else None, "reason": item.reason}
        for item in left_out
    ]


def _referrer(result: ReferrerResult) -> Json:
    return {
        "subject": str(result.subject),
        "source": result.source,
        "destination": result.destination,
        "outcome": result.outcome,
        "digest": str(result.digest) if result.digest else None,
        "layersSent": result.layers_sent,
        "bytesSent": result.bytes_sent,
        "error": error_document(result.error) if result.error else None,
    }


def _layer(result: LayerResult | LayerFailure) -> Json:
    if isinstance(result, LayerFailure):
        return {"file": result.file, "outcome": "failed", "error": error_document(result.error)}
    return {
        "file": result.file,
        "outcome": result.outcome,
        "digest": str(result.digest),
        "size": result.size,
        "mediaType": result.media_type,
    }


def error_document(error: AsyncpushError) -> Json:
    """An error as JSON: its origin, ECR's code if it has one, the message and the hint."""
    code: str | None = getattr(error, "code", None)
    trace = {"traceback": error.traceback} if isinstance(error, UnforeseenError) else {}
    return {"origin": origin_of(error), "code": code, "message": error.message, "hint": error.hint, **trace}


def stopped_document(stopped: AsyncpushError | None) -> Json:
    """The member of a JSON report that says what has ended the command early, if anything has."""
    return {"stopped": error_document(stopped)} if stopped else {}


def print_document(document: Json) -> None:
    """Print *document* with its version."""
    write_document({"version": _VERSION, **document})


class Finally:
    """Prints the document of ``--output json`` when a command ends before it has printed its result.

    So it prints one whole document however it ends, and a program can always read it.

    Args:
        output: the format.
        print_so_far: prints what was done as JSON; it gets the error or the signal that has ended the command.
    """

    def __init__(self, output: OutputFormat, print_so_far: Callable[[AsyncpushError], None]) -> None:
        self._print_so_far = print_so_far
        self._is_due = output == "json"

    def is_printing(self) -> None:
        """Note that the command prints its result now."""
        self._is_due = False

    def end_early(self, cause: AsyncpushError) -> None:
        """Print the document, if it is due: *cause* has ended the command."""
        if self._is_due:
            self._is_due = False
            self._print_so_far(cause)


def check_output(path: Path, option: str) -> None:
    """Check at the start that the file that *option* names can be written at the end; blocks.

    Raises:
        UsageError: it can't.
    """
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(
            f"{option} {path} can't be written: {open_files.reason(error)}",
            hint="name a file that you can write, in a directory that exists",
        ) from error


def write_list(path: Path, lines: Sequence[str]) -> None:
    """Write a list of what failed; blocks.

    Raises:
        AsyncpushError: it can't be written.
    """
    try:
        write_small(path, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    except OSError as error:
        raise AsyncpushError(
            f"{path} can't be written: {open_files.reason(error)}", hint="give --failed-out another file"
        ) from error
