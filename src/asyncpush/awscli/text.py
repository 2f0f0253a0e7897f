"""``--output text``: the scalars of a map on one line, by name, with tabs between; what is nested on lines below."""

from __future__ import annotations

from collections.abc import Iterator

from asyncpush.awscli.operations import Json, Members


def render_text(value: Json) -> str:
    """The lines of *value*; nested ones begin with the name of their member, in capitals."""
    return "".join(f"{line}\n" for line in _lines(value, None))


def _lines(value: Json, name: str | None) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _map(value, name, None)
    elif isinstance(value, list):
        yield from _list(value, name)
    else:
        yield str(value)


def _list(values: list[Json], name: str | None) -> Iterator[str]:
    if any(isinstance(each, dict) for each in values):
        maps = [each for each in values if isinstance(each, dict)]
        columns = sorted({key for each in maps for key in each if not _is_nested(each[key])})
        for each in values:
            yield from _map(each, name, columns) if isinstance(each, dict) else _lines(each, name)
        return
    scalars = [str(each) for each in values if not _is_nested(each)]
    if scalars and name:
        yield from (f"{name.upper()}\t{each}" for each in scalars)
    elif scalars:
        yield "\t".join(scalars)
    for each in values:
        if _is_nested(each):
            yield from _lines(each, name)


def _map(members: Members, name: str | None, columns: list[str] | None) -> Iterator[str]:
    """A map; in a list of maps, all have the same *columns*."""
    if columns is None:
        columns = sorted(key for key, value in members.items() if not _is_nested(value))
    scalars = [str(members.get(key, "")) for key in columns]
    if scalars:
        yield "\t".join([name.upper(), *scalars] if name else scalars)
    for key in sorted(members.keys() - set(columns)):
        yield from _lines(members[key], key)


def _is_nested(value: Json) -> bool:
    return isinstance(value, (dict, list))
