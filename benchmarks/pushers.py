"""The tools that push an image, one command each, and where they push to: an emulator's ECR API and its ``/v2/``."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from cases import Case
from data import MiB
from endpoints import Certificate, Endpoint, UnavailableError, ecr_client, emulator, v2_password
from harness import HERE

#: Bytes that are pushed by one command of the aws CLI a part: each takes a second.
_MOST_BY_COMMANDS = 256 * MiB

_REPOSITORY = "bench/image"


@dataclass(frozen=True, slots=True)
class Target:
    """An emulator that is pushed to.

    Attributes:
        endpoint: the emulator.
        folder: has ``config.json``, docker's file of logins, and takes what a tool writes.
        repository: the one that it has.
    """

    endpoint: Endpoint
    folder: Path
    repository: str = _REPOSITORY

    @property
    def image(self) -> str:
        """The image to push, as tools for registries write it."""
        return f"{self.endpoint.host}/{self.repository}:1"

    @property
    def environment(self) -> dict[str, str]:
        """Where tools find the login, and nothing of this machine's user."""
        login = {"DOCKER_CONFIG": str(self.folder), "REGISTRY_AUTH_FILE": str(self.folder / "config.json")}
        return {**login, "HOME": str(self.folder)}


@contextmanager
def push_target(folder: Path, tls: Certificate | None = None, *, options: Sequence[str] = ()) -> Iterator[Target]:
    """Run an empty emulator with one repository; it checks signatures and passwords, unless told not to."""
    with tempfile.TemporaryDirectory(dir=folder) as own, emulator(Path(own, "ecr"), tls, options=options) as endpoint:
        client = ecr_client(endpoint)
        client.create_repository(repositoryName=_REPOSITORY)
        auth = base64.b64encode(f"AWS:{v2_password(client)}".encode()).decode()
        logins = json.dumps({"auths": {endpoint.host: {"auth": auth}}})
        Path(own, "config.json").write_text(logins, encoding="utf-8")
        yield Target(endpoint, Path(own))


#: Builds a command that pushes an image; None where the tool can't read such a source.
Command = Callable[[Case, Target], tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Pusher:
    """A tool.

    Attributes:
        name: what tables call it.
        program: what it needs on the PATH.
        command: pushes an image.
        serve: options of ``asyncpush serve`` that it needs.
    """

    name: str
    program: str
    command: Command
    serve: tuple[str, ...] = ()


def _asyncpush(transport: str, case: Case, target: Target) -> tuple[str, ...]:
    command = (sys.executable, "-m", "asyncpush", "push", case.source, f"{_REPOSITORY}:1", "--transport", transport)
    if case.kind != "docker":
        trust: tuple[str, ...] = ()
    elif target.endpoint.ca:
        trust = ("--src-ca-bundle", str(target.endpoint.ca))
    else:
        trust = ("--src-plain-http",)
    return (*command, *trust, "--quiet")


def _skopeo(case: Case, target: Target) -> tuple[str, ...]:
    trust = () if target.endpoint.ca else ("--src-tls-verify=false", "--dest-tls-verify=false")
    return ("skopeo", "--insecure-policy", "copy", "--quiet", *trust, case.source, f"docker://{target.image}")


def _crane(case: Case, target: Target) -> tuple[str, ...] | None:
    trust = () if target.endpoint.ca else ("--insecure",)
    if case.kind == "docker":
        return ("crane", "copy", *trust, case.reference, target.image)
    if case.kind == "oci-archive":
        return None
    return ("crane", "push", *trust, str(case.path), target.image)


def _oras(case: Case, target: Target) -> tuple[str, ...] | None:
    if case.kind == "docker-archive":
        return None
    plain = () if target.endpoint.ca else ("--to-plain-http",)
    source: tuple[str, ...] = ("--from-oci-layout",)
    if case.kind == "docker":
        source = () if target.endpoint.ca else ("--from-plain-http",)
    return ("oras", "cp", *source, *plain, case.reference, target.image)


def _regctl(case: Case, target: Target) -> tuple[str, ...] | None:
    hosts = [target.endpoint.host, *([case.reference.partition("/")[0]] if case.kind == "docker" else [])]
    plain = [word for host in hosts for word in ("--host", f"reg={host},tls=disabled")]
    trust = () if target.endpoint.ca else tuple(plain)
    command = ("regctl", "--verbosity", "error", *trust, "image")
    if case.kind == "oci":
        return (*command, "copy", f"ocidir://{case.reference}", target.image)
    if case.kind == "docker":
        return (*command, "copy", case.reference, target.image)
    # An archive's layers go in chunks of 1 MiB, which ECR refuses, unless this file says otherwise.
    settings = target.folder / ".regctl" / "config.json"
    settings.parent.mkdir()
    hosts_settings = {target.endpoint.host: {"hostname": target.endpoint.host, "blobChunk": 10 * MiB}}
    settings.write_text(json.dumps({"hosts": hosts_settings}), encoding="utf-8")
    return (*command, "import", target.image, str(case.path))


def _ocync(case: Case, target: Target) -> tuple[str, ...] | None:
    if case.kind != "docker":
        return None
    if not target.endpoint.ca:
        raise UnavailableError("ocync asks how to log in over HTTPS only")
    source, _, name = case.reference.partition("/")
    repository, _, tag = name.rpartition(":")
    urls = {"source": f"https://{source}", "target": target.endpoint.url}
    document = {
        "global": {"cache_dir": str(target.folder)},
        "registries": {name: {"url": url, "auth_type": "anonymous"} for name, url in urls.items()},
        "target_groups": {"all": ["target"]},
        "defaults": {"source": "source", "targets": "all", "artifacts": {"enabled": False}},
        "mappings": [{"from": repository, "to": _REPOSITORY, "tags": {"glob": tag}}],
    }
    config = target.folder / "ocync.yaml"
    config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return ("ocync", "--quiet", "sync", "--config", str(config))


def _aws_loop(case: Case, _target: Target) -> tuple[str, ...] | None:
    if case.kind != "oci":
        return None
    if case.size > _MOST_BY_COMMANDS:
        raise UnavailableError("a command for each part: minutes")
    layout, _, tag = case.reference.rpartition(":")
    return (sys.executable, str(HERE / "clients" / "aws_loop.py"), layout, tag, _REPOSITORY)


API = Pusher("asyncpush, api", sys.executable, partial(_asyncpush, "api"))
V2 = Pusher("asyncpush, v2", sys.executable, partial(_asyncpush, "v2"))
CRANE = Pusher("crane", "crane", _crane)
ORAS = Pusher("oras", "oras", _oras)
PUSHERS = (
    API,
    V2,
    CRANE,
    ORAS,
    Pusher("regctl", "regctl", _regctl),
    Pusher("skopeo", "skopeo", _skopeo),
    # It sends a password as Basic to ECR's own names only; another registry has to ask for a token, or for nothing.
    Pusher("ocync", "ocync", _ocync, ("--no-verify-signatures",)),
    Pusher("aws ecr, a loop", "aws", _aws_loop),
)
