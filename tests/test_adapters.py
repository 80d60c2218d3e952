"""Adapters: what trains, where [CLS] is, and that runs resume and older runs keep their ids."""

import json

import pytest
import torch

from tests.test_train import config, read
from train.adapters import KINDS, add_adapter
from train.candidates import find
from train.config import ADDED, Config
from train.errors import InputError
from train.model import load_classifier
from train.run import run

BATCH = {"input_ids": torch.tensor([[2, 5, 7, 3], [2, 5, 11, 3]]), "attention_mask": torch.ones(2, 4, dtype=torch.long)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_and_the_head_train_and_the_encoder_stays(tiny, tmp_path, kind):
    settings = config(tiny, tmp_path, adapter=kind, optimizer="follow", epochs=6, keep_model=True)
    result = run(settings)
    plain = load_classifier(settings.model, 2, None, settings.seed)
    torch.manual_seed(0)
    model = load_classifier(settings.model, 2, None, settings.seed)
    add_adapter(model, kind)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert (
        sum(p.numel() for p in model.parameters() if p.requires_grad) < sum(p.numel() for p in plain.parameters()) / 4
    )
    history = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    losses = [row["train/epoch_loss"] for row in history if "train/epoch_loss" in row]
    assert losses[-1] < losses[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.loss(BATCH | {"labels": torch.tensor([0, 1])}).backward()
    optimizer.step()
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} <= trained


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"prompt"}))
def test_an_adapter_starts_as_the_pretrained_encoder(tiny, kind):
    plain = load_classifier(str(tiny / "model"), 2, None, 0).eval()
    model = load_classifier(str(tiny / "model"), 2, None, 0)
    add_adapter(model, kind)
    torch.testing.assert_close(model.eval()(**BATCH), plain(**BATCH), rtol=1e-4, atol=1e-6)


def test_with_a_learned_prompt_the_head_reads_cls_and_not_the_prompt(tiny):
    model = load_classifier(str(tiny / "model"), 2, None, 0)
    add_adapter(model, "prompt")
    seen = {}

    def note(module, arguments, given):
        seen.update(given)

    model.encoder.base_model.register_forward_pre_hook(note, with_kwargs=True)
    model(**BATCH)
    words = model.encoder.base_model.get_input_embeddings().weight
    assert torch.equal(seen["inputs_embeds"][:, model.start], words[BATCH["input_ids"][:, 0]])


@pytest.mark.parametrize("optimizer", ["follow", "adamw", "adam", "untuned", "nadamw"])
def test_with_lora_plus_one_half_of_each_pair_moves_sixteen_times_as_far(tiny, optimizer):
    """Adam's first step moves each weight by the rate, whatever the size of its gradient. A's gradient begins at 0."""
    settings = Config(adapter="loraplus", optimizer=optimizer, warmup=0.0)
    model = load_classifier(str(tiny / "model"), 2, 0.0, 0)
    add_adapter(model, "loraplus")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    find(optimizer).build(settings, model, 100).step(lambda: model.loss(BATCH | {"labels": torch.tensor([0, 1])}))
    moved = {name: (value.detach() - before[name]).abs().max().item() for name, value in model.named_parameters()}
    halves = [moved[name] for name in moved if "lora_B" in name]
    assert halves
    assert min(halves) == pytest.approx(16 * moved["head.weight"], rel=0.05)
    assert max(halves) == pytest.approx(16 * moved["head.weight"], rel=0.05)


@pytest.mark.parametrize("optimizer", ["plasls", "schedule-free", "prodigy"])
def test_lora_plus_is_refused_where_it_would_be_plain_lora(tiny, optimizer):
    model = load_classifier(str(tiny / "model"), 2, None, 0)
    add_adapter(model, "loraplus")
    with pytest.raises(InputError, match=rf"loraplus.*--optimizer={optimizer}.*allowed: --adapter=lora, or.*follow"):
        find(optimizer).build(Config(adapter="loraplus", optimizer=optimizer), model, 100)


@pytest.mark.parametrize("kind", ["lora", "pissa", "prompt"])
def test_a_run_with_an_adapter_that_was_cut_off_ends_as_one_that_was_not(tiny, tmp_path, kind):
    settings = {"adapter": kind, "optimizer": "follow", "checkpoint_minutes": 0.0}

    def cut(done: int, total: int, loss: float) -> None:
        if done == 8:
            raise KeyError("cut off")

    whole, other = (config(tiny, tmp_path / each, **settings) for each in ("whole", "cut"))
    with pytest.raises(KeyError, match="cut off"):
        run(other, cut)
    assert read(run(other).folder) == read(run(whole).folder)


def test_runs_from_before_there_were_adapters_keep_their_ids():
    assert Config().run_id == "7d7a74a3e010"
    assert Config(adapter="lora").run_id != Config().run_id
    assert all(getattr(Config(), name) == value for name, value in ADDED.items())


def test_rows_with_a_learned_prompt_are_not_packed(tiny, tmp_path):
    packed, padded = (
        run(config(tiny, tmp_path / str(pack), adapter="prompt", pack=pack, optimizer="follow"))
        for pack in (True, False)
    )
    assert read(packed.folder)[:-1] == read(padded.folder)[:-1]
