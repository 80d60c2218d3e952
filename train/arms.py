"""Arms of train.scratch: an optimizer and its settings, read from NAME or NAME:key=value,key=value."""

import ast
import math
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch

import optim
from optim import DEFAULT, PLASLS, LineSearch, Preset, split, with_line_search
from optim.extras.host_classes import REFUSED
from optim.presets import SETTINGS, chosen

from .arguments import unknown
from .errors import InputError, one_line

CLASSES = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name != "Optimizer"}
HOSTS = {name.lower(): kind for name, kind in CLASSES.items() if kind not in REFUSED}
OWN = {kind.__name__.lower(): kind for kind in (optim.SGDSLS, optim.AdamSLS, PLASLS)}
KINDS = HOSTS.keys() | {f"{name}sls" for name in HOSTS} | OWN.keys()
PRESETS = {name: value for name, value in vars(optim).items() if isinstance(value, Preset)}
CRITERIA: dict[str, Any] = {name: kind for name, kind in vars(optim.criteria).items() if is_dataclass(kind)}


class Arm(NamedTuple):
    """An optimizer and its settings, as they were typed and as they were read.

    `handover` is the share of the run after which the host goes on alone, at the step size found and with the decay.
    """

    text: str
    kind: type
    settings: dict[str, Any]
    handover: float | None = None

    @property
    def searches(self) -> bool:
        return issubclass(self.kind, LineSearch)

    def optimizer(self, model: torch.nn.Module, steps: int, rate: float | None) -> Any:
        parameters, settings = [p for p in model.parameters() if p.requires_grad], dict(self.settings)
        if not self.searches:
            if "lr" in settings:
                raise TypeError("lr is no setting; allowed: --rates")
            return self.kind(parameters, lr=rate, **settings)
        changes = {key: settings.pop(key) for key in self.settings if key in SETTINGS | {"c"}}
        preset = chosen(settings.pop("search", DEFAULT), **changes)
        parts = components(model, settings.pop("split", 4)) if issubclass(self.kind, PLASLS) else parameters
        return self.kind(parts, search=preset, **{"total_steps": steps} | settings)


def components(model: torch.nn.Module, count: int) -> list[dict[str, Any]]:
    """Param groups of about equally many tensors each, in the network's order. Networks without layers have them."""
    names = [name for name, _ in model.named_parameters()]
    return split(model, lambda name: f"part_{names.index(name) * count // len(names)}")


def read_arm(text: str, prog: str) -> Arm:
    """Read an arm. It is tried on a small layer, so that a wrong setting is found before the first run.

    Args:
        prog: the command whose --help lists what is allowed.

    Raises:
        InputError: there is no such optimizer, or a setting cannot be read or taken.
    """
    name, _, settings = text.partition(":")
    if name not in KINDS:
        raise unknown("arm", [name], sorted(KINDS), prog)
    try:
        call = ast.parse(f"f({settings})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        kind: Any = OWN.get(name) or HOSTS.get(name) or with_line_search(HOSTS[name.removesuffix("sls")])
        read = {str(each.arg): _value(each.value) for each in call.keywords}
        handover = read.pop("handover", None)
        if handover is not None and not (issubclass(kind, LineSearch) and 0 < handover < 1):
            raise ValueError(f"handover is {handover!r}; allowed: between 0 and 1, for a line search")
        arm = Arm(text, kind, read, handover)
        arm.optimizer(torch.nn.TransformerEncoderLayer(4, 1, 4), 1, None if arm.searches else 0.1)
    except SyntaxError:
        raise InputError(f"arm {text}: the settings cannot be read; allowed: NAME:key=value,key=value") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"arm {text}: {one_line(error)}") from None
    return arm


def _value(node: ast.expr) -> Any:
    """A literal, a preset, NAME(key=value) of a criterion, or another word: inf is infinity."""
    if isinstance(node, ast.Name):
        return math.inf if node.id == "inf" else PRESETS.get(node.id, node.id)
    if not isinstance(node, ast.Call):
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"{ast.unparse(node)} is no value; allowed: a number, a word, (0.9, 0.999)") from None
    name = ast.unparse(node.func)
    if name not in CRITERIA or node.args:
        raise ValueError(f"{ast.unparse(node)} is no criterion; allowed: {', '.join(CRITERIA)} with key=value")
    return CRITERIA[name](**{str(each.arg): _value(each.value) for each in node.keywords})
