"""The one kind of error that is the caller's to mend."""


class InputError(Exception):
    """What was asked for cannot be done; the message is one line: what is wrong, what is allowed.

    Command lines print it without a traceback and exit with status 2.
    """
