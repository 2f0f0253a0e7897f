"""Entry point of ``asyncpush`` and ``python -m asyncpush``."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

from asyncpush.second_signal import EndAtSecond


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        # Before the slow imports.
        from importlib.metadata import version

        try:
            print(f"asyncpush {version('asyncpush')}", flush=True)  # noqa: T201 - the result
        except OSError as error:
            is_left = isinstance(error, BrokenPipeError)  # a reader who leaves is no failure
            if not is_left:
                with suppress(OSError):
                    os.write(2, f"asyncpush: error: the version can't be written: {error.strerror}\n".encode())
            # Not by sys.exit: Python would try to write what is still buffered, and fail again.
            os._exit(not is_left)
        sys.exit(0)
    # From now on: the imports take long enough for a signal to come.
    EndAtSecond().install()
    # Imported modules are no garbage: collecting it again and again takes a seventh of the start-up time.
    gc.disable()
    try:
        from asyncpush.cli.main import run_app
        from asyncpush.open_files import raise_limit

        raise_limit()
        status = run_app(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    # The end of the process frees what is left: the interpreter need not look for garbage in it first.
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    main()
