"""Where the time and the memory of one training step go."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from optim import LineSearch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports each start and stop on stderr

Closure = Callable[[], Tensor]
Step = Callable[[Closure], Tensor]
"""one training step on a closure that returns the mini-batch loss"""


def stepping(optimizer: torch.optim.Optimizer) -> Step:
    """The training step of a line search, or of a plain optimizer, which does not call `backward` itself."""

    def step(closure: Closure) -> Tensor:
        if isinstance(optimizer, LineSearch):
            return optimizer.step(closure)
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@dataclass
class Clock:
    """Seconds of one step: of its first evaluation, its backward passes, and its further evaluations (the trials)."""

    now: Callable[[], float]
    forward: float = 0.0
    backward: float = 0.0
    trial: float = 0.0
    trials: int = 0
    total: float = 0.0

    @property
    def arithmetic(self) -> float:
        return self.total - self.forward - self.backward - self.trial

    def step(self, step: Step, closure: Closure) -> None:
        evaluations = 0

        def timed() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            start = self.now()
            with record_function("evaluation"):
                loss = closure()
            elapsed = self.now() - start
            if evaluations == 1:
                self.forward += elapsed
            else:
                self.trial, self.trials = self.trial + elapsed, self.trials + 1
            return loss

        with self._timing_backward():
            start = self.now()
            step(timed)
            self.total = self.now() - start

    @contextmanager
    def _timing_backward(self) -> Iterator[None]:
        backward = Tensor.backward

        def timed(*args: Any, **kwargs: Any) -> None:
            start = self.now()
            with record_function("backward"):
                backward(*args, **kwargs)
            self.backward += self.now() - start

        Tensor.backward = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            Tensor.backward = backward  # type: ignore[method-assign]


def extra_memory(step: Step, closure: Closure, parameters: Sequence[Tensor]) -> int:
    """Peak bytes of a step outside of forward and backward passes, without weights, gradients and older memory.

    It is computed from the allocator's events. The model's activations exist only within evaluations and the backward
    pass, so they are not counted.
    """
    gradients = sum(p.numel() * p.element_size() for p in parameters if p.grad is not None)
    for p in parameters:
        p.grad = None  # else the step would use this memory, which is there already, for other things
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        Clock(time.perf_counter).step(step, closure)
    marks: list[tuple[int, int, Any]] = []
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            marks.append((event.start_ns(), 0, event.nbytes()))
        elif event.name() in ("evaluation", "backward"):
            marks.append((event.start_ns(), 1, event.name()))
            marks.append((event.start_ns() + event.duration_ns(), 2, event.name()))
    live, peak, inside, backwards = 0, 0, 0, 0
    for _, kind, value in sorted(marks, key=lambda mark: mark[:2]):
        if kind == 0:
            live += value
        else:
            inside += 1 if kind == 1 else -1
            backwards += kind == 2 and value == "backward"
        if backwards and not inside:
            peak = max(peak, live - gradients)
    return peak


def calls(step: Step, closure: Closure) -> int:
    """Calls of kernels in a step outside of forward and backward passes; on a CPU, of torch's operators."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        Clock(time.perf_counter).step(step, closure)
    events = profiler.profiler.kineto_results.events()
    inside = [(e.start_ns(), e.end_ns()) for e in events if e.name() in ("evaluation", "backward")]
    names = ("cudaLaunchKernel", "cuLaunchKernel") if torch.cuda.is_available() else ("aten::",)
    made = [event.start_ns() for event in events if event.name().startswith(names)]
    return sum(not any(start <= at <= end for start, end in inside) for at in made)
