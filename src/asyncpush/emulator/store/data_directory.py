"""The data directory: what lies where, who owns it, and which directories are refused."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asyncpush import open_files
from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.catalog import FILE
from asyncpush.emulator.store.layout import LAYOUT
from asyncpush.errors import UsageError

_LOCK = "lock"
_DISCARDS = "discards"
#: Bytes of a file's name, everywhere that Python runs.
_LONGEST = 255
_DIRECTORIES = ("repositories", "uploads")


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Where an emulator keeps its data.

    ::

        lock                              held by the one emulator that uses the directory
        catalog.sqlite                    all but the blobs
        token-secret                      what the passwords for /v2/ are proved with
        discards                          if it is there, the bytes of layers are not kept (``discarding.py``)
        uploads/<id>                      the bytes of an upload
        repositories/ecr/<account>/<region>/<name>/_layout      a private repository, an OCI image layout
        repositories/ecr-public/<account>/<name>/_layout        a public one

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def catalog(self) -> Path:
        """The catalog's file."""
        return self.path / FILE

    @property
    def discards(self) -> Path:
        """The file that says that layers are discarded."""
        return self.path / _DISCARDS

    @property
    def uploads(self) -> Path:
        """The directory of the bytes of uploads."""
        return self.path / "uploads"

    @property
    def repositories(self) -> Path:
        """The directory of the layouts."""
        return self.path / "repositories"

    def layout(self, registry: RegistryId, name: str) -> Path:
        """Where a repository's layout lies."""
        return self.repositories.joinpath(registry.path, *_components(name), LAYOUT)

    def own(self, *, make: bool) -> int:
        """Lock the directory until the descriptor that comes back is closed; blocks for no other owner.

        Args:
            make: make it where it is missing or empty.

        Raises:
            UsageError: it can't be used, is in use, or holds something else.
        """
        try:
            self._look(make=make)
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"{self.path} can't hold the emulator's data: {open_files.reason(error)}",
                hint="name a directory that can be written",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(f"another emulator uses {self.path}", hint="stop it, or name another directory") from error
        return descriptor

    def settle(self, discard: bool | None) -> bool:
        """Find out whether the directory discards layers, and mark a new one that is to; blocks.

        It stays as it was made: restarts are right for layers that are all of one kind.

        Args:
            discard: what it should do; None takes it as it is.

        Returns:
            Whether it discards.

        Raises:
            UsageError: it is not as it should be.
        """
        if discard and not self.catalog.exists():
            self.discards.touch()
        marked = self.discards.exists()
        if marked and discard is False:
            raise UsageError(f"{self.path} discards layers", hint="add --discard, or name another directory")
        if discard and not marked:
            raise UsageError(f"{self.path} keeps layers", hint="leave out --discard, or name a new directory")
        return marked

    def _look(self, *, make: bool) -> None:
        """Refuse what is not ours before anything is written into it."""
        if make:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.catalog.exists():
            raise UsageError(f"{self.path} holds no emulator's data", hint="name a directory that `serve` has used")
        if not self.catalog.exists() and (found := [path for path in self.path.iterdir() if _is_foreign(path)]):
            raise UsageError(
                f"{self.path} holds something that is not this emulator's, such as {min(found).name}, and no {FILE}",
                hint="name a new or an empty directory",
            )
        for name in _DIRECTORIES:
            (self.path / name).mkdir(exist_ok=True)


def _components(name: str) -> Iterator[str]:
    """A repository's name as directories. One component of ECR's 256 characters is too long for a file system.

    What is behind the cut begins as no component can.
    """
    for component in name.split("/"):
        yield component[:_LONGEST]
        if len(component) > _LONGEST:
            yield f"_{component[_LONGEST:]}"


def _is_foreign(path: Path) -> bool:
    """Whether a directory with this entry and without a catalog is another's; what file systems put there is not."""
    if path.name in _DIRECTORIES:
        return not path.is_dir() or any(path.iterdir())
    return (
        path.name not in (_LOCK, _DISCARDS, "lost+found")
        and not path.name.startswith(".")
        and not path.name.startswith(FILE)
    )
