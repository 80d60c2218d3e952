"""optim/components.py: the paper's splits on encoders of several families."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from optim import split

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
CONFIGS = {
    "bert": lambda n: BertConfig(**SMALL, num_hidden_layers=n),
    "roberta": lambda n: RobertaConfig(**SMALL, num_hidden_layers=n),
    "electra": lambda n: ElectraConfig(**SMALL, embedding_size=16, num_hidden_layers=n),
    "mpnet": lambda n: MPNetConfig(**SMALL, num_hidden_layers=n),
    "deberta": lambda n: DebertaV2Config(**SMALL, num_hidden_layers=n, relative_attention=True),
    "distilbert": lambda n: DistilBertConfig(dim=16, n_heads=2, hidden_dim=32, vocab_size=50, n_layers=n),
}


class WithHead(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encoder = AutoModel.from_config(config)
        self.head = torch.nn.Linear(16, 2)


def names(model, components):
    return [group["name"] for group in split(model, components)]


def is_partition(model, groups):
    grouped = [id(p) for group in groups for p in group["params"]]
    return sorted(grouped) == sorted(id(p) for p in model.parameters()) and all(group["params"] for group in groups)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layers", [6, 12])
@pytest.mark.parametrize("components", [1, 2, 4, 7, 10, "qkv"])
def test_every_split_is_a_partition_with_as_many_components(family, layers, components):
    model = WithHead(CONFIGS[family](layers))
    groups = split(model, components)
    assert is_partition(model, groups)
    assert len(groups) == (4 if components == "qkv" else components)


def test_twelve_layers_in_ten_components_are_the_papers():
    expected = ["1", "2-3", "4", "5-6", "7", "8-9", "10", "11-12"]
    assert names(WithHead(CONFIGS["bert"](12)), 10) == [
        "embeddings",
        *(f"layers_{g}" if "-" in g else f"layer_{g}" for g in expected),
        "head",
    ]


def test_parameters_lie_in_the_component_that_their_layer_names():
    model = WithHead(CONFIGS["bert"](12))
    by_id = {id(p): name for name, p in model.named_parameters()}
    groups = {group["name"]: [by_id[id(p)] for p in group["params"]] for group in split(model, 10)}
    assert all(name.startswith("encoder.embeddings") for name in groups["embeddings"])
    assert {name.split(".")[3] for name in groups["layers_2-3"]} == {"1", "2"}
    assert {"head.weight", "head.bias"} <= set(groups["head"])
    assert not any("layer" in name.split(".") for name in groups["head"])


def test_six_layers_in_ten_components_are_half_layers():
    model = WithHead(CONFIGS["bert"](6))
    by_id = {id(p): name for name, p in model.named_parameters()}
    groups = split(model, 10)
    assert [group["name"] for group in groups][:4] == ["embeddings", "layer_1a", "layers_1f-2a", "layer_2f"]
    attention = [by_id[id(p)] for p in groups[1]["params"]]
    assert attention
    assert all(".layer.0.attention." in name for name in attention)


def test_qkv_holds_the_projections_of_all_layers():
    model = WithHead(CONFIGS["bert"](3))
    groups = {group["name"]: group["params"] for group in split(model, "qkv")}
    assert [len(groups[name]) for name in ("query", "key", "value")] == [6, 6, 6]
    assert groups["query"][0] is model.encoder.encoder.layer[0].attention.self.query.weight


@pytest.mark.parametrize("components", [0, -1, 3.5, True, "kqv", None])
def test_a_split_that_does_not_exist_is_refused(components):
    with pytest.raises(ValueError, match="allowed: a whole number"):
        split(WithHead(CONFIGS["bert"](2)), components)


def test_more_components_than_half_layers_are_refused_with_the_largest_allowed():
    model = WithHead(CONFIGS["bert"](2))
    with pytest.raises(ValueError, match="at most 6"):
        split(model, 7)
    assert len(split(model, 6)) == 6


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=50),
        ModernBertConfig(
            **SMALL, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        ),
    ],
)
def test_fused_projections_have_no_qkv_split(config):
    with pytest.raises(ValueError, match="no separate query, key, value"):
        split(WithHead(config), "qkv")


def test_shared_layers_split_into_their_halves():
    model = WithHead(AlbertConfig(**SMALL, embedding_size=16, num_hidden_layers=4))
    assert is_partition(model, split(model, 4))


def test_a_model_without_layers_takes_a_rule():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="or a rule"):
        split(model, 4)
    assert names(model, lambda name: name.split(".")[-1]) == ["weight", "bias"]


def test_frozen_parameters_are_left_out():
    model = WithHead(CONFIGS["bert"](2))
    model.encoder.embeddings.requires_grad_(False)
    assert names(model, 4) == ["layer_1a", "layer_1f", "layers_2a-2f", "head"]
    assert all(p.requires_grad for group in split(model, 4) for p in group["params"])


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameters"):
        split(torch.nn.ReLU(), 1)
