"""The journal: a record of what ECR has acknowledged, kept across runs that can be killed at any instant."""

from __future__ import annotations

from asyncpush.journal.earlier import EarlierRun, plan_of
from asyncpush.journal.sql import FinishedImage, KnownImage, LeftUpload, RunState
from asyncpush.journal.store import SqliteJournal, open_journal

__all__ = [
    "EarlierRun",
    "FinishedImage",
    "KnownImage",
    "LeftUpload",
    "RunState",
    "SqliteJournal",
    "open_journal",
    "plan_of",
]
