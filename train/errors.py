"""The one kind of error that is the caller's to mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What was asked for cannot be done; the message is one line: what is wrong, what is allowed.

    Command lines print it without a traceback and exit with status 2.
    """


class DamagedRun(InputError):
    """The same of one run alone: its own files cannot be used, another run's can."""


@contextmanager
def writing(what: object) -> Iterator[None]:
    """An OSError inside becomes one line that names what was being written.

    Raises:
        InputError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written ({error.strerror}); --out takes a writable folder") from None


def one_line(error: BaseException) -> str:
    """All that an error says, in one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first thing that an error says; its kind if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
