"""What a plan says of repositories that do not exist: whether they are created, and with which settings."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from asyncpush import open_files
from asyncpush.errors import UsageError
from asyncpush.files import read_small
from asyncpush.migrate.plan.document import RepositoryDocument
from asyncpush.migrate.plan.policies import LENGTHS, faults_of
from asyncpush.migrate.plan.problems import Problems, member
from asyncpush.settings import Mutability, RepositorySettings

T = TypeVar("T")

# ImageTagMutabilityExclusionFilter in ECR's service model, and how many CreateRepository takes.
_EXCLUSION = re.compile(r"[0-9a-zA-Z._*-]{1,128}")
_MAX_EXCLUSIONS = 5

_EXCLUDING: dict[Mutability, Mutability] = {
    "MUTABLE": "MUTABLE_WITH_EXCLUSION",
    "IMMUTABLE": "IMMUTABLE_WITH_EXCLUSION",
}


@dataclass(slots=True)
class Repositories:
    """Makes settings of what the plan says, and reads its policies, each file once; blocks while it does.

    Attributes:
        base: the directory that paths are relative to.
        problems: takes what is wrong.
    """

    base: Path
    problems: Problems
    _files: dict[Path, str] = field(default_factory=dict)

    def settings(self, said: RepositoryDocument, place: str) -> RepositorySettings:
        """The settings that *said* stands for; what is wrong with it is noted at *place*."""
        kms_key = given(said.kms_key)
        if kms_key is not None and said.encryption not in ("KMS", "KMS_DSSE"):
            self.problems.add(member(place, "kms_key"), "needs an encryption", hint="add encryption: KMS, or KMS_DSSE")
        tags = said.tags if isinstance(said.tags, dict) else {}
        return RepositorySettings(
            mutability=self._mutability(said, place),
            exclusions=tuple(given(said.exclusions) or ()),
            scan_on_push=given(said.scan_on_push),
            encryption=given(said.encryption),
            kms_key=kms_key,
            resource_tags=tuple(tags.items()),
            policy=self._policy("policy", said.policy, place),
            lifecycle_policy=self._policy("lifecycle_policy", said.lifecycle_policy, place),
        )

    def _mutability(self, said: RepositoryDocument, place: str) -> Mutability | None:
        mutability: Mutability | None = given(said.mutability)
        exclusions = given(said.exclusions) or []
        there = member(place, "exclusions")
        if len(exclusions) > _MAX_EXCLUSIONS:
            self.problems.add(there, f"has {len(exclusions)} wildcards; ECR takes {_MAX_EXCLUSIONS}")
        for at, each in enumerate(exclusions):
            if not _EXCLUSION.fullmatch(each):
                self.problems.add(f"{there}[{at}]", f"{each[:140]!r} is no wildcard of tags", hint="such as dev-*")
        if not exclusions:
            if mutability and mutability.endswith("_WITH_EXCLUSION"):
                self.problems.add(member(place, "mutability"), f"{mutability} needs exclusions")
            return mutability
        if mutability is None:
            self.problems.add(there, "needs mutability: IMMUTABLE or MUTABLE")
            return None
        return _EXCLUDING.get(mutability, mutability)

    def _policy(self, name: str, said: str | dict[str, object] | UnsetType, place: str) -> str | None:
        if said is UNSET:
            return None
        there = member(place, name)
        if isinstance(said, dict):
            text = json.dumps(said, separators=(",", ":"))
            for inner, words in faults_of(name, text, said):
                self.problems.add(f"{there}.{inner}" if inner else there, words)
            return text
        with self.problems.at(there):
            text = self._read(self.base / str(said), LENGTHS[name][1])
            for inner, words in faults_of(name, text, _object_of(text, str(said))):
                self.problems.add(there, f"{said}: {inner} {words}" if inner else f"{said} {words}")
            return text
        return None

    def _read(self, path: Path, longest: int) -> str:
        if path not in self._files:
            try:
                # A character has up to four bytes.
                text = read_small(path, 4 * longest).decode("utf-8-sig")
            except OSError as error:
                if error.errno == errno.EFBIG:
                    raise UsageError(f"{path} has more than {longest} characters; ECR takes no more") from error
                raise UsageError(
                    f"{path} can't be read: {open_files.reason(error)}", hint="name a file of JSON"
                ) from error
            except ValueError as error:
                raise UsageError(f"{os.fspath(path)!r} is no text in UTF-8", hint="name a file of JSON") from error
            if len(text) > longest:
                raise UsageError(f"{path} has more than {longest} characters; ECR takes no more")
            self._files[path] = text
        return self._files[path]


def _object_of(text: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name} holds no JSON object")
    return found


def merged(said: RepositoryDocument | UnsetType, defaults: RepositoryDocument | UnsetType) -> RepositoryDocument:
    """*said*, with the members of *defaults* where it has none."""
    if isinstance(said, UnsetType) or isinstance(defaults, UnsetType):
        return given(said) or given(defaults) or RepositoryDocument()
    own = {name: value for name in said.__struct_fields__ if (value := getattr(said, name)) is not UNSET}
    return msgspec.structs.replace(defaults, **own)


def first_given(*values: T | UnsetType) -> T | None:
    """The first of *values* that was given; None if none was."""
    return next((value for value in values if not isinstance(value, UnsetType)), None)


def given(value: T | UnsetType) -> T | None:
    """*value*, None if it was not given."""
    return None if isinstance(value, UnsetType) else value
