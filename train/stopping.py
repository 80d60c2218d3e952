"""A stop is a state: any number of SIGTERM, SIGINT and SIGHUP, at any time, is one stop that nothing can swallow.

The first signal starts the kernel's clock, which ends the process after `LIMIT` seconds whatever it does, says one line
and sets the state. Later signals change nothing. The state raises SystemExit at once, or within `held` where the code
looks by itself: at `check`, at `asked`, and at the end of the block. Nothing here imports torch.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT = 25
"""seconds from the first signal until the kernel ends the process (SIGALRM)"""

_said = ""
_asked = 0
_holds = 0


def end_at_once(said: str) -> None:
    """Until `listening`, and after it, a signal ends this process without an exception: a line, and 128 + its number.

    For the seconds in which a command imports its libraries, and in which Python ends. Nothing is half done then, and
    an exception would end in a traceback, or nowhere.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        if not _asked:  # else it is said
            _say(said)
        os._exit(128 + (_asked or signum))

    _handle(end)


@contextlib.contextmanager
def listening(said: str = "") -> Iterator[None]:
    """In this block signals are a stop: SystemExit(128 + the first one's number).

    Args:
        said: the line about it, for standard error; "": another process says it.
    """
    global _said, _asked
    _said, _asked = said, 0
    before = {signum: signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Python calls a handler when the main thread is back from a call in C, but writes the signal's number at once.
    arrivals, arrived = os.pipe()
    os.set_blocking(arrived, False)
    other = signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(arrivals,), daemon=True).start()
    _handle(_heard)
    try:
        yield
        check()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(other)
        os.close(arrived)  # which ends the thread


@contextlib.contextmanager
def held() -> Iterator[None]:
    """In this block a stop raises nothing by itself, so that nothing is left half done. It is raised at the end."""
    hold()
    try:
        yield
    finally:
        release()
    check()


def hold() -> None:
    """What `held` does at its start."""
    global _holds
    _holds += 1


def release() -> None:
    """What `held` does at its end, but for raising the stop."""
    global _holds
    _holds -= 1


def asked() -> int:
    """The number of the first signal; 0 before it."""
    return _asked


def check() -> None:
    """Raise the stop if one was asked for. Call this where nothing is half done."""
    if _asked:
        raise SystemExit(128 + _asked)


def ask(signum: int) -> None:
    """Stop as by this signal, at the next `check`."""
    global _asked
    if not _asked:
        _asked = signum
        start_clock()
        if _said:
            _say(_said)


def start_clock() -> None:
    """From now on this process has `LIMIT` seconds; less if the clock runs already."""
    if not signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.alarm(LIMIT)


def stopped_by(exitcode: int | None) -> int:
    """The signal by which a process was stopped, from its exit status as multiprocessing has it; 0 if by none."""
    signum = 0 if exitcode is None else -exitcode if exitcode < 0 else exitcode - 128
    return signal.SIGTERM if signum == signal.SIGALRM else signum if signum in SIGNALS else 0


def _heard(signum: int, frame: FrameType | None) -> None:
    first = not _asked
    ask(signum)
    if first and not _holds:
        check()


def _watch(arrivals: int) -> None:
    with open(arrivals, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in SIGNALS:
                start_clock()


def _handle(handler: "signal._HANDLER") -> None:
    for signum in SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(signum, handler)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody to be told
        os.write(2, f"{line}\n".encode())
