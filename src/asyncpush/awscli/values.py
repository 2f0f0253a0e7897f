"""What the words behind an option stand for: text, numbers, lists, structures, blobs, and files that hold them."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from asyncpush import open_files
from asyncpush.awscli.faults import CommandError, ParameterError
from asyncpush.awscli.operations import Json, Option
from asyncpush.awscli.shorthand import ShorthandError, fit, parse_shorthand
from asyncpush.files import read_small

_TEXT_FILE, _BYTES_FILE = "file://", "fileb://"
_SHOWN = 100

#: Bytes of the longest file: the largest part of a layer is 20 MiB, and a document has it in base64.
_LONGEST = 64 * 1024 * 1024
#: Seconds that a pipe may take.
_PATIENCE = 600.0


def read_value(option: Option, words: str | list[str]) -> Json:
    """The value that *words* give to *option*; blocks while files are read.

    Raises:
        ParameterError: they are written wrong, or a file can't be read.
    """
    try:
        if option.shape.type_name == "list":
            return _list(option, [words] if isinstance(words, str) else words)
        assert isinstance(words, str), "only lists take several words"  # noqa: S101
        text = read_file(option.name, words)
        return _one(option.name, option.shape, words if text is None else text)
    except ShorthandError as error:
        raise ParameterError(option.name, str(error)) from error


def read_file(option: str, word: str) -> str | bytes | None:
    """What the file that *word* names holds: text for ``file://``, bytes for ``fileb://``; None if it names none.

    Unlike the aws CLI's, text keeps its line ends: a manifest's digest depends on them.

    Raises:
        ParameterError: it can't be read.
    """
    prefix = next((each for each in (_TEXT_FILE, _BYTES_FILE) if word.startswith(each)), None)
    if prefix is None:
        return None
    path = Path(os.path.expandvars(os.path.expanduser(word.removeprefix(prefix))))  # noqa: PTH111 - before $VARS
    try:
        raw = read_small(path, _LONGEST, seconds=_PATIENCE)
        return raw if prefix == _BYTES_FILE else raw.decode()
    except UnicodeDecodeError as error:
        reason = (
            f"Unable to load paramfile ({path}), text contents could not be decoded.  "
            "If this is a binary file, please use the fileb:// prefix instead of the file:// prefix."
        )
        raise ParameterError(option, reason) from error
    except (OSError, ValueError) as error:
        raise ParameterError(
            option, f"Unable to load paramfile {word}: {open_files.shortage(error) or error}"
        ) from error


def read_document(option: str, word: str) -> str:
    """The text of a document: *word* itself, the file that it names, or standard input for ``-``.

    Raises:
        ParameterError: it can't be read.
    """
    try:
        found = sys.stdin.buffer.read(_LONGEST + 1) if word == "-" else read_file(option, word)
        if word == "-" and found and len(found) > _LONGEST:
            raise ParameterError(option, f"Unable to read standard input: it has more than {_LONGEST} bytes")
        text = word if found is None else found
        return text.decode() if isinstance(text, bytes) else text
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(option, f"Unable to read standard input: {error}") from error


def decode_blobs(value: Json, shape: Any, binary_format: str, *, files: bool = False) -> Json:
    """*value* with its blobs, which are base64 or raw text unless they came from ``fileb://``, as bytes.

    Args:
        value: what was written.
        shape: its shape.
        binary_format: ``base64`` or ``raw-in-base64-out``.
        files: whether a blob may be ``fileb://PATH`` here, too; then it blocks.

    Raises:
        CommandError: one is no base64, or its file can't be read.
    """
    if shape.type_name == "structure" and isinstance(value, dict):
        known = shape.members
        return {
            key: decode_blobs(each, known[key], binary_format, files=files) if key in known else each
            for key, each in value.items()
        }
    if shape.type_name == "list" and isinstance(value, list):
        return [decode_blobs(each, shape.member, binary_format, files=files) for each in value]
    if shape.type_name == "blob" and isinstance(value, str):
        if files and value.startswith(_BYTES_FILE):
            return read_file("--batch", value)
        if binary_format != "base64":
            return value.encode()
        try:
            return base64.b64decode(value)
        except (binascii.Error, ValueError) as error:
            raise CommandError(f'Invalid base64: "{value[:_SHOWN]}"') from error
    return value


def _list(option: Option, words: list[str]) -> Json:
    """A list: a JSON array, or its elements, a word each; a file holds the one, or the others, a line each.

    The aws CLI takes such lines to pieces, character by character, and files among other words literally.
    """
    if len(words) == 1:
        text = read_file(option.name, words[0])
        only = words[0] if text is None else text
        if isinstance(only, str) and only.lstrip().startswith("["):
            return _json(option.name, only)
    elements: list[str] = []
    for word in words:
        text = read_file(option.name, word)
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        elements += [word] if text is None else [line.strip() for line in text.splitlines() if line.strip()]
    return [_one(option.name, option.shape.member, element) for element in elements]


def _one(option: str, shape: Any, value: str | bytes) -> Json:
    kind = shape.type_name
    if isinstance(value, bytes):
        # fileb:// is for blobs; botocore says so of other types.
        return value
    if kind in ("structure", "list"):
        if value.lstrip()[:1] in ("{", "["):
            return _json(option, value)
        return fit(parse_shorthand(value, partial(_shorthand_file, option)), shape)
    if kind in ("integer", "long"):
        try:
            return int(value)
        except ValueError as error:
            raise ParameterError(option, str(error)) from error
    return value


def _shorthand_file(option: str, word: str) -> Json:
    text = read_file(option, word)
    return word if text is None else text


def _json(option: str, text: str) -> Json:
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise ParameterError(option, f"Invalid JSON: {error}\nJSON received: {text[:1000]}") from error
    return value
