"""``asyncpush help``: the manual's pages."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from typing import Annotated, Literal, get_args

from cyclopts import Parameter, Token

from asyncpush.cli.options import command
from asyncpush.cli.run import DONE, USAGE, say_error
from asyncpush.cli.streams import write_as_it_is
from asyncpush.errors import UsageError

#: The pages in the order in which a new user reads them.
Topic = Literal[
    "push",
    "sources",
    "migrate",
    "plan",
    "journal",
    "scale",
    "verify",
    "doctor",
    "credentials",
    "transports",
    "performance",
    "comparison",
    "guarantees",
    "library",
    "aws-cli",
    "emulator",
    "faults",
    "bench",
    "environment",
    "design",
    "ecr-facts",
]
TOPICS: tuple[str, ...] = get_args(Topic)

#: The pages of commands that have no page of their own.
_PAGES = {
    "completion": "environment",
    "demo": "emulator",
    "ecr": "aws-cli",
    "ecr-public": "aws-cli",
    "help": "environment",
    "layers": "push",
    "report": "journal",
    "serve": "emulator",
}

#: A longer line is hard to read.
_WIDEST = 100

app = command(
    "help",
    usage="asyncpush help [TOPIC]",
    epilogue="""
Without a TOPIC, the command lists all pages. In a pipe, it prints Markdown.

Examples
  asyncpush help
  asyncpush help migrate
  asyncpush help plan > plan.md
""",
)


def _as_given(_: object, tokens: Sequence[Token]) -> str:
    return tokens[0].value


@app.default
def show_help(topic: Annotated[Topic | None, Parameter(converter=_as_given, show_choices=False)] = None, /) -> int:
    """Show the manual: a list of its pages, or one page.

    Args:
        topic: The page to show.
    """
    if topic is None:
        write_as_it_is(_contents())
        return DONE
    name = _PAGES.get(topic, topic)
    if name not in TOPICS:
        say_error(UsageError(f"the manual has no page {topic!r}", hint=_advice(topic)))
        return USAGE
    text = page(name)
    write_as_it_is(_rendered(text) if sys.stdout.isatty() else text)
    return DONE


def _advice(word: str) -> str:
    close = get_close_matches(word.lower(), [*TOPICS, *_PAGES], n=1)
    return f"did you mean {close[0]}?" if close else f"use one of {', '.join(TOPICS)}"


def page(topic: str) -> str:
    """The text of a page, in Markdown."""
    return files("asyncpush").joinpath("docs", f"{topic}.md").read_text(encoding="utf-8")


def summary(text: str) -> str:
    """What a page says of itself: the first line below its heading."""
    _, _, rest = text.partition("\n\n")
    return rest.partition("\n")[0]


def _contents() -> str:
    width = max(map(len, TOPICS))
    rows = [f"  {topic:{width}}  {summary(page(topic))}" for topic in TOPICS]
    return "\n".join(("Show a page with asyncpush help TOPIC:", "", *rows, ""))


def _rendered(text: str) -> str:
    """*text* as a terminal shows it; a link to another page becomes the command that shows that page."""
    # These imports take longer than everything else that the command does.
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class FoldedTable(TableElement):
        """A table that wraps long words instead of cutting them with an ellipsis."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                if isinstance(table, Table):
                    for column in table.columns:
                        column.overflow = "fold"
                yield table

    class Page(Markdown):
        elements = Markdown.elements | {"table_open": FoldedTable}

    linked = re.sub(r"\[([^\]]+)\]\(([a-z-]+)\.md\)", _command_of, text)
    console = Console()
    console.width = min(console.width, _WIDEST)
    with console.capture() as captured:
        console.print(Page(linked, hyperlinks=False))
    return captured.get()


def _command_of(link: re.Match[str]) -> str:
    shows = f"`asyncpush help {link[2]}`"
    return shows if link[1].lower().replace(" ", "-") == link[2] else f"{link[1]} ({shows})"
