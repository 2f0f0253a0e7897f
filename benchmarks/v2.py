"""A plain client of ``/v2/`` (OCI distribution-spec), for what a benchmark prepares and checks; it blocks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import urllib3

#: Everything that a manifest of the corpus can be.
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_ACCEPT = f"{MANIFEST}, {INDEX}, {DOCKER_MANIFEST}"

#: Requests at a time, over all threads.
_CONNECTIONS = 16
_SECONDS = 60


class RegistryError(Exception):
    """Raised when a registry answers with an error."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry at *url* (``http://HOST:PORT``), with a password of the user AWS, or without; for many threads."""

    url: str
    password: str = field(default="", repr=False)
    _pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(maxsize=_CONNECTIONS, block=True, timeout=_SECONDS, retries=False),
        repr=False,
    )

    def put_blob(self, repository: str, data: bytes, *, mount_from: str | None = None) -> None:
        """Push a blob, or mount it from another repository where the registry does that."""
        digest = digest_of(data)
        mount = f"?mount={digest}&from={mount_from}" if mount_from else ""
        begun = self._ask("POST", f"/v2/{repository}/blobs/uploads/{mount}", {201, 202})
        if begun.status == 202:
            place = begun.headers["Location"]
            url = place if "://" in place else self.url + place
            self._ask("PUT", f"{url}{'&' if '?' in url else '?'}digest={digest}", {201}, data)

    def put_manifest(self, repository: str, reference: str, raw: bytes, media_type: str) -> None:
        """Put a manifest under a tag or a digest."""
        self._ask("PUT", f"/v2/{repository}/manifests/{reference}", {201}, raw, {"Content-Type": media_type})

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """A manifest's bytes; None if there is none."""
        found = self._ask("GET", f"/v2/{repository}/manifests/{reference}", {200, 404}, headers={"Accept": _ACCEPT})
        return found.data if found.status == 200 else None

    def blob_size(self, repository: str, digest: str) -> int | None:
        """A blob's size in bytes; None if it is not there."""
        found = self._ask("HEAD", f"/v2/{repository}/blobs/{digest}", {200, 404})
        return int(found.headers["Content-Length"]) if found.status == 200 else None

    def blob(self, repository: str, digest: str) -> bytes:
        """A blob's bytes."""
        return self._ask("GET", f"/v2/{repository}/blobs/{digest}", {200}).data

    def referrers(self, repository: str, subject: str) -> set[str]:
        """The digests of the manifests whose subject is *subject*."""
        found = self._ask("GET", f"/v2/{repository}/referrers/{subject}", {200}).json()
        return {str(each["digest"]) for each in found["manifests"]}

    def _ask(
        self,
        method: str,
        place: str,
        hoped_for: set[int],
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        url = place if "://" in place else self.url + place
        own = urllib3.make_headers(basic_auth=f"AWS:{self.password}") if self.password else {}
        reply = self._pool.request(method, url, body=body, headers={**own, **(headers or {})})
        if reply.status not in hoped_for:
            said = reply.data[:300].decode(errors="replace")
            raise RegistryError(f"{method} {url.partition('?')[0]}: HTTP {reply.status}: {said}")
        return reply


def digest_of(data: bytes) -> str:
    """``sha256:HEX`` of *data*."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
