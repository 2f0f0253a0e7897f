"""How the journal's tables are laid out. Times are seconds since 1970, sizes bytes, digests their 32 bytes."""

from __future__ import annotations

from collections.abc import Collection

#: Marks the file as a journal, in its header ("apjl"), and says how its tables are laid out.
APPLICATION = 0x61706A6C
VERSION = 1

#: Brings a journal up to date that was made before it knew of repositories half made.
ADD_MAKING = "CREATE TABLE IF NOT EXISTS making (repository TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID"

# `copy` and `reason` may hold file names, which need not be text: they are blobs.
#
# run      images_* count the images of a run whose rows have made way for a later run's.
# image    what became of each image of a run; a digest of NULL means that it failed.
# known    what a tag named when it was last looked at, over all runs; `choice` says which platforms were taken.
# carried  manifests whose referrers have been brought along.
# making   repositories whose creation has begun, and is whole once they have their policies.
# layer    one row for each layer in each repository: there may be a million.
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

#: Brings a journal up to date that was made before tags had a ``choice``; whoever knows nothing of it may go on.
ADD_CHOICE = "ALTER TABLE known ADD COLUMN choice TEXT NOT NULL DEFAULT ''"

_DIGEST = "typeof({0}) = 'blob' AND length({0}) = 32"
_TEXT = "typeof({0}) = 'text'"
_BLOB = "typeof({0}) = 'blob'"
_COUNT = "typeof({0}) = 'integer' AND {0} >= 0"
#: Until the year 9999.
_TIME = "typeof({0}) = 'real' AND {0} BETWEEN 0 AND 253402300799"

#: What the columns of each table hold. SQLite keeps any value in any column, and a damaged file has any; what is left
#: out here is looked at where it is read. Uploads are passed over one by one: they only save work.
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
    "repository": {_TEXT: ("address",)},
    "layer": {_COUNT: ("repository", "size", "referenced"), _DIGEST: ("digest",)},
}

_UPLOAD = {
    _TEXT: ("repository", "identity", "id"),
    _COUNT: ("asked_part_size", "max_parts", "part_size", "received"),
    _TIME: ("begun", "heard"),
}

_SOUND = " AND ".join(rule.format(column) for rule, columns in _UPLOAD.items() for column in columns)
#: Shows the uploads that are worth anything, to one connection.
SHOW_UPLOADS = f"CREATE TEMP VIEW sound_upload AS SELECT * FROM upload WHERE {_SOUND}"  # noqa: S608 - words of ours


def wrong_rows(table: str, columns: Collection[str]) -> str:
    """A query for a row of *table* that holds what its columns can't; it may have fewer, from an older version."""
    rules = [
        f"({rule.format(name)}{f' OR {name} IS NULL' if column.endswith('?') else ''})"
        for rule, named in COLUMNS[table].items()
        for column in named
        if (name := column.rstrip("?")) in columns
    ]
    return f"SELECT 1 FROM {table} WHERE NOT ({' AND '.join(rules)}) LIMIT 1"  # noqa: S608 - names of ours
