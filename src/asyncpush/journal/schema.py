"""How the journal's tables are laid out. Times are seconds since 1970, sizes bytes, digests their 32 bytes."""

from __future__ import annotations

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
