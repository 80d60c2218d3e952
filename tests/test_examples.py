"""examples/: each trains on rows, and a run that is cut off and called again ends as one that was not."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.nn.functional import cross_entropy

from optim import AdamSLS
from tests.small import batches, weights

ROOT = Path(__file__).parent.parent
EXAMPLES = [
    ["plain", "--split=4"],
    ["plain", "--split=4", "--accumulate=2", "--checkpointing"],
    ["with_accelerate", "--cpu", "--accumulate=2"],
    ["with_lightning", "--accelerator=cpu"],
    ["with_lightning", "--accelerator=cpu", "--manual"],
    ["with_trainer", "--split=4", "--accumulate=2"],
    ["lora", "--rank=2"],
]


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capsys):
    """Run an example in this process; its lines "epoch n: loss ..."."""

    def call(name, *options, epochs, out):
        common = [f"--model={tiny / 'model'}", f"--data={tiny / 'data'}", "--batch=8", f"--out={tmp_path / out}"]
        monkeypatch.setattr(sys, "argv", [name, *common, f"--epochs={epochs}", *options])
        capsys.readouterr()
        runpy.run_module(f"examples.{name}", run_name="__main__")
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return re.findall(r"^(epoch \d+: loss .*)$", capsys.readouterr().out, re.MULTILINE)

    return call


@pytest.mark.filterwarnings("default:::lightning", "default:::transformers")
@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_an_example_learns_and_goes_on_where_it_was_cut_off(run, example):
    whole = run(*example, epochs=6, out="whole")
    assert [line.split(":")[0] for line in whole] == [f"epoch {n}" for n in range(1, 7)]
    first, *_, last = (float(re.search(r"loss ([\d.]+)", line).group(1)) for line in whole)
    assert last < first
    begun = run(*example, epochs=1, out="cut")
    resumed = run(*example, epochs=6, out="cut")
    assert begun == whole[:1]
    assert resumed[-5:] == whole[1:]


@pytest.mark.filterwarnings("default:::lightning", "ignore:.*LeafSpec")
def test_lightnings_averaging_of_weights_ends_with_the_statistics_of_the_averages(tmp_path):
    """StochasticWeightAveraging sets step sizes, and has an epoch of its own for batch norm, in which nothing moves."""
    module = Averaged()
    callback = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=0.5, annealing_epochs=1)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="StochasticWeightAveraging"):
        trainer.fit(module)
    assert len(module.losses) == 5 * 6
    assert module.losses[-7] < 0.8 * module.losses[0]
    assert torch.allclose(weights(module.model), torch.stack(module.ends[:3]).mean(0), atol=1e-6)  # at epochs' starts
    assert int(module.model[0].num_batches_tracked) == 6


class Averaged(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
        self.losses, self.ends = [], []

    def training_step(self, batch, index):
        return cross_entropy(self.model(batch[0]), batch[1])

    def on_train_batch_end(self, *_):
        self.losses.append(self.optimizers().search.base)

    def on_train_epoch_end(self):
        self.ends.append(weights(self.model))

    def configure_optimizers(self):
        return AdamSLS(self.model.parameters())

    def train_dataloader(self):
        return torch.utils.data.DataLoader(list(batches(6)), batch_size=None)


def test_the_plain_loop_runs_on_two_processes(tiny, tmp_path):
    common = [f"--model={tiny / 'model'}", f"--data={tiny / 'data'}", "--batch=16", "--epochs=2", "--split=4"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "examples.plain", *common, f"--out={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^epoch (\d+): loss", done.stdout, re.MULTILINE) == ["1", "2"]


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.stem)
def test_examples_are_short(file):
    assert len(file.read_text().splitlines()) <= (149 if file.stem == "outside" else 60)


@pytest.mark.filterwarnings("default:::transformers")
def test_outside_of_glue_each_optimizer_trains_and_has_a_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "examples.outside", raising=False)  # train.scratch imports it, too
    monkeypatch.setattr(sys, "argv", ["outside", "gpt", "--seeds=0", "--steps=2", "--arms=AdamSLS,PLASLS,1e-3"])
    runpy.run_module("examples.outside", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["gpt:", "AdamSLS", "PLASLS", "1e-3"]
    assert all(0 < float(line.split()[1]) < 6 for line in lines[1:])


def test_sharded_weights_train_and_go_on_from_a_sharded_checkpoint_on_other_processes(tiny, tmp_path):
    def call(processes, epochs, out):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        common = [f"--model={tiny / 'model'}", f"--data={tiny / 'data'}", "--batch=8", f"--out={tmp_path / out}"]
        command = [*launcher, "-m", "examples.sharded", *common, f"--epochs={epochs}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
        assert ran.returncode == 0, ran.stderr
        return [float(loss) for loss in re.findall(r"^epoch \d+: loss ([\d.]+)", ran.stdout, re.MULTILINE)]

    whole = call(2, 3, "whole")
    assert whole[2] < whole[0]
    assert call(2, 1, "cut") == whole[:1]
    assert call(2, 2, "cut") == whole[1:2]
    assert call(1, 3, "cut")[0] == pytest.approx(whole[2], rel=0.3)  # other dropout
