"""Where a migration's journal is: a file, or an object in S3."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from asyncpush.errors import JournalError, JournalInUseError
from asyncpush.events import Emit
from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.journal.remote import RemoteJournal, missing, open_remote_journal
from asyncpush.reference import S3Location
from asyncpush.settings import AwsConfiguration

#: Seconds between two attempts to open a journal that is in use.
_PAUSE = 0.25


@dataclass(slots=True, eq=False)
class KeptJournal:
    """The journal of a run.

    Attributes:
        journal: the journal; None if there is none.
    """

    journal: SqliteJournal | None = None
    _remote: RemoteJournal | None = None

    @property
    def failure(self) -> JournalError | None:
        """After it was closed, why its last copy was not put into S3."""
        return self._remote.failure if self._remote else None


def read_place(text: str) -> Path | S3Location:
    """Where a journal is: ``s3://BUCKET/KEY`` or a path.

    Raises:
        UsageError: it names no bucket.
    """
    return S3Location.parse(text) or Path(text)


@asynccontextmanager
async def open_place(
    place: Path | S3Location | None,
    aws: AwsConfiguration,
    emit: Emit,
    *,
    dry: bool,
    is_needed: bool = False,
    patience: float = 0.0,
) -> AsyncIterator[KeptJournal]:
    """Open the journal of a run until the block is left; a dry run reads an existing one, but creates none.

    Args:
        place: where it is; None for a run without one.
        aws: the profile and region for S3.
        emit: takes notices.
        dry: whether nothing is to be recorded.
        is_needed: whether it must exist, since it says what the run is to do.
        patience: seconds to wait for another process that uses the file, since it is about to end.

    Raises:
        UsageError: it is not a journal, or is in use; or it is needed, and does not exist.
        JournalError: it is damaged, or S3 refuses it.
    """
    kept = KeptJournal()
    async with AsyncExitStack() as stack:
        if isinstance(place, S3Location):
            opening = open_remote_journal(place, aws, emit, writes=not dry, is_needed=is_needed)
            kept._remote = await stack.enter_async_context(opening)  # noqa: SLF001
            kept.journal = kept._remote.journal  # noqa: SLF001
        elif place is not None and is_needed and not await to_thread.run_sync(place.exists):
            raise missing(place)
        elif place is not None and (not dry or await to_thread.run_sync(place.exists)):
            kept.journal = await _open_file(place, stack, time.monotonic() + patience)
        yield kept


async def _open_file(path: Path, stack: AsyncExitStack, until: float) -> SqliteJournal:
    while True:
        try:
            return await stack.enter_async_context(open_journal(path))
        except JournalInUseError:
            if time.monotonic() >= until:
                raise
            await anyio.sleep(_PAUSE)
