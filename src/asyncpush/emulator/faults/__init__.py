"""Weather on request: latency, bandwidth, throttles and faults, for rehearsals and for tests of other tools."""

from asyncpush.emulator.faults.injector import Fired as Fired
from asyncpush.emulator.faults.parser import parse_fault as parse_fault
from asyncpush.emulator.faults.parser import parse_throttle as parse_throttle
from asyncpush.emulator.faults.rules import Fault as Fault
from asyncpush.emulator.faults.rules import Throttle as Throttle
from asyncpush.emulator.faults.rules import Weather as Weather

__all__ = ["Fault", "Fired", "Throttle", "Weather", "parse_fault", "parse_throttle"]
