"""Any encoder becomes a classifier of [CLS]; whatever is not a whole pretrained encoder is refused in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertTokenizer

from train.errors import InputError
from train.model import Classifier, check_dropout, check_length, load_classifier, load_tokenizer, set_dropout
from train.packaged import hub_answers

from .shared import real

ROOT = Path(__file__).resolve().parents[1]
BGE = real("model")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *(f"w{number}" for number in range(40))]

BERT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
SPECIAL_IDS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT | {"embedding_size": 8},
    "mpnet": BERT,
    "albert": BERT | {"embedding_size": 8},
    "deberta-v2": BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "modernbert": BERT | SPECIAL_IDS | {"global_attn_every_n_layers": 1},
    "distilbert": {
        "vocab_size": len(VOCABULARY),
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 20,
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each encoder, as save_pretrained makes it, with random weights and one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    (root / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizer(str(root / "vocab.txt"))
    for kind, settings in ENCODERS.items():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(root / kind)
        tokenizer.save_pretrained(root / kind)
    return root


@pytest.fixture
def bert(models, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(models / "bert", tmp_path / "bert"))


def batch(rows: int = 4, tokens: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(SPECIAL), len(VOCABULARY), (rows, tokens), generator=generator)
    ids[:, 0] = 2
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.arange(rows) % 3,
    }


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_parameter_learns(models, kind):
    model = load_classifier(str(models / kind), 3, None, seed=0)
    assert all(module.training for module in model.modules())
    model.loss(batch()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.loss(batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_dropout_is_what_was_asked_for(models, kind):
    for dropout, differs in ((0.0, False), (0.5, True)):
        model = load_classifier(str(models / kind), 3, dropout, seed=0).train()
        losses = [model.loss(batch()).item() for _ in range(2)]
        assert (losses[0] != losses[1]) is differs
        probabilities = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert probabilities <= {dropout}


def test_dropout_acts_in_the_default_attention(models):
    model = load_classifier(str(models / "bert"), 3, 0.0, seed=0).train()
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.loss(batch()).item() == model.loss(batch()).item()
    for layer in model.encoder.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert model.loss(batch()).item() != model.loss(batch()).item()


def test_dropout_that_the_configuration_does_not_reach_is_refused():
    layers = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Dropout(0.1))
    with pytest.raises(InputError, match=r"--dropout=0\.2: 1\.p stays 0\.1"):
        check_dropout(layers, 0.2)


def test_dropout_built_is_checked_when_loading(models, monkeypatch):
    monkeypatch.setattr("train.model.set_dropout", lambda config, dropout: None)
    with pytest.raises(InputError, match=r"--dropout=0\.3: .* stays 0\.1"):
        load_classifier(str(models / "bert"), 2, 0.3, seed=0)


def test_configuration_without_dropout_takes_none_only():
    with pytest.raises(InputError, match=r"--dropout=0\.1: a timm_wrapper has no dropout; allowed: None"):
        set_dropout(AutoConfig.for_model("timm_wrapper"), 0.1)


@pytest.mark.parametrize("kind", ENCODERS)
def test_longest_allowed_rows_have_positions(models, kind):
    """RoBERTa and MPNet number positions from the padding's on; their 20 are 18 tokens."""
    encoder = load_classifier(str(models / kind), 2, None, seed=0).encoder.eval()
    longest = 18 if kind in ("roberta", "mpnet") else 20
    check_length(encoder, longest)
    with pytest.raises(InputError, match=f"--max_length={longest + 1}: .* allowed: 1 to {longest}"):
        check_length(encoder, longest + 1)
    encoder(**{name: values for name, values in batch(2, longest).items() if name != "labels"})


def test_half_precision_checkpoint_is_trained_in_single(bert):
    weights = {name: values.half() for name, values in load_file(bert / "model.safetensors").items()}
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((bert / "config.json").read_text()) | {"dtype": "float16"}
    (bert / "config.json").write_text(json.dumps(config))
    model = load_classifier(str(bert), 2, None, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    loaded = model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(loaded, weights["embeddings.word_embeddings.weight"].float())


def test_logits_are_of_the_first_token_and_no_pooler_is_left(models):
    model = load_classifier(str(models / "bert"), 3, 0.0, seed=0)
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]
    assert (model.head.in_features, model.head.out_features) == (16, 3)
    inputs = batch()
    hidden = model.encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    logits = model(**inputs)
    torch.testing.assert_close(logits, hidden[:, 0] @ model.head.weight.T)
    torch.testing.assert_close(model.loss(inputs), torch.nn.functional.cross_entropy(logits, inputs["labels"]))


def test_head_is_the_seeds_alone_and_the_global_state_stays(models):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load_classifier(str(models / "bert"), 300, None, seed=0).head
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = (load_classifier(str(models / "bert"), 300, None, seed=seed).head for seed in (0, 1))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert first.bias.count_nonzero() == 0


def test_checkpoint_without_a_pooler_is_whole(bert):
    weights = {name: v for name, v in load_file(bert / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    state = torch.get_rng_state()
    load_classifier(str(bert), 2, None, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_loading_says_nothing(bert):
    weights = {name: v for name, v in load_file(bert / "model.safetensors").items() if "pooler" not in name}
    save_file(weights | {"cls.bias": torch.zeros(3)}, bert / "model.safetensors", metadata={"format": "pt"})
    script = f"""
from train.model import load_classifier, load_tokenizer
load_tokenizer({str(bert)!r})
load_classifier({str(bert)!r}, 2, None, seed=0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout + done.stderr == ""


def test_half_a_checkpoint_is_refused(bert):
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of .*encoder\.layer\.1\.attention\.self\.query\.weight") as caught:
        load_classifier(str(bert), 2, None, seed=0)
    one_line(caught)


def test_checkpoint_of_another_size_is_refused(bert):
    config = json.loads((bert / "config.json").read_text()) | {"intermediate_size": 64}
    (bert / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="weights cannot be loaded") as caught:
        load_classifier(str(bert), 2, None, seed=0)
    one_line(caught)


@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_truncated_weights_are_refused(bert, kept):
    file = bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="weights cannot be loaded") as caught:
        load_classifier(str(bert), 2, None, seed=0)
    one_line(caught)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("model.safetensors", None, "no weights; needed: model.safetensors"),
        ("config.json", None, r"no config\.json"),
        ("config.json", "{", "config cannot be loaded"),
        ("config.json", "{}", "config cannot be loaded"),
    ],
)
def test_folder_that_is_no_model_is_refused(bert, file, content, problem):
    (bert / file).unlink()
    if content is not None:
        (bert / file).write_text(content)
    with pytest.raises(InputError, match=problem) as caught:
        load_classifier(str(bert), 2, None, seed=0)
    assert str(bert) in one_line(caught)


def test_folder_without_a_vocabulary_has_no_tokenizer(bert):
    """transformers makes an empty tokenizer of it, to which every word is unknown."""
    for name in ("tokenizer.json", "vocab.txt"):
        (bert / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="no tokenizer there") as caught:
        load_tokenizer(str(bert))
    one_line(caught)


def test_tokenizer_puts_cls_first(models):
    tokenizer = load_tokenizer(str(models / "bert"))
    assert tokenizer("w0 w1", "w2")["input_ids"] == [2, 5, 6, 3, 7, 3]


@pytest.mark.parametrize("settings", [{"padding_side": "left"}, {"cls_token": None}, {"pad_token": None}])
def test_tokenizer_of_no_encoder_is_refused(bert, settings):
    file = bert / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(InputError, match="an encoder's is needed") as caught:
        load_tokenizer(str(bert))
    one_line(caught)


def test_encoder_decoder_is_refused():
    small = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    encoder = AutoModel.from_config(AutoConfig.for_model("t5", **small))
    with pytest.raises(InputError, match="a t5 is no encoder with a last hidden state") as caught:
        Classifier(encoder, 2, seed=0)
    one_line(caught)


def test_hub_id_out_of_reach_is_one_line_with_the_alternatives(monkeypatch, capfd):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()
    for load in (load_tokenizer, lambda model: load_classifier(model, 2, None, seed=0)):
        with pytest.raises(
            InputError, match=r"hub cannot be reached; allowed: a folder, .* in PLASLS_MODEL, a hub id, .*minilm-l6"
        ) as caught:
            load("nobody/nothing-of-this-name")
        one_line(caught)
    hub_answers.cache_clear()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not BGE.is_dir(), reason="no real encoder: PLASLS_MODEL names none")
def test_real_encoder_tells_texts_apart():
    """The half-precision checkpoint on disk, loaded, gives texts of like meaning like [CLS] states."""
    tokenizer, model = load_tokenizer(str(BGE)), load_classifier(str(BGE), 2, None, seed=0).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    texts = ["a wonderful film", "this movie is great", "the stock market fell on Tuesday"]
    with torch.no_grad():
        hidden = model.encoder(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    one, two, three = torch.nn.functional.normalize(hidden, dim=-1)
    assert one @ two > one @ three + 0.1
