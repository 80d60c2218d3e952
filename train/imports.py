"""Importing libraries with the garbage collector off. This module imports none."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is imported in this block is looked through by no garbage collection, neither now nor later.

    torch and transformers make half a million objects, which last as long as the process does. Looking through them
    takes an eighth of the time that the import takes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
