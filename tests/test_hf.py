"""optim/hf.py: Hugging Face's Trainer makes one searched move a batch, on the loss of the whole batch."""

import json
import zlib

import pytest
import torch
import transformers as hf
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

import optim
from optim import split
from optim.hf import LineSearchMixin, LineSearchTrainer
from tests.forked import Forked
from tests.small import classic

from .shared import real
from .small import weights
from .trainers import SIZES, WORDS, Rows, arguments, classifier, distributed, language_model

PLASLS, SGDSLS, AdamSLS = classic(optim.PLASLS), classic(optim.SGDSLS), classic(optim.AdamSLS)

GLUE = real("data")


def trained(folder, model, optimizer=None, rows=None, resume=None, **changes):
    optimizer = optimizer or AdamSLS(model.parameters())
    trainer = LineSearchTrainer(
        model, arguments(folder, **changes), train_dataset=rows or Rows(), optimizers=(optimizer, None)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def in_a_plain_loop(model, rows, optimizer=None, epochs=2):
    """Batches of eight in order; returns the losses."""
    optimizer, losses = optimizer or AdamSLS(model.parameters()), []
    for _ in range(epochs):
        for start in range(0, len(rows), 8):
            some = [rows[i] for i in range(start, start + 8)]
            batch = {key: torch.stack([row[key] for row in some]) for key in some[0]}
            losses.append(float(optimizer.step(lambda batch=batch: model(**batch).loss)))
    return losses


def assert_close(model, other):
    """But for the keys' biases, which no loss depends on: Adam moves them by rounding errors."""
    ours, theirs = model.state_dict(), other.state_dict()
    for name in ours:
        if not name.endswith("key.bias"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-3, msg=name)


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def test_a_batch_is_one_move_with_the_bits_of_a_plain_loop(tmp_path):
    by_hand, model = classifier(), classifier()
    losses = in_a_plain_loop(by_hand, Rows())
    trainer = trained(tmp_path, model)
    assert torch.equal(weights(model), weights(by_hand))
    assert logged(trainer, "loss") == losses
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("micro_batch", [4, 2])
def test_accumulated_micro_batches_are_the_whole_batch(tmp_path, texts, micro_batch):
    # BERT returns a micro-batch's mean whatever it is told, LLaMA divides by the batch's number of tokens.
    make, rows = language_model if texts else classifier, Rows(texts=texts)
    by_hand, model = make(), make()
    losses = in_a_plain_loop(by_hand, rows)
    changes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": 8 // micro_batch}
    trainer = trained(tmp_path, model, rows=rows, **changes)
    assert logged(trainer, "loss") == pytest.approx(losses, rel=1e-3)
    assert_close(model, by_hand)
    assert trainer.state.global_step == 12


def of_text(folder, collate=None, **changes):
    """The losses of a language model."""
    model = language_model()
    trainer = LineSearchTrainer(
        model, arguments(folder, num_train_epochs=1, **changes), train_dataset=Rows(texts=True), data_collator=collate,
        optimizers=(AdamSLS(model.parameters()), None),
    )  # fmt: skip
    trainer.train()
    return logged(trainer, "loss")


def test_a_language_model_takes_the_same_steps_packed_and_with_its_activations_computed_twice(tmp_path):
    losses = of_text(tmp_path)
    assert losses[-1] < losses[0]
    assert of_text(tmp_path, activation_checkpointing=True) == pytest.approx(losses, rel=1e-5)
    assert of_text(tmp_path, hf.DataCollatorWithFlattening()) == pytest.approx(losses, rel=1e-4)


def test_a_batch_that_is_not_full_at_the_epochs_end_is_a_batch(tmp_path):
    trainer = trained(tmp_path, classifier(), rows=Rows(40), gradient_accumulation_steps=2, num_train_epochs=1)
    assert trainer.state.global_step == 3
    assert trainer.optimizer.optimizer.counts["searches"] == 3


def test_the_learning_rate_in_the_logs_is_the_step_size(tmp_path):
    model = classifier()
    optimizer = PLASLS(split(model, 4))
    trainer = trained(tmp_path, model, optimizer, learning_rate=3.0)
    sizes = [group["lr"] for group in optimizer.param_groups]
    assert logged(trainer, "learning_rate")[-1] == pytest.approx(sum(sizes) / 4)
    assert [logged(trainer, f"step_size/{group['name']}")[-1] for group in optimizer.param_groups] == sizes
    assert logged(trainer, "search/trials")[-1] == optimizer.search.trials


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_no_schedule_moves_the_step_size(tmp_path, schedule):
    model = classifier()
    in_a_plain_loop(by_hand := classifier(), Rows())
    trained(tmp_path, model, lr_scheduler_type=schedule)
    assert torch.equal(weights(model), weights(by_hand))


def test_a_cosine_schedule_is_the_decay_of_moves_over_the_steps_that_trainer_knows(tmp_path):
    by_hand, model = classifier(), classifier()
    in_a_plain_loop(by_hand, Rows(), AdamSLS(by_hand.parameters(), total_steps=12))
    trainer = trained(tmp_path, model, AdamSLS(model.parameters()), lr_scheduler_type="cosine")
    assert trainer.state.global_step == 12
    assert torch.equal(weights(model), weights(by_hand))


def test_trainer_evaluates_the_average_of_the_iterates_and_trains_on_them(tmp_path):
    model = classifier()
    optimizer = AdamSLS(model.parameters(), averaging=2.0)
    trainer = trained(tmp_path, model, optimizer)
    iterates = weights(model)
    trainer.train_dataset = trainer.eval_dataset = Rows()
    trainer.evaluate()
    assert not torch.equal(weights(model), iterates)
    optimizer.train()
    assert torch.equal(weights(model), iterates)


def test_what_is_saved_is_the_average_and_training_goes_on_from_the_iterates(tmp_path):
    model, other = classifier(), classifier()
    args = {"save_strategy": "steps", "save_steps": 6}
    optimizer = AdamSLS(model.parameters(), averaging=2.0)
    trained(tmp_path / "saved", model, optimizer, **args)
    trained(tmp_path / "plain", other, AdamSLS(other.parameters(), averaging=2.0))
    optimizer.train()
    assert torch.equal(weights(model), weights(other))
    optimizer.eval()
    saved = hf.BertForSequenceClassification.from_pretrained(tmp_path / "saved" / "checkpoint-12")
    assert torch.equal(weights(model), weights(saved))
    again = classifier()
    resumed = AdamSLS(again.parameters(), averaging=2.0)
    trained(tmp_path / "resumed", again, resumed, resume=str(tmp_path / "saved" / "checkpoint-6"), **args)
    resumed.train()
    assert torch.equal(weights(again), weights(other))


def test_the_best_model_stays_the_best_one_if_the_run_ends_after_a_step_without_an_evaluation(tmp_path):
    class Stop(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 7

    model = classifier()
    steps = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    args = arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss", **steps)
    optimizers = (AdamSLS(model.parameters(), averaging=2.0), None)
    rows = {"train_dataset": Rows(), "eval_dataset": Rows()}
    trainer = LineSearchTrainer(model, args, optimizers=optimizers, callbacks=[Stop()], **rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_a_trainer_may_evaluate_first_train_twice_and_then_resume_and_moves_fall_to_0_each_time(tmp_path):
    made = {"train_dataset": Rows(), "eval_dataset": Rows(), "optimizer_cls_and_kwargs": (optim.AdamSLS, {})}
    args = arguments(tmp_path, lr_scheduler_type="cosine", save_strategy="steps", save_steps=4)
    trainer = LineSearchTrainer(classifier(), args, **made)
    assert trainer.evaluate()["eval_loss"] > 0
    ends = []
    for resume in (None, None, True):
        before = weights(trainer.model)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "checkpoint-8"))
        assert not torch.equal(weights(trainer.model), before) or resume
        ends.append(weights(trainer.model))
        assert trainer._search().turns.progress.steps == trainer._search().turns.total_steps
    assert trainer._search().turns.total_steps == 24
    assert torch.equal(ends[2], ends[1])
    fresh = LineSearchTrainer(classifier(), args, **made)
    fresh.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert torch.equal(weights(fresh.model), ends[1])


def test_all_ranks_decide_alike_whether_a_model_divides_by_the_number_of_items(tmp_path):
    """Else a rank whose first micro-batch has no label would evaluate once more, and wait for the others."""
    model = language_model()
    optimizers = (AdamSLS(model.parameters()), None)
    trainer = LineSearchTrainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=optimizers)
    inputs = {key: value[None] for key, value in Rows(texts=True)[1].items()}
    means = trainer._search().guard.ranks.means
    trainer._search().guard.ranks.means = lambda values: values * torch.nan  # another rank has no label
    assert trainer._divides(model, inputs, 8)
    assert trainer._divides_by_items is None
    trainer._search().guard.ranks.means = means
    assert trainer._divides(model, inputs, 8)
    assert trainer._divides_by_items


@pytest.mark.parametrize(
    "changes",
    [{"lr_scheduler_type": "polynomial"}, {"warmup_steps": 3}, {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}],
)
def test_a_schedule_that_sets_step_sizes_is_refused(tmp_path, changes):
    with pytest.raises(ValueError, match=r"sets step sizes.*allowed: none.*or optimizers="):
        trained(tmp_path, classifier(), **changes)


def test_a_scheduler_that_sets_is_refused_and_one_that_multiplies_is_taken(tmp_path):
    model = classifier()
    optimizer = AdamSLS(model.parameters(), growth_steps=torch.inf)

    def trainer(scheduler):
        return LineSearchTrainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(optimizer, scheduler))

    with pytest.raises(ValueError, match="a LambdaLR sets step sizes"):
        trainer(LambdaLR(optimizer, lambda step: 1.0))
    found = trainer(ExponentialLR(optimizer, 0.5))
    found.train()
    sizes = logged(found, "learning_rate")
    assert sizes[-1] <= sizes[0] * 0.5**11


def test_without_an_optimizer_of_ours_the_error_shows_one(tmp_path):
    model = classifier()
    for given in (None, torch.optim.Adam(model.parameters())):
        with pytest.raises(TypeError, match=r"allowed: optimizers=\(AdamSLS\(model.parameters\(\)\), None\)"):
            LineSearchTrainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(given, None))


def test_other_ways_of_sharding_are_refused_with_what_to_use(tmp_path):
    model = classifier()
    trainer = LineSearchTrainer(
        model, arguments(tmp_path), train_dataset=Rows(), optimizers=(AdamSLS(model.parameters()), None)
    )
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=r"DeepSpeed, FSDP1 and FSDP of XLA are not supported; allowed: fsdp=True"):
        trainer._check()


def test_nothing_is_clipped_but_by_the_optimizer_before_the_search(tmp_path):
    norms = logged(trained(tmp_path, classifier()), "grad_norm")
    assert max(norms) > 0.1
    model = classifier()
    clipped = logged(trained(tmp_path, model, AdamSLS(model.parameters(), clip_norm=0.1)), "grad_norm")
    assert clipped == pytest.approx([0.1] * 12, rel=1e-3)
    with pytest.raises(ValueError, match=r"clip_norm=0\.5"):
        trained(tmp_path, classifier(), max_grad_norm=0.5)


class Scaled(LineSearchTrainer):
    """With the GradScaler that accelerate makes for fp16 on a GPU."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=4)
        self.accelerator.native_amp = True


def test_fp16_learns_with_the_loss_scaled_by_trainers_own_scaler_and_resumes_to_the_same_bits(tmp_path):
    def run(resume=None):
        model = classifier()
        args = arguments(tmp_path, fp16=True, max_grad_norm=0, save_strategy="steps", save_steps=4)
        optimizers = (optim.AdamSLS(model.parameters()), None)
        trainer = Scaled(model, args, train_dataset=Rows(), optimizers=optimizers)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, weights(model)

    trainer, whole = run()
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.8 * losses[0]
    assert trainer._search().guard.grad_scaler is trainer.accelerator.scaler
    assert trainer.accelerator.scaler.get_scale() != 65536.0  # it has followed the gradients
    plain = logged(trained(tmp_path / "float32", classifier(), max_grad_norm=0), "grad_norm")
    assert logged(trainer, "grad_norm")[0] == pytest.approx(plain[0], rel=0.01)  # unscaled again
    again, resumed = run(str(tmp_path / "checkpoint-4"))
    assert logged(again, "loss") == losses
    assert torch.equal(whole, resumed)


def test_bf16_learns_and_weights_in_float16_are_refused(tmp_path):
    losses = logged(trained(tmp_path, classifier(), bf16=True), "loss")
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(
        ValueError, match=r"weights are float16.*allowed: float32 weights"
    ):  # as checkpoints may be saved
        trained(tmp_path, classifier().half())


def test_a_run_resumed_in_the_middle_of_an_epoch_has_the_same_bits(tmp_path):
    def run(**more):
        model = classifier(dropout=0.2)
        optimizer = PLASLS(split(model, 4), first_steps=2, joint=2)
        trainer = trained(
            tmp_path, model, optimizer, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=12,
            train_sampling_strategy="random", save_strategy="steps", save_steps=4, **more,
        )  # fmt: skip
        return weights(model), logged(trainer, "loss"), dict(optimizer.counts)

    whole, losses, counts = run()
    resumed, same_losses, same_counts = run(resume=str(tmp_path / "checkpoint-4"))
    assert torch.equal(whole, resumed)
    assert (losses, counts) == (same_losses, same_counts)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    model = classifier()
    trainer = LineSearchTrainer(
        model,
        arguments(
            tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
        ),
        train_dataset=Rows(),
        eval_dataset=Rows(16),
        optimizers=(AdamSLS(model.parameters()), None),
    )  # fmt: skip
    trainer.train()
    losses = logged(trainer, "eval_loss")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))


class Seq2Seq(LineSearchMixin, hf.Seq2SeqTrainer):
    pass


class Pairs(Rows):
    """Rows of mrpc, a word being its checksum."""

    def __init__(self, part, count):
        lines = (GLUE / f"mrpc/{part}.jsonl").read_text().splitlines()
        self.rows = [self.row(**json.loads(line)) for line in lines[:count]]

    def row(self, sentence1, sentence2, label, **_):
        words = [2, *(7 + zlib.crc32(word.encode()) % 43 for word in f"{sentence1} {sentence2}".lower().split())]
        return {"input_ids": torch.tensor((words + [0] * 64)[:64]), "labels": torch.tensor(label)}


@pytest.mark.skipif(not GLUE.is_dir(), reason="no GLUE: PLASLS_DATA names none")
def test_real_rows_with_a_smaller_last_batch_resume_in_an_epoch_and_end_at_the_best_model(tmp_path):
    """44 rows in micro-batches of 4, three a step: four steps an epoch, the last one over two of them."""

    def run(resume=None):
        torch.manual_seed(0)
        config = hf.BertConfig(**WORDS, **SIZES, hidden_dropout_prob=0.2)
        model = hf.BertForSequenceClassification(config)
        args = arguments(
            tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_train_epochs=3,
            train_sampling_strategy="random", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
        )  # fmt: skip
        trainer = LineSearchTrainer(
            model, args, train_dataset=Pairs("train", 44), eval_dataset=Pairs("validation", 32),
            optimizers=(optim.PLASLS(split(model, 4), first_steps=2), None),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer, weights(model)

    trainer, whole = run()
    search = trainer.optimizer.optimizer
    assert trainer.state.global_step == search.turns.progress.steps == 12
    evaluated = logged(trainer, "eval_loss")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(evaluated))
    again, resumed = run(resume=str(tmp_path / "checkpoint-6"))  # in the middle of the second epoch
    assert logged(again, "loss") == logged(trainer, "loss")
    assert again.optimizer.optimizer.counts == search.counts
    assert torch.equal(whole, resumed)


def test_the_mix_in_searches_for_other_trainers(tmp_path):
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, dropout_rate=0
    )
    model = hf.T5ForConditionalGeneration(config)
    args = arguments(
        tmp_path, hf.Seq2SeqTrainingArguments, predict_with_generate=True,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer = Seq2Seq(
        model, args, train_dataset=Rows(texts=True), eval_dataset=Rows(8, texts=True),
        optimizers=(AdamSLS(model.parameters()), None),
    )  # fmt: skip
    trainer.train()
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.9 * losses[0]
    assert trainer.evaluate(max_length=4)["eval_loss"] > 0


class Counting(LineSearchMixin, hf.Trainer):
    """Counts in compute_loss, as TRL's trainers do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._total_train_tokens, self._metrics = 0, {"train": []}

    def compute_loss(self, model, inputs, **kwargs):
        self._total_train_tokens += inputs["input_ids"].numel()
        self._metrics["train"].append(self._total_train_tokens)
        return super().compute_loss(model, inputs, **kwargs)


def test_what_a_descendant_counts_in_compute_loss_is_counted_once_a_row(tmp_path):
    model = classifier()
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer = Counting(model, args, train_dataset=Rows(), optimizers=(AdamSLS(model.parameters()), None))
    trainer.train()
    assert trainer.optimizer.optimizer.counts["trials"] > 12
    assert trainer._total_train_tokens == 2 * 48 * 8
    assert trainer._metrics["train"] == [32 * k for k in range(1, 25)]


def test_labels_that_the_trainer_takes_out_of_the_batch_are_there_in_every_trial(tmp_path):
    trainer = trained(tmp_path, classifier(), label_smoothing_factor=0.1, num_train_epochs=1)
    assert trainer.optimizer.optimizer.counts["trials"] >= 6
    assert logged(trainer, "loss")[-1] < 1.0


def test_a_class_and_its_settings_make_the_optimizer(tmp_path):
    chosen = (optim.PLASLS, {"components": 4, "joint": "never"})
    trainer = LineSearchTrainer(
        args=arguments(tmp_path), model_init=lambda: classifier(), train_dataset=Rows(), optimizer_cls_and_kwargs=chosen
    )
    trainer.train()
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["embeddings", "layer_1", "layer_2", "head"]
    assert chosen[1] == {"components": 4, "joint": "never"}


def test_a_plain_trainer_stops_at_its_first_step(tmp_path):
    model = classifier()
    before = weights(model)
    optimizers = (SGDSLS(model.parameters()), None)
    trainer = hf.Trainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=optimizers)
    with pytest.raises(RuntimeError, match=r"no closure.*LineSearchTrainer from plasls\.hf, or LineSearchMixin before"):
        trainer.train()
    assert torch.equal(weights(model), before)


def test_a_plain_trainer_stops_at_its_first_step_of_a_resumed_run(tmp_path):
    trained(tmp_path, classifier(), save_strategy="steps", save_steps=4)
    saved, model = tmp_path / "checkpoint-4", classifier()
    optimizers = (AdamSLS(model.parameters()), None)
    trainer = hf.Trainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=optimizers)
    with pytest.raises(RuntimeError, match=r"no closure.*LineSearchTrainer from plasls\.hf, or LineSearchMixin before"):
        trainer.train(resume_from_checkpoint=str(saved))
    there = hf.BertForSequenceClassification.from_pretrained(saved)
    assert torch.equal(weights(model), weights(there))


class Twice(hf.Trainer):
    """As one writes it first: it searches in training_step, and Trainer steps once more."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        return self.optimizer.optimizer.step(lambda: self.compute_loss(model, self._prepare_inputs(inputs)))


def test_a_trainer_that_moves_twice_a_batch_stops_at_its_first_one(tmp_path):
    model = classifier()
    optimizers = (AdamSLS(model.parameters()), None)
    for clips in ({}, {"max_grad_norm": 0}):
        trainer = Twice(model, arguments(tmp_path, **clips), train_dataset=Rows(), optimizers=optimizers)
        with pytest.raises(RuntimeError, match=r"has no new gradients.*take LineSearchTrainer from plasls\.hf"):
            trainer.train()


class OfItsOwnData(hf.Trainer):
    """As trainers do that learn from generated text: a step replaces its inputs, and counts itself."""

    count = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        swapped = {"input_ids": inputs["input_ids"], "labels": 1 - inputs["labels"]}
        loss = super().training_step(model, swapped, num_items_in_batch)
        self.count += 1
        return loss


def test_what_a_descendants_training_step_does_is_done(tmp_path):
    class Mine(LineSearchMixin, OfItsOwnData):
        pass

    class Swapped(Rows):
        def __getitem__(self, index):
            return (row := super().__getitem__(index)) | {"labels": 1 - row["labels"]}

    model, expected = classifier(), classifier()
    optimizers = (AdamSLS(model.parameters()), None)
    accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = Mine(model, arguments(tmp_path, **accumulated), train_dataset=Rows(), optimizers=optimizers)
    trainer.train()
    plain = trained(tmp_path, expected, rows=Swapped(), **accumulated)
    assert torch.equal(weights(model), weights(expected))
    assert logged(trainer, "loss") == logged(plain, "loss")
    assert trainer.count == 24  # micro-batches


class Alone(hf.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = model(**inputs).loss
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_descendant_that_never_asks_for_its_loss_is_one_error_and_moves_nothing(tmp_path):
    class Mine(LineSearchMixin, Alone):
        pass

    model = classifier()
    before = weights(model).clone()
    optimizers = (AdamSLS(model.parameters()), None)
    trainer = Mine(model, arguments(tmp_path), train_dataset=Rows(), optimizers=optimizers)
    with pytest.raises(NotImplementedError, match="Mine inherits computes its loss without compute_loss"):
        trainer.train()
    assert torch.equal(weights(model), before)


def test_two_processes_take_the_steps_of_one_also_with_weights_sharded_by_fsdp2(tmp_path):
    ran = Forked("-m", distributed.__module__, tmp_path, ranks=2)
    _, stderr = ran.communicate(timeout=200)
    assert ran.returncode == 0, stderr[-3000:]
    *found, (whole, resumed) = torch.load(tmp_path / "found.pt")
    assert resumed == whole  # a run sharded by FSDP2 that goes on from its checkpoint, moments and all
    for texts, (state, losses) in zip((False, True, True), found, strict=True):
        alone, together = (language_model() if texts else classifier() for _ in range(2))
        trainer = trained(tmp_path / "alone", alone, rows=Rows(texts=texts), num_train_epochs=1)
        together.load_state_dict(state)
        assert losses == pytest.approx(logged(trainer, "loss"), rel=1e-2)
        assert_close(together, alone)
