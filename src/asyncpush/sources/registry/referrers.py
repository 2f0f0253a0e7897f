"""What refers to the manifests of a repository of a registry: signatures, attestations, SBOMs.

Found by the OCI 1.1 referrers API, by the referrers tag schema where a registry has no such API, and by cosign's tags
(``sha256-HEX.sig``, ``.att``, ``.sbom``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

import anyio

from asyncpush.errors import AsyncpushError, SourceDeniedError, SourceNotFoundError
from asyncpush.events import Emit, Notice, ignore
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import FoundReferrers, Image, UnreadReferrer
from asyncpush.reference import SCHEME
from asyncpush.sources.registry.source_registry import SourceRegistryReader

_COSIGN = ("sig", "att", "sbom")


@dataclass(slots=True)
class RepositoryReferrers:
    """What refers to the manifests of a repository (``protocols.ReferrerSource``).

    Attributes:
        remote: the registry.
        repository: its name there.
        list_tags: lists its tags; asked once.
        emit: hears of tags that can't be listed.
    """

    remote: SourceRegistryReader
    repository: str
    list_tags: Callable[[], Awaitable[Collection[str]]]
    emit: Emit = ignore
    _listing: anyio.Lock = field(default_factory=anyio.Lock)
    _listed: bool = False
    _tags: frozenset[str] | None = None

    @property
    def place(self) -> str:
        """The repository, as users write it."""
        return f"{SCHEME}{self.remote.host}/{self.repository}"

    async def of(self, subject: Digest) -> FoundReferrers:
        """See ``protocols.ReferrerSource``."""
        tags = await self._all_tags()
        reading, tagged = _Reading(self, subject), f"sha256-{subject.hex}"
        if self.remote.lists_referrers or tags is None or tagged in tags:
            await reading.listed(tagged=tags is not None and tagged in tags)
        for tag in (f"{tagged}.{kind}" for kind in _COSIGN):
            if tags is None or tag in tags:
                await reading.one(tag, tag, guessed=tags is None)
        return FoundReferrers(tuple(reading.found), tuple(reading.unread))

    async def _all_tags(self) -> frozenset[str] | None:
        """The repository's tags; cosign's are among them. None if they can't be listed: then each is asked for."""
        async with self._listing:
            if not self._listed:
                self._listed = True
                try:
                    self._tags = frozenset(await self.list_tags())
                except AsyncpushError as error:
                    text = f"the tags of {self.place} can't be listed, so cosign's are asked for one by one: {error}"
                    self.emit(Notice(text))
            return self._tags


@dataclass(slots=True)
class _Reading:
    """Reads what refers to one manifest; what can't be read costs itself only."""

    source: RepositoryReferrers
    subject: Digest
    found: list[Image] = field(default_factory=list)
    unread: list[UnreadReferrer] = field(default_factory=list)

    async def listed(self, *, tagged: bool) -> None:
        """Read what the registry lists, and what the tag for it names if that is there."""
        place = f"referrers of {self.subject} in {self.source.place}"
        try:
            listed = await self.source.remote.referrers(self.source.repository, self.subject, tagged=tagged)
        except AsyncpushError as error:
            self.unread.append(UnreadReferrer(place, "", None, error))
            return
        if listed.problems:
            self.unread.append(UnreadReferrer(place, "", None, listed.problems[0]))
        for descriptor in listed.descriptors:
            await self.one(descriptor, None)

    async def one(self, reference: Descriptor | str, tag: str | None, *, guessed: bool = False) -> None:
        """Read one; if it is *guessed*, nothing says that it is there."""
        remote, repository = self.source.remote, self.source.repository
        name = reference if isinstance(reference, str) else str(reference.digest)
        place = f"{self.source.place}{':' if tag else '@'}{name}"
        try:
            manifest = await remote.manifest(repository, reference)
        except SourceNotFoundError as error:
            if not guessed:
                text = f"{name}, which refers to {self.subject.short}, is gone at its source: {error.message}"
                self.source.emit(Notice(text))
            return
        except AsyncpushError as error:
            if not (guessed and isinstance(error, SourceDeniedError)):  # some refuse what is not there
                self.unread.append(UnreadReferrer(place, name, tag, error))
            return
        try:
            root = await remote.load(repository, manifest.descriptor)
        except AsyncpushError as error:
            self.unread.append(UnreadReferrer(place, name, tag, error))
        else:
            self.found.append(Image(place, None, tag, root))
