import shutil
import struct

import pandas as pd
import pytest

from analysis import runs
from train.errors import InputError

from .fake_runs import edit
from .real_runs import run_sweep


@pytest.fixture(scope="module")
def tracked(tiny, tmp_path_factory):
    """A real sweep, tracked by W&B offline."""
    out = tmp_path_factory.mktemp("tracked")
    run_sweep(out, tiny, "candidates", {"optimizer": ["adam", "plasls"]}, seeds=2, track=True, split=4)
    return out


def test_offline_runs_give_the_same_tables_as_the_run_folders(tracked):
    ours, theirs = runs.load(tracked, "candidates"), runs.load(f"offline:{tracked}", "candidates")
    assert (theirs.varied, theirs.fixed, theirs.profile) == (ours.varied, ours.fixed, ours.profile)
    pd.testing.assert_frame_equal(theirs.table[list(ours.table)], ours.table)
    pd.testing.assert_frame_equal(theirs.history[list(ours.history)], ours.history)
    pd.testing.assert_frame_equal(theirs.frame[list(ours.frame)], ours.frame)
