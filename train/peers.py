"""Line searches that others have published: SaLSA's package, and the code that came with the paper, written again."""

import importlib
import math
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optim import Search

Closure = Callable[[], Tensor]

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
PINNED = dict(line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if "==" in line)


class Missing(Exception):
    """A package is not installed, or not in the version that is compared. The message is one line."""


def package(name: str, module: str) -> Any:
    """The module of a pinned package.

    Raises:
        Missing: the package is not there.
    """
    try:
        found = version(name)
    except PackageNotFoundError:
        found = None
    if found != PINNED[name]:
        raise Missing(f"{name}=={PINNED[name]} is not installed (found: {found})")
    return importlib.import_module(module)


def _record(component: str, before: float, after: float, trials: int, loss: float) -> Search:
    unknown = math.nan
    return Search(component, before, after, trials, loss, unknown, unknown, unknown, accepted=True)


class PublishedSaLSA:
    """The package of SaLSA's authors. It seeds dropout by the clock; here dropout comes from the run's random state."""

    def __init__(self, published: Any, parameters: list[torch.nn.Parameter]) -> None:
        self.inner = published.SaLSA(parameters)
        self.param_groups: list[dict[str, Any]] = [
            {"params": parameters, "name": "all", "lr": float(self.inner.step_size)}
        ]

    def step(self, closure: Closure) -> Tensor:
        inner, group = self.inner, self.param_groups[0]
        draws = int(torch.randint(2**62, ()))
        evaluated, before = inner.state["n_forwards"], group["lr"]

        def evaluate(backwards: bool = False) -> Tensor:
            torch.manual_seed(draws)
            loss = closure()
            if backwards:
                loss.backward()
            return loss

        inner.zero_grad()
        loss = inner.step(evaluate).detach()
        group["lr"] = float(inner.step_size)
        trials = inner.state["n_forwards"] - evaluated - 1
        self.search = _record("all" if trials else "none", before, group["lr"], trials, float(loss))
        return loss

    def state_dict(self) -> dict[str, Any]:
        numbers = {k: v for k, v in vars(self.inner).items() if isinstance(v, (int, float, Tensor))}
        return {"numbers": numbers, "state": dict(self.inner.state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        device = self.param_groups[0]["params"][0].device  # a checkpoint is read into main memory

        def there(value: Any) -> Any:
            if isinstance(value, list):
                return [there(each) for each in value]
            return value.to(device) if isinstance(value, Tensor) else value

        vars(self.inner).update({key: there(value) for key, value in state_dict["numbers"].items()})
        self.inner.state.update({key: there(value) for key, value in state_dict["state"].items()})
        self.param_groups[0]["lr"] = float(self.inner.step_size)


class PublishedPLASLS:
    """The procedure of the code that was published with the paper, written again plainly to compare its cost.

    In each step it copies the whole network. For each trial and each move it computes the direction anew, on whole
    tensors. It tests a component after the ones before it have moved. The first six steps search the whole network.

    Args:
        groups: the components, as `optim.split` gives them.
        c, delta, eta_0: constants of the search, as in the paper.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], c: float = 0.1, delta: float = 0.9, eta_0: float = 0.1
    ) -> None:
        self.param_groups = [{**group, "params": list(group["params"]), "lr": eta_0} for group in groups]
        self.components: list[list[Any]] = [group["params"] for group in self.param_groups]
        self.m = [[torch.zeros_like(p) for p in component] for component in self.components]
        self.v = [[torch.zeros_like(p) for p in component] for component in self.components]
        self.c, self.delta, self.k = c, delta, 0

    def step(self, closure: Closure) -> Tensor:
        for parameter in (p for component in self.components for p in component):
            parameter.grad = None
        draws = int(torch.randint(2**62, ()))  # every evaluation of the step has the same dropout

        def evaluate() -> Tensor:
            torch.manual_seed(draws)
            return closure()

        with torch.enable_grad():
            loss = evaluate()
            loss.backward()
        with torch.no_grad():
            self.k += 1
            unmoved = [[p.clone() for p in component] for component in self.components]
            for component, ms, vs in zip(self.components, self.m, self.v, strict=True):
                for i, p in enumerate(component):
                    vs[i] = 0.001 * p.grad**2 + 0.999 * vs[i]
                    ms[i] = 0.1 * p.grad + 0.9 * ms[i]
            for group in self.param_groups:
                group["lr"] *= 2 ** (1 / 500)
            everything = list(range(len(self.components)))
            turn = everything if self.k <= 6 else [self.k % len(self.components)]
            for l in everything:  # noqa: E741
                if l == turn[0]:
                    self._search(evaluate, float(loss), turn, unmoved)
                self._place(l, unmoved, momentum=True)
        return loss.detach()

    def _search(self, evaluate: Closure, loss: float, turn: list[int], unmoved: list[list[Tensor]]) -> None:
        slopes = [
            (p.grad**2 * (1 / (torch.sqrt(v / (1 - 0.999**self.k)) + 1e-8))).sum()
            for l in turn  # noqa: E741
            for p, v in zip(self.components[l], self.v[l], strict=True)
        ]
        groups, slope = [self.param_groups[l] for l in turn], sum(slope.item() for slope in slopes)  # noqa: E741
        before = eta = groups[0]["lr"]
        trials = 0
        while trials < 200:
            trials += 1
            for l, group in zip(turn, groups, strict=True):  # noqa: E741
                group["lr"] = eta
                self._place(l, unmoved, momentum=False)
            if loss - float(evaluate()) >= self.c * eta * slope:
                break
            eta *= self.delta
        name = groups[0]["name"] if len(turn) == 1 else "all"
        self.search = _record(name, before, eta, trials, loss)

    def _place(self, l: int, unmoved: list[list[Tensor]], momentum: bool) -> None:  # noqa: E741
        eta = self.param_groups[l]["lr"]
        for p, origin, m, v in zip(self.components[l], unmoved[l], self.m[l], self.v[l], strict=True):
            numerator = m / (1 - 0.9**self.k) if momentum else p.grad
            p.copy_(origin).sub_(eta * (1 / (torch.sqrt(v / (1 - 0.999**self.k)) + 1e-8)) * numerator)

    def state_dict(self) -> dict[str, Any]:
        return {"k": self.k, "m": self.m, "v": self.v, "step_sizes": [group["lr"] for group in self.param_groups]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.k = state_dict["k"]
        for key in ("m", "v"):  # a checkpoint is read into main memory
            for mine, saved in zip(getattr(self, key), state_dict[key], strict=True):
                mine[:] = [value.to(old.device) for old, value in zip(mine, saved, strict=True)]
        for group, eta in zip(self.param_groups, state_dict["step_sizes"], strict=True):
            group["lr"] = eta
