"""Compares a target with a corpus: every tag, manifest, blob and referrer, by boto3 and ``/v2/``."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from corpus import Corpus, Repository
from v2 import Registry, digest_of

#: Requests at a time.
_AT_A_TIME = 8

#: Images that BatchGetImage takes.
_BATCH = 100

#: Images that are copied out of the target by skopeo.
_SAMPLE = 3
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Equality:
    """The result of comparing a target with a corpus.

    Attributes:
        wrong: what is missing or different, a line each.
        tags: tags that were compared.
        manifests: manifests that were read and hashed.
        blobs: blobs that were asked for, in each repository.
        bytes_hashed: bytes of the different blobs, all of which were read and hashed.
    """

    wrong: tuple[str, ...]
    tags: int
    manifests: int
    blobs: int
    bytes_hashed: int


def compare(corpus: Corpus, target: Registry, ecr: Any, *, referrers: bool, bytes_too: bool = True) -> Equality:  # noqa: ANN401 - boto3's clients have no types
    """Compare a target with a corpus.

    Args:
        corpus: what the target must hold.
        target: the target's ``/v2/``.
        ecr: boto3's client of the same.
        referrers: whether referrers must be present, too.
        bytes_too: read and hash every blob, each in one repository.
    """
    wrong: list[str] = []
    manifests = blobs = 0
    places: dict[str, tuple[str, int]] = {}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for repository in corpus.repositories:
            expected = _digests(repository, referrers=referrers)
            wrong += _compare_tags(repository, ecr)
            manifests += len(expected)
            for found in pool.map(partial(_compare_manifest, repository, target), expected):
                wrong += found
            sizes = repository.blobs(with_referrers=referrers)
            blobs += len(sizes)
            for found in pool.map(partial(_compare_size, repository, target), sizes.items()):
                wrong += found
            if referrers:
                wrong += _compare_referrers(repository, target)
            places |= {digest: (repository.target, size) for digest, size in sizes.items()}
        if bytes_too and not wrong:
            for found in pool.map(partial(_compare_bytes, target), places.items()):
                wrong += found
    tags = sum(len(each.tags) + len(each.signatures) for each in corpus.repositories)
    hashed = sum(size for _, size in places.values()) if bytes_too else 0
    return Equality(tuple(wrong), tags, manifests, blobs, hashed)


def copy_sample(corpus: Corpus, target: Registry, folder: Path, environment: dict[str, str]) -> list[str]:
    """Have skopeo read some images of the target, whole, into *folder*; returns what is wrong."""
    wrong = []
    chosen = corpus.repositories[:: max(1, len(corpus.repositories) // _SAMPLE)][:_SAMPLE]
    for number, repository in enumerate(chosen):
        tag, digest = next(iter(repository.tags.items()))
        reference = f"{target.url.partition('://')[2]}/{repository.target}:{tag}"
        credentials = ("--src-tls-verify=false", f"--src-creds=AWS:{target.password}")
        command = ("skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", *credentials)
        place = folder / f"sample-{number}"
        done = subprocess.run(
            (*command, f"docker://{reference}", f"dir:{place}"),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env=environment,
        )
        if done.returncode:
            wrong.append(f"skopeo can't copy {reference}: {done.stderr.strip()[-300:]}")
        elif (found := digest_of((place / "manifest.json").read_bytes())) != digest:
            wrong.append(f"skopeo has copied {found} from {reference}, not {digest}")
    return wrong


def _digests(repository: Repository, *, referrers: bool) -> list[str]:
    return [manifest.digest for manifest in repository.manifests if referrers or not manifest.subject]


def _compare_tags(repository: Repository, ecr: Any) -> Iterator[str]:  # noqa: ANN401 - boto3's clients have no types
    """BatchGetImage of all tags."""
    expected = {**repository.tags, **repository.signatures}
    found = {}
    ids = [{"imageTag": tag} for tag in expected]
    for first in range(0, len(ids), _BATCH):
        answer = ecr.batch_get_image(repositoryName=repository.target, imageIds=ids[first : first + _BATCH])
        for image in answer["images"]:
            found[image["imageId"]["imageTag"]] = digest_of(image["imageManifest"].encode())
    for tag, digest in expected.items():
        if found.get(tag) != digest:
            yield f"{repository.target}:{tag} is {found.get(tag, 'missing')}, not {digest}"


def _compare_manifest(repository: Repository, target: Registry, digest: str) -> list[str]:
    raw = target.manifest(repository.target, digest)
    if raw is None:
        return [f"{repository.target}@{digest} is missing"]
    return [] if digest_of(raw) == digest else [f"{repository.target}@{digest} has other bytes"]


def _compare_size(repository: Repository, target: Registry, blob: tuple[str, int]) -> list[str]:
    digest, size = blob
    found = target.blob_size(repository.target, digest)
    if found == size:
        return []
    return [f"{repository.target} has {'no' if found is None else f'{found} bytes of'} blob {digest} ({size} bytes)"]


def _compare_bytes(target: Registry, blob: tuple[str, tuple[str, int]]) -> list[str]:
    digest, (repository, _) = blob
    found = digest_of(target.blob(repository, digest))
    return [] if found == digest else [f"{repository}: blob {digest} has the bytes of {found}"]


def _compare_referrers(repository: Repository, target: Registry) -> Iterator[str]:
    expected: dict[str, set[str]] = {}
    for manifest in repository.referrers:
        expected.setdefault(manifest.subject, set()).add(manifest.digest)
    for subject, digests in expected.items():
        if missing := digests - target.referrers(repository.target, subject):
            yield f"{repository.target}@{subject} lacks its referrers {', '.join(sorted(missing))}"
