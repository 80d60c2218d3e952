"""How families of models spell their layers and projections: where a split into components cuts them."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module, ModuleList, RNNBase, Sequential

Group = dict[str, Any]
Named = list[tuple[str, torch.nn.Parameter]]
Naming = Callable[[str], str]

# How BERT, DistilBERT, MPNet, T5, BART, DeBERTa, LLaMA ... name the projections: one segment of a parameter's name.
_PROJECTIONS = {
    "query": {"query", "q", "q_lin", "q_proj", "query_proj", "to_q", "wq"},
    "key": {"key", "k", "k_lin", "k_proj", "key_proj", "to_k", "wk"},
    "value": {"value", "v", "v_lin", "v_proj", "value_proj", "to_v", "wv"},
}
# The same of models that hold all three in one weight: GPT-2, ModernBERT, torch, GPT-NeoX, Phi-3, timm.
_FUSED = {"c_attn", "Wqkv", "in_proj_weight", "in_proj_bias", "query_key_value", "qkv_proj", "qkv"}
_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|\.)ln", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|relative|position", re.IGNORECASE)
# Names of a layer's norms that tell which half they belong to. Other norms belong where they stand.
_OF_ATTENTION = re.compile(r"^(input_layernorm|layernorm_before|layer_norm|\w*att(entio)?n_(layer_?)?norm)$")
_OF_FEED_FORWARD = re.compile(r"^(post_attention\w*|layernorm_after|full_layer\w*|final\w*|ffn\w*|mlp\w*)$")
_NUMBERED = re.compile(r"^(?:layer_?)?(?:norm|ln)_?(\d+)$")


def by_rule(named: Iterable[tuple[str, torch.nn.Parameter]], rule: Naming) -> list[Group]:
    """One param group for each name that the rule gives, in the order of first appearance."""
    groups: dict[str, Group] = {}
    for name, parameter in named:
        component = rule(name)
        groups.setdefault(component, {"name": component, "params": []})["params"].append(parameter)
    return list(groups.values())


def by_projection(named: Named) -> list[Group]:
    """All query | all key | all value projections | the rest."""

    def component(name: str) -> str:
        segments = set(name.split("."))
        return next((part for part, spellings in _PROJECTIONS.items() if segments & spellings), "rest")

    groups = {group["name"]: group for group in by_rule(named, component)}
    missing = [part for part in _PROJECTIONS if part not in groups]
    if missing:
        raise ValueError(f"the model has no separate {', '.join(missing)} projections{_instead_of_qkv(named)}")
    return [groups[part] for part in (*_PROJECTIONS, "rest") if part in groups]


def _instead_of_qkv(named: Named) -> str:
    fused = next(((name, part) for name, _ in named for part in name.split(".") if part in _FUSED), None)
    if fused is None:
        return " that are trained; allowed: a number, or a rule"
    name, part = fused
    return (
        f": they lie in one weight, as in {name}, which has one step size; allowed: a number, or a rule, such as "
        f"lambda name: 'qkv' if '{part.removesuffix('_weight').removesuffix('_bias')}' in name else 'rest'"
    )


@dataclass
class _Layer:
    """One layer: its place in its stack (from 1), the path that its parameters share, and their names."""

    number: int
    prefix: str
    names: list[str]


@dataclass
class _Stack:
    """Layers that follow one another: an encoder's, a decoder's, a tower's.

    Attributes:
        path: path of the list that holds the layers.
        name: what tells this stack from the others, such as "decoder_"; empty if it is the only one.
        layers: those layers that have parameters to be divided.
    """

    path: str
    name: str
    layers: list[_Layer]


@dataclass
class _Unit:
    """A layer or half of a layer: how it is shown, and the names of its parameters."""

    stack: str
    label: str
    names: list[str]


def by_layer(model: Module, named: Named, components: int) -> list[Group]:
    """The groups for L >= 2: the place of a parameter among the layers decides."""
    stacks = _stacks(model, [name for name, _ in named])
    if not stacks:
        raise ValueError(f"no trainable parameters in the encoder layers; no split {components}, allowed: 1, or a rule")
    place = _around(stacks, [name for name, _ in named])
    outside = set(place.values())
    if components == 2 and "head" in outside:
        rest = "encoder" if len(stacks) == 1 else "-".join(stack.name.rstrip("_") for stack in stacks)
        place = {name: "head" if place.get(name) == "head" else rest for name, _ in named}
        order = [rest, "head"]
    else:
        order = ["embeddings"]
        for bundle in _bundles(stacks, components - len(outside), len(outside)):
            order.append(_label(bundle[0], bundle[-1]))
            place |= {name: order[-1] for unit in bundle for name in unit.names}
        order.append("head")
    found = {group["name"]: group for group in by_rule(named, place.__getitem__)}
    return [found[name] for name in order if name in found]


def _label(first: _Unit, last: _Unit) -> str:
    if first is last:
        return f"{first.stack}layer_{first.label}"
    if first.stack == last.stack:
        return f"{first.stack}layers_{first.label}-{last.label}"
    return f"{first.stack}layer_{first.label}-{last.stack}layer_{last.label}"


def _bundles(stacks: Sequence[_Stack], groups: int, outside: int) -> Iterator[list[_Unit]]:
    """The layers, or their halves, in this many groups."""
    count = sum(len(stack.layers) for stack in stacks)
    split_up = _halves if count < groups else _whole
    units = [[unit for layer in stack.layers for unit in split_up(stack, layer, count, outside)] for stack in stacks]
    total = sum(map(len, units))
    if total < groups:
        raise ValueError(
            f"{count} encoder layers cannot be split into {groups} groups, even as half-layers; "
            f"allowed: at most {total + outside}"
        )
    if groups < len(stacks):
        units = [[unit for of_stack in units for unit in of_stack]]
    for of_stack, share in zip(units, _shares([len(of_stack) for of_stack in units], groups), strict=True):
        # Balanced, as in the paper: 12 layers in 8 groups are 1, 2-3, 4, 5-6, 7, 8-9, 10, 11-12.
        bounds = [group * len(of_stack) // share for group in range(share + 1)]
        for start, stop in itertools.pairwise(bounds):
            yield of_stack[start:stop]


def _shares(sizes: Sequence[int], groups: int) -> list[int]:
    """Share the groups among stacks of these sizes, at least one each. A further one goes where a group is largest."""
    shares = [1] * len(sizes)
    for _ in range(groups - len(sizes)):
        largest = max(range(len(sizes)), key=lambda j: sizes[j] / shares[j])
        shares[largest] += 1
    return shares


def _whole(stack: _Stack, layer: _Layer, count: int, outside: int) -> Iterator[_Unit]:
    yield _Unit(stack.name, f"{layer.number}", layer.names)


def _halves(stack: _Stack, layer: _Layer, count: int, outside: int) -> Iterator[_Unit]:
    """Divide a layer after the last parameter of its attention. Norms go to the half that they belong to."""
    inside = [name.removeprefix(layer.prefix) for name in layer.names]
    attention = [position for position, name in enumerate(inside) if _is_attention(name)]
    stop = attention[-1] + 1 if attention else 0
    if attention and (numbered := re.match(r".*\.\d+\.", inside[stop - 1])):  # T5: the sublayer's norm comes last
        stop = max(position for position, name in enumerate(inside) if name.startswith(numbered.group())) + 1
    modules = {next(part for part in inside[position].split(".") if _ATTENTION.search(part)) for position in attention}
    halves: tuple[list[str], list[str]] = ([], [])
    for position, name in enumerate(inside):
        norm = _half_of_norm(name.split(".")[0], len(modules))
        halves[position >= stop if norm is None else norm].append(layer.names[position])
    if not all(halves):
        raise ValueError(
            f"fewer encoder layers ({count}) than groups, and they have no attention and feed-forward halves; "
            f"allowed: at most {count + outside} components, or a rule"
        )
    for half, names in zip("af", halves, strict=True):
        yield _Unit(stack.name, f"{layer.number}{half}", names)


def _is_attention(name: str) -> bool:
    """Whether a segment names the attention without naming a norm, unlike `post_attention_layernorm` (feed-forward)."""
    return any(_ATTENTION.search(segment) and not _NORM.search(segment) for segment in name.split("."))


def _half_of_norm(name: str, attentions: int) -> int | None:
    """The half (0 or 1) that a norm belongs to, or None if its name does not tell."""
    if (numbered := _NUMBERED.match(name)) is not None:
        return int(int(numbered.group(1)) > attentions)
    if not _NORM.search(name):
        return None
    return 1 if _OF_FEED_FORWARD.match(name) else 0 if _OF_ATTENTION.match(name) else None


def _around(stacks: Sequence[_Stack], names: Sequence[str]) -> dict[str, str]:
    """Component of each parameter outside of the layers: embeddings or head. What lies in between joins a layer."""
    owner = {name: (stack, layer) for stack in stacks for layer in stack.layers for name in layer.names}
    inside = [position for position, name in enumerate(names) if name in owner]
    place: dict[str, str] = {}
    for position, name in enumerate(names):
        if name in owner:
            continue
        before, after = position > inside[0], position < inside[-1]
        if "logit" in name:  # a similarity's: in CLIP it stands in front
            place[name] = "head"
        elif not before or (_EMBEDDING.search(name) and not _within(stacks, name)):
            place[name] = "embeddings"
        elif not after:
            place[name] = "head"
        else:
            previous = owner[names[max(p for p in inside if p < position)]]
            following = owner[names[min(p for p in inside if p > position)]]
            shared = [_shared(name, layer.prefix) for _, layer in (previous, following)]
            same = previous[0] is following[0]
            if same and shared[1] >= shared[0]:  # in front of a stage's blocks
                following[1].names.append(name)
            elif same or shared[0] >= shared[1]:  # after a stage's blocks; after the encoder, before the decoder
                previous[1].names.append(name)
            else:
                place[name] = "embeddings"
    return place


def _within(stacks: Sequence[_Stack], name: str) -> bool:
    return any(name.startswith(f"{stack.path}.") for stack in stacks)


def _shared(one: str, other: str) -> int:
    """Number of segments that two names have in common at their start."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


# -- where the layers are -----------------------------------------------------------------------------------


def _stacks(model: Module, names: Sequence[str]) -> list[_Stack]:
    """The stacks of layers in order, without those that have less than a tenth of the largest one's parameters."""
    found = list(_find(model, ""))
    if not found:
        raise ValueError("the model has no list of encoder layers; allowed: split 1, or a rule")
    blocks = [one for one in found if not one[2]]  # lists of single linear layers count where there is nothing else
    merged: list[tuple[str, list[str], int]] = []
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for path, prefixes, _ in blocks or found:
        size = sum(size for name, size in sizes.items() if any(_lies_in(name, prefix) for prefix in prefixes))
        if merged and _unnumbered(merged[-1][0]) == _unnumbered(path):  # layer1, layer2, ...: stages
            merged[-1] = (merged[-1][0], merged[-1][1] + prefixes, merged[-1][2] + size)
        else:
            merged.append((path, prefixes, size))
    least = max(size for *_, size in merged) / 10
    large = [(path, prefixes) for path, prefixes, size in merged if size >= least]
    titles = _titles([path for path, _ in large])
    stacks = []
    for (path, prefixes), title in zip(large, titles, strict=True):
        layers = []
        for number, prefix in enumerate(prefixes, 1):
            own = [name for name in names if _lies_in(name, prefix)]
            if own:
                layers.append(_Layer(number, prefix, own))
        if layers:
            stacks.append(_Stack(path, title, layers))
    return stacks


def _lies_in(name: str, prefix: str) -> bool:
    """Whether a parameter lies below a prefix: a path with a dot at its end, or an LSTM's layer ("lstm.*_l0")."""
    if "*" not in prefix:
        return name.startswith(prefix)
    path, layer = prefix.split("*")
    return name.startswith(path) and re.fullmatch(rf"\w+{layer}(_reverse)?", name.removeprefix(path)) is not None


def _find(module: Module, path: str) -> Iterator[tuple[str, list[str], bool]]:
    """Outermost lists of layers below: path, prefixes of the layers, and whether these are single modules."""
    if isinstance(module, RNNBase):
        yield path, [f"{path}.*_l{layer}".lstrip(".") for layer in range(module.num_layers)], False
    elif _is_list(module):
        yield path, list(_blocks(module, path)), not any(_has_parts(member) for member in module.children())
    else:
        for name, child in module.named_children():
            yield from _find(child, f"{path}.{name}".lstrip("."))


def _is_list(module: Module) -> bool:
    members = list(module.children())
    if isinstance(module, ModuleList):
        return bool(members)
    one_class = len({type(member) for member in members}) == 1
    return isinstance(module, Sequential) and one_class and all(map(_has_parts, members))


def _has_parts(module: Module) -> bool:
    return next(module.children(), None) is not None


def _blocks(layers: Module, path: str) -> Iterator[str]:
    """Prefixes of the layers of a list or, where its members are stages, of the blocks in them."""
    members = list(layers.named_children())
    inner = [_main_list(member, f"{path}.{name}".lstrip(".")) for name, member in members]
    staged = any(inner) and _are_stages([member for _, member in members], [bool(found) for found in inner])
    for (name, _), found in zip(members, inner, strict=True):
        if staged and found:
            yield from found
        else:
            yield f"{path}.{name}.".lstrip(".")


def _main_list(member: Module, path: str) -> list[str]:
    """The blocks of the list that holds most of a module, if there is one of blocks of one class."""
    for name, part in member.named_modules():
        one_class = len({type(block) for block in part.children()}) == 1
        if isinstance(part, (ModuleList, Sequential)) and one_class and all(map(_has_parts, part.children())):
            if 2 * _size(part) > _size(member):
                where = f"{path}.{name}".rstrip(".")
                return [f"{where}.{block}." for block, _ in part.named_children()]
            return []
    return []


def _are_stages(members: Sequence[Module], with_list: Sequence[bool]) -> bool:
    """Layers are alike. Stages differ in width, or are bare lists of blocks, or one module that is a list (ALBERT)."""
    if all(isinstance(member, (ModuleList, Sequential)) for member in members):
        return all(with_list)
    if len(members) == 1:
        (member,) = members
        return any(_size(part) == _size(member) for part in member.children() if isinstance(part, ModuleList))
    shapes = [{(name, p.shape) for name, p in member.named_parameters()} for member in members]
    return any(2 * len(one & other) < min(len(one), len(other)) for one, other in itertools.pairwise(shapes))


def _size(module: Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _unnumbered(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def _titles(paths: Sequence[str]) -> list[str]:
    """What tells each of several stacks from the others ("encoder_", "decoder_"); empty if there is only one."""
    if len(paths) == 1:
        return [""]
    segments = [path.split(".") for path in paths]
    common = min(_shared(paths[0], path) for path in paths[1:])
    for depth in range(common + 1, max(map(len, segments)) + 1):
        titles = ["_".join(path[common:depth]).removesuffix("_model") + "_" for path in segments]
        if len(set(titles)) == len(titles):
            return titles
    return [f"{path}_".lstrip("_") for path in paths]
