"""A local ECR: its JSON API and ``/v2/``, on disk, for rehearsals, demonstrations and tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpush.emulator.auth.credentials import KnownCredentials as KnownCredentials
    from asyncpush.emulator.faults import FaultConfig as FaultConfig
    from asyncpush.emulator.limits import Quirks as Quirks
    from asyncpush.emulator.server import Emulator as Emulator
    from asyncpush.emulator.store.fsck import Finding as Finding
    from asyncpush.emulator.store.state import DamagedDataError as DamagedDataError
    from asyncpush.emulator.threaded import ThreadedEmulator as ThreadedEmulator

#: Where each public name lives: pytest imports this package at every start, for its plugin, and must not wait.
_MODULES = {
    "KnownCredentials": "auth.credentials",
    "FaultConfig": "faults",
    "Quirks": "limits",
    "Emulator": "server",
    "Finding": "store.fsck",
    "DamagedDataError": "store.state",
    "ThreadedEmulator": "threaded",
}

__all__ = ["DamagedDataError", "Emulator", "FaultConfig", "Finding", "KnownCredentials", "Quirks", "ThreadedEmulator"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
