"""Removes from texts the secrets of this process, the passwords in URLs, and control characters of terminals.

Every text passes ``shown`` at one of four places: each error when it is made (``errors.AsyncpushError``), each event
(``events.Listener``), each reason in a journal (``SqliteJournal.image_failed``), and each line of standard output and
standard error (``cli.streams``), including the log. JSON escapes control characters itself: there ``without_secrets``
is applied to each member.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import OrderedDict
from urllib.parse import quote, urlsplit

HIDDEN = "***"

#: The most secrets that are kept, each in several forms: a long-running process renews its tokens again and again.
_REMEMBERED = 4000

#: Shorter secrets, and words in lower case, also occur in unrelated texts.
_SHORTEST = 6
_WORD = re.compile(r"[a-z]{1,15}")

#: User and password in ``https://USER:PASSWORD@HOST``, whatever stands before, and even if the password has a ``/``
#: that is not encoded, unless it could be a port. The ``@`` of ``@sha256:...`` begins a digest.
_USER = re.compile(
    r"://"
    r"(?:[^\s/?#@'\"<>]*@(?:[^\s/?#@'\"<>]*@)*(?!sha256:)"
    r"|[^\s/?#@'\":<>]*:(?![0-9]*(?:[\s/?#'\"]|$))[^\s'\"<>]*@(?!sha256:)(?=[^\s/@'\"<>]+))"
)

#: Secret values, by their names in a URL, a header, AWS's canonical request or a JSON document, also as Python quotes
#: them. Anything may stand before, such as a terminal's colour. ``team/sig:1.0`` is an image.
_VALUE = re.compile(
    r"(?P<name>X-(?:Amz|Goog)-(?:Signature|Security-Token|Credential)['\"]?\s*[=:]\s*(?:b?['\"])?"
    r"|(?:AWSAccessKeyId|Signature)\s*=\s*|Signature:\n"
    r"|[?&](?:[a-z_-]*(?:token|secret|password|signature|credential)|sig|key)="
    r"|Authorization['\"]?\s*[=:]\s*(?:b?['\"])?(?:[A-Za-z0-9-]+ )?"
    r"|(?:Bearer|Basic) (?=[A-Za-z0-9+/._~-]{8})"
    r"|['\"](?:[a-z_-]*token|secret|secret_?access_?key|password|auth)['\"]\s*:\s*['\"])"
    r"[^\s&'\",;<>\\]+",
    re.IGNORECASE,
)

#: Every match of ``_VALUE`` contains one of these: to look for them first takes a tenth of the time.
_WORDS = (
    *("auth", "token", "secret", "password", "credential", "signature", "accesskey"),
    *("sig=", "key=", "bearer", "basic"),
)

_secrets: OrderedDict[str, None] = OrderedDict()


def _raw(text: str) -> bytes:
    """The bytes of *text*, including those that are not valid UTF-8."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def hide(*secrets: str | None) -> None:
    """Register secrets, so that no text shows them from now on."""
    for secret in secrets:
        if not secret or len(secret) < _SHORTEST or _WORD.fullmatch(secret):
            continue
        for form in {secret, quote(_raw(secret), safe=""), b64encode(_raw(secret)).decode()}:
            _secrets[form] = None
            _secrets.move_to_end(form)
    while len(_secrets) > _REMEMBERED:
        _secrets.popitem(last=False)


def hide_login(username: str, password: str | None) -> None:
    """Register a password, and its form in HTTP basic authentication."""
    hide(password)
    if password:
        hide(b64encode(_raw(f"{username}:{password}")).decode())


def hide_user_of(address: str | None) -> None:
    """Register the password in a URL, such as that of a proxy."""
    if not address or "@" not in address:
        return
    user = address.rpartition("@")[0].partition("://")[2] or address.rpartition("@")[0]
    hide(user.partition(":")[2])
    try:
        hide(urlsplit(address).password)
    except ValueError:
        return


def without_user(text: str) -> str:
    """Return *text* with the users and passwords in URLs replaced."""
    return _USER.sub(f"://{HIDDEN}@", text) if "://" in text else text


def without_secrets(text: str) -> str:
    """Return *text* with all secrets replaced."""
    text = without_user(text)
    lower = text.lower()
    if any(word in lower for word in _WORDS):
        text = _VALUE.sub(rf"\g<name>{HIDDEN}", text)
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def printable(text: str) -> str:
    """Return *text* with control characters escaped, except line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def shown(text: str) -> str:
    """Return *text* without secrets, and printable."""
    return printable(without_secrets(text))


def shown_line(text: str) -> str:
    """Return *text* without secrets, printable, and in one line, even if it has file names with line ends."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def shown_document(value: object) -> object:
    """Return a JSON document with the secrets in all of its texts replaced."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {name: shown_document(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown_document(member) for member in value]
    return value
