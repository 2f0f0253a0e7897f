"""The journal: what ECR has acknowledged, remembered across runs that may be killed at any instant."""

from __future__ import annotations

from asyncpush.journal.sql import FinishedImage, HeldLayer, KnownImage, LeftUpload, RunState
from asyncpush.journal.store import SqliteJournal, open_journal

__all__ = ["FinishedImage", "HeldLayer", "KnownImage", "LeftUpload", "RunState", "SqliteJournal", "open_journal"]
