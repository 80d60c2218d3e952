"""Evaluates a closure again from the first module that a trial changes. What comes before is known already."""

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_unflatten

from .loss import Closure
from .ranks import Ranks
from .replay import Randomness

# After this many evaluations of a component's suffix the next one is compared with the full evaluation again.
RENEWED = 255

# A module's output is recorded if it consists of tensors and of these, which nobody can change.
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


@dataclass
class SuffixCheck:
    """What is known about one model: for which components a suffix has given the bits of the full evaluation.

    The first search of each component evaluates its first trial both ways, and so does every 256th evaluation. A value
    from the suffix that is not finite is repeated in full. If the two differ, all outputs before the suffix are kept
    from then on, as something besides the next module may read them (a long skip connection, for instance). If they
    still differ, trials evaluate the whole network from then on, and a warning says so.
    """

    verified: dict[str, int] = field(default_factory=dict)  # component -> evaluations since it was verified
    keep_all: bool = False
    off: bool = False
    opaque: WeakSet[Module] = field(default_factory=WeakSet)  # modules whose output cannot be recorded
    overwritten: WeakSet[Module] = field(default_factory=WeakSet)  # modules whose output was written to later

    def fail(self, full: float, suffix: float | Exception) -> None:
        self.verified.clear()
        if not self.keep_all:
            self.keep_all = True
            return
        self.off = True
        found = f"the loss {suffix!r}" if isinstance(suffix, float) else f"an exception ({suffix!r})"
        warnings.warn(
            f"trials evaluate the whole network: from the searched component on gave {found} instead of {full!r}",
            RuntimeWarning,
            stacklevel=2,
        )


class Suffix:
    """One step's closures. After the first evaluation they may start at the searched component.

    The first evaluation records the outputs of the modules that end before the component's parameters are used, with
    the random state at that place. If such modules contain one another, only the outer one is recorded. Later
    evaluations return these outputs instead of running the modules.

    An output that was given to recorded modules only is never read again, so its values are not kept. In a later
    evaluation a tensor of NaNs with the same shape takes its place.

    This is exact if the output of a module depends on its inputs, parameters, buffers and random numbers only.
    `SuffixCheck` verifies it.

    Args:
        check: what earlier steps have found.
        closures: the closures of this step.
        component: name of the searched component.
        parameters: the parameters that the trials change.
        modules: the modules that the closures run.
        randomness: the random states that the closures use.
        ranks: all ranks. Either all of them evaluate suffixes or none does, as each evaluation is a message.
    """

    def __init__(
        self,
        check: SuffixCheck,
        closures: Sequence[Closure],
        component: str,
        parameters: Iterable[Tensor],
        modules: Iterable[Module],
        randomness: Randomness,
        ranks: Ranks,
    ) -> None:
        self._check, self._component, self._ranks = check, component, ranks
        self._is_known: bool | None = None  # whether something is recorded, on all ranks
        changes = _Changes(parameters)
        known = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self.closures = [_Recorded(closure, changes, known, randomness, check) for closure in closures]

    def evaluate(self, reevaluate: Callable[..., float]) -> float:
        """Do what `MiniBatchLoss.reevaluate` does, but from the component on."""
        if self._is_known is None:
            self._is_known = self._ranks.mean(lambda: any(closure.records for closure in self.closures)) == 1.0
        if not self._is_known:
            return reevaluate()
        verified = self._check.verified
        if 0 <= verified.get(self._component, -1) < RENEWED:
            verified[self._component] += 1
            with self._skipping():
                value = reevaluate()
            if math.isfinite(value):
                return value
            full = reevaluate(counted=False)
            suffix: float | Exception = value
        else:
            full, suffix = reevaluate(), self._tried(reevaluate)
        if suffix == full:
            verified[self._component] = 0
        elif full == full:  # a NaN would prove nothing
            self._check.fail(full, suffix)
            self._is_known = False
        return full

    def _tried(self, reevaluate: Callable[..., float]) -> float | Exception:
        """The value from the suffix, or the error that it raised, to be compared with the full evaluation."""
        try:
            with self._skipping():
                return reevaluate(counted=False)
        except Exception as error:
            return error

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        for closure in self.closures:
            closure.skips = True
        try:
            yield
        finally:
            for closure in self.closures:
                closure.skips = False


class _Changes:
    """Which modules hold parameters that change, in themselves or in a part of theirs."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = set(parameters)
        self._inside: dict[Module, bool] = {}

    def in_itself(self, module: Module) -> bool:
        return not self._parameters.isdisjoint(p for p in module._parameters.values() if p is not None)

    def inside(self, module: Module) -> bool:
        if module not in self._inside:
            self._inside[module] = self.in_itself(module) or any(self.inside(part) for part in module.children())
        return self._inside[module]


@dataclass(eq=False)
class _Call:
    """One call of a module's forward.

    Attributes:
        start: number of records before it.
        caller: the call inside which it was made.
        whole: whether one record of it replaces records of all calls inside it.
    """

    start: int
    caller: "_Call | None"
    whole: bool

    def is_in(self, calls: set["_Call"]) -> bool:
        return self in calls or (self.caller is not None and self.caller.is_in(calls))


@dataclass
class _Leaf:
    """A tensor in a recorded output.

    Attributes:
        version: how often it had been written to when it was recorded.
        takers: calls that have taken it as an argument since.
        kept: a copy, for modules whose output is known to be written to later.
        written_inside: whether a call that may be skipped has written to it. A trial would skip that write.
    """

    tensor: Tensor
    version: int
    takers: list[_Call] = field(default_factory=list)
    kept: Tensor | None = None
    written_inside: bool = False


@dataclass
class _Record:
    """What a call of a module returned, with tensors as leaves, and the random state after the call."""

    module: Module
    call: _Call
    leaves: list[Any]
    structure: Any
    randomness: Any

    def tensors(self) -> Iterator[_Leaf]:
        return (leaf for leaf in self.leaves if isinstance(leaf, _Leaf))

    def output(self) -> Any:
        """The output, with copies of its tensors, as the caller may write into them."""
        copies = [leaf.tensor.clone() if isinstance(leaf, _Leaf) else leaf for leaf in self.leaves]
        return tree_unflatten(copies, self.structure)


class _Recorded:
    """One closure. Its first call records; later calls skip what is recorded, as long as `skips` is set."""

    def __init__(
        self, closure: Closure, changes: _Changes, modules: list[Module], randomness: Randomness, check: SuffixCheck
    ) -> None:
        self._closure, self._changes, self._modules = closure, changes, modules
        self._randomness, self._check = randomness, check
        self._calls: list[_Call] = []
        self._recorded = self._reached = False
        self.records: list[_Record] = []
        self._kept: list[_Leaf] = []  # leaves of which a copy is kept
        self.skips = False

    def __call__(self) -> Any:
        if not self._recorded:
            self._recorded = True
            with _wrapped(self._modules, self._record):
                result = self._closure()
            if not self._reached:  # the closure ran no module with parameters that change
                self.records = []
            return result
        return self._skip() if self.skips and self.records else self._closure()

    def _record(self, module: Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._reached:
            return forward(*args, **kwargs)
        caller = self._calls[-1] if self._calls else None
        changes = self._changes.inside(module)
        if caller is not None and caller.whole and not changes:
            return forward(*args, **kwargs)
        call = _Call(len(self.records), caller, whole=not changes and module not in self._check.opaque)
        self._take(call, (args, kwargs))
        self._calls.append(call)
        kept = [(leaf, leaf.tensor._version) for leaf in self._kept]
        try:
            if self._changes.in_itself(module):
                self._reach()
            output = forward(*args, **kwargs)
            for leaf, version in kept if call.whole else ():
                leaf.written_inside |= leaf.tensor._version != version
            if not self._reached and changes:
                # The module has used the parameters itself, at an unknown time, without a call of the part with them.
                del self.records[call.start :]
                self._reach()
        finally:
            self._calls.pop()
        if not self._reached:
            self._add(module, call, output)
        return output

    def _take(self, call: _Call, arguments: Any) -> None:
        for value in tree_flatten(arguments)[0]:
            if isinstance(value, Tensor):
                of_value = (leaf for record in reversed(self.records) for leaf in record.tensors())
                leaf = next((leaf for leaf in of_value if leaf.tensor is value), None)
                if leaf is not None:
                    leaf.takers.append(call)

    def _add(self, module: Module, call: _Call, output: Any) -> None:
        leaves, structure = tree_flatten(output)
        if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
            self._check.opaque.add(module)  # a cache, for instance; the modules inside are recorded from now on
            return
        held = [_Leaf(leaf, leaf._version) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if module in self._check.overwritten:
            for leaf in (leaf for leaf in held if isinstance(leaf, _Leaf)):
                leaf.kept = leaf.tensor.detach().clone()
                self._kept.append(leaf)
        self.records[call.start :] = [_Record(module, call, held, structure, self._randomness.get())]

    def _reach(self) -> None:
        """Note the first use of a parameter that changes, and keep what is needed from here on."""
        self._reached = True
        while (overwritten := next(filter(self._is_overwritten, self.records), None)) is not None:
            self._check.overwritten.add(overwritten.module)  # from the next step on a copy is kept
            caller = overwritten.call.caller  # its records start anew
            del self.records[caller.start if caller else 0 :]
        skipped = {record.call for record in self.records}
        for record in self.records:
            for leaf in record.tensors():
                if self._is_needed(leaf, skipped):
                    leaf.tensor = leaf.tensor.detach().clone() if leaf.kept is None else leaf.kept
                else:
                    leaf.tensor = leaf.tensor.new_full((), torch.nan).detach().expand(leaf.tensor.shape)
                leaf.takers, leaf.kept = [], None
        self._kept = []

    def _is_overwritten(self, record: _Record) -> bool:
        skipped = {record.call for record in self.records}
        return any(
            leaf.tensor._version != leaf.version
            and (leaf.kept is None or leaf.written_inside)
            and self._is_needed(leaf, skipped)
            for leaf in record.tensors()
        )

    def _is_needed(self, leaf: _Leaf, skipped: set[_Call]) -> bool:
        """Whether anything but recorded calls takes the tensor."""
        if self._check.keep_all or not (leaf.tensor.is_floating_point() or leaf.tensor.is_complex()):
            return True
        return not leaf.takers or not all(taker.is_in(skipped) for taker in leaf.takers)

    def _skip(self) -> Any:
        waiting = deque(self.records)

        def known(module: Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not waiting or waiting[0].module is not module:
                return forward(*args, **kwargs)
            record = waiting.popleft()
            self._randomness.set(record.randomness)
            return record.output()

        start = self._randomness.get()
        with _wrapped({record.module for record in self.records}, known):
            result = self._closure()
        if waiting:  # the closure took another way through the model than in the first evaluation
            self._randomness.set(start)
            result = self._closure()
        return result


@contextmanager
def _wrapped(modules: Iterable[Module], around: Callable[..., Any]) -> Iterator[None]:
    """Let calls of the modules' forward go through `around(module, forward, ...)`. Hooks on modules stay outside."""
    modules = list(modules)
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = partial(around, module, module.forward)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own
