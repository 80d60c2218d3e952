"""What a closure may change beside the weights that are searched, as far as torch can list it."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .tensors import can_have_gradient, is_inside_vmap, is_plain

# Limits of the search for modules: objects that are looked at, nearest first, and entries of one collection.
OBJECTS, ENTRIES = 5_000, 200


class Buffers:
    """One module's buffers: which tensors they are, and what is in them."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._held = {
            name: (buffer, buffer.detach().clone() if buffer is not None and is_plain(buffer) else None)
            for name, buffer in module._buffers.items()
        }

    def put_back(self) -> None:
        now = dict(self.module._buffers.items())
        for name in now.keys() - self._held.keys():
            delattr(self.module, name)
        for name, (held, copy) in self._held.items():
            write(held, copy)
            if now.get(name, self) is not held:
                setattr(self.module, name, held)


def has_buffers(module: Module) -> bool:
    """Whether a module has buffers of its own. Inside of a vmap it has those of the vmap for a while."""
    held = [buffer for _, buffer in module._buffers.items()] if len(module._buffers) else []
    return bool(held) and not any(is_inside_vmap(buffer) for buffer in held if buffer is not None)


def write(tensor: Tensor | None, copy: Tensor | None) -> None:
    """Put the copy of a tensor's content back into it."""
    if tensor is None or copy is None:
        return
    if tensor.shape == copy.shape and tensor.dtype == copy.dtype:
        tensor.detach().copy_(copy)
    else:  # the closure has given it other data
        tensor.data = copy.clone()


class Outside:
    """Parameters that are not searched, such as a teacher's. It finds those that one evaluation changes.

    They are copied as long as the copies need no more memory than one's `own` parameters, which are searched. Of others
    only norms are compared. Integers, float8, subclasses of Tensor and what FSDP shards are left alone.
    """

    def __init__(self, modules: Iterable[Module], own: Iterable[Tensor]) -> None:
        self._own = set(own)
        self._room = sum(parameter.nbytes for parameter in self._own)
        self._before: dict[tuple[Module, str], tuple[Tensor, Tensor, bool]] = {}
        self._sharded: set[Module] = set()  # inside of their forward their parameters are gathered for a while
        for module in modules:
            self.add(module)

    def add(self, module: Module) -> None:
        if is_fsdp(module):
            self._sharded.update(module.modules())
        for name, parameter in () if module in self._sharded else list(module._parameters.items()):
            if parameter is None or parameter in self._own or (module, name) in self._before:
                continue
            if not is_plain(parameter) or not can_have_gradient(parameter):
                continue
            self._room -= parameter.nbytes
            copied = self._room >= 0
            self._before[module, name] = (parameter, parameter.detach().clone() if copied else _norm(parameter), copied)

    def changed(self) -> Iterator[tuple[Module, str, Tensor, Tensor]]:
        """Module, name, parameter, and what was in it; if that is not known, what is in it now."""
        for (module, name), (parameter, seen, copied) in self._before.items():
            if not torch.equal(seen, parameter.detach() if copied else _norm(parameter)):
                yield module, name, parameter, seen if copied else parameter.detach().clone()


def _norm(parameter: Tensor) -> Tensor:
    return torch.linalg.vector_norm(parameter.detach(), dtype=torch.float64 if parameter.is_cpu else torch.float32)


def is_fsdp(module: Module) -> bool:
    """Whether `fully_shard` was called on the module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has called it has imported it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def modules_of(closures: Iterable[Callable[..., Any]]) -> list[Module]:
    """Modules that closures can reach: in their cells, defaults, bound objects and the globals that they name."""
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
        waiting.extend(_held_by(one))
    return list(found)


def _held_by(one: Any) -> list[Any]:
    if isinstance(one, FunctionType):
        cells = [held for cell in one.__closure__ or () for held in _content(cell)]
        named = [one.__globals__[name] for name in _names(one.__code__) if name in one.__globals__]
        return [*cells, *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values(), *named]
    if isinstance(one, MethodType):
        return [one.__self__, one.__func__]
    if isinstance(one, partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, (dict, list, tuple, set, frozenset, deque)):
        return list(one.values() if isinstance(one, dict) else one) if len(one) <= ENTRIES else []
    try:
        return list(vars(one).values())
    except TypeError:  # an object without attributes of its own
        return []


def _content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty
        return []


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))
