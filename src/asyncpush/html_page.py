"""Pages of one file: data as JSON inside HTML, and a policy under which only the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
import re

#: What could end a script element or begin a comment in it, and what old JavaScript takes for ends of lines.
_RISKY = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def embedded(document: str) -> str:
    """A JSON document as a ``<script type="application/json">`` can hold it: no text in it can end the element."""
    for letter, escape in _RISKY.items():
        document = document.replace(letter, escape)
    return document


def content_security_policy(html: str, **more: str) -> str:
    """A Content-Security-Policy that allows the styles and scripts of a page, by their hashes, and nothing else.

    Args:
        html: the page; its elements ``<style>`` and ``<script>`` have no attributes.
        more: other directives, with ``_`` for ``-``.
    """
    directives = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "img-src": "data:"}
    directives |= {f"{element}-src": _sources(html, element) for element in ("style", "script")}
    directives |= {name.replace("_", "-"): value for name, value in more.items()}
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _sources(html: str, element: str) -> str:
    held = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in held]
    return " ".join(f"'sha256-{each}'" for each in hashes)
