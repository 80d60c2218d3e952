"""A model's parameters as components, each one a param group with a step size of its own (paper Sec. III-C)."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

Group = dict[str, Any]
Rule = Callable[[str], str]

# One segment of a parameter's name, in the spellings of BERT, DistilBERT, MPNet, T5, BART, DeBERTa, LLaMA ...
_PROJECTIONS = {
    "query": {"query", "q", "q_lin", "q_proj", "query_proj", "to_q", "wq"},
    "key": {"key", "k", "k_lin", "k_proj", "key_proj", "to_k", "wk"},
    "value": {"value", "v", "v_lin", "v_proj", "value_proj", "to_v", "wv"},
}
_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|\.)ln", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|relative|position", re.IGNORECASE)


def split(model: torch.nn.Module, components: int | str | Rule) -> list[Group]:
    """Param groups over all trainable parameters of the model, one a component.

    Args:
        model: any module; splits 3, 4, ... and "qkv" need a Transformer.
        components:
            - 1: the whole network;
            - 2: the encoder | the head;
            - L >= 3: the embeddings | L - 2 groups of encoder layers | the head (what follows the layers). Where the
              encoder has fewer layers than groups, half-layers (attention | feed-forward) are the units instead;
            - "qkv": all query | all key | all value projections | the rest;
            - a function of a parameter's name that returns its component's name.

    Returns:
        Dictionaries with "name" and "params", in the order of the network's layers. Layers are counted from 1, as in
        the paper: "layers_2-3"; half-layers are "1a" (attention) and "1f" (feed-forward).

    Raises:
        ValueError: the model does not have these components.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters")
    if callable(components):
        return by_rule(named, components)
    if components == "qkv":
        return _qkv(named)
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ValueError(f"no split {components!r}; allowed: a whole number from 1, 'qkv', or a rule")
    if components == 1:
        return by_rule(named, lambda name: "all")
    return by_rule(named, _layers(model, named, components))


def by_rule(named: Iterable[tuple[str, torch.nn.Parameter]], rule: Rule) -> list[Group]:
    """One param group for each name that the rule gives, in the order of first appearance."""
    groups: dict[str, Group] = {}
    for name, parameter in named:
        component = rule(name)
        groups.setdefault(component, {"name": component, "params": []})["params"].append(parameter)
    return list(groups.values())


def _qkv(named: list[tuple[str, torch.nn.Parameter]]) -> list[Group]:
    def component(name: str) -> str:
        segments = set(name.split("."))
        return next((part for part, spellings in _PROJECTIONS.items() if segments & spellings), "rest")

    groups = {group["name"]: group for group in by_rule(named, component)}
    missing = [part for part in _PROJECTIONS if part not in groups]
    if missing:
        raise ValueError(f"the model has no separate {', '.join(missing)} projections; allowed: a number, or a rule")
    return [groups[part] for part in (*_PROJECTIONS, "rest") if part in groups]


def _layers(model: torch.nn.Module, named: list[tuple[str, torch.nn.Parameter]], components: int) -> Rule:
    """A rule for L >= 2: where each parameter lies among the layers decides."""
    prefix, count = _encoder_layers(model)
    of_layers = [position for position, (name, _) in enumerate(named) if name.startswith(prefix)]
    if not of_layers:
        raise ValueError(f"no trainable parameters in the encoder layers; no split {components}, allowed: 1, or a rule")
    first = of_layers[0]
    place: dict[str, str] = {}
    for position, (name, _) in enumerate(named):
        if not name.startswith(prefix):
            place[name] = "embeddings" if position < first or _EMBEDDING.search(name) else "head"
    if components == 2:
        return lambda name: "head" if place.get(name) == "head" else "encoder"

    groups = components - len(set(place.values()))
    halves = count < groups
    units = list(_half_layers(named, prefix, count)) if halves else [{f"{layer}"} for layer in range(count)]
    labels = [f"{unit // 2 + 1}{'af'[unit % 2]}" if halves else f"{unit + 1}" for unit in range(len(units))]
    if len(units) < groups:
        raise ValueError(
            f"{count} encoder layers cannot be split into {groups} groups, even as half-layers; "
            f"allowed: at most {len(units) + components - groups}"
        )
    # Balanced, as in the paper: 12 layers in 8 groups are 1, 2-3, 4, 5-6, 7, 8-9, 10, 11-12.
    bounds = [group * len(units) // groups for group in range(groups + 1)]
    component_of_unit: dict[str, str] = {}
    for start, stop in itertools.pairwise(bounds):
        label = f"layer_{labels[start]}" if stop == start + 1 else f"layers_{labels[start]}-{labels[stop - 1]}"
        for unit in units[start:stop]:
            component_of_unit |= dict.fromkeys(unit, label)

    def component(name: str) -> str:
        if name in place:
            return place[name]
        inside = name.removeprefix(prefix)
        return component_of_unit.get(inside) or component_of_unit[inside.split(".")[0]]

    return component


def _encoder_layers(model: torch.nn.Module) -> tuple[str, int]:
    """Prefix and number of the encoder layers: the list of modules that holds the most parameters."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise ValueError("the model has no list of encoder layers; allowed: split 1, or a rule")
    name, layers = max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    return f"{name}." if name else "", len(layers)


def _half_layers(named: list[tuple[str, torch.nn.Parameter]], prefix: str, count: int) -> Iterator[set[str]]:
    """Each layer's names (without the prefix) up to the attention's last one, and from there on."""
    for layer in range(count):
        names = [name.removeprefix(prefix) for name, _ in named if name.startswith(f"{prefix}{layer}.")]
        attention = [position for position, name in enumerate(names) if _is_attention(name)]
        if not attention or attention[-1] == len(names) - 1:
            raise ValueError(
                f"fewer encoder layers ({count}) than groups, and they have no attention and feed-forward halves; "
                "allowed: fewer components, or a rule"
            )
        yield set(names[: attention[-1] + 1])
        yield set(names[attention[-1] + 1 :])


def _is_attention(name: str) -> bool:
    """The segment that names the attention is no norm: `post_attention_layernorm` belongs to the feed-forward half."""
    return any(_ATTENTION.search(segment) and not _NORM.search(segment) for segment in name.split("."))
