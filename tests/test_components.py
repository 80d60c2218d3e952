"""optim/components.py: the paper's splits on encoders of several families, and Algorithm 1 on hand-made cases."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    ConvNextConfig,
    ConvNextModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
    ViTConfig,
)

from optim import split
from optim.components import merge_smallest

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


def members(model, components):
    """The parameters' names of each component."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [by_id[id(p)] for p in group["params"]] for group in split(model, components)}


def test_frozen_layers_do_not_count_as_layers():
    model = WithHead(CONFIGS["bert"](12))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head") or any(f".layer.{n}." in name for n in range(6, 12))
    assert names(model, 4) == ["layers_7-8", "layers_9-10", "layers_11-12", "head"]


class Bottleneck(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(width // 2, width, 3), torch.nn.Conv2d(width, width, 3)


class Staged(torch.nn.Module):
    """Stages that are attributes of the model, as torchvision's ResNet has them."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 7)
        self.layer1 = torch.nn.Sequential(Bottleneck(4), Bottleneck(4))
        self.layer2 = torch.nn.Sequential(Bottleneck(64), Bottleneck(64))
        self.fc = torch.nn.Linear(64, 2)


def test_numbered_lists_beside_one_another_are_one_stack():
    found = members(Staged(), 4)
    assert list(found) == ["embeddings", "layers_1-2", "layers_3-4", "head"]
    assert {name.split(".")[0] for name in found["layers_1-2"]} == {"layer1"}


@pytest.mark.parametrize(
    ("config", "attention", "feed_forward"),
    [
        (LlamaConfig(**SMALL, num_hidden_layers=2), "input_layernorm", "post_attention_layernorm"),
        (ViTConfig(**SMALL, num_hidden_layers=2, image_size=8, patch_size=4), "layernorm_before", "layernorm_after"),
        (AlbertConfig(**SMALL, embedding_size=16), "attention.LayerNorm", "full_layer_layer_norm"),
    ],
)
def test_a_layers_norms_are_in_the_half_that_they_belong_to(config, attention, feed_forward):
    model = WithHead(config)
    most = 4 if isinstance(config, AlbertConfig) else 6
    found = members(model, most)
    assert sum(f".{attention}.weight" in name for name in found["layer_1a"]) == 1
    assert sum(f".{feed_forward}.weight" in name for name in found["layer_1f"]) == 1


def test_what_stands_between_an_encoder_and_a_decoder_joins_the_encoders_last_layers():
    config = T5Config(vocab_size=50, d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32)
    found = members(T5Model(config), 6)
    assert list(found) == ["embeddings", *(f"{s}_layer_{n}" for s in ("encoder", "decoder") for n in (1, 2)), "head"]
    assert "encoder.final_layer_norm.weight" in found["encoder_layer_2"]
    assert found["head"] == ["decoder.final_layer_norm.weight"]
    assert all(name.startswith("decoder.block.1.") for name in found["decoder_layer_2"])


def test_a_stages_downsampling_joins_the_block_beside_it():
    model = SwinModel(SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2]))
    assert any("layers.0.downsample" in name for name in members(model, 4)["layer_1"])
    model = ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 24]))
    assert any("stages.1.downsampling_layer" in name for name in members(model, 6)["layer_2"])


def test_without_query_key_and_value_apart_the_error_says_what_to_write_instead():
    model = AutoModel.from_config(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=50))
    with pytest.raises(ValueError, match="'qkv' if 'c_attn' in name else 'rest'") as error:
        split(model, "qkv")
    rule = str(error.value).rpartition("such as ")[2]
    assert names(model, eval(rule)) == ["rest", "qkv"]


# -- merging (Algorithm 1) ------------------------------------------------------------------------------------


def groups_of(*sizes, **settings):
    return [
        {"name": name, "lr": size, "params": [torch.zeros(1)], **settings}
        for name, size in zip("abcdef", sizes, strict=False)
    ]


@pytest.mark.parametrize(
    ("sizes", "merged", "left"),
    [
        ((1e-3, 1e-13, 1e-5, 1e-4), ("b", "c"), {"a": 1e-3, "b+c": (1e-13 + 1e-5) / 2, "d": 1e-4}),
        ((1e-5, 1e-3, 1e-13), ("a", "c"), {"a+c": (1e-13 + 1e-5) / 2, "b": 1e-3}),  # it stands where the first stood
        ((1e-13, 1e-14, 1e-15, 1e-3), ("b", "c"), {"a": 1e-13, "b+c": (1e-14 + 1e-15) / 2, "d": 1e-3}),  # one a step
        ((1e-12, 1e-3), ("a", "b"), {"a+b": (1e-12 + 1e-3) / 2}),  # at the threshold
        ((1.01e-12, 1e-3), None, {"a": 1.01e-12, "b": 1e-3}),  # above it
        ((1e-15,), None, {"a": 1e-15}),
        ((0.0, 1e-3), None, {"a": 0.0, "b": 1e-3}),  # a step size of 0 is the user's
        ((0.0, 1e-13, 1e-3), ("b", "c"), {"a": 0.0, "b+c": (1e-13 + 1e-3) / 2}),
    ],
)
def test_the_two_smallest_merge_and_take_the_mean(sizes, merged, left):
    made = groups_of(*sizes)
    parameters = {id(p) for group in made for p in group["params"]}
    assert merge_smallest(made, 1e-12) == merged
    assert {group["name"]: group["lr"] for group in made} == left
    assert {id(p) for group in made for p in group["params"]} == parameters


def test_a_threshold_of_0_never_merges():
    assert merge_smallest(groups_of(1e-300, 1e-3), 0.0) is None


def test_components_with_other_settings_are_not_merged():
    made = groups_of(1e-13, 1e-5, 1e-3, weight_decay=0.0)
    made[1]["weight_decay"] = 0.1
    assert merge_smallest(made, 1e-12) == ("a", "c")
