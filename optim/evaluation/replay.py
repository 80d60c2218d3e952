"""Evaluates the closure again with the same randomness, and without a second effect on buffers."""

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from .state import Buffers, Outside, modules_of, write

T = TypeVar("T")


@dataclass
class Modules:
    """The modules that the closures of earlier steps have run.

    A hook finds them. But torch.compile compiles anew whenever hooks come and go, and what a hook does becomes a part
    of the compiled code. So the whole first step runs uncompiled, and later there is no hook for closures with compiled
    modules. Such a closure must not run a module for the first time after the first steps.
    """

    ran: WeakSet[torch.nn.Module] = field(default_factory=WeakSet)
    compiled: bool = False
    autocast: torch.dtype | None = None  # the type of the autocast in which they ran; None: no autocast
    backward_inside: bool = False  # whether a closure has called backward itself
    with_gradients: bool = False  # whether only trials with gradients enabled are the same function
    # All modules whose buffers may change: those that ran, and those that the closures can reach. The names are of
    # parameters that are not searched but changed by the closures.
    known: WeakKeyDictionary[torch.nn.Module, set[str]] = field(default_factory=WeakKeyDictionary)

    def add(self, modules: Iterable[torch.nn.Module]) -> None:
        for module in modules:
            self.known.setdefault(module, set())

    def parameters_but(self, own: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Parameters of the modules that ran, without one's `own`."""
        known = set(own)
        of_all = (p for module in self.ran for p in module._parameters.values())
        return [p for p in dict.fromkeys(of_all) if p is not None and p not in known]


class Randomness:
    """The random states that a closure may use: torch's CPU and accelerator generators, Python's, NumPy's.

    Args:
        devices: devices of the parameters; the generators of accelerators among them are included.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = [device for device in set(devices) if device.type not in ("cpu", "meta")]

    def get(self) -> tuple[Any, ...]:
        accelerators = [torch.get_device_module(device).get_rng_state(device) for device in self._devices]
        numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        return random.getstate(), numpy, torch.get_rng_state(), accelerators

    def set(self, state: tuple[Any, ...]) -> None:
        python, numpy, cpu, accelerators = state
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, of_device in zip(self._devices, accelerators, strict=True):
            torch.get_device_module(device).set_rng_state(of_device, device)


class Replay:
    """One step's evaluations. `first` is the plain one, `again` repeats it, and only `first` has lasting effects.

    Dropout draws the same masks in each evaluation. After the step the random states (torch's CPU and accelerator
    generators, Python's, NumPy's) and all buffers are as the first evaluation alone would have left them, also if an
    evaluation raises. The same holds for parameters that are not searched but that the closure changes.

    Under DistributedDataParallel only `first` broadcasts buffers; later each rank puts back those that it received.
    Only `first` averages gradients, too. Those of a trial are dropped, and may be of some parameters only (see
    `Suffix`).

    Args:
        devices: the accelerators whose generators the closure may use.
        modules: the attribute `modules` of the step before; None: this is the first step.
        closures: the closures of this step. Modules are looked for in them.
        own: the parameters that are searched.
        looks: whether this step looks for what closures change, as the first one does.
    """

    def __init__(
        self,
        devices: Iterable[torch.device],
        modules: Modules | None = None,
        closures: Iterable[Callable[..., Any]] = (),
        own: Iterable[torch.Tensor] = (),
        looks: bool = True,
    ) -> None:
        self.modules = modules or Modules()
        self._is_first = modules is None
        self._closures, self._own, self._looks = closures, own, looks
        self._outside: Outside | None = None
        self._stance = ExitStack()
        devices = set(devices)
        self._device_types = {device.type for device in devices}
        self._randomness = Randomness(devices)
        self._buffers_before: dict[torch.nn.Module, Buffers] = {}
        self._outside_before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._wrappers: dict[DistributedDataParallel, tuple[bool, bool]] = {}
        self._after: State | None = None

    def __enter__(self) -> "Replay":
        self._before = self._randomness.get()
        if self._is_first:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stance.close()
        if self._after is not None:
            self._restore(self._after)
            for wrapper, (broadcasts, averages) in self._wrappers.items():
                wrapper.require_forward_param_sync, wrapper.require_backward_grad_sync = broadcasts, averages

    def first(self, evaluate: Callable[[], T]) -> T:
        if self._looks:
            self.modules.add(modules_of(self._closures))
            self._outside = Outside(self.modules.known, self._own)
        for module, names in self.modules.known.items():
            self._remember(module)
            changed = (module._parameters[name] for name in names if name in module._parameters)
            self._outside_before += [(p, p.detach().clone()) for p in changed if p is not None]
        if self.modules.compiled:
            result = evaluate()
        else:
            self.modules.autocast = None
            self._notice_autocast()
            with self._finding_modules():
                result = evaluate()
        if self._outside is not None:
            known = {id(parameter) for parameter, _ in self._outside_before}
            for module, name, parameter, before in self._outside.changed():
                self.modules.known[module].add(name)
                if id(parameter) not in known:
                    self._outside_before.append((parameter, before))
            self._outside = None
        return result

    @contextmanager
    def _finding_modules(self) -> Iterator[None]:
        ran: list[torch.nn.Module] = []
        compiling: list[bool] = []

        def remember(module: torch.nn.Module, inputs: Any) -> None:
            if torch.compiler.is_compiling():  # a compiled function; its modules ran in the first step
                compiling.append(True)
            else:
                ran.append(module)
                self._remember(module)
                self._notice_autocast()

        hook = register_module_forward_pre_hook(remember)
        try:
            if self._is_first:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Using `torch.compile.* when there are global hooks")
                    yield
            else:
                yield
        finally:
            hook.remove()
            new = [module for module in ran if module not in self.modules.ran]
            parts = [part for module in new for part in module.modules()]
            self.modules.ran.update(parts)
            self.modules.add(parts)
            self.modules.compiled = bool(compiling) or any(_is_compiled(module) for module in ran)

    def _remember(self, module: torch.nn.Module) -> None:
        # The content is compared, as torch's batch norm writes its statistics without changing the version counter.
        if module not in self._buffers_before and len(module._buffers):
            self._buffers_before[module] = Buffers(module)
        if self._outside is not None:
            self._outside.add(module)

    def _notice_autocast(self) -> None:
        for device in self._device_types:
            if torch.is_autocast_enabled(device):
                self.modules.autocast = torch.get_autocast_dtype(device)

    def again(self, evaluate: Callable[[], T]) -> T:
        if self._after is None:
            self._after = State(
                self._randomness.get(),
                [Buffers(module) for module in self._buffers_before],
                [(parameter, parameter.detach().clone()) for parameter, _ in self._outside_before],
            )
            self._wrappers = {
                module: (module.require_forward_param_sync, module.require_backward_grad_sync)
                for module in self.modules.ran
                if isinstance(module, DistributedDataParallel)
            }
        self._restore(State(self._before, self._buffers_before.values(), self._outside_before))
        for wrapper in self._wrappers:
            # A forward without gradients would set the first of the two for good.
            wrapper.require_forward_param_sync = wrapper.require_backward_grad_sync = False
        return evaluate()

    @torch.no_grad()
    def _restore(self, state: "State") -> None:
        self._randomness.set(state.randomness)
        for buffers in state.buffers:
            buffers.put_back()
        for parameter, content in state.outside:
            write(parameter, content)


class State(NamedTuple):
    """Everything that an evaluation may change, at one moment."""

    randomness: tuple[Any, ...]
    buffers: Iterable[Buffers]
    outside: Sequence[tuple[torch.Tensor, torch.Tensor]]


def _is_compiled(module: torch.nn.Module) -> bool:
    """Whether the module is compiled, by torch.compile(module) or by module.compile()."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
