"""Ctrl-C and SIGTERM: the first one is for the command to end in order, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

#: A progress display that is killed leaves the cursor hidden.
_SHOW_CURSOR = b"\x1b[?25h"

#: The signals that end a command.
ENDING = (signal.SIGINT, signal.SIGTERM)


class EndAtSecond:
    """A signal handler that keeps the first signal, and ends the process at the second.

    It is there before the slow imports, so that a signal that comes early is not lost, and is no traceback. The event
    loop, which gets later ones by itself, asks it then.

    Attributes:
        first: the first signal; None so far.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None

    def install(self) -> None:
        """Handle the signals from now on; only the main thread may call it."""
        for number in ENDING:
            signal.signal(number, self)

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if self.first is not None:
            with suppress(OSError):
                if os.isatty(2):
                    os.write(2, _SHOW_CURSOR)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.first = signal.Signals(number)


def release() -> None:
    """Let Ctrl-C interrupt what blocks, and SIGTERM end the process, as without ``EndAtSecond``.

    Raises:
        KeyboardInterrupt: Ctrl-C has come already.
    """
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, EndAtSecond):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if handler.first is not None:
            signal.raise_signal(handler.first)
