"""Fault injection: latency, bandwidth, throttles and failures, for rehearsals and for tests of other tools."""

from asyncpush.emulator.faults.injector import HitCount as HitCount
from asyncpush.emulator.faults.rules import Fault as Fault
from asyncpush.emulator.faults.rules import FaultConfig as FaultConfig
from asyncpush.emulator.faults.rules import Throttle as Throttle
from asyncpush.emulator.faults.rules import parse_fault as parse_fault
from asyncpush.emulator.faults.rules import parse_throttle as parse_throttle

__all__ = ["Fault", "FaultConfig", "HitCount", "Throttle", "parse_fault", "parse_throttle"]
