"""Results on standard output: lines for people and pipes, or one JSON document for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from asyncpush import open_files
from asyncpush.cli.options import OutputFormat
from asyncpush.cli.streams import write_document, write_lines
from asyncpush.errors import AsyncpushError, UnforeseenError, UsageError, origin_of
from asyncpush.files import check_writable, write_small
from asyncpush.model import LeftOut
from asyncpush.results import ImageFailure, ImageResult, LayerFailure, LayerResult, ReferrerResult
from asyncpush.timeline import Timeline

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

Json: TypeAlias = Mapping[str, "str | int | float | Json | Sequence[Json] | Sequence[str] | None"]


def print_images(
    results: Sequence[ImageResult | ImageFailure],
    output: OutputFormat,
    timeline: Timeline | None = None,
    stopped: AsyncpushError | None = None,
) -> None:
    """Print image results: ``HOST/REPOSITORY:TAG@DIGEST`` a line for each that did not fail; or everything as JSON."""
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
                    **({"seconds": timeline.seconds} if timeline else {}),
                },
                **({"timeline": msgspec.to_builtins(timeline)} if timeline else {}),
                **stopped_document(stopped),
            }
        )
        return
    write_lines(_line(result) for result in results if isinstance(result, ImageResult))


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
