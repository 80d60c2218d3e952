"""train/memory.py: a search holds one copy of the weights while it lasts and none between; the rest is the host's."""

from functools import partial

import pytest
import torch
from torch.optim import AdamW

from optim import DEFAULT
from train import bench, memory
from train.memory import Arm, gigabytes, live_bytes, measure

NO_MEASURING = {"search": DEFAULT.but(max_interval=1, loss_scale=1.0)}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(memory, "SIZES", SMALL)


@pytest.mark.parametrize(
    ("arm", "between", "in_step"),
    [
        (Arm("fused", AdamW, {"fused": True}), 2, 2),
        (Arm("foreach", AdamW, {"foreach": True}), 2, 3),
        (Arm("bfloat16", AdamW, {"fused": True}, torch.bfloat16, settings=NO_MEASURING), 2, 2),
        (Arm("averaging", AdamW, {"fused": True}, settings={"averaging": 5.0}), 2, 2),
        (Arm("LoRA", AdamW, {"fused": True}, lora=True), 2, 2),
        (Arm("SGD", torch.optim.SGD, {"fused": True}), 0, 0),
    ],
    ids=lambda value: value.name if isinstance(value, Arm) else "",
)
@pytest.mark.filterwarnings("ignore:.*profil:UserWarning")
def test_a_search_adds_one_copy_of_the_weights_in_its_step_and_nothing_between_steps(arm, between, in_step):
    alone, ours = measure(arm, searched=False), measure(arm, searched=True)
    averages = "averaging" in (arm.settings or {})  # one copy more, all the time
    assert alone.between == pytest.approx(between, abs=0.05)
    assert ours.between == pytest.approx(between + averages, abs=0.05)
    assert alone.in_step == pytest.approx(in_step, abs=0.2)
    sums = 0.6 if arm.dtype == torch.bfloat16 else 0.3  # slopes are computed in float32, of one weight at a time
    assert in_step + averages + 1 < ours.in_step < in_step + averages + 1 + sums


def test_storages_that_are_shared_count_once():
    before = live_bytes()
    held = torch.ones(1000)
    view = held[:500]
    assert live_bytes() - before == view.untyped_storage().nbytes() == 4000
    del held, view
    assert live_bytes() == before


def test_gigabytes_are_weights_gradients_and_what_is_held():
    full = Arm("", AdamW, {}, torch.bfloat16)
    assert gigabytes(full, 3.0, 7.0) == 7 * 2 * (1 + 1 + 3)
    assert gigabytes(Arm("", AdamW, {}, lora=True), 3.0, 7.0) == pytest.approx(7 * 4 + 0.04 * 4 * (1 + 1 + 3))


def test_the_table_has_a_row_for_each_host(monkeypatch, capsys):
    monkeypatch.setattr(memory, "arms", partial(iter, [Arm("mine", AdamW, {"fused": True})]))
    assert bench.main(["memory", "--billions=1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert (row[0], row[1], len(row)) == ("| mine", "float32", 8)
    assert [float(each) for each in row[2:4]] == pytest.approx([2, 2], abs=0.05)


def test_a_size_that_is_none_is_one_line(capsys):
    assert bench.main(["memory", "--billions=many"]) == 2
    assert capsys.readouterr().err == "error: --billions=many: must be a number above 0\n"
