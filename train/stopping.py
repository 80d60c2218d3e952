"""SIGTERM and Ctrl-C stop the program, even if Python swallows the exception that the handler raises.

Python does so in destructors and in the import system, and a signal may come there as well. Nothing here imports torch.
"""

import contextlib
import os
import signal
from types import FrameType

_asked = 0


def end_at_once(said: str) -> None:
    """Until `listen`, SIGTERM and Ctrl-C end this process without an exception: with a line, and 128 + their number.

    For the seconds in which a command imports its libraries. Nothing is half done then, and an exception would end in
    a traceback, or nowhere.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # nobody to be told
            os.write(2, f"{said}\n".encode())
        os._exit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)


def listen(*signals: int) -> None:
    """From now on each of these signals raises SystemExit(128 + its number), and is remembered."""
    global _asked
    _asked = 0
    for signum in signals:
        signal.signal(signum, _ask)


def check() -> None:
    """Raise SystemExit again if it was asked for and did not get through. Call this where nothing is half done."""
    if _asked:
        raise SystemExit(128 + _asked)


def _ask(signum: int, frame: FrameType | None) -> None:
    global _asked
    _asked = signum
    raise SystemExit(128 + signum)
