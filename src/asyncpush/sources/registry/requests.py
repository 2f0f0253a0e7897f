"""What is asked of a registry, and what comes back.

Source: OCI distribution-spec 1.1 (end points).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

from yarl import URL

Kind = Literal["manifests", "blobs", "referrers", "tags"]


def path_of(repository: str, kind: Kind, reference: str) -> str:
    """The path of something in a repository; *reference* is a tag or a digest, or ``list``."""
    return f"/v2/{quote(repository)}/{kind}/{quote(reference, safe=':')}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        operation: what it is called in events and counts, such as ``GET blob``.
        path: behind the registry's address; quoted already.
        what: how to call what it asks for, in errors.
        repository: whose it is; empty for what concerns the whole registry.
        headers: what it says beside its credentials.
        expected: statuses that are no failure.
    """

    operation: str
    path: str
    what: str
    repository: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: frozenset[int] = frozenset({200})

    @property
    def method(self) -> str:
        """The HTTP method: the operation's first word where that is one."""
        return "HEAD" if self.operation.startswith("HEAD") else "GET"

    @property
    def of_image(self) -> bool:
        """Whether a manifest that was read names what it asks for."""
        return "/blobs/" in self.path

    @property
    def scope(self) -> str:
        """What a token must be good for."""
        if self.repository:
            return f"repository:{self.repository}:pull"
        return "registry:catalog:*" if "_catalog" in self.path else ""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; its body is None where that was too long. ``links`` are its Link headers."""

    status: int
    headers: Mapping[str, str]
    url: URL
    body: bytes | None
    links: Sequence[str] = ()
