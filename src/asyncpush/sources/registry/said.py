"""What a registry says in the body of a refusal.

Source: OCI distribution-spec 1.1, "error codes".
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """The first error of a refusal; empty where it names none."""

    code: str = ""
    message: str = ""

    @property
    def words(self) -> str:
        """What the registry says, to stand behind our own words."""
        text = " ".join(f"{self.code} {self.message}".split())
        text = "".join(letter for letter in text if letter.isprintable())[:300]
        return f": {text}" if text else ""


def first_error(body: bytes) -> Said:
    """What the body of a refusal says."""
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors if body else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Said()
    return Said(errors[0].code, errors[0].message) if errors else Said()
