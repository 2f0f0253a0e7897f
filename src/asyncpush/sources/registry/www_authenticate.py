"""How a registry wants clients to authenticate: the challenges of WWW-Authenticate (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a token of HTTP's grammar
_SKIP = re.compile(r"[\s,]*")
_SCHEME = re.compile(rf"({_TOKEN})(?=[\s,]|$)")
#: Values other than tokens need quotes, but some servers write addresses without.
_PARAMETER = re.compile(rf"({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"=][^\s,\"]*))(?=[\s,]|$)", re.DOTALL)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*(?=[\s,]|$)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate.

    Attributes:
        scheme: in lower case: ``basic``, ``bearer``.
        parameters: names in lower case, and values without quotes.
    """

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str | None:
        """The value of a parameter; None if there is none."""
        return dict(self.parameters).get(name)


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Read all challenges of a response, from each of its WWW-Authenticate headers.

    A header may hold several, separated by commas, which also separate parameters. Malformed ones are left out.
    """
    return tuple(challenge for value in values for challenge in _parse(value))


def _parse(text: str) -> Iterator[Challenge]:
    position = _end(_SKIP, text, 0)
    while position < len(text):
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            # Not a token: the next comma may be followed by one.
            comma = text.find(",", position)
            position = len(text) if comma < 0 else _end(_SKIP, text, comma)
            continue
        position = scheme.end()
        parameters: list[tuple[str, str]] = []
        while parameter := _PARAMETER.match(text, _end(_SKIP, text, position)):
            quoted, word = parameter[2], parameter[3]
            value = word if quoted is None else _ESCAPED.sub(r"\1", quoted)
            parameters.append((parameter[1].lower(), value))
            position = parameter.end()
        if not parameters and (credentials := _TOKEN68.match(text, position)):
            position = credentials.end()
        yield Challenge(scheme[1].lower(), tuple(parameters))
        position = _end(_SKIP, text, position)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
