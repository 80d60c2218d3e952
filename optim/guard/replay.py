"""Evaluates the closure again with the same randomness, and without a second effect on buffers."""

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakIdKeyDictionary

from .state import Contents, Outside, has_buffers_of_a_vmap, is_fsdp, modules_of

T = TypeVar("T")

_evaluates_again = False  # no ContextVar, as a backward pass runs hooks in other threads


def is_trial() -> bool:
    """Whether the closure is evaluated again, for a trial or a check.

    A closure that counts, keeps or logs something beside its loss does so `if not is_trial()`, and so once a step.
    """
    return _evaluates_again


@contextmanager
def forward_hook(before: Callable[[Module, Any], None], quiet: bool = True) -> Iterator[None]:
    """Inside, this is called before each forward of a module. If `quiet`, torch.compile does not warn of it."""
    hook = register_module_forward_pre_hook(before)
    try:
        with warnings.catch_warnings() if quiet else nullcontext():
            if quiet:
                warnings.filterwarnings("ignore", "Using `torch.compile.* when there are global hooks")
            yield
    finally:
        hook.remove()


@dataclass
class Modules:
    """The modules that the closures of earlier steps have run, and what is known of them.

    They are told apart by identity: the hash of torchmetrics' modules changes with what they count.

    A hook finds them. But torch.compile compiles anew whenever hooks come and go. So the first step runs uncompiled,
    and later there is no hook for closures with compiled modules: they must not run a new module then.
    """

    ran: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)  # with their parts; the values mean nothing
    # All modules that the closures can reach, and of each the names of parameters that are not searched, but changed.
    known: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    compiled: bool = False  # whether one of those that ran is compiled
    autocast: torch.dtype | None = None  # the type of the autocast in which they ran; None: no autocast
    backward_inside: bool = False  # whether a closure has called backward itself
    with_gradients: bool = False  # whether only trials with gradients enabled are the same function

    def add(self, modules: Iterable[Module]) -> None:
        for module in modules:
            self.known.setdefault(module, set())

    def parameters_but(self, own: Iterable[Tensor]) -> list[Tensor]:
        """Parameters of the modules that ran, without those in `own`."""
        of_all = dict.fromkeys(p for module in self.ran for p in module._parameters.values() if p is not None)
        return list(of_all.keys() - set(own))

    def reshard(self) -> None:
        """Drop gathered weights. Without a backward pass FSDP keeps some of them, though the weights have moved."""
        for module in self.ran:
            if is_fsdp(module):
                module.reshard()


class Replay:
    """One step's evaluations. `first` is the plain one, `again` repeats it, and only `first` has lasting effects.

    Dropout draws the same masks in each evaluation. After the step the random states (torch's CPU and accelerator
    generators, Python's, NumPy's), all buffers, and parameters that are not searched are as the first evaluation alone
    would have left them, also if an evaluation raises. Under DistributedDataParallel only `first` broadcasts buffers
    and averages gradients. Under `fully_shard` each evaluation gathers the weights as they are.

    Args:
        modules: what the steps before have found; None: this is the first step.
        own: the parameters that are searched.
        looks: whether this step looks for modules in its closures, and for what these change, as the first one does.
    """

    def __init__(
        self, modules: Modules | None, closures: Iterable[Callable[..., Any]], own: Sequence[Tensor], looks: bool
    ) -> None:
        self.modules = modules or Modules()
        self._is_first = modules is None
        self._closures, self._looks = closures, looks
        self._own = {parameter for parameter in own if parameter.requires_grad}
        self._outside: Outside | None = None
        self._devices = {parameter.device for parameter in own}
        self._wrappers: dict[DistributedDataParallel, tuple[bool, bool]] = {}
        self._before: dict[int, Contents] = {}  # by the module's id
        self._randomness_before = self._randomness()
        self._after: tuple[tuple[Any, ...], list[Contents]] | None = None

    def end(self) -> None:
        if self._after is not None:
            self._restore(*self._after)
            self._put_back_late_changes()
            for wrapper, (broadcasts, averages) in self._wrappers.items():
                wrapper.require_forward_param_sync, wrapper.require_backward_grad_sync = broadcasts, averages

    def first(self, evaluate: Callable[[], T]) -> T:
        if self._looks:
            self.modules.add(modules_of(self._closures))
            self._outside = Outside(self.modules.known, self._own)
        for module in self.modules.known:
            self._remember(module)
        if not self.modules.compiled:
            self.modules.autocast = None
            self._notice_autocast()
        result = evaluate() if self.modules.compiled else self._finding_modules(evaluate)
        if self._outside is not None:
            for module, name, parameter, before in self._outside.changed():
                self.modules.known[module].add(name)
                self._before[id(module)].copies.setdefault(parameter, before)
        return result

    def _put_back_late_changes(self) -> None:
        """Put back what trials have changed and the first evaluation had not, such as a teacher's equal weights."""
        for module, name, parameter, before in self._outside.changed() if self._outside is not None else ():
            if name not in self.modules.known[module]:
                self.modules.known[module].add(name)
                parameter.detach().copy_(before)

    def _finding_modules(self, evaluate: Callable[[], T]) -> T:
        ran: list[Module] = []
        compiling: list[bool] = []

        def remember(module: Module, inputs: Any) -> None:
            if torch.compiler.is_compiling():  # a compiled function; its modules ran in the first step
                compiling.append(True)
            else:
                ran.append(module)
                self._remember(module)
                self._notice_autocast()

        try:
            with forward_hook(remember, quiet=self._is_first):
                return evaluate()
        finally:
            parts = [part for module in ran if module not in self.modules.ran for part in module.modules()]
            self.modules.ran.update(dict.fromkeys(parts))
            self.modules.add(parts)
            # By torch.compile(module), or by module.compile().
            compiled = (hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in ran)
            self.modules.compiled = bool(compiling) or any(compiled)

    def _remember(self, module: Module) -> None:
        if id(module) in self._before or has_buffers_of_a_vmap(module):
            return
        self._before[id(module)] = Contents(module, self._changed_in(module))
        if self._outside is not None:
            self._outside.add(module)

    def _changed_in(self, module: Module) -> list[str]:
        """The names of a module's parameters that closures change, without those that are searched by now."""
        return [name for name in self.modules.known.get(module, ()) if module._parameters.get(name) not in self._own]

    def _notice_autocast(self) -> None:
        for device in {device.type for device in self._devices}:
            if torch.is_autocast_enabled(device):
                self.modules.autocast = torch.get_autocast_dtype(device)

    def again(self, evaluate: Callable[[], T]) -> T:
        global _evaluates_again
        if self._after is None:
            modules = [before.module for before in self._before.values()]
            self._after = self._randomness(), [Contents(module, self._changed_in(module)) for module in modules]
            wrappers = [module for module in self.modules.ran if isinstance(module, DistributedDataParallel)]
            self._wrappers = {w: (w.require_forward_param_sync, w.require_backward_grad_sync) for w in wrappers}
        self._restore(self._randomness_before, self._before.values())
        for wrapper in self._wrappers:
            # A forward without gradients would set the first of the two for good.
            wrapper.require_forward_param_sync = wrapper.require_backward_grad_sync = False
        outer, _evaluates_again = _evaluates_again, True
        try:
            return evaluate()
        finally:
            _evaluates_again = outer

    def _randomness(self) -> tuple[Any, ...]:
        """The random states that a closure may use: Python's, NumPy's, torch's of the CPU and of the accelerators."""
        devices = [device for device in self._devices if device.type not in ("cpu", "meta")]
        states = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}
        numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        return random.getstate(), numpy, torch.get_rng_state(), states

    @torch.no_grad()
    def _restore(self, randomness: tuple[Any, ...], contents: Iterable[Contents]) -> None:
        python, numpy, cpu, of_devices = randomness
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, of_device in of_devices.items():
            torch.get_device_module(device).set_rng_state(of_device, device)
        for of_module in contents:
            of_module.put_back()
        self.modules.reshard()
