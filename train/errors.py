"""The kind of error that the caller can mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What was asked for cannot be done. The message is one line that says what is wrong and what is allowed.

    Command lines print it without a traceback and exit with status 2.
    """


class DamagedRun(InputError):
    """An InputError of one run alone: its own files cannot be used, but those of another run can."""


@contextmanager
def writing(what: object, option: str = "--out") -> Iterator[None]:
    """An OSError inside becomes one line that names what was being written, and the option that says where.

    Raises:
        InputError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written ({error.strerror}); {option} takes a writable folder") from None


def one_line(error: BaseException) -> str:
    """All that an error says, in one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the kind of the error if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
