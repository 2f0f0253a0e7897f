"""Run one command and write down what the kernel says that it used: wall time, processor time, peak memory.

It stands between the harness and a contender, and imports next to nothing: Linux counts the memory of the process that
spawns into the peak of the one that is spawned, so a harness with tables and plots loaded would be a floor under all.

    python -I -S launch.py RESULT COMMAND...
"""

from __future__ import annotations

import os
import sys
import time


def main() -> int:
    """Spawn, wait, write ``wall user system peak``: seconds, seconds, seconds, and what ru_maxrss counts."""
    result, *command = sys.argv[1:]
    started = time.monotonic()
    try:
        child = os.posix_spawnp(command[0], command, os.environ)
    except OSError as error:
        print(f"{command[0]} can't be run: {error.strerror}", file=sys.stderr)
        return 127
    _, status, used = os.wait4(child, 0)
    wall = time.monotonic() - started
    with open(result, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib is a megabyte
        file.write(f"{wall} {used.ru_utime} {used.ru_stime} {used.ru_maxrss}")
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
