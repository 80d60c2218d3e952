"""Merges components with vanishing step sizes (the paper's Algorithm 1, on param groups), and undoes it."""

from collections.abc import Mapping, Sequence
from typing import Any

Group = dict[str, Any]
_OWN = {"params", "param_names", "name", "lr"}


def merge_smallest(groups: list[Group], threshold: float) -> tuple[str, str] | None:
    """Merge the two components with the smallest step sizes if the smallest is at most `threshold`.

    The merged component stands where the first of the two stood, and its step size is the mean of the two. The moments
    are kept with the parameters and do not change. Only components with equal settings (weight decay, betas, ...) are
    merged.

    Args:
        groups: param groups with "name" and "lr" (the step size); changed in place.
        threshold: lambda of the paper; 0 never merges.

    Returns:
        The two names, in the order of the groups, or None where nothing was merged.
    """
    if threshold <= 0 or len(groups) < 2:
        return None
    smallest = min(groups, key=lambda group: group["lr"])
    if smallest["lr"] > threshold:
        return None
    partners = [group for group in groups if group is not smallest and _settings(group) == _settings(smallest)]
    if not partners:
        return None
    second = min(partners, key=lambda group: group["lr"])
    kept, absorbed = sorted((smallest, second), key=lambda group: _position(groups, group))
    names = (kept["name"], absorbed["name"])
    join(groups, kept, absorbed)
    return names


def join(groups: list[Group], kept: Group, absorbed: Group) -> None:
    """Append the parameters of `absorbed` to those of `kept`, which takes both names and the mean step size."""
    for key in ("params", "param_names"):
        if key in kept:
            kept[key] = [*kept[key], *absorbed[key]]
    kept["name"] = f"{kept['name']}+{absorbed['name']}"
    kept["lr"] = (kept["lr"] + absorbed["lr"]) / 2
    del groups[_position(groups, absorbed)]


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


def _position(groups: list[Group], wanted: Group) -> int:
    # By identity: comparing groups would compare their tensors.
    return next(position for position, group in enumerate(groups) if group is wanted)
