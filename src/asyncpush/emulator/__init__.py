"""A local ECR: its JSON API and ``/v2/`` pulls, on disk, for rehearsals, demonstrations and tests."""

from asyncpush.emulator.server import Emulator as Emulator

__all__ = ["Emulator"]
