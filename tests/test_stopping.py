"""train/stopping.py: a stop that Python swallows is done all the same."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train import stopping
from train.run import run

from .test_train import config


@pytest.fixture
def swallowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM in a destructor, of which Python only says that it was ignored."""
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stopping.listen(signal.SIGTERM, signal.SIGINT)

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(100))

    thing = Dying()
    del thing
    assert [str(each.exc_value) for each in ignored] == ["143"]
    yield
    stopping.listen()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_stop_that_was_swallowed_is_done_at_the_next_look(swallowed: None) -> None:
    with pytest.raises(SystemExit, match="143"):
        stopping.check()
    stopping.listen()
    stopping.check()


def test_a_run_does_not_start_after_a_stop_that_was_swallowed(swallowed: None, tiny: Path, tmp_path: Path) -> None:
    settings = config(tiny, tmp_path)
    with pytest.raises(SystemExit, match="143"):
        run(settings)
    assert not settings.folder.exists()
