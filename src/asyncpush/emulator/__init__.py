"""A local ECR: its JSON API and ``/v2/``, on disk, for rehearsals, demonstrations and tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpush.emulator.behaviour import Behaviour as Behaviour
    from asyncpush.emulator.credentials import Credentials as Credentials
    from asyncpush.emulator.server import Emulator as Emulator
    from asyncpush.emulator.store import DamagedDataError as DamagedDataError
    from asyncpush.emulator.survey import Finding as Finding
    from asyncpush.emulator.threaded import ThreadedEmulator as ThreadedEmulator
    from asyncpush.emulator.weather import Weather as Weather

#: Where each public name lives: pytest imports this package at every start, for its plugin, and must not wait.
_MODULES = {
    "Behaviour": "behaviour",
    "Credentials": "credentials",
    "DamagedDataError": "store",
    "Emulator": "server",
    "Finding": "survey",
    "ThreadedEmulator": "threaded",
    "Weather": "weather",
}

__all__ = ["Behaviour", "Credentials", "DamagedDataError", "Emulator", "Finding", "ThreadedEmulator", "Weather"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
