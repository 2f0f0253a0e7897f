"""The stage of a migration: two sources that hold a corpus, and a target with the latency of a distant ECR."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from corpus import Corpus, Host, Recipe
from endpoints import REGION, Endpoint, docker_registry, ecr_client, emulator, v2_password
from stock import fill, find_corpus, place_of, write_corpus
from v2 import Registry
from wire import Counts, Wire, emulator_counts, logged_counts, look

#: ECR's quota of PutImage, requests a second.
_PUT_IMAGE = 10

#: Where the plan finds the password of a source.
PASSWORD = "SOURCE_PASSWORD"


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions at the target.

    Attributes:
        latency: what each request takes longer, as ``asyncpush serve --latency`` takes it.
        bandwidth: bytes a second and connection, in each direction, likewise.
        manifests: manifests a second that ``/v2/`` takes, as PutImage does; 0 for as many as come.
    """

    latency: str
    bandwidth: str
    manifests: int

    def options(self) -> tuple[str, ...]:
        """As options of ``asyncpush serve``."""
        slow = ("--latency", self.latency, "--bandwidth", self.bandwidth, "--quotas", "aws")
        return (
            *slow,
            *(("--throttle", f"v2:PUT-manifest={self.manifests}:{self.manifests}") if self.manifests else ()),
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """The registries that hold the corpus.

    Attributes:
        corpus: what they hold.
        hosts: ``HOST:PORT`` of each.
        password: that of the user AWS at the emulator.
        counts: what each tells of its requests.
    """

    corpus: Corpus
    hosts: Mapping[Host, str]
    password: str
    counts: tuple[Callable[[], Counts], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The registry to migrate to.

    Attributes:
        endpoint: the emulator.
        folder: for what belongs to it: a journal, a cache.
        registry: its ``/v2/``.
        ecr: boto3's client.
        sources: where the images come from.
    """

    endpoint: Endpoint
    folder: Path
    registry: Registry
    ecr: Any
    sources: Sources

    def look(self) -> Wire:
        """What all endpoints have counted so far."""
        return look(self.endpoint, self.sources.counts)

    def clear_faults(self) -> None:
        """Lift latency, bandwidth and quotas."""
        self.endpoint.fetch("/_emulator/faults", method="DELETE")

    @property
    def environment(self) -> dict[str, str]:
        """A contender's environment: a folder for its state, and nothing of this machine's."""
        return {
            PASSWORD: self.sources.password,
            "HOME": str(self.folder),
            "XDG_DATA_HOME": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder),
            "DOCKER_CONFIG": str(self.folder),
            # For root, skopeo remembers in /var/lib what is where; a run must not know of another one's target.
            "_CONTAINERS_ROOTLESS_UID": str(os.getuid() or 65534),
        }


@contextmanager
def sources(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> Iterator[Sources]:
    """Serve the corpus of *recipe* from a folder in *folder*; it is made there, if it is not there yet.

    Raises:
        UnavailableError: docker-registry is not installed.
    """
    place = place_of(folder, recipe)
    corpus = find_corpus(place)
    if corpus is None:
        shutil.rmtree(place, ignore_errors=True)
        (place / "registry").mkdir(parents=True)
    with (
        docker_registry(place / "registry") as registry,
        # Signatures are checked, so that a source asks for a password, too.
        emulator(place / "emulator", options=()) as ecr,
    ):
        client = ecr_client(ecr)
        password = v2_password(client)
        if corpus is None:
            say(f"making {recipe.tags} images in {recipe.repositories} repositories, {recipe.size / 1e6:,.0f} MB")
            registries: dict[Host, Registry] = {
                "registry": Registry(registry.url),
                "emulator": Registry(ecr.url, password),
            }
            client.put_account_setting(name="BLOB_MOUNTING", value="ENABLED")
            for number in range(1, recipe.repositories, 2):
                client.create_repository(repositoryName=f"team-{number % 7}/app-{number:02}")
            corpus = fill(recipe, registries, place / "layers")
            write_corpus(place, corpus)
        log = place / "registry" / "log"
        counts = (lambda: logged_counts(log), lambda: emulator_counts(ecr))
        yield Sources(corpus, {"registry": registry.host, "emulator": ecr.host}, password, counts)


@contextmanager
def target(folder: Path, origin: Sources, conditions: Conditions, *, mounting: bool) -> Iterator[Target]:
    """Run an empty target in *folder*; its repositories exist, since skopeo can't create them."""
    options = (*conditions.options(), "--admin")
    with (
        tempfile.TemporaryDirectory(prefix="target-", dir=folder) as own,
        tempfile.TemporaryDirectory(prefix="data-", dir=folder) as data,
        emulator(Path(data), options=options) as endpoint,
    ):
        client = ecr_client(endpoint)
        client.put_account_setting(name="BLOB_MOUNTING", value="ENABLED" if mounting else "DISABLED")
        for repository in origin.corpus.repositories:
            client.create_repository(repositoryName=repository.target)
        yield Target(endpoint, Path(own), Registry(endpoint.url, v2_password(client)), client, origin)


def write_plan(path: Path, origin: Sources, endpoint: Endpoint) -> Path:
    """The plan of ``asyncpush migrate``; signatures are its own to find, be they referrers or tags of cosign's."""
    hosts = origin.hosts
    document = {
        "version": 1,
        "registries": {
            hosts["registry"]: {"plain_http": True, "credentials": {"anonymous": True}},
            hosts["emulator"]: {
                "plain_http": True,
                "credentials": {"username": "AWS", "password": f"${{{PASSWORD}}}"},
            },
        },
        # At AWS, asyncpush knows ECR's quotas; at another endpoint, it would first have to be throttled.
        "targets": {"here": {"region": REGION, "endpoint_url": endpoint.url, "quotas": {"PutImage": _PUT_IMAGE}}},
        "defaults": {"targets": ["here"], "referrers": True, "repository": {"create": True}},
        "images": [
            {
                "from": f"{hosts[repository.host]}/{repository.name}",
                "to": repository.target,
                "tags": list(repository.tags),
            }
            for repository in origin.corpus.repositories
        ],
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def write_skopeo_yaml(path: Path, origin: Sources) -> Path:
    """The same as ``skopeo sync --src yaml`` reads it; the tags of signatures must be named."""
    document: dict[str, dict[str, object]] = {}
    for host, address in origin.hosts.items():
        chosen = [repository for repository in origin.corpus.repositories if repository.host == host]
        images = {repository.name: [*repository.tags, *repository.signatures] for repository in chosen}
        document[address] = {"tls-verify": False, "images": images}
    document[origin.hosts["emulator"]]["credentials"] = {"username": "AWS", "password": origin.password}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def write_regsync_yaml(path: Path, origin: Sources, endpoint: Endpoint, password: str) -> Path:
    """The same for ``regsync``, one job a repository: it finds referrers by itself, and the tags of signatures, too."""
    logins: dict[str, dict[str, str]] = {
        origin.hosts["registry"]: {},
        origin.hosts["emulator"]: _login(origin.password),
    }
    logins[endpoint.host] = _login(password)
    document = {
        "version": 1,
        "creds": [{"registry": host, "tls": "disabled", **login} for host, login in logins.items()],
        "defaults": {"referrers": True, "digestTags": True, "skipDockerConfig": True},
        "sync": [
            {
                "source": f"{origin.hosts[repository.host]}/{repository.name}",
                "target": f"{endpoint.host}/{repository.target}",
                "type": "repository",
                "tags": {"allow": [re.escape(tag) for tag in repository.tags]},
            }
            for repository in origin.corpus.repositories
        ],
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _login(password: str) -> dict[str, str]:
    return {"user": "AWS", "pass": password}
