"""Hugging Face's Trainer with a line search: one search and one move a batch, accumulated or not.

The one module that imports transformers. Three lines for a user:

    from plasls.hf import LineSearchTrainer

    trainer = LineSearchTrainer(model, args, train_dataset=rows, optimizers=(PLASLS(split(model, 10)), None))
    trainer.train()

Descendants of Trainer take the mix-in: `class Mine(LineSearchMixin, Seq2SeqTrainer): pass`.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from .. import LineSearch, split
from ..components import Group

__all__ = ["LineSearchMixin", "LineSearchTrainer"]

# These schedulers compute the step size from one that they remember. All others of torch multiply the present one.
_SETTING = (
    lr_scheduler.LambdaLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
    lr_scheduler.SequentialLR,
)
_TAKEN = ("linear", "constant", "cosine", "reduce_lr_on_plateau")
_ALLOWED_SCHEDULES = (
    "allowed: none (lr_scheduler_type 'linear' without a warm-up, which is the default, or 'constant'), 'cosine' "
    "without a warm-up, 'reduce_lr_on_plateau', or optimizers=(optimizer, scheduler) with one that multiplies, as "
    "ExponentialLR"
)

# Arguments of a plain Trainer's optimizer that ours does not read -> where to say the same. Others are in `_check`.
_UNREAD = {
    "adam_beta1": "betas=...",
    "adam_beta2": "betas=...",
    "adam_epsilon": "eps=...",
    "optim": "the optimizer's class",
    "optim_args": "the optimizer's own arguments",
    "optim_target_modules": "the optimizer's own arguments",
    "lr_scheduler_kwargs": "a scheduler of your own",
}

# Attributes in which descendants of Trainer (TRL, sentence-transformers) add up in compute_loss what they log.
_COUNTED = ("_metrics", "_total_train_tokens", "accum_loss_components")


class LineSearchMixin:
    r"""A mix-in that stands before a Trainer's class: `class Mine(LineSearchMixin, Seq2SeqTrainer)`.

    A batch is one `optimizer.step` over its micro-batches. It minimises the same function as Trainer,

    .. math:: f(w) = \frac{1}{m} \sum_{j=1}^m \ell_j(w) \quad\text{or}\quad f(w) = \frac{1}{n} \sum_{j=1}^m s_j(w)

    where the first is for models that return the mean loss l_j of micro-batch j. The second is for models that divide
    s_j, the sum of its tokens' losses, by the number n of items in the whole batch (`num_items_in_batch`). If there are
    several micro-batches or processes, the class finds out once which of the two a model does: some models take the
    number and do not use it, and then Trainer's own loss is m times too large.

    What differs from Trainer:

    - `learning_rate` in the logs is the step size. If components have their own, it is their mean, and each one is
      logged beside it as `step_size/<component>`. `search/trials` and so on are of the last step. The argument
      `learning_rate` is not used, and `hyperparameter_search` may not vary it.
    - `weight_decay` is for an optimizer that is made here (`optimizer_cls_and_kwargs`): biases and norms have none, as
      in Trainer. An optimizer that is given has its own.
    - There is no schedule unless one is asked for. Trainer's default, the linear one, does not count as asked for.
      `lr_scheduler_type="cosine"` sets the optimizer's `total_steps`: moves fall to 0, and searches stay as they are.
      "Raises" says what is refused.
    - Trainer does not clip: its default of max_grad_norm=1.0 is not used. The optimizer's clip_norm clips before the
      search. `grad_norm` in the logs is of the gradient that was searched, after clipping.
    - The move is made when the last micro-batch has come, so the callbacks on_pre_optimizer_step and on_optimizer_step
      both come after it.

    Checkpoints, resuming (bit for bit), load_best_model_at_end, evaluation, bf16, fp16 (Trainer's GradScaler scales the
    loss for the backward pass), DistributedDataParallel and FSDP2 are Trainer's own.

    Args:
        optimizers: (one of this library's optimizers, None or a scheduler).
        optimizer_cls_and_kwargs: instead of it (its class, its settings and `components`, as `split` takes them). The
            optimizer is made when training starts, so that it has the adapters that a trainer makes (`peft_config`).
        *args: Trainer's own.
        **kwargs: Trainer's own.

    Raises:
        TypeError: the optimizer has no line search.
        ValueError: a schedule that sets step sizes, an argument of another optimizer (`adam_beta1`, `optim`, ...),
            clipping by Trainer, DeepSpeed or FSDP1 is asked for, or the weights are float16. The error says what is
            allowed.
    """

    def __init__(self, *args: Any, optimizer_cls_and_kwargs: tuple[Any, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if optimizer_cls_and_kwargs is not None:  # not passed on: TRL's DPOTrainer does not take it
            self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
            if self.optimizer is not None:
                raise ValueError("optimizers and optimizer_cls_and_kwargs are both given; allowed: one of them")
        self._held: list[Any] = []  # micro-batches that wait for the last one
        self._divides_by_items: bool | None = None
        self._decay_over = 0  # the steps of this call of `train`, if moves are to fall to 0
        self._check()

    def _check(self: Any) -> None:
        chosen, made = self.optimizer_cls_and_kwargs, self._search()
        given = type(made) if made is not None else chosen[0] if chosen is not None else None
        if not (isinstance(given, type) and issubclass(given, LineSearch)):
            raise TypeError(
                f"{type(self).__name__} was given {given.__name__ if given else 'no optimizer'}; "
                "allowed: optimizers=(AdamSLS(model.parameters()), None) or optimizer_cls_and_kwargs=(AdamSLS, {})"
            )
        args = self.args
        self._refuse_unread(given)
        if self.lr_scheduler is not None:
            if isinstance(self.lr_scheduler, _SETTING):
                kind, more = type(self.lr_scheduler).__name__, ""
                if getattr(self.lr_scheduler, "cycle_momentum", False):
                    more = " and the momentum"
                raise ValueError(f"a {kind} sets step sizes{more}, which the line search finds; {_ALLOWED_SCHEDULES}")
        elif args.lr_scheduler_type not in _TAKEN or args.warmup_steps:
            asked = f"lr_scheduler_type={str(getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type))!r}"
            asked += f" with warmup_steps={args.warmup_steps}" if args.warmup_steps else ""
            raise ValueError(f"{asked} sets step sizes, which the line search finds; {_ALLOWED_SCHEDULES}")
        if args.max_grad_norm not in (0, 1.0):
            raise ValueError(
                f"max_grad_norm={args.max_grad_norm} clips after the search; allowed: 0, or the default 1.0, neither "
                f"of which clips, and the optimizer's clip_norm={args.max_grad_norm}"
            )
        if any(p.dtype == torch.float16 for p in self.model.parameters() if p.requires_grad):
            raise ValueError(
                "the trainable weights are float16, in which Adam's step and a loss's decrease are lost; allowed: "
                "from_pretrained(..., dtype=torch.float32), and bf16=True where speed is needed"
            )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if self.is_deepspeed_enabled or self.is_fsdp_xla_enabled or getattr(plugin, "fsdp_version", 2) != 2:
            raise ValueError(
                "DeepSpeed, FSDP1 and FSDP of XLA are not supported; allowed: fsdp=True with "
                "fsdp_config={'version': 2}, which is FSDP2, or DistributedDataParallel, both by torchrun"
            )

    def _refuse_unread(self: Any, kind: type[LineSearch]) -> None:
        """Refuse what a plain Trainer's optimizer would read, and this one does not."""
        place = "optimizers" if self.optimizer_cls_and_kwargs is None else "optimizer_cls_and_kwargs"
        defaults = {field.name: field.default for field in dataclasses.fields(self.args)}
        for name, instead in _UNREAD.items():
            if (value := getattr(self.args, name, None)) not in (None, {}, defaults.get(name)):
                raise ValueError(f"{name}={value!s} is not read; allowed: its default, and {instead} in {place}")
        if self.args.weight_decay and place == "optimizers":
            raise ValueError(
                f"weight_decay={self.args.weight_decay} is not read, as the optimizer is made already; allowed: "
                "weight_decay=... there, or optimizer_cls_and_kwargs=(AdamSLS, {}) here"
            )
        if self.args.weight_decay and kind.has_components:
            raise ValueError(
                f"weight_decay={self.args.weight_decay} would make components of biases and norms, which have none; "
                "allowed: AdamSLS, or weight_decay in optimizer_cls_and_kwargs, for all parameters"
            )

    def _hp_search_setup(self: Any, trial: Any) -> None:
        before = self.args.learning_rate
        super()._hp_search_setup(trial)  # type: ignore[misc]
        if self.args.learning_rate != before:
            raise ValueError("there is no learning_rate to be searched for; allowed: an hp_space without it")
        self._check()

    # -- optimizer and schedule ---------------------------------------------------------------------------

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """The optimizer that was given, or one of the class that was given, over all trainable parameters."""
        if self.optimizer is None:
            kind, settings = self.optimizer_cls_and_kwargs
            settings = dict(settings)
            model = self.model if model is None else model
            components = split(model, settings.pop("components", 1))
            if self.args.weight_decay:
                components = self._decayed(model, components)
            self.optimizer = kind(components, **settings)
        return self.optimizer

    def _decayed(self: Any, model: Any, components: list[Group]) -> list[Group]:
        """Each component in two groups, as a plain Trainer has them: with its weight decay, and without."""
        decayed = set(self.get_decay_parameter_names(model))
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = []
        for component in components:
            for decay, suffix in ((self.args.weight_decay, ""), (0.0, "_undecayed")):
                params = [each for each in component["params"] if (names[each] in decayed) == (decay > 0)]
                groups.append({"name": component["name"] + suffix, "params": params, "weight_decay": decay})
        return [group for group in groups if group["params"]]

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """No schedule unless one is asked for. Trainer has wrapped the optimizer when it calls this before training."""
        self._held = []
        self._search().guard.grad_scaler = self.accelerator.scaler  # of fp16, else None
        if self.optimizer is not self._search():
            self.optimizer.step = _moved_already
        if self.lr_scheduler is None:
            if self.args.lr_scheduler_type == "cosine":
                self._decay_over = num_training_steps
                self._decay(done=0)
            if self.args.lr_scheduler_type == "reduce_lr_on_plateau":
                return super().create_scheduler(num_training_steps, self._search())  # type: ignore[misc]
            self.lr_scheduler, self._created_lr_scheduler = _NoSchedule(self._search()), True
        return self.lr_scheduler

    def _decay(self: Any, done: int) -> None:
        """Let the moves fall to 0 at the end of this call of `train`, of which `done` steps are done."""
        search = self._search()
        search.decay_over(self._decay_over + max(0, search.turns.progress.steps - done))  # of calls before this one

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        wrapper = self.optimizer if self.optimizer is not self._search() else None
        if wrapper is not None:  # torch.distributed.checkpoint steps at a rate of 0, to make the state that it fills
            wrapper.step = self._search().step
        try:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        finally:
            if wrapper is not None:
                wrapper.step = _moved_already
        if checkpoint is not None and self._decay_over:
            self._decay(TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step)

    def _search(self: Any) -> Any:
        """The optimizer under accelerate's wrapper; None if none has been made yet. `_check` refuses others."""
        optimizer = self.optimizer
        while not isinstance(optimizer, LineSearch) and hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        return optimizer

    def save_model(self: Any, *args: Any, **kwargs: Any) -> None:
        """Save the average of the iterates, if one is kept. Training goes on from the iterates."""
        if self.optimizer is not None:
            self._search().eval()
        super().save_model(*args, **kwargs)  # type: ignore[misc]

    def _load_best_model(self: Any) -> None:
        self._search().eval()  # else evaluating would put the average of the iterates into what is loaded
        super()._load_best_model()  # type: ignore[misc]

    def _get_learning_rate(self: Any) -> float:
        sizes = [float(group["lr"]) for group in self._search().param_groups]
        return math.fsum(sizes) / len(sizes)

    def _clip_grad_norm(self: Any, model: Any) -> None:
        """Do nothing: the optimizer clips, if it is asked to."""

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None and self.accelerator.scaler is not None:  # accelerate would unscale once more
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]

    # -- the step -----------------------------------------------------------------------------------------

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Trainer's own step, or a descendant's, with a search where it computes its loss.

        Returns:
            The loss of the whole batch, detached; 0 for a micro-batch that is held, as Trainer adds them up.

        Raises:
            NotImplementedError: a descendant's step does not come to Trainer's, and so to `compute_loss`.
        """
        found: Tensor | None = None

        def search_instead(model: Any, inputs: Any, *_: Any, num_items_in_batch: Any = None, **__: Any) -> Tensor:
            nonlocal found
            del self.compute_loss  # the class's own is the closure's
            found = self._hold_or_search(model, inputs, num_items_in_batch)
            return found.clone().requires_grad_()  # Trainer calls its backward, which leaves the weights alone

        self.compute_loss = search_instead
        try:
            super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        finally:
            vars(self).pop("compute_loss", None)
        if found is None:
            raise NotImplementedError(
                f"the training_step that {type(self).__name__} inherits computes its loss without compute_loss, so "
                "that none can be searched on; allowed: trainers whose training_step calls that of transformers.Trainer"
            )
        return found

    def _hold_or_search(self: Any, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """Hold the micro-batch; with the batch's last one, search and move."""
        self._held.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        held, self._held = self._held, []
        scale = 1.0
        if num_items_in_batch is not None and (len(held) > 1 or self.accelerator.num_processes > 1):
            if self._divides(model, held[0], num_items_in_batch):
                scale = len(held)  # the sum of their losses is that of the batch, and the step takes the mean
            else:
                num_items_in_batch = None

        def closure_of(batch: Any) -> Callable[[], Tensor]:
            seen = False

            def closure() -> Tensor:
                nonlocal seen
                with nullcontext() if not seen else self._uncounted():
                    seen = True
                    return self._loss(model, batch, num_items_in_batch) * scale

            return closure

        return self._search().step([closure_of(batch) for batch in held]).to(self.args.device)

    @contextmanager
    def _uncounted(self: Any) -> Iterator[None]:
        """Around a further evaluation of a batch's loss: what the trainer counts in compute_loss is put back."""
        before = {name: copy.deepcopy(vars(self)[name]) for name in _COUNTED if name in vars(self)}
        try:
            yield
        finally:
            vars(self).update(before)

    def _loss(self: Any, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        with self.compute_loss_context_manager():
            # Trainer takes the labels out of its inputs, so it gets a copy.
            loss = self.compute_loss(model, copy.copy(inputs), num_items_in_batch=num_items_in_batch)
        return loss.mean() if self.args.n_gpu > 1 else loss

    def _divides(self: Any, model: Any, inputs: Any, num_items_in_batch: Any) -> bool:
        """Whether the model divides the loss by the number of items: is it half as large for twice the number?"""
        if self._divides_by_items is None:
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices), self._uncounted():
                model.eval()  # no dropout, no statistics
                once, twice = (float(self._loss(model, inputs, times * num_items_in_batch)) for times in (1, 2))
                model.train()
            # All ranks decide alike: another forward pass of one rank alone would wait for the others' shards.
            values = torch.tensor([once, twice], dtype=torch.float64)
            once, twice = self._search().guard.ranks.means(values).tolist()
            if not (math.isfinite(once) and once):
                return True  # this tells nothing: ask again at the next batch
            self._divides_by_items = abs(twice / once - 0.5) < 0.25
        return self._divides_by_items

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the last step's search, and the step size of each component, beside Trainer's own values."""
        search = self._search()
        if "learning_rate" in logs and search is not None and search.search is not None:
            logs["search/trials"] = search.search.trials
            logs["search/failures"] = search.counts["failures"]
            logs["search/forwards"] = search.counts["forwards"]
            if len(search.param_groups) > 1:
                logs |= {f"step_size/{group['name']}": float(group["lr"]) for group in search.param_groups}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class LineSearchTrainer(LineSearchMixin, Trainer):
    """Hugging Face's Trainer with a line search; see `LineSearchMixin`."""


class _NoSchedule:
    """What Trainer takes for a schedule if there is none."""

    def __init__(self, optimizer: LineSearch) -> None:
        self.optimizer = optimizer

    def step(self, *args: Any) -> None:
        """Do nothing: the search chooses step sizes."""

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"lr_lambdas": []}  # a plain Trainer's LambdaLR can load this; then step says what is wrong

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


def _moved_already(closure: Any = None) -> None:
    """Takes the place of the wrapper's step, which Trainer calls after `training_step` has moved already."""
