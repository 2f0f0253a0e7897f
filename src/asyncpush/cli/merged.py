"""The report of ``asyncpush journal merge``: the latest runs of several journals as if they had been one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from asyncpush.cli.report import OUTCOME_WORDS, Json
from asyncpush.journal.export import ImageRow
from asyncpush.journal.merge import JournalResult
from asyncpush.migrate.report import CopyName
from asyncpush.migrate.shard import Shard, missing_shards
from asyncpush.units import count_text


@dataclass(frozen=True, slots=True)
class MergedReport:
    """The latest runs of several journals.

    Attributes:
        journals: the journals and their latest runs.
        images: the outcome of each image, by its name in the journal.
        missing: shards of which there is no journal, as far as their names tell.
    """

    journals: Sequence[JournalResult]
    images: dict[str, ImageRow]
    missing: Sequence[Shard]

    @classmethod
    def of(cls, journals: Sequence[JournalResult]) -> Self:
        """The report of *journals*; of two outcomes of one image, the later counts."""
        images: dict[str, ImageRow] = {}
        for journal in journals:
            for image in journal.images:
                if image.copy not in images or images[image.copy].at <= image.at:
                    images[image.copy] = image
        return cls(journals, images, missing_shards([journal.name for journal in journals]))

    @property
    def failed(self) -> list[ImageRow]:
        """The images that failed."""
        return [image for image in self.images.values() if image.digest is None]

    @property
    def is_complete(self) -> bool:
        """Whether all runs have ended, and nothing failed."""
        ended = all(journal.run is not None and journal.run.state == "finished" for journal in self.journals)
        return ended and not self.failed and not self.missing

    def lines(self) -> list[str]:
        """``DESTINATION@DIGEST`` for each image that did not fail."""
        found = []
        for image in self.images.values():
            if image.digest is not None:
                name = CopyName.parse(image.copy).destination
                found.append(f"{name}@{image.digest}")
        return found

    def failed_lines(self) -> list[str]:
        """What failed, as ``SOURCE DESTINATION``; as a comment where a list can't express it."""
        lines = []
        for image in self.failed:
            name = CopyName.parse(image.copy)
            if name.choice or name.is_placeholder:
                lines.append(f"# {name.source} to {name.destination}: {_reason(image)}")
            else:
                lines.append(f"{name.source} {name.destination}")
        return lines

    def problems(self) -> Iterator[str]:
        """What is wrong, a line each."""
        for image in self.failed:
            yield f"error: {CopyName.parse(image.copy).destination}: {_reason(image)}"
        for journal in self.journals:
            if journal.run is None:
                yield f"error: {journal.name} has no run"
            elif journal.run.state == "unfinished":
                yield f"error: {journal.name}: its run has not ended; run that shard again"
        for shard in self.missing:
            yield f"error: there is no journal of shard {shard}"

    def summary(self) -> str:
        """The totals in one line."""
        counts = self._counts()
        words = ", ".join(f"{count} {OUTCOME_WORDS.get(outcome, outcome)}" for outcome, count in counts.items())
        images, journals = count_text(len(self.images), "image"), count_text(len(self.journals), "journal")
        return f"{images} in {journals}: {words or 'nothing'}"

    def document(self) -> Json:
        """Everything, as JSON."""
        return {
            "images": [_image(image) for image in self.images.values()],
            "journals": [_journal(journal) for journal in self.journals],
            "missing": [str(shard) for shard in self.missing],
            "totals": {"images": len(self.images), **self._counts()},
        }

    def _counts(self) -> Counter[str]:
        return Counter(image.outcome for image in self.images.values())


def _reason(image: ImageRow) -> str:
    return " ".join((image.reason or "unknown").split())


def _image(image: ImageRow) -> Json:
    name = CopyName.parse(image.copy)
    return {
        "source": name.source,
        "destination": name.destination,
        "outcome": image.outcome,
        "digest": image.digest,
        **({"reason": image.reason} if image.reason else {}),
    }


def _journal(journal: JournalResult) -> Json:
    run = journal.run
    return {
        "name": journal.name,
        "state": run.state if run else None,
        "started": run.started.isoformat() if run else None,
        "ended": run.ended.isoformat() if run and run.ended else None,
        "finished": run.finished if run else 0,
        "failed": run.failed if run else 0,
    }
