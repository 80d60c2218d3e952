"""Evaluate the closure again with the same randomness, and without a second effect on buffers."""

import random
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

T = TypeVar("T")
Buffers = dict[str, torch.Tensor]
# A module's buffers (BatchNorm's statistics, a spectral norm's vectors) that its forward changes; learnt as it runs.
_Known = WeakKeyDictionary[torch.nn.Module, set[str]]


class Replay:
    """One step's evaluations: `first` is the plain one, `again` repeats it, and only `first` leaves traces.

    Dropout draws the same masks in each evaluation. After the step the random states (torch's CPU and accelerator
    generators, Python's) and all buffers are what the first evaluation alone would have left, also when an
    evaluation raises.

    Args:
        devices: the accelerators whose generators the closure may use.
        known: which modules' buffers change; keep one for the optimizer's life.
    """

    def __init__(self, devices: Iterable[torch.device], known: _Known) -> None:
        self._devices = [device for device in devices if device.type not in ("cpu", "meta")]
        self._known = known
        self._buffers_before: dict[torch.nn.Module, Buffers] = {}
        self._after: tuple[Any, dict[torch.nn.Module, Buffers]] | None = None

    def __enter__(self) -> "Replay":
        self._randomness = self._random_state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._after is not None:
            self._restore(*self._after)

    def first(self, evaluate: Callable[[], T]) -> T:
        versions: dict[torch.nn.Module, dict[str, int]] = {}

        def remember(module: torch.nn.Module, inputs: Any) -> None:
            if module._buffers and module not in versions:
                buffers = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
                versions[module] = {name: buffer._version for name, buffer in buffers.items()}
                known = self._known.get(module, buffers)  # all of them at the first sight
                self._buffers_before[module] = {name: buffers[name].clone() for name in known if name in buffers}

        hook = register_module_forward_pre_hook(remember)
        try:
            result = evaluate()
        finally:
            hook.remove()
        for module, before in versions.items():
            changed = {name for name, version in before.items() if module._buffers[name]._version != version}  # type: ignore[union-attr]
            self._known[module] = self._known.get(module, set()) | changed
            kept = self._buffers_before.pop(module)
            if changed:
                self._buffers_before[module] = {name: kept[name] for name in changed if name in kept}
        return result

    def again(self, evaluate: Callable[[], T]) -> T:
        if self._after is None:
            after = {
                module: {name: module._buffers[name].clone() for name in buffers}  # type: ignore[union-attr]
                for module, buffers in self._buffers_before.items()
            }
            self._after = (self._random_state(), after)
        self._restore(self._randomness, self._buffers_before)
        return evaluate()

    def _random_state(self) -> tuple[Any, ...]:
        accelerators = [torch.get_device_module(device).get_rng_state(device) for device in self._devices]
        return random.getstate(), torch.get_rng_state(), accelerators

    def _restore(self, randomness: tuple[Any, ...], buffers: dict[torch.nn.Module, Buffers]) -> None:
        python, cpu, accelerators = randomness
        random.setstate(python)
        torch.set_rng_state(cpu)
        for device, state in zip(self._devices, accelerators, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)
        for module, saved in buffers.items():
            for name, value in saved.items():
                module._buffers[name].copy_(value)  # type: ignore[union-attr]
