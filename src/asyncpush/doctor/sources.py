"""The checks of a plan's source registries: who logs in there, and whether the registry lets them read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncpush.api import open_logins
from asyncpush.doctor.findings import Check, Finding
from asyncpush.doctor.machine import Host
from asyncpush.errors import SourceNotFoundError
from asyncpush.events import Event, Notice
from asyncpush.manifest import ACCEPTED_TYPES
from asyncpush.reference import HUB, api_host
from asyncpush.settings import RetryPolicy, Settings, SourceRegistry
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.credentials import CredentialStore
from asyncpush.sources.registry.requests import Request, path_of

#: Hosts besides the registry's own, as their operators document them.
_OTHER_HOSTS = {
    HUB: (("auth.docker.io", "tokens of docker.io"), ("production.cloudflare.docker.com", "layers of docker.io")),
    "ghcr.io": (("pkg-containers.githubusercontent.com", "layers of ghcr.io"),),
    "quay.io": (("cdn01.quay.io", "layers of quay.io"),),
}


@dataclass(frozen=True, slots=True)
class SourceSubject:
    """A source registry, and one of the images that are read from it.

    Attributes:
        registry: how to reach it.
        repository: a repository of the plan's.
        reference: a tag or digest in it.
    """

    registry: SourceRegistry
    repository: str
    reference: str

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
    """Ask for an image's manifest by HEAD, which Docker Hub does not count as a pull."""
    notices: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    retry = replace(
        RetryPolicy(), attempts=2, outage=0.0, connect=limit, stall=limit, answer=limit, note_after=limit, helper=limit
    )
    settings = Settings(max_attempts=2, max_outage=0.0, retry=retry)
    registry, host = subject.registry, subject.registry.host
    what = f"{subject.repository}:{subject.reference}"
    async with open_logins(settings, listen) as logins:
        account = await CredentialStore(registry, host, logins, limit).find(subject.repository)
        login = f"with {account.label}" if account else "without a login"
        client = RegistryClient(registry, logins, listen, retry)
        request = Request(
            "HEAD manifest",
            path_of(subject.repository, "manifests", subject.reference),
            f"manifest {what}",
            subject.repository,
            headers={"Accept": ", ".join(ACCEPTED_TYPES)},
        )
        try:
            response = await client.fetch(request, 0)
        except SourceNotFoundError as error:
            # Some registries answer so to callers who may not read.
            return Finding(name, "unknown", f"it answers {login}: {error.message}", error.hint)
        finally:
            await client.aclose()
    if notices:
        return Finding(name, "note", notices[0])
    left = response.headers.get("ratelimit-remaining", "").partition(";")[0]
    pulls = f"; {left} pulls are left for now" if left.isdecimal() else ""
    return Finding(name, "ok", f"{what} can be read {login}{pulls}")
