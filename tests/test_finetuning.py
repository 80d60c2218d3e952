"""Groups that are added while training: by Lightning's BaseFinetuning, which passes a rate that nobody has given."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from optim import PLASLS, AdamSLS

from .small import batches, weights

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

    def training_step(self, batch, index):
        return cross_entropy(self.head(self.body(batch[0]).tanh()), batch[1])

    def configure_optimizers(self):
        return AdamSLS([parameter for parameter in self.parameters() if parameter.requires_grad])


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.body)

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.frozen = weights(module.body)
            self.unfreeze_and_add_param_group(modules=module.body, optimizer=optimizer)


def test_lightning_unfreezes_a_body_which_then_moves_with_the_step_size_of_all(tmp_path):
    module, unfreeze = Module(), Unfreeze()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[unfreeze], enable_model_summary=False, default_root_dir=tmp_path,
        **quiet,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(batches(4)), batch_size=None))
    groups = trainer.optimizers[0].param_groups
    assert [group["name"] for group in groups] == ["all", "group_1"]
    assert groups[0]["lr"] == groups[1]["lr"]
    assert not torch.equal(weights(module.body), unfreeze.frozen)


def test_a_rate_of_the_users_own_is_refused_in_an_added_group_and_a_name_that_is_taken():
    layers = [torch.nn.Linear(8, 3) for _ in range(2)]
    optimizer = PLASLS([{"params": list(layers[0].parameters()), "name": "body"}])
    more = list(layers[1].parameters())
    with pytest.raises(TypeError, match="there is no lr: the line search finds it"):
        optimizer.add_param_group({"params": more, "lr": 0.123})
    with pytest.raises(ValueError, match="component name 'body' is taken; allowed: a name of its own for each"):
        optimizer.add_param_group({"params": more, "name": "body"})
    optimizer.add_param_group({"params": more, "name": "head", "lr": optimizer.param_groups[0]["lr"]})
    assert [group["name"] for group in optimizer.param_groups] == ["body", "head"]


def test_a_group_that_is_added_while_another_is_frozen_takes_the_step_size_of_those_that_move():
    first, second, third = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    for make in (AdamSLS, PLASLS):
        optimizer = make([{"params": [first]}, {"params": [second]}])
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.0, 0.25
        optimizer.add_param_group({"params": [third]})
        assert optimizer.param_groups[2]["lr"] == 0.25
