"""What a closure may change beside the weights that are searched, as far as torch can list it."""

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

# Limits of the search for modules: objects that are looked at, nearest first, and what one object may refer to.
OBJECTS, REFERENCES = 5_000, 400


def can_have_gradient(tensor: Tensor) -> bool:
    """Whether a tensor can be trained: integers and float8, which hold quantised weights, cannot."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its own numbers: no quantised subclass, no shard, not on "meta", not inside of a vmap."""
    own_numbers = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__ and not tensor.is_meta
    return own_numbers and not is_inside_vmap(tensor)


def is_inside_vmap(tensor: Tensor) -> bool:
    """Whether a tensor stands for many, and only until the vmap around it ends."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def write(tensor: Tensor, copy: Tensor) -> None:
    """Put the copy of a tensor's content back into it."""
    if tensor.shape == copy.shape and tensor.dtype == copy.dtype:
        tensor.detach().copy_(copy)
    else:  # the closure has given it other data
        tensor.data = copy.clone()


class Contents:
    """One module's buffers and those of its parameters that closures change: which they are, and what is in them."""

    def __init__(self, module: Module, changed: Iterable[str]) -> None:
        self.module = module
        self._buffers = dict(module._buffers.items())
        parameters = [module._parameters[name] for name in changed if name in module._parameters]
        plain = [held for held in (*self._buffers.values(), *parameters) if held is not None and is_plain(held)]
        self.copies = {held: held.detach().clone() for held in plain}

    def put_back(self) -> None:
        for tensor, copy in self.copies.items():
            write(tensor, copy)
        now = dict(self.module._buffers.items())
        for name in now.keys() - self._buffers.keys():
            delattr(self.module, name)
        for name, held in self._buffers.items():
            if now.get(name, self) is not held:
                setattr(self.module, name, held)


def has_buffers_of_a_vmap(module: Module) -> bool:
    """Whether a module is inside of a vmap, and has other buffers for a while."""
    return any(is_inside_vmap(held) for held in list(module._buffers.values()) if held is not None)


class Outside:
    """Parameters that are not searched, such as a teacher's. It finds those that one evaluation changes.

    They are copied as long as that needs no more memory than the parameters that are searched (`own`). Of others only
    norms are compared. What cannot be trained, subclasses of Tensor and what FSDP shards are left alone.
    """

    def __init__(self, modules: Iterable[Module], own: Iterable[Tensor]) -> None:
        self._own = set(own)
        self._room = sum(parameter.nbytes for parameter in self._own)
        self._before: dict[tuple[int, str], tuple[Module, Tensor, Tensor, bool]] = {}  # by the module's id, and a name
        self._sharded: set[Module] = set()  # inside of their forward their parameters are gathered for a while
        for module in modules:
            self.add(module)

    def add(self, module: Module) -> None:
        if is_fsdp(module):
            self._sharded.update(module.modules())
        for name, parameter in () if module in self._sharded else list(module._parameters.items()):
            if parameter is None or parameter in self._own or (id(module), name) in self._before:
                continue
            if is_plain(parameter) and can_have_gradient(parameter):
                self._room -= parameter.nbytes
                copied = self._room >= 0
                seen = parameter.detach().clone() if copied else _norm(parameter)
                self._before[id(module), name] = (module, parameter, seen, copied)

    def changed(self) -> Iterator[tuple[Module, str, Tensor, Tensor]]:
        """Module, name, parameter, and what was in it; if that is not known, what is in it now."""
        for (_, name), (module, parameter, seen, copied) in self._before.items():
            if not torch.equal(seen, parameter.detach() if copied else _norm(parameter)):
                yield module, name, parameter, seen if copied else parameter.detach().clone()


def _norm(parameter: Tensor) -> Tensor:
    return torch.linalg.vector_norm(parameter.detach(), dtype=torch.float64 if parameter.is_cpu else torch.float32)


def is_fsdp(module: Module) -> bool:
    """Whether `fully_shard` was called on the module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has called it has imported it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def modules_of(closures: Iterable[Callable[..., Any]]) -> list[Module]:
    """Modules that closures can reach: by references, and by the globals that they name."""
    waiting: deque[Any] = deque(closures)
    seen: set[int] = set()
    found: dict[Module, None] = {}
    while waiting and len(seen) < OBJECTS:
        one = waiting.popleft()
        if id(one) in seen or isinstance(one, (type, ModuleType, Tensor, str, bytes, int, float, type(None))):
            continue
        seen.add(id(one))
        if isinstance(one, Module):
            found.update(dict.fromkeys(one.modules()))
        if isinstance(one, FunctionType):
            named = [one.__globals__[name] for name in _names(one.__code__) if name in one.__globals__]
            waiting.extend([one.__closure__, one.__defaults__, one.__kwdefaults__, *named])
        elif len(held := gc.get_referents(one)) <= REFERENCES:
            waiting.extend(held)
    return list(found)


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))
