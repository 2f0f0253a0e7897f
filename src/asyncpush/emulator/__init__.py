"""A local ECR: its JSON API and ``/v2/``, on disk, for rehearsals, demonstrations and tests."""

from asyncpush.emulator.behaviour import Behaviour as Behaviour
from asyncpush.emulator.credentials import Credentials as Credentials
from asyncpush.emulator.server import Emulator as Emulator
from asyncpush.emulator.store import DamagedDataError as DamagedDataError
from asyncpush.emulator.survey import Finding as Finding
from asyncpush.emulator.weather import Weather as Weather

__all__ = ["Behaviour", "Credentials", "DamagedDataError", "Emulator", "Finding", "Weather"]
