"""The journal's file: creating, locking, opening and checking it, and messages for its errors.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from asyncpush import open_files
from asyncpush.errors import JournalError, JournalInUseError, UsageError

#: How a SQLite file begins, and where its application id is (SQLite's file format, "the database header").
_MAGIC = b"SQLite format 3\0"
_HEADER = 100
_APPLICATION_AT = 68

#: Only the owner may read and write a journal. SQLite gives its other files the same mode.
_MODE = 0o600

#: Seconds for which a statement waits for another process: a reader that opens the file may lock it briefly.
_LOCK_TIMEOUT = 5.0

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@contextmanager
def open_database(path: Path, *, make: bool = True) -> Iterator[sqlite3.Connection]:
    """Open a journal, and lock it until the block is left.

    The lock on ``FILE-lock`` ends with the process. Any thread can use the connection, one at a time.

    Args:
        path: the file.
        make: create a journal if there is no file, or an empty one.

    Raises:
        UsageError: the file is not a journal, is from a newer asyncpush, is in use, or can't be read and written.
        JournalError: it is damaged.
    """
    path = resolved(path)
    if not _was_used(path):
        _refuse_foreign(path)
    if not make and _is_empty(path):
        raise _missing(path)
    with _locked(path):
        if _is_empty(path):
            _make(path)
        with closing(_connect(path, "rw")) as connection:
            with opening(path):
                _identify(connection, path)
                _prepare(connection, path)
                _check_rows(connection, path)
            yield connection


@contextmanager
def read_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a snapshot of a journal for reading, even while a run writes it.

    Raises:
        UsageError: there is no journal, or the file is not one, or is from a newer asyncpush.
        JournalError: (also while reading) it is damaged.
    """
    path = resolved(path)
    if _is_empty(path):
        raise _missing(path)
    with closing(_connect(path, "ro")) as connection, opening(path):
        connection.execute("BEGIN")
        _identify(connection, path)
        _check_rows(connection, path)
        yield connection


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Translate the errors of SQLite while a journal is opened or read."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_damage(error):
            raise _damaged(path, str(error)) from error
        raise _unusable(path, str(error)) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block writes; if it fails, write nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Whether a journal has a table: an older one that is only read may lack it."""
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())


def journal_error(path: Path, error: sqlite3.Error) -> JournalError:
    """The error for a failure of an open journal."""
    if _is_damage(error):
        return _damaged(path, str(error))
    return JournalError(
        f"the journal {path} can't be written: {error}",
        hint="free space on its disk; run the same command again to resume",
    )


def missing_error(path: Path) -> JournalError | None:
    """The error for an open journal whose file was deleted: what is written to it is lost. None if it exists."""
    if path.exists():
        return None
    return JournalError(
        f"the journal {path} was deleted during the run",
        hint="keep it until the run ends; run the same command again: images that ECR has will not be sent again",
    )


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is damaged; only Python's module reports text that is not UTF-8."""
    return _code(error) in _DAMAGED or str(error).startswith("Could not decode to UTF-8")


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of Python's module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _damaged(path: Path, reason: str) -> JournalError:
    return JournalError(
        f"the journal {path} is damaged: {reason}",
        hint=f"delete it, and {path.name}-wal if it exists; images that ECR has will not be sent again",
    )


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(f"the journal {path} can't be used: {reason}", hint="name a file that can be read and written")


def resolved(path: Path) -> Path:
    """*path* with symbolic links resolved, since SQLite puts its other files beside the real one.

    Raises:
        UsageError: it can't be resolved.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise _unusable(path, str(error)) from error


def _is_empty(path: Path) -> bool:
    """Whether there is no file, or an empty one; refuse anything that is not a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _unusable(path, open_files.reason(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise _foreign(path)
    return not status.st_size


def _refuse_foreign(path: Path) -> None:
    """Refuse a file that is not a journal by its header, without SQLite, so that nothing is written to or beside it.

    Only if there is no ``FILE-lock``: closing a file drops the locks that SQLite has on it in this process.
    """
    if _is_empty(path):
        return
    try:
        with path.open("rb", buffering=0) as file:
            header = file.read(_HEADER)
    except OSError as error:
        raise _unusable(path, open_files.reason(error)) from error
    application = int.from_bytes(header[_APPLICATION_AT:_HEADER][:4], "big")
    if not header.startswith(_MAGIC) or application != APPLICATION:
        raise _foreign(path)


def _identify(connection: sqlite3.Connection, path: Path) -> None:
    try:
        [(application,)] = connection.execute("PRAGMA application_id")
        [(version,)] = connection.execute("PRAGMA user_version")
    except sqlite3.DatabaseError as error:
        if _code(error) == sqlite3.SQLITE_NOTADB and not _was_used(path):
            raise _foreign(path) from error
        raise
    if application != APPLICATION:
        raise _foreign(path)
    if version > VERSION:
        raise UsageError(
            f"the journal {path} was written by a newer asyncpush (format {version}; this one knows {VERSION})",
            hint="use that version, or name another file",
        )


def _was_used(path: Path) -> bool:
    """Whether a lock file shows that it is or was a journal."""
    try:
        return _lock_of(path).exists()
    except OSError:  # such as a name that is too long
        return False


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")


def _foreign(path: Path) -> UsageError:
    return UsageError(f"{path} is not an asyncpush journal", hint="name another file; this one was not changed")


def _missing(path: Path) -> UsageError:
    return UsageError(f"there is no journal {path}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock ``FILE-lock``. It is never removed: a process that has it open would hold a lock that no other sees."""
    try:
        descriptor = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, _MODE)
    except OSError as error:
        raise _unusable(path, open_files.reason(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalInUseError(
                f"another process uses the journal {path}", hint="wait for that process, or name another file"
            ) from error
        except OSError as error:
            raise _unusable(path, f"it can't be locked ({open_files.reason(error)})") from error
        yield
    finally:
        os.close(descriptor)


def _make(path: Path) -> None:
    """Create an empty journal beside *path*, then rename it to *path*, so that a kill leaves no partial one."""
    new = path.with_name(f"{path.name}-new")
    try:
        for leftover in (new, path.with_name(f"{new.name}-journal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE))
        with opening(path), closing(_connect(new, "rw")) as connection:
            connection.executescript(SCHEMA)
        new.replace(path)
    except OSError as error:
        raise _unusable(path, open_files.reason(error)) from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with opening(path):
        return sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_LOCK_TIMEOUT,
        )


def _check_rows(connection: sqlite3.Connection, path: Path) -> None:
    """Check the values of all rows, since the code that reads them relies on it."""
    for table in COLUMNS:
        columns = {column[1] for column in connection.execute(f"PRAGMA table_info({table})")}
        if columns and connection.execute(wrong_rows(table, columns)).fetchone():
            raise _damaged(path, f"its table {table!r} has a row that asyncpush did not write")
    connection.execute(SHOW_UPLOADS)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    [(mode,)] = connection.execute("PRAGMA journal_mode = WAL")
    if mode != "wal":
        raise _unusable(path, "its file system does not support shared memory (is it a network file system?)")
    # A commit survives the process. A power cut may lose the last ones: their parts are sent again then.
    connection.execute("PRAGMA synchronous = NORMAL")
    # A read-only file shows now, not after ECR has acknowledged the first part.
    connection.execute(f"PRAGMA user_version = {VERSION}")
    [(verdict,)] = connection.execute("PRAGMA quick_check(1)")
    if verdict != "ok":
        raise _damaged(path, str(verdict).splitlines()[-1])
    if "choice" not in {column[1] for column in connection.execute("PRAGMA table_info(known)")}:
        connection.execute(ADD_CHOICE)
    connection.execute(ADD_MAKING)
    connection.execute(ADD_REPORT)
    connection.execute(ADD_PROVED)


#: The application id in the header that marks a journal ("apjl"), and the version of its tables.
APPLICATION = 0x61706A6C
VERSION = 1

#: Updates a journal from before it recorded half made repositories.
ADD_MAKING = "CREATE TABLE IF NOT EXISTS making (repository TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID"

#: Updates a journal from before it kept reports of runs.
ADD_REPORT = (
    "CREATE TABLE IF NOT EXISTS report (run INTEGER NOT NULL, begun REAL NOT NULL, seconds REAL NOT NULL,"
    " sent INTEGER NOT NULL, document BLOB NOT NULL, PRIMARY KEY (run, begun))"
)

#: Updates a journal from before it kept what was verified.
ADD_PROVED = (
    "CREATE TABLE IF NOT EXISTS proved (repository TEXT NOT NULL, reference TEXT NOT NULL, digest BLOB NOT NULL,"
    " deep INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (repository, reference)) WITHOUT ROWID"
)

# `copy` and `reason` are blobs, since they can contain file names, which need not be UTF-8.
#
# run      images_* count the images of a run whose rows were replaced by those of a later run.
# image    the outcome of each image of a run; a NULL digest means that it failed.
# known    what a tag named when it was last checked, over all runs; `choice` is the platforms that were selected.
# carried  manifests whose referrers were copied.
# making   repositories that are being created; removed once they have their policies.
# report   what each process did for a run, compressed; a run that was resumed has several.
# proved   images that were whole when they were last verified, by tag or digest; `deep` if their bytes were read.
# layer    one row for each layer in each repository: there can be a million.
SCHEMA = f"""
BEGIN;
CREATE TABLE run (
    id INTEGER PRIMARY KEY, plan TEXT NOT NULL, started REAL NOT NULL, begun REAL NOT NULL, ended REAL,
    failed INTEGER NOT NULL DEFAULT 0, images_finished INTEGER NOT NULL DEFAULT 0,
    images_failed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX run_of_plan ON run (plan);
CREATE TABLE image (
    run INTEGER NOT NULL, copy BLOB NOT NULL, source_digest BLOB, digest BLOB, outcome TEXT NOT NULL, reason BLOB,
    at REAL NOT NULL, PRIMARY KEY (run, copy)) WITHOUT ROWID;
CREATE TABLE known (
    repository TEXT NOT NULL, tag TEXT NOT NULL, source_digest BLOB, digest BLOB NOT NULL, at REAL NOT NULL,
    choice TEXT NOT NULL DEFAULT '', PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE TABLE carried (
    repository TEXT NOT NULL, digest BLOB NOT NULL, at REAL NOT NULL, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE compressed (
    identity TEXT PRIMARY KEY, media_type TEXT NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
{ADD_MAKING};
{ADD_REPORT};
{ADD_PROVED};
CREATE TABLE repository (key INTEGER PRIMARY KEY, address TEXT NOT NULL UNIQUE);
CREATE TABLE layer (
    repository INTEGER NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL, referenced INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX layer_by_digest ON layer (digest);
CREATE TABLE upload (
    repository TEXT NOT NULL, identity TEXT NOT NULL, id TEXT NOT NULL, asked_part_size INTEGER NOT NULL,
    max_parts INTEGER NOT NULL, part_size INTEGER NOT NULL, received INTEGER NOT NULL, begun REAL NOT NULL,
    heard REAL NOT NULL, PRIMARY KEY (repository, identity)) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""

#: Updates a journal from before tags had a ``choice``; older versions ignore the column.
ADD_CHOICE = "ALTER TABLE known ADD COLUMN choice TEXT NOT NULL DEFAULT ''"

_DIGEST = "typeof({0}) = 'blob' AND length({0}) = 32"
_TEXT = "typeof({0}) = 'text'"
_BLOB = "typeof({0}) = 'blob'"
_COUNT = "typeof({0}) = 'integer' AND {0} >= 0"
#: Until the year 9999.
_TIME = "typeof({0}) = 'real' AND {0} BETWEEN 0 AND 253402300799"

#: The values of each table's columns. SQLite allows any value in any column, and a damaged file can have any. Columns
#: that are not listed are checked where they are read; invalid uploads are skipped, since they only save work.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        _COUNT: ("id", "failed", "images_finished", "images_failed"),
        _TEXT: ("plan",),
        _TIME: ("started", "begun", "ended?"),
    },
    "image": {
        _COUNT: ("run",),
        _BLOB: ("copy", "reason?"),
        _DIGEST: ("source_digest?", "digest?"),
        _TEXT: ("outcome",),
        _TIME: ("at",),
    },
    "known": {_TEXT: ("repository", "tag", "choice"), _DIGEST: ("source_digest?", "digest"), _TIME: ("at",)},
    "carried": {_TEXT: ("repository",), _DIGEST: ("digest",), _TIME: ("at",)},
    "compressed": {_TEXT: ("identity", "media_type"), _DIGEST: ("digest",), _COUNT: ("size",)},
    "making": {_TEXT: ("repository",), _TIME: ("at",)},
    "report": {_COUNT: ("run", "sent"), _TIME: ("begun", "seconds"), _BLOB: ("document",)},
    "proved": {_TEXT: ("repository", "reference"), _DIGEST: ("digest",), _COUNT: ("deep",), _TIME: ("at",)},
    "repository": {_TEXT: ("address",)},
    "layer": {_COUNT: ("repository", "size", "referenced"), _DIGEST: ("digest",)},
}

_UPLOAD = {
    _TEXT: ("repository", "identity", "id"),
    _COUNT: ("asked_part_size", "max_parts", "part_size", "received"),
    _TIME: ("begun", "heard"),
}

_SOUND = " AND ".join(rule.format(column) for rule, columns in _UPLOAD.items() for column in columns)
#: A view of the valid uploads, for one connection.
SHOW_UPLOADS = f"CREATE TEMP VIEW sound_upload AS SELECT * FROM upload WHERE {_SOUND}"  # noqa: S608 - words of ours


def wrong_rows(table: str, columns: Collection[str]) -> str:
    """A query for an invalid row of *table*, which may lack columns if an older version made it."""
    rules = [
        f"({rule.format(name)}{f' OR {name} IS NULL' if column.endswith('?') else ''})"
        for rule, named in COLUMNS[table].items()
        for column in named
        if (name := column.rstrip("?")) in columns
    ]
    return f"SELECT 1 FROM {table} WHERE NOT ({' AND '.join(rules)}) LIMIT 1"  # noqa: S608 - names of ours
