"""optim/extras/hf.py: each argument of Trainer about the optimizer has its effect, or is refused in one line."""

import dataclasses
import inspect
import re

import pytest
import torch
import transformers as hf
from transformers import trainer_optimizer

from optim import PLASLS, AdamSLS
from optim.extras import hf as module
from optim.hf import LineSearchMixin, LineSearchTrainer

from .trainers import Rows, arguments, classifier

CLASS: tuple[type, dict[str, object]] = (AdamSLS, {})
ELSEWHERE = {
    "learning_rate": "documented as unused; refused in a hyperparameter_search",
    "weight_decay": "two groups",
    "lr_scheduler_type": "cosine is total_steps, others are refused",
    "warmup_steps": "refused",
    "max_grad_norm": "refused unless it is the default",
}
OF_DATA = {"gradient_accumulation_steps", "parallel_mode"}
"""which transformers' code for optimizers reads beside"""


def trainer(folder, chosen=CLASS, **changes):
    return LineSearchTrainer(
        classifier(), arguments(folder, **changes), train_dataset=Rows(), optimizer_cls_and_kwargs=chosen
    )


def test_every_argument_that_transformers_reads_for_its_optimizers_is_listed():
    plain = hf.Trainer
    readers = [trainer_optimizer, plain.create_optimizer, plain.get_optimizer_cls_and_kwargs, plain.create_scheduler]
    fields = {field.name for field in dataclasses.fields(hf.TrainingArguments)}
    read = {name for each in readers for name in re.findall(r"\bargs\.(\w+)", inspect.getsource(each))} & fields
    by_name = {name for name in fields if re.search(r"optim|adam|beta|momentum|decay|learning_rate|^lr_|warmup", name)}
    assert read > {"adam_beta1", "optim_args", "learning_rate", "lr_scheduler_kwargs", "weight_decay"}
    assert (read | by_name) - OF_DATA <= {*module._UNREAD, *ELSEWHERE}


@pytest.mark.parametrize(
    ("name", "value"),
    [("adam_beta1", 0.5), ("adam_beta2", 0.9), ("adam_epsilon", 1e-3), ("optim", "adafactor"), ("optim_args", "a=1"),
     ("optim_target_modules", "all-linear"), ("lr_scheduler_kwargs", {"num_cycles": 2})],
)  # fmt: skip
def test_an_argument_of_another_optimizer_is_refused(tmp_path, name, value):
    with pytest.raises(
        ValueError, match=rf"^{name}=.* is not read; allowed: its default, and .* in optimizer_cls_and_"
    ):
        trainer(tmp_path, **{name: value})


def test_all_that_is_refused_is_tried_here():
    marks = test_an_argument_of_another_optimizer_is_refused.pytestmark
    assert {name for name, _ in marks[0].args[1]} == {*module._UNREAD}


def test_weight_decay_is_in_the_groups_that_a_plain_trainer_has(tmp_path):
    ours, model = trainer(tmp_path, weight_decay=0.1), classifier()
    plain = hf.Trainer(model, arguments(tmp_path, weight_decay=0.1), train_dataset=Rows())

    def decays(each):
        names = {parameter: name for name, parameter in each.model.named_parameters()}
        groups = each.create_optimizer().param_groups
        return {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}

    found = decays(ours)
    assert found == decays(plain)
    assert set(found.values()) == {0.1, 0.0}
    ours.train()
    sizes = {group["lr"] for group in ours.optimizer.param_groups}
    assert len(sizes) == 1  # a line search for both


def test_weight_decay_that_no_group_would_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weight_decay=0\.1 would make components of biases"):
        trainer(tmp_path, (PLASLS, {"components": 4}), weight_decay=0.1)
    model = classifier()
    with pytest.raises(ValueError, match=r"weight_decay=0\.1 is not read, as the optimizer is made already"):
        LineSearchTrainer(
            model,
            arguments(tmp_path, weight_decay=0.1),
            train_dataset=Rows(),
            optimizers=(AdamSLS(model.parameters()), None),
        )


def searched(folder, space, trials=1):
    found = LineSearchTrainer(
        args=arguments(folder, max_steps=2),
        model_init=lambda _=None: classifier(),
        train_dataset=Rows(),
        eval_dataset=Rows(8),
        optimizer_cls_and_kwargs=CLASS,
    )
    seen = []
    found.compute_objective = lambda metrics: metrics["eval_loss"]
    train = found.train

    def watched(*args, **kwargs):
        done = train(*args, **kwargs)
        seen.append({group["weight_decay"] for group in found.optimizer.param_groups})
        return done

    found.train = watched
    found.hyperparameter_search(hp_space=space, n_trials=trials, backend="optuna", direction="minimize")
    return seen


def test_a_hyperparameter_search_varies_only_what_has_an_effect(tmp_path):
    assert searched(tmp_path, lambda trial: {"weight_decay": trial.suggest_float("weight_decay", 0.1, 0.2)})[0] > {0.0}
    with pytest.raises(ValueError, match="there is no learning_rate to be searched for; allowed: an hp_space without"):
        searched(tmp_path, lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3)})
    with pytest.raises(ValueError, match=r"adam_beta1=.* is not read"):
        searched(tmp_path, lambda trial: {"adam_beta1": trial.suggest_float("adam_beta1", 0.5, 0.6)})


class WithoutAClass(LineSearchMixin, hf.Trainer):
    """As TRL's DPOTrainer: it makes its adapters itself, and takes no optimizer_cls_and_kwargs."""

    def __init__(self, model, args, train_dataset, optimizers=(None, None), **ours):
        model.requires_grad_(False)
        model.classifier.adapter = torch.nn.Parameter(torch.zeros(2))
        model.classifier.forward = lambda x: torch.nn.Linear.forward(model.classifier, x) + model.classifier.adapter
        super().__init__(model, args, train_dataset=train_dataset, optimizers=optimizers, **ours)


class Dpo(WithoutAClass):
    """The base class takes only its own arguments."""


def test_the_optimizer_is_made_after_the_adapters_of_a_trainer_that_takes_no_class(tmp_path):
    model = classifier()
    found = Dpo(model, arguments(tmp_path), Rows(), optimizer_cls_and_kwargs=CLASS)
    found.train()
    (group,) = found.optimizer.param_groups
    assert [parameter.shape for parameter in group["params"]] == [(2,)]
    assert model.classifier.adapter.abs().min() > 0


def test_a_cycle_of_the_momentum_is_told_with_that_of_the_step_size(tmp_path):
    model = classifier()
    optimizer = AdamSLS(model.parameters(), betas=(0.9, 0.999))
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=12)
    with pytest.raises(ValueError, match="a OneCycleLR sets step sizes and the momentum"):
        LineSearchTrainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(optimizer, cycle))
