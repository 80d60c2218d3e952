"""examples/: each trains on rows, and a run that is cut off and called again ends as one that was not."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.nn.functional import cross_entropy

from optim import AdamSLS
from tests.forked import Forked
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


@pytest.fixture
def own_csv(tiny, tmp_path, monkeypatch):
    """Run examples.own_csv on a file with this text."""

    def call(text, *options):
        file = tmp_path / "mine.csv"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["own_csv", "mine.csv", f"--model={tiny / 'model'}", "--out=mine", *options])
        runpy.run_module("examples.own_csv", run_name="__main__")

    return call


@pytest.mark.filterwarnings("default:::transformers", "ignore:.*pin_memory.*")
def test_rows_of_ones_own_are_learnt_and_the_saved_model_names_their_labels(own_csv, tmp_path, capsys):
    words = {"no": ["bad", "dull", "poor", "weak"], "yes": ["good", "fine", "rich", "warm"]}
    rows = [(one, other, label) for label, each in words.items() for one in each for other in each]
    text = "".join(f'{place},"a {one}, {other} film",{label}\n' for place, (one, other, label) in enumerate(rows))
    own_csv(f"\ufeffplace,text,label\n{text}", "--epochs=60")
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 held-out rows are right; mine has the model"
    predict = transformers.pipeline("text-classification", str(tmp_path / "mine"))
    assert predict.model.config.label2id == {"no": 0, "yes": 1}
    answers = predict(["a bad film", "a warm film"])
    assert [answer["label"] for answer in answers] == ["no", "yes"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "mine.csv: no column text or label; columns there: none, as the file is empty"),
        ("sentence,label\na,x\n", "mine.csv: no column text; columns there: sentence, label"),
        ("text,label\n", "mine.csv: 0 rows, labels: none; allowed: two or more labels"),
        ("text,label\na,x\nb,x\n", "mine.csv: 2 rows, labels: x; allowed: two or more labels"),
        ("text,label\na,x\nb\n", "mine.csv: row 2 has no text or no label; allowed: both in each row"),
        (
            b"text,label\ncaf\xe9,x\n",
            "mine.csv cannot be read ('utf-8' codec can't decode byte 0xe9 .*CSV file in UTF-8",
        ),
    ],
    ids=["empty", "no text", "no rows", "one label", "a short row", "not UTF-8"],
)
def test_a_csv_file_that_cannot_be_learnt_is_refused_in_one_line(own_csv, capsys, text, told):
    with pytest.raises(SystemExit) as ended:
        own_csv(text)
    assert ended.value.code == 2
    assert re.fullmatch(f"error: {told.replace('(', '[(]')}\n", capsys.readouterr().err)


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
        common = [f"--model={tiny / 'model'}", f"--data={tiny / 'data'}", "--batch=8", f"--out={tmp_path / out}"]
        ran = Forked("-m", "examples.sharded", *common, f"--epochs={epochs}", ranks=processes)
        stdout, stderr = ran.communicate(timeout=200)
        assert ran.returncode == 0, stderr
        return [float(loss) for loss in re.findall(r"^epoch \d+: loss ([\d.]+)", stdout, re.MULTILINE)]

    whole = call(2, 3, "whole")
    assert whole[2] < whole[0]
    assert call(2, 1, "cut") == whole[:1]
    assert call(2, 2, "cut") == whole[1:2]
    assert call(1, 3, "cut")[0] == pytest.approx(whole[2], rel=0.3)  # other dropout
