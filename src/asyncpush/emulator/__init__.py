"""A local ECR: its JSON API and ``/v2/``, on disk, for rehearsals, demonstrations and tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpush.emulator.auth.credentials import Credentials as Credentials
    from asyncpush.emulator.faults import Weather as Weather
    from asyncpush.emulator.quirks import Behaviour as Behaviour
    from asyncpush.emulator.server import Emulator as Emulator
    from asyncpush.emulator.store.recovery import Finding as Finding
    from asyncpush.emulator.store.state import DamagedDataError as DamagedDataError
    from asyncpush.emulator.threaded import ThreadedEmulator as ThreadedEmulator

#: Where each public name lives: pytest imports this package at every start, for its plugin, and must not wait.
_MODULES = {
    "Behaviour": "quirks",
    "Credentials": "auth.credentials",
    "Emulator": "server",
    "DamagedDataError": "store.state",
    "Finding": "store.recovery",
    "ThreadedEmulator": "threaded",
    "Weather": "faults",
}

__all__ = ["Behaviour", "Credentials", "DamagedDataError", "Emulator", "Finding", "ThreadedEmulator", "Weather"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
