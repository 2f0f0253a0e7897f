"""A plain list: ``SOURCE DESTINATION`` in each line, or only sources, which go where ``--to`` says."""

from __future__ import annotations

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.load import significant_lines, words_of
from asyncpush.migrate.plan.yaml_loader import escape
from asyncpush.migrate.plan_import.builder import PlanBuilder, foreseen, split_host
from asyncpush.sources.source import KINDS


def import_list(text: str, draft: PlanBuilder) -> None:
    """Take over all lines; a source in a registry without a tag is ``latest``, as in a list that is migrated itself."""
    for number, line in significant_lines(text):
        with foreseen(draft.say, f"line {number}"):
            words = words_of(line)
            if len(words) not in (1, 2):
                raise UsageError(f"{line[:300]!r} is not SOURCE [DESTINATION]")
            source = words[0]
            is_local = source.partition(":")[0] in KINDS or source.startswith(("/", "./", "../"))
            if not is_local and ":" not in source.rpartition("/")[2] and "@" not in source:
                source = f"{source}:latest"
            host, path = split_host(words[1]) if len(words) == 2 else ("", "")
            draft.image(source, {"to": escape(path) or None}, host=host)
