"""Evaluate the closure again with the same randomness, and without a second effect on buffers."""

import random
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
Buffers = dict[str, torch.Tensor]


class Replay:
    """One step's evaluations: `first` is the plain one, `again` repeats it, and only `first` leaves traces.

    Dropout draws the same masks in each evaluation. After the step the random states (torch's CPU and accelerator
    generators, Python's) and all buffers are what the first evaluation alone would have left, also when an
    evaluation raises.

    Under DistributedDataParallel only `first` broadcasts buffers: each rank puts the ones that it received back itself.

    Args:
        devices: the accelerators whose generators the closure may use.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = [device for device in devices if device.type not in ("cpu", "meta")]
        self._buffers_before: dict[torch.nn.Module, Buffers] = {}
        self._wrappers: dict[DistributedDataParallel, bool] = {}
        self._after: tuple[Any, dict[torch.nn.Module, Buffers]] | None = None

    def __enter__(self) -> "Replay":
        self._randomness = self._random_state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._after is not None:
            self._restore(*self._after)
            for wrapper, broadcasts in self._wrappers.items():
                wrapper.require_forward_param_sync = broadcasts

    def first(self, evaluate: Callable[[], T]) -> T:
        def remember(module: torch.nn.Module, inputs: Any) -> None:
            # Content, not version counters: torch's batch norm writes its statistics without counting.
            if module._buffers and module not in self._buffers_before:
                self._buffers_before[module] = _copies(module, module._buffers)
            if isinstance(module, DistributedDataParallel):
                self._wrappers[module] = True

        hook = register_module_forward_pre_hook(remember)
        try:
            return evaluate()
        finally:
            hook.remove()

    def again(self, evaluate: Callable[[], T]) -> T:
        if self._after is None:
            after = {module: _copies(module, buffers) for module, buffers in self._buffers_before.items()}
            self._after = (self._random_state(), after)
            self._wrappers = {wrapper: wrapper.require_forward_param_sync for wrapper in self._wrappers}
        self._restore(self._randomness, self._buffers_before)
        for wrapper in self._wrappers:
            wrapper.require_forward_param_sync = False  # a forward without gradients does so anyway, for good
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


def _copies(module: torch.nn.Module, names: Iterable[str]) -> Buffers:
    buffers = {name: module._buffers[name] for name in names}
    return {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}
