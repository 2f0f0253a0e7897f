"""The checks of a plan's source registries: who logs in there, and whether the registry lets them read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio

from asyncpush.api import open_logins
from asyncpush.doctor.findings import Check, Finding
from asyncpush.doctor.machine import Host
from asyncpush.engine.context import PushContext
from asyncpush.errors import SourceNotFoundError
from asyncpush.events import Emit, Event, Notice
from asyncpush.manifest import ACCEPTED_TYPES
from asyncpush.migrate.ecr_sources import EcrSources
from asyncpush.migrate.plan.wildcards import RepositoryPattern
from asyncpush.reference import HUB, api_host
from asyncpush.settings import RetryPolicy, Settings, SourceRegistry
from asyncpush.sources.registry import has_ecr_api
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.credentials import CredentialStore
from asyncpush.sources.registry.requests import Request, path_of
from asyncpush.sources.registry.source_registry import SourceRegistryReader
from asyncpush.units import count_text

#: Hosts besides the registry's own, as their operators document them.
_OTHER_HOSTS = {
    HUB: (("auth.docker.io", "tokens of docker.io"), ("production.cloudflare.docker.com", "layers of docker.io")),
    "ghcr.io": (("pkg-containers.githubusercontent.com", "layers of ghcr.io"),),
    "quay.io": (("cdn01.quay.io", "layers of quay.io"),),
}


#: The share of a check's limit that a list of tags or repositories may take.
_LIST_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class SourceSubject:
    """A source registry, and what a plan reads there.

    Attributes:
        registry: how to reach it.
        repository: a repository of the plan's.
        reference: a tag or digest in it; None if the plan chooses among its tags.
        pattern: the pattern by which the plan chooses among the registry's repositories; None if it does not.
    """

    registry: SourceRegistry
    repository: str
    reference: str | None = None
    pattern: RepositoryPattern | None = None

    def hosts(self) -> list[Host | None]:
        """The hosts that it is read from."""
        scheme = "http" if self.registry.plain_http else "https"
        own = Host.of(f"{scheme}://{api_host(self.registry.host)}", f"source {self.registry.host}")
        others = _OTHER_HOSTS.get(self.registry.host, ())
        return [own, *(Host(name, 443, purpose, is_required=False) for name, purpose in others)]


def source_check(subject: SourceSubject, limit: float) -> Check:
    """The check of one source registry."""
    name = f"source {subject.registry.host}"

    async def run() -> Sequence[Finding]:
        return [await _check_source(name, subject, limit)]

    return Check(name, run)


async def _check_source(name: str, subject: SourceSubject, limit: float) -> Finding:
    """Ask a registry for what the plan reads there first."""
    notices: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    retry = replace(
        RetryPolicy(), attempts=2, outage=0.0, connect=limit, stall=limit, answer=limit, note_after=limit, helper=limit
    )
    settings = Settings(max_attempts=2, max_outage=0.0, retry=retry)
    registry, host = subject.registry, subject.registry.host
    if subject.pattern is not None and has_ecr_api(host, registry):
        return _found(name, subject.pattern, await _repositories_of_ecr(registry, settings, listen), "by ECR's API")
    async with open_logins(settings, listen) as logins:
        account = await CredentialStore(registry, host, logins, limit).find(subject.repository)
        login = f"with {account.label}" if account else "without a login"
        client = RegistryClient(registry, logins, listen, retry)
        try:
            with anyio.move_on_after(limit * _LIST_SHARE):
                finding = await _ask(name, subject, client, login)
                return Finding(name, "note", notices[0]) if notices else finding
        except SourceNotFoundError as error:
            # Some registries answer so to callers who may not read.
            return Finding(name, "unknown", f"it answers {login}: {error.message}", error.hint)
        finally:
            await client.aclose()
    return Finding(
        name, "note", f"it answers {login}, but {limit * _LIST_SHARE:g} seconds were too short for all of it"
    )


async def _ask(name: str, subject: SourceSubject, client: RegistryClient, login: str) -> Finding:
    reader = SourceRegistryReader(client)
    if subject.pattern is not None:
        return _found(name, subject.pattern, await reader.repositories(), login)
    if subject.reference is None:
        tags = len(await reader.tags(subject.repository))
        return Finding(name, "ok", f"the tags of {subject.repository} can be listed {login}: {tags}")
    what = f"{subject.repository}:{subject.reference}"
    # Docker Hub does not count a HEAD as a pull.
    request = Request(
        "HEAD manifest",
        path_of(subject.repository, "manifests", subject.reference),
        f"manifest {what}",
        subject.repository,
        headers={"Accept": ", ".join(ACCEPTED_TYPES)},
    )
    response = await client.fetch(request, 0)
    left = response.headers.get("ratelimit-remaining", "").partition(";")[0]
    pulls = f"; {left} pulls are left for now" if left.isdecimal() else ""
    return Finding(name, "ok", f"{what} can be read {login}{pulls}")


async def _repositories_of_ecr(registry: SourceRegistry, settings: Settings, emit: Emit) -> Collection[str]:
    async with AsyncExitStack() as stack:
        sources = EcrSources({registry.host: registry}, PushContext.of(settings, emit), stack)
        return await sources.repositories(registry.host)


def _found(name: str, pattern: RepositoryPattern, repositories: Collection[str], login: str) -> Finding:
    taken = len(pattern.choose(repositories).taken)
    total = count_text(len(repositories), "repository", "repositories")
    text = f"{taken} of the {total} that it lists {login} match {pattern.glob}"
    if taken:
        return Finding(name, "ok", text)
    return Finding(name, "problem", text, "check the pattern, or write an entry for each repository")
