"""Lightning with accumulation: automatic optimization says what to write, and that is one step over the mean."""

import lightning
import pytest
import torch
import torchmetrics
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from optim import AdamSLS, is_trial

from .small import batches, weights

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own


class Module(lightning.LightningModule):
    def __init__(self, manual):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Linear(8, 3)
        self.automatic_optimization, self.held = not manual, []

    def loss(self, batch):
        return cross_entropy(self.model(batch[0]), batch[1])

    def training_step(self, batch, index):
        if self.automatic_optimization:
            return self.loss(batch)
        self.held.append(batch)
        if len(self.held) == 2 or self.trainer.is_last_batch:
            held, self.held = self.held, []
            optimizer = self.optimizers()
            optimizer._on_before_step()  # Lightning counts the step
            optimizer.optimizer.step([lambda batch=batch: self.loss(batch) for batch in held])
            optimizer._on_after_step()
        return None

    def configure_optimizers(self):
        return AdamSLS(self.model.parameters())


def fit(module, folder, **changes):
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **changes,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(batches(5)), batch_size=None))


def test_accumulation_by_lightning_is_one_error_that_says_what_to_write(tmp_path):
    module = Module(manual=False)
    before = weights(module)
    with pytest.raises(RuntimeError, match=r"allowed: a list of closures.*Lightning by manual optimization") as caught:
        fit(module, tmp_path, accumulate_grad_batches=2)
    assert "\n" not in str(caught.value)
    assert torch.equal(weights(module), before)


def test_a_list_of_closures_by_manual_optimization_is_one_step_over_their_mean(tmp_path):
    module, by_hand = Module(manual=True), Module(manual=True)
    fit(module, tmp_path)
    assert module.trainer.global_step == 3  # else Lightning's averages and checkpoints would take it for untrained
    optimizer = by_hand.configure_optimizers()
    data = list(batches(5))
    for held in (data[:2], data[2:4], data[4:]):
        optimizer.step([lambda batch=batch: by_hand.loss(batch) for batch in held])
    assert torch.equal(weights(module), weights(by_hand))


def test_a_metric_whose_hash_changes_with_its_counts_may_be_in_reach_of_the_closure():
    """As that of most of torchmetrics' does. Lightning's `self.log(..., on_epoch=True)` makes one as well."""
    model, metric = torch.nn.Linear(8, 3), torchmetrics.Accuracy(task="multiclass", num_classes=3)
    optimizer, right = AdamSLS(model.parameters()), []

    def closure(x, y):
        predicted = model(x)
        if not is_trial():
            metric.update(predicted.detach(), y)
            right.append((predicted.argmax(1) == y).double().mean())
        return cross_entropy(predicted, y)

    for _ in range(2):
        for x, y in batches(6):
            optimizer.step(lambda x=x, y=y: closure(x, y))
        assert metric.compute().item() == pytest.approx(sum(right[-6:]).item() / 6, rel=1e-5)
        metric.reset()
    assert optimizer.counts["trials"] > 6
