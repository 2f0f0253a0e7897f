"""What no text may show: the secrets of this process, those of addresses, and what would drive a terminal.

Whatever is told passes ``shown``, at one of four doors: each error as it is made (``errors.AsyncpushError``), each
event (``events.Listener``), each reason that a journal is told (``SqliteJournal.image_failed``), and each line of
either stream (``cli.streams``), lines of the log among them. JSON escapes by itself: there it is ``without_secrets``,
member by member.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import OrderedDict
from urllib.parse import quote, urlsplit

HIDDEN = "***"

#: Secrets that are remembered, each in some forms; tokens are renewed for as long as a process lives.
_REMEMBERED = 4000

#: A shorter one, or a lower-case word, is found in texts that have nothing to do with it.
_SHORTEST = 6
_WORD = re.compile(r"[a-z]{1,15}")

#: Who asks, and the password: ``https://USER:PASSWORD@HOST``; also where the password has a ``/`` that is not encoded,
#: as long as it can't be a port. The ``@`` of ``@sha256:...`` begins a digest.
_USER = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)"
    r"(?:[^\s/?#@'\"<>]*@(?:[^\s/?#@'\"<>]*@)*(?!sha256:)"
    r"|[^\s/?#@'\":<>]*:(?![0-9]*(?:[\s/?#'\"]|$))[^\s'\"<>]*@(?!sha256:)(?=[^\s/@'\"<>]+))"
)

#: Values that open something, by how they are called in an address, a header, AWS's canonical request or a JSON
#: document, also as Python quotes them. ``team/sig:1.0`` is an image.
_VALUE = re.compile(
    r"(?P<name>\bX-(?:Amz|Goog)-(?:Signature|Security-Token|Credential)['\"]?\s*[=:]\s*(?:b?['\"])?"
    r"|\b(?:AWSAccessKeyId|Signature)\s*=\s*|\bSignature:\n"
    r"|[?&](?:[a-z_-]*(?:token|secret|password|signature|credential)|sig|key)="
    r"|\bAuthorization['\"]?\s*[=:]\s*(?:b?['\"])?(?:[A-Za-z0-9-]+ )?"
    r"|\b(?:Bearer|Basic) (?=[A-Za-z0-9+/._~-]{8})"
    r"|['\"](?:[a-z_-]*token|secret|secret_?access_?key|password|auth)['\"]\s*:\s*['\"])"
    r"[^\s&'\",;<>\\]+",
    re.IGNORECASE,
)

#: One of these is in whatever ``_VALUE`` finds: to look for them first is a tenth of the work.
_WORDS = (
    *("auth", "token", "secret", "password", "credential", "signature", "accesskey"),
    *("sig=", "key=", "bearer", "basic"),
)

_secrets: OrderedDict[str, None] = OrderedDict()


def _raw(text: str) -> bytes:
    """The bytes of *text*; those that were no UTF-8 as they came."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def hide(*secrets: str | None) -> None:
    """Remember secrets, so that no text shows them from now on."""
    for secret in secrets:
        if not secret or len(secret) < _SHORTEST or _WORD.fullmatch(secret):
            continue
        for form in {secret, quote(_raw(secret), safe=""), b64encode(_raw(secret)).decode()}:
            _secrets[form] = None
            _secrets.move_to_end(form)
    while len(_secrets) > _REMEMBERED:
        _secrets.popitem(last=False)


def hide_login(username: str, password: str | None) -> None:
    """Remember a password, and what Basic makes of it."""
    hide(password)
    if password:
        hide(b64encode(_raw(f"{username}:{password}")).decode())


def hide_user_of(address: str | None) -> None:
    """Remember the password in an address, such as a proxy's."""
    if not address or "@" not in address:
        return
    written = address.rpartition("@")[0].partition("://")[2] or address.rpartition("@")[0]
    hide(written.partition(":")[2])
    try:
        hide(urlsplit(address).password)
    except ValueError:
        return


def without_user(text: str) -> str:
    """*text*, with no address in it that has a user or a password."""
    return _USER.sub(rf"\g<scheme>{HIDDEN}@", text) if "://" in text else text


def without_secrets(text: str) -> str:
    """*text*, with nothing in it that opens something."""
    text = without_user(text)
    lower = text.lower()
    if any(word in lower for word in _WORDS):
        text = _VALUE.sub(rf"\g<name>{HIDDEN}", text)
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def printable(text: str) -> str:
    """*text*, with what would drive a terminal written out; line ends and tabs are kept."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def shown(text: str) -> str:
    """*text* as it may be told: without secrets, and printable."""
    return printable(without_secrets(text))


def shown_line(text: str) -> str:
    """The same of a text that is to be one line, whatever names of files are in it."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def shown_document(value: object) -> object:
    """A document of JSON's values with no secret in any of its texts."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {name: shown_document(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown_document(each) for each in value]
    return value
