"""Weather on request: latency, bandwidth, throttles and faults, for rehearsals and for tests of other tools."""

from asyncpush.emulator.weather.parser import parse_fault as parse_fault
from asyncpush.emulator.weather.parser import parse_throttle as parse_throttle
from asyncpush.emulator.weather.rules import Fault as Fault
from asyncpush.emulator.weather.rules import Throttle as Throttle
from asyncpush.emulator.weather.rules import Weather as Weather
from asyncpush.emulator.weather.sky import Fired as Fired

__all__ = ["Fault", "Fired", "Throttle", "Weather", "parse_fault", "parse_throttle"]
