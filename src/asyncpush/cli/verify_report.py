"""What ``asyncpush verify`` prints: each result as soon as it is known, and a summary or a document at the end."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio
from anyio import CancelScope, EndOfStream, WouldBlock, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from asyncpush.cli.github import annotated
from asyncpush.cli.options import OutputOptions
from asyncpush.cli.report import Json, error_document, print_document, stopped_document
from asyncpush.cli.run import ALIKE, FAILED, say_failures, status_of
from asyncpush.cli.streams import say, say_notice, write_lines
from asyncpush.errors import AsyncpushError, InterruptedRunError, UsageError, cause_of
from asyncpush.events import Emit, Event, ImageFailed, PartRead, ignore
from asyncpush.model import restoring
from asyncpush.units import count_text, size_text, some_text, time_text
from asyncpush.verify import (
    Problem,
    SettingsVerification,
    Verification,
    VerificationFailure,
    VerificationTarget,
    VerificationWatcher,
)

#: Names that a note lists.
_SHOWN_NAMES = 3


class VerifyReport(VerificationWatcher):
    """Hears of results, and prints them.

    Args:
        show: what is printed.
        deep: whether bytes are read.

    Attributes:
        show: likewise.
    """

    def __init__(self, show: OutputOptions, *, deep: bool) -> None:
        self.show = show
        self._deep = deep
        self._is_due = True
        self._write: Callable[[str], None] = _nowhere
        self._started = time.monotonic()
        self._targets: dict[VerificationTarget, Verification | VerificationFailure | None] = {}
        self._unlisted: list[VerificationFailure] = []
        self._settings: list[SettingsVerification] = []
        self._bytes_read = 0
        self._alike: defaultdict[str, list[str]] = defaultdict(list)

    @asynccontextmanager
    async def printing(self) -> AsyncIterator[None]:
        """Print results as they come, in a worker thread, so that a reader that pauses stops nothing else.

        All of them are printed when the block is left, however it is.
        """
        send, receive = anyio.create_memory_object_stream[str](math.inf)
        async with anyio.create_task_group() as tg:
            tg.start_soon(_write_all, receive)
            with send:
                self._write = send.send_nowait
                yield

    def listener(self, display: Emit) -> Emit:
        """What takes the events: *display*, without the failure of a single image, which an error line tells."""
        if self.show.display == "none":
            display = ignore if self.show.quiet else say_notice  # notices are not progress

        def emit(event: Event) -> None:
            if isinstance(event, PartRead):
                self._bytes_read += event.read
            if self.show.display == "json" or len(self._targets) > 1 or not isinstance(event, ImageFailed):
                display(event)

        return emit

    def expect(self, target: VerificationTarget) -> None:
        """Note that *target* will be verified."""
        self._targets.setdefault(target, None)

    def found(
        self,
        result: Verification | VerificationFailure | SettingsVerification,
        target: VerificationTarget | None = None,
    ) -> None:
        """Print *result*; failures are told at the end, those of one cause together."""
        if isinstance(result, SettingsVerification):
            self._settings.append(result)
            for difference in result.differences:
                say(annotated(f"asyncpush: error: {result.repository}: {difference}"))
            return
        if target is not None:
            self._targets[target] = result
        elif isinstance(result, VerificationFailure):
            self._unlisted.append(result)
        if isinstance(result, Verification):
            if result.is_whole and self.show.output == "text":
                self._write(_line(result))
            for problem in result.problems:
                self._say_problem(result.destination, str(problem))
            for note in result.notes:
                say(f"asyncpush: note: {result.destination}: {note}")

    def _say_problem(self, name: str, problem: str) -> None:
        """Print a problem; of one that many images share, such as a missing layer, the end names the rest."""
        self._alike[problem].append(name)
        if len(self._alike[problem]) <= ALIKE or self.show.verbose:
            say(annotated(f"asyncpush: error: {name}: {problem}"))

    def _say_rest(self) -> None:
        """Print which other images share the problems that were printed."""
        for problem, names in self._alike.items():
            if (rest := names[ALIKE:]) and not self.show.verbose:
                about = rest[0] if len(rest) == 1 else f"{len(rest)} more images ({some_text(rest, _SHOWN_NAMES)})"
                say(annotated(f"asyncpush: error: {about}: {problem}"))

    def conclude(self) -> int:
        """Print the rest: the document, failures by cause, what to do, and the summary.

        Returns:
            The exit status.

        Raises:
            UsageError: all images have failed because of wrong usage.
        """
        results = self._results
        errors = [result.error for result in results if isinstance(result, VerificationFailure)]
        if errors and len(errors) == len(results) and all(isinstance(error, UsageError) for error in errors):
            raise errors[0]
        self._print_rest(None)
        is_whole = all(result.is_whole for result in results if isinstance(result, Verification))
        if is_whole and not any(compared.differences for compared in self._settings):
            return status_of(errors)
        return FAILED

    def end_early(self, cause: AsyncpushError) -> None:
        """Print what is known, and what is not: *cause* has ended the command."""
        if self._is_due:
            self._print_rest(cause)

    def _print_rest(self, cause: AsyncpushError | None) -> None:
        self._is_due = False
        if self.show.output == "json":
            print_document(self._document(cause))
        results = self._results
        if cause is not None and not isinstance(cause, InterruptedRunError):
            # An error that leaves nothing verified is the only thing to say.
            results = [result for result in results if isinstance(result, Verification)]
            if not results:
                return
        failed = [(result.error, result.destination) for result in results if isinstance(result, VerificationFailure)]
        told = [(error, name, name) for error, name in failed]
        total = len(self._targets) + len(self._unlisted)
        say_failures(told, total, undone="verified", each=self.show.verbose)
        self._say_rest()
        for note in (*self._advice(), *self._settings_notes()):
            say(f"asyncpush: note: {note}")
        if not self.show.quiet:
            say(f"asyncpush: {self._summary()}")

    @property
    def _results(self) -> list[Verification | VerificationFailure]:
        return [*self._unlisted, *(result for result in self._targets.values() if result is not None)]

    def _counts(self) -> Counter[str]:
        """Images by outcome: whole, broken, failed and unverified."""
        return Counter(
            "unverified" if result is None else _outcome(result)
            for result in (*self._unlisted, *self._targets.values())
        )

    def _summary(self) -> str:
        counts = self._counts()
        text = f"{count_text(counts['whole'], 'image')} whole in {time_text(time.monotonic() - self._started)}"
        if missing := counts.total() - counts["whole"]:
            unverified = counts["failed"] + counts["unverified"]
            words = [f"{counts['broken']} broken"] if counts["broken"] else []
            words += [f"{unverified} not verified"] if unverified else []
            text += f", {missing} not ({', '.join(words)})"
        return "; ".join((text, self._how(), *self._settings_words()))

    def _how(self) -> str:
        if not self._deep:
            return "sizes and digests of manifests only; --deep reads the bytes"
        earlier = sum(isinstance(result, Verification) and result.read_at is not None for result in self._results)
        before = f", {count_text(earlier, 'image')} read before (--proved-within)" if earlier else ""
        return f"{size_text(self._bytes_read)} read and hashed{before}"

    def _settings_words(self) -> Iterable[str]:
        if not self._settings:
            return
        differences = sum(len(compared.differences) for compared in self._settings)
        if differences:
            different = sum(bool(compared.differences) for compared in self._settings)
            yield f"{count_text(differences, 'setting')} of {_repositories(different)} not as planned"
        else:
            partly = " as far as they could be read" if any(compared.unread for compared in self._settings) else ""
            yield f"settings of {_repositories(len(self._settings))} as planned{partly}"

    def _advice(self) -> Iterable[str]:
        """What to do about broken images, by what helps."""
        by_advice: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for result in self._results:
            if isinstance(result, Verification) and not result.is_whole:
                by_advice[_advice(result)][result.destination] = None
        for advice, names in by_advice.items():
            yield f"{some_text(list(names), _SHOWN_NAMES)}: {advice}"

    def _settings_notes(self) -> Iterable[str]:
        unread: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for compared in self._settings:
            for setting, reason in compared.unread:
                unread[setting, cause_of(reason, compared.repository)].append((compared.repository, reason))
        for (setting, _), found in unread.items():
            names = some_text([name for name, _ in found], _SHOWN_NAMES)
            yield f"{setting} not compared with the plan, of {names}: {found[0][1]}"
        if any(compared.differences for compared in self._settings):
            yield (
                "a migration leaves the settings of repositories that exist as they are: change them, or the plan;"
                " --no-settings compares images only"
            )

    def _document(self, cause: AsyncpushError | None) -> Json:
        counts = self._counts()
        return {
            "images": [
                *map(_document, self._unlisted),
                *(
                    _unverified(target) if found is None else _document(found)
                    for target, found in self._targets.items()
                ),
            ],
            "settings": [
                _settings_document(compared) for compared in sorted(self._settings, key=lambda each: each.repository)
            ],
            "totals": {
                "images": counts.total(),
                **{outcome: counts[outcome] for outcome in ("whole", "broken", "failed", "unverified")},
                "settingsCompared": len(self._settings),
                "settingsDifferent": sum(len(compared.differences) for compared in self._settings),
                "bytesRead": self._bytes_read,
                "seconds": round(time.monotonic() - self._started, 3),
            },
            **stopped_document(cause),
        }


def _advice(result: Verification) -> str:
    """What to do about a broken image; a push leaves an image and a layer alone that is there."""
    problems = result.problems
    if any(problem.stays for problem in problems):
        return (
            "ECR keeps a layer beyond its image, and takes it only once: push from a good source into another"
            " repository, or into this one once it is deleted (aws ecr delete-repository --force) and made again"
        )
    kinds = {problem.kind for problem in problems}
    if "archived" in kinds:
        return f"restore it first: {restoring('REPOSITORY', 'TAG')}"
    if result.digest is None:
        return "push it again, or run the migration again"
    if kinds == {"unexpected"}:
        return "push the image that is expected (an immutable tag must be deleted first), or correct what is expected"
    if kinds == {"unreadable"}:
        return "verify it again; if that fails again, delete the image in ECR, and push it again from a good source"
    return "delete the image in ECR, and push it again from a good source"


def _outcome(result: Verification | VerificationFailure) -> str:
    if isinstance(result, VerificationFailure):
        return "failed"
    return "whole" if result.is_whole else "broken"


def _line(result: Verification) -> str:
    counts = f"{count_text(result.manifests, 'manifest')}, {count_text(result.blobs, 'blob')}, {result.size} bytes"
    before = f", read {result.read_at:%Y-%m-%d %H:%M:%S} UTC" if result.read_at else ""
    return f"{result.destination}@{result.digest}  whole: {counts}{before}"


def _repositories(count: int) -> str:
    return count_text(count, "repository", "repositories")


def _document(result: Verification | VerificationFailure) -> Json:
    if isinstance(result, VerificationFailure):
        return {"destination": result.destination, "outcome": "failed", "error": error_document(result.error)}
    return {
        "destination": result.destination,
        "outcome": _outcome(result),
        "digest": str(result.digest) if result.digest else None,
        "deep": result.deep,
        **({"readAt": f"{result.read_at:%Y-%m-%dT%H:%M:%SZ}"} if result.read_at else {}),
        "manifests": result.manifests,
        "blobs": result.blobs,
        "bytes": result.size,
        "problems": [_problem_document(problem) for problem in result.problems],
        "notes": list(result.notes),
    }


def _problem_document(problem: Problem) -> Json:
    return {
        "kind": problem.kind,
        "subject": problem.subject,
        "digest": str(problem.digest) if problem.digest else None,
        "message": str(problem),
    }


def _unverified(target: VerificationTarget) -> Json:
    digest = str(target.digest) if target.digest else None
    return {"destination": str(target), "outcome": "unverified", "digest": digest}


def _settings_document(compared: SettingsVerification) -> Json:
    return {
        "repository": compared.repository,
        "outcome": "different" if compared.differences else "as planned",
        "differences": [
            {"setting": difference.setting, "expected": difference.expected, "found": difference.found}
            for difference in compared.differences
        ],
        "unread": [{"setting": setting, "reason": reason} for setting, reason in compared.unread],
    }


def _nowhere(line: str) -> None:
    """Write nothing: no line comes before the printing has begun."""


async def _write_all(lines: MemoryObjectReceiveStream[str]) -> None:
    with lines:
        try:
            while True:
                batch = [await lines.receive(), *_waiting(lines)]
                await to_thread.run_sync(write_lines, batch)
        except EndOfStream:
            pass
        finally:
            if rest := _waiting(lines):
                with CancelScope(shield=True):
                    await to_thread.run_sync(write_lines, rest)


def _waiting(lines: MemoryObjectReceiveStream[str]) -> list[str]:
    """The lines that wait."""
    found: list[str] = []
    try:
        while True:
            found.append(lines.receive_nowait())
    except (WouldBlock, EndOfStream):
        return found
