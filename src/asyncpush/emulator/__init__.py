"""A local ECR: its JSON API and ``/v2/`` pulls, on disk, for rehearsals, demonstrations and tests."""

from asyncpush.emulator.server import Emulator as Emulator
from asyncpush.emulator.weather import Weather as Weather

__all__ = ["Emulator", "Weather"]
