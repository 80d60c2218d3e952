"""Components: a model's parameters in param groups with a step size each (paper Sec. III-C), and their merging."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.nn import Module

from .extras.families import Naming, by_layer, by_projection, by_rule

Group = dict[str, Any]
_OWN = {"params", "param_names", "name", "lr"}
"""what may differ between components that are merged"""


def split(model: Module, components: int | Literal["qkv"] | Naming) -> list[Group]:
    """Divide all trainable parameters of the model into param groups, one for each component.

    Layers are what lists of modules hold (ModuleList, or Sequential with blocks of one class), the blocks below the
    stages where layers come in stages (Swin, ConvNeXt, ResNet), and the layers of torch's LSTM, GRU and RNN.

    Args:
        model: any module; splits 2, 3, 4, ... need layers, "qkv" a Transformer.
        components:
            - 1: the whole network;
            - 2: the encoder | the head;
            - L >= 3: the embeddings | L - 2 groups of layers | the head (what follows the layers). Where there are
              fewer layers than groups, half-layers (attention | feed-forward) are grouped instead of layers. Where
              nothing is trainable before the layers, or after them, there are more groups of layers instead;
            - "qkv": all query | all key | all value projections | the rest;
            - a function of a parameter's name that returns its component's name.

    Returns:
        Dictionaries with "name" and "params", in the order of the network's layers. Layers are counted from 1, as in
        the paper: "layers_2-3". Half-layers are "1a" (attention) and "1f" (feed-forward). In encoder-decoders and in
        models of two towers each stack has groups of its own ("decoder_layers_2-3"), in proportion to its layers.

    Raises:
        ValueError: the model does not have these components.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters")
    if callable(components):
        return by_rule(named, components)
    if components == "qkv":
        return by_projection(named)
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ValueError(f"no split {components!r}; allowed: a whole number from 1, 'qkv', or a rule")
    if components == 1:
        return by_rule(named, lambda name: "all")
    return by_layer(model, named, components)


# -- merging (Algorithm 1) ------------------------------------------------------------------------------------


def merge_smallest(groups: list[Group], threshold: float) -> tuple[str, str] | None:
    """Merge the two components with the smallest step sizes if the smallest is at most `threshold`.

    The merged component stands where the first of the two stood, and its step size is the mean of the two. The moments
    are kept with the parameters and do not change. Only components with equal settings (weight decay, betas, ...) are
    merged. A component whose step size the user has set to 0 stays out of it.

    Args:
        groups: param groups with "name" and "lr" (the step size); changed in place.
        threshold: lambda of the paper; 0 never merges.

    Returns:
        The two names, in the order of the groups, or None where nothing was merged.
    """
    moving = [j for j, group in enumerate(groups) if group["lr"] > 0]
    smallest = min(moving, key=lambda j: groups[j]["lr"], default=None)
    if smallest is None or not groups[smallest]["lr"] <= threshold:
        return None
    alike = [j for j in moving if j != smallest and _settings(groups[j]) == _settings(groups[smallest])]
    if not alike:
        return None
    second = min(alike, key=lambda j: groups[j]["lr"])
    kept, absorbed = groups[min(smallest, second)], groups.pop(max(smallest, second))
    names = (kept["name"], absorbed["name"])
    for key in {"params", "param_names"} & kept.keys():
        kept[key] = [*kept[key], *absorbed[key]]
    kept["name"] = "+".join(names)
    kept["lr"] = (kept["lr"] + absorbed["lr"]) / 2
    return names


def regrouped(groups: Sequence[Group], counts: Mapping[str, int], names: Sequence[str]) -> list[Group]:
    """Put the same parameters into groups of other names. A name tells of merges: "a+b" has been made of a and b.

    Args:
        groups: the groups as they are now, merged in any way.
        counts: the components before all merges: name -> number of parameters.
        names: names of the groups that are wanted.

    Raises:
        ValueError: the names are not of these components.
    """
    parts: dict[str, Group] = {}
    for group in groups:
        start = 0
        for name in group["name"].split("+"):
            stop = start + counts[name]
            parts[name] = group | {key: group[key][start:stop] for key in ("params", "param_names") if key in group}
            start = stop
    if sorted("+".join(names).split("+")) != sorted(parts):
        ours = ", ".join(group["name"] for group in groups)
        raise ValueError(f"the state is of the components {', '.join(names)}; here are {ours}")
    wanted = []
    for merged in names:
        first, *others = (parts[name] for name in merged.split("+"))
        for key in {"params", "param_names"} & first.keys():
            first[key] = [item for part in (first, *others) for item in part[key]]
        wanted.append(first | {"name": merged})
    return wanted


def _settings(group: Group) -> Group:
    # schedulers keep initial_lr, max_lr, swa_lr ... there
    return {key: value for key, value in group.items() if key not in _OWN and not key.endswith("_lr")}
