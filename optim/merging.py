"""Algorithm 1 of the paper on param groups: components with vanishing step sizes are merged."""

from typing import Any

Group = dict[str, Any]
_OWN = {"params", "param_names", "name", "lr"}


def merge_smallest(groups: list[Group], threshold: float) -> tuple[str, str] | None:
    """Merge the two components with the smallest step sizes if the smallest is at most `threshold`.

    The merged component stands where the first of the two stood; its step size is their mean. The moments live
    with the parameters and are not touched. Only components with equal settings (weight decay, betas, ...) are merged.

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
    """Move the parameters of `absorbed` behind those of `kept`, which takes both names and the mean step size."""
    for key in ("params", "param_names"):
        if key in kept:
            kept[key] = [*kept[key], *absorbed[key]]
    kept["name"] = f"{kept['name']}+{absorbed['name']}"
    kept["lr"] = (kept["lr"] + absorbed["lr"]) / 2
    del groups[_position(groups, absorbed)]


def _settings(group: Group) -> Group:
    # initial_lr, max_lr, swa_lr ...: notes of schedulers
    return {key: value for key, value in group.items() if key not in _OWN and not key.endswith("_lr")}


def _position(groups: list[Group], wanted: Group) -> int:
    # By identity: comparing groups would compare their tensors.
    return next(position for position, group in enumerate(groups) if group is wanted)
