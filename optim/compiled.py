"""Calls adam.c from Python. The machine's C compiler builds it in a fifth of a second, once a process."""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .merging import Group
from .points import Point, State

SOURCE = Path(__file__).with_name("adam.c")
# These flags leave one thing of the arithmetic to the compiler: the order of a sum of at most 4,096 terms.
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC", "-shared")
FUNCTIONS = {torch.float32: "place_float", torch.float64: "place_double"}
# With this many entries a thread of its own is worth what it costs.
SHARE = 2**16


def place(
    group: Group, points: Sequence[Point], states: Mapping[Tensor, State], size: float
) -> tuple[list[Tensor], list[Point]]:
    """Write trial points w + eta d.

    d is the direction of `plain_directions`, without momentum and amsgrad. A decoupled weight decay lambda makes it
    d - lambda w. A coupled one replaces the g in it by g + lambda w.

    Args:
        states: Adam's state of each parameter, before this step.
        size: eta.

    Returns:
        - For each data type a tensor of shape [3] in float64: <g, d>, <w, d> and |d|^2 of the points that were written.
          The last two are 0 without a coupled decay.
        - The points that were not written. They are not in main memory, or not in one piece, or of other data types, or
          Adam has not moved them before.
    """
    taken: dict[torch.dtype, list[Point]] = {}
    left = []
    for point in points:
        if _takes(point, states.get(point.parameter)):
            taken.setdefault(point.unmoved.dtype, []).append(point)
        else:
            left.append(point)
    return [_place(group, each, [states[point.parameter] for point in each], size) for each in taken.values()], left


def _takes(point: Point, state: State | None) -> bool:
    dtype = point.unmoved.dtype
    if not state or dtype not in FUNCTIONS:
        return False
    return all(
        type(vector) is Tensor
        and vector.is_cpu
        and vector.dtype == dtype
        and vector.is_contiguous()
        and not vector.is_neg()
        for vector in _vectors(point, state)
    )


def _vectors(point: Point, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w, g, v and where the trial point is written, as adam.c takes them."""
    return point.unmoved, point.gradient, state["exp_avg_sq"], point.trial


def _place(group: Group, points: Sequence[Point], states: Sequence[State], size: float) -> Tensor:
    beta2, decay = float(group["betas"][1]), group["weight_decay"]
    corrections = [1 - beta2 ** (float(state["step"]) + 1) for state in states]
    decays = (0.0, decay) if group.get("decoupled_weight_decay", False) else (decay, 0.0)
    vectors = zip(*map(_vectors, points, states), strict=True)
    sizes = [point.unmoved.numel() for point in points]
    arguments = (
        ctypes.c_int64(len(points)),
        _array(ctypes.c_int64, sizes),
        *(_array(ctypes.c_void_p, [vector.data_ptr() for vector in each]) for each in vectors),
        _array(ctypes.c_double, [beta2 / correction for correction in corrections]),
        _array(ctypes.c_double, [(1 - beta2) / correction for correction in corrections]),
        *map(ctypes.c_double, (group["eps"], size, *decays)),
    )
    function = getattr(library(), FUNCTIONS[points[0].unmoved.dtype])
    total = sum(sizes)
    threads = min(torch.get_num_threads(), 1 + total // SHARE)
    bounds = [ctypes.c_int64(total * k // threads) for k in range(threads + 1)]
    run = map if threads == 1 else _pool(threads, os.getpid()).map
    dots = [(ctypes.c_double * 3)() for _ in range(threads)]
    list(run(lambda start, stop, sums: function(start, stop, sums, *arguments), bounds[:-1], bounds[1:], dots))
    return torch.tensor([sum(column) for column in zip(*dots, strict=True)], dtype=torch.float64)


def _array(kind: Any, values: Sequence[float]) -> Any:
    return (kind * len(values))(*values)


def library() -> ctypes.CDLL:
    """The compiled code.

    Raises:
        RuntimeError: there is no C compiler, or it fails. The error says how.
    """
    found = _library(os.environ.get("CC", ""))
    if isinstance(found, str):
        raise RuntimeError(
            f"compiled=True needs a C compiler: {found}; "
            "allowed: another one by the environment variable CC, or compiled=False"
        )
    return found


def is_available() -> bool:
    return not isinstance(_library(os.environ.get("CC", "")), str)


@functools.cache
def _library(compiler: str) -> ctypes.CDLL | str:
    """The compiled code, or a text that says why there is none."""
    try:
        command = shlex.split(compiler) or ["cc"]
        try:
            return _build([*command, "-march=native"])  # made for this processor, if the compiler knows it
        except subprocess.CalledProcessError:
            return _build(command)
    except subprocess.CalledProcessError as error:
        return f"{compiler or 'cc'}: {(error.stderr.strip().splitlines() or [error])[0]}"
    # There is no compiler, or it hangs; its output has no place, or may not be loaded; a quote in CC does not close.
    except (OSError, AttributeError, subprocess.TimeoutExpired, ValueError) as error:
        return f"{compiler or 'cc'}: {error}"


def _build(command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder, "adam.so"))
        subprocess.run(
            [*command, *FLAGS, "-o", target, str(SOURCE), "-lm"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=60,
        )
        built = ctypes.CDLL(target)
    for name in FUNCTIONS.values():
        getattr(built, name).restype = None
    return built


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool a process, as threads do not survive a fork. During a call ctypes frees the interpreter's lock."""
    return ThreadPoolExecutor(threads)
