"""The settings. Each is written once, with its name, its default, what is allowed and what it means."""

import functools
import inspect
import math
import numbers
import textwrap
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

import torch

T = TypeVar("T")

RENAMED = {"magnitude": "loss_scale"}
"""settings of older versions: old name -> new name"""
REMOVED = {"keep_masks": "it made a step 2 % faster at most"}
"""settings of older versions that have no successor, and why"""


class Allowed(NamedTuple):
    """A test of a value, and its words for an error."""

    holds: Callable[[Any], bool]
    words: str


def setting(default: Any, allowed: Allowed, meaning: str) -> Any:
    """A dataclass field whose value is checked and whose meaning `help` shows."""
    return field(default=default, metadata={"allowed": allowed, "meaning": meaning})


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _are_betas(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_number(b) and 0 <= b < 1 for b in value)


def _or_none(allowed: Allowed) -> Allowed:
    return Allowed(lambda value: value is None or allowed.holds(value), f"{allowed.words}, or None")


SHARE = Allowed(lambda value: _is_number(value) and 0 < value < 1, "between 0 and 1")
ABOVE_0 = Allowed(lambda value: _is_number(value) and 0 < value < math.inf, "above 0")
NOT_NEGATIVE = Allowed(lambda value: _is_number(value) and 0 <= value < math.inf, "0 or above")
COUNT = Allowed(is_count, "a whole number from 1")
STEPS = Allowed(is_count, "a whole number of steps from 1")
BOUND = _or_none(ABOVE_0)
SWITCH = Allowed(lambda value: isinstance(value, bool), "True or False")


@dataclass(frozen=True)
class Settings:
    """How any of the optimizers searches."""

    criterion: Literal["armijo", "smoothed", "nonmonotone"] = setting(
        "smoothed",
        Allowed(lambda value: value in ("armijo", "smoothed", "nonmonotone"), "'armijo', 'smoothed' or 'nonmonotone'"),
        'what accepts a trial: "armijo" judges each mini-batch by itself (Eq. 1 and 5), "smoothed" the average '
        'decrease over searches (`Smoothed`), "nonmonotone" the decrease from a mean of past losses (`NonMonotone`).',
    )
    c: float = setting(0.5, SHARE, "sufficient decrease of the criterion: the share of the predicted one.")
    smoothing: float = setting(
        0.9,
        Allowed(lambda value: _is_number(value) and 0 <= value < 1, "0 or above, below 1"),
        "beta, the weight of what the criterion remembers (Armijo's remembers nothing).",
    )
    first_search: Literal["bracket", "backtrack"] = setting(
        "bracket",
        Allowed(lambda value: value in ("bracket", "backtrack"), "'bracket' or 'backtrack'"),
        'how the first step size is found: "backtrack" shrinks from initial_step_size; "bracket" comes near the '
        "minimum of the loss along the direction from either side, wherever it starts, so that the loss, the data and "
        "the weights may be in any unit.",
    )
    first_c: float = setting(
        0.5,
        SHARE,
        "c until a first step size is accepted. Adam's first direction is a sign vector that fits one "
        "mini-batch; at 1/2 the search goes no further than the minimum of a parabola. With c = 0.1 there, a 6-layer "
        "encoder stays on the plateau of a constant answer for one seed in three. The paper has `c` there, too.",
    )
    backtracking: float = setting(0.8, SHARE, "delta, the factor of a rejected step size.")
    initial_step_size: float | None = setting(
        None,
        BOUND,
        "eta_0, where the first search starts. None: |f| / |<g, d>|, where the tangent reaches 0, which has the right "
        "unit whatever the loss is measured in; and at least where |eta d| is 1e-4 of |w|.",
    )
    first_backtracking: float = setting(
        0.5,
        SHARE,
        "the factor until a first step size is accepted: for Adam's directions it lies some powers of ten below eta_0 "
        "(45 trials with 0.9, 8 with 0.5). The paper has `backtracking` there, too.",
    )
    growth_steps: float = setting(
        math.inf,
        Allowed(lambda value: _is_number(value) and value > 0, "above 0 (inf: no growth)"),
        "n, the steps in which an accepted step size may double: a search starts from eta 2^(1/n) (Eq. 2, where n is "
        "m/b).",
    )
    search_growth: float = setting(
        1.1,
        Allowed(lambda value: _is_number(value) and 1 <= value < math.inf, "1 or above"),
        "a search starts from the last step size times this, beside the growth of Eq. 2; where the decrease of the "
        "last accepted trial was within rounding, from the last step size.",
    )
    linear_growth: float = setting(
        2.0,
        Allowed(lambda value: _is_number(value) and 1 <= value < math.inf, "1 or above"),
        "takes the place of search_growth, if it is larger and search_growth is above 1, after a trial that fell by "
        "nearly all that its slope predicts.",
    )
    max_trials: int = setting(
        100,
        COUNT,
        "trials of a search at most; the first search may take ten times as many. In a joint search of components it "
        "bounds those that shrink all, after those that shrink one alone.",
    )
    max_interval: int = setting(
        32,
        STEPS,
        "steps from one search to the next at most; steps in between take the step size untested, at the cost of the "
        "host's own step. 1: a search at every step, as in the paper.",
    )
    interval_growth: int | Literal["drift"] | None = setting(
        4,
        Allowed(
            lambda value: value in (None, "drift") or is_count(value), "a whole number of steps from 1, 'drift' or None"
        ),
        "after k steps the next search comes ceil(k / interval_growth) steps later, at most max_interval, but at once "
        "where a search has more than halved the step size, or it grows by linear_growth. None: a search that takes "
        'its first trial doubles the steps to the next one, any other sets them to 1. "drift": SaLSA\'s rule, see '
        "`Turns.drift`.",
    )
    total_steps: int | None = setting(
        None,
        _or_none(STEPS),
        "the steps of the whole run, where they are known: moves then take the step size times a factor that falls "
        "from 1 to 0 along half a cosine. Searches test it without the factor. Later steps move nothing, and say so. "
        "None: no decay.",
    )
    averaging: float | None = setting(
        None,
        _or_none(NOT_NEGATIVE),
        "a, for runs whose number of steps is not known: an average of the iterates is kept, whose mean age is about "
        "k / (a + 2) steps after k of them; `eval()` puts it into the parameters, `train()` the iterates back. None: "
        "no average.",
    )
    rounding: float = setting(
        4.0,
        NOT_NEGATIVE,
        "tolerance of the test in units of the loss's rounding error; 0: the paper's strict test. The difference of "
        "two losses has two such errors, and each is itself a sum: with 4 no step size collapses in 5,000 steps, in "
        "float32 and bfloat16.",
    )
    loss_scale: float | None = setting(
        None,
        _or_none(NOT_NEGATIVE),
        "that error is taken to be machine precision times max(|loss|, loss_scale), as a cross-entropy near 0 is the "
        "logarithm of a number near 1. None: it is machine precision times |loss| until a search has rejected three "
        "trials; then it is measured, by one evaluation at weights that differ by rounding. So losses may be in any "
        "unit.",
    )
    max_nonfinite: int = setting(
        10, COUNT, "steps in a row without a finite loss and gradient before a step raises FloatingPointError."
    )
    check_closure: bool = setting(
        True,
        SWITCH,
        "whether the first step, and steps after several failed searches, evaluate the unmoved weights once more, as "
        "a trial would be, and say what is wrong where the loss differs; at most one forward in a hundred evaluations.",
    )
    clip_norm: float | None = setting(
        None,
        BOUND,
        "the gradient is scaled to at most this norm before the search, as by torch.nn.utils.clip_grad_norm_; g is the "
        "clipped gradient in all that follows. None: not clipped.",
    )
    clip_value: float | None = setting(
        None, BOUND, "its entries are cut to [-clip_value, clip_value], as by torch.nn.utils.clip_grad_value_."
    )


@dataclass(frozen=True)
class AdamSettings:
    """Which direction of Adam is tested, which is moved along, and how trial points are written."""

    betas: tuple[float, float] = setting(
        (0.0, 0.999),
        Allowed(_are_betas, "two numbers from 0, below 1"),
        "torch's: of the mean gradient and of its square. With the first one 0 the move is the direction that is "
        "tested, so that an accepted trial point is the next iterate. Adam's own, and the paper's, are (0.9, 0.999).",
    )
    direction: Literal["gradient", "momentum"] = setting(
        "gradient",
        Allowed(lambda value: value in ("gradient", "momentum"), "'gradient' or 'momentum'"),
        '"gradient" tests d as above; "momentum" tests the direction that is taken.',
    )
    compiled: bool | None = setting(
        None,
        Allowed(lambda value: value is None or isinstance(value, bool), "True, False or None"),
        "whether trial points in main memory are made by C code, in one pass over memory, which the machine's C "
        "compiler (`cc`, or that of the environment variable CC) builds in a fifth of a second. None: where there is "
        "one. What that code does not know (momentum, amsgrad, types other than float32 and float64) is done without "
        "it; step sizes differ by rounding.",
    )


@dataclass(frozen=True)
class ComponentSettings:
    """How the components of PLASLS take turns."""

    first_steps: int | Literal["settled"] = setting(
        "settled",
        Allowed(lambda value: value == "settled" or is_count(value), "a whole number from 1, or 'settled'"),
        "whole-network searches before the components' own: a number (1 is the paper's text, 6 the published code), or "
        '"settled": until three in a row have taken their first trial.',
    )
    joint: int | Literal["always", "never"] = setting(
        "always",
        Allowed(
            lambda value: value in ("always", "never") or is_count(value),
            "'always', 'never' or a whole number of steps from 1",
        ),
        'how the joint move is tested. "never": each component\'s trial moves that component alone (Eq. 6), and the '
        'move of all together is untested. "always": the trial moves all components, each with its own step size, and '
        "must decrease f by c times the sum of all predicted decreases; the searched component's step size is shrunk "
        "first, then all together. A number n: Eq. 6, and every n-th step the joint test instead.",
    )
    growth: Literal["searched", "all"] = setting(
        "searched",
        Allowed(lambda value: value in ("searched", "all"), "'searched' or 'all'"),
        '"searched": a step size grows (Eq. 2) when its component is searched; "all": all grow at every step.',
    )
    merge_threshold: float = setting(
        1e-12,
        NOT_NEGATIVE,
        "lambda of Algorithm 1: after a step, if the smallest step size is at most this, its component is merged with "
        "that of the second smallest. 0: never.",
    )


def take(kind: type[T], given: dict[str, Any]) -> T:
    """Take the settings of one kind out of the arguments of an optimizer. The others stay in `given`.

    Raises:
        ValueError: a value is out of range. The error says what is allowed.
    """
    for old, new in RENAMED.items():
        if old in given and new in {each.name for each in fields(kind)}:  # type: ignore[arg-type]
            warnings.warn(f"the setting {old} is called {new} now", FutureWarning, stacklevel=4)
            given[new] = given.pop(old)
    for name in REMOVED.keys() & given.keys():
        raise TypeError(f"the setting {name} was taken out: {REMOVED[name]}")
    own = {each.name: given.pop(each.name) for each in fields(kind) if each.name in given}  # type: ignore[arg-type]
    settings = kind(**own)
    for each in fields(kind):  # type: ignore[arg-type]
        allowed = each.metadata["allowed"]
        require(each.name, value := getattr(settings, each.name), allowed.holds(value), allowed.words)
    return settings


def require(name: str, value: object, holds: bool, allowed: str) -> None:
    """Check a setting.

    Raises:
        ValueError: the condition does not hold. The error says what is allowed.
    """
    if not holds:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def refuse(arguments: dict[str, Any]) -> None:
    """Refuse those arguments of torch's optimizers, or keys of one param group, that a line search cannot have.

    Raises:
        TypeError: there is an `lr`.
        ValueError: `maximize`, `capturable` or `differentiable` is set.
    """
    if "lr" in arguments:
        raise TypeError(
            "there is no lr: the line search finds it; initial_step_size is where it starts. Where a trainer passes "
            "one (skorch, fastai): lambda params, lr, **settings: AdamSLS(params, **settings)"
        )
    for name in ("maximize", "capturable", "differentiable"):
        if arguments.get(name):
            raise ValueError(f"{name} is not supported: the line search minimises, outside of any graph")


def refuse_types(groups: Iterable[dict[str, Any]]) -> None:
    """Refuse weights of a type in which Adam's eps is 0, as g / (sqrt(v) + eps) would be 0 / 0.

    Raises:
        ValueError: a param group has such weights.
    """
    for group in groups:
        for kind in {parameter.dtype for parameter in group["params"] if parameter.requires_grad}:
            smallest = torch.finfo(kind).tiny * torch.finfo(kind).eps
            if 0 < group.get("eps", 0) <= smallest / 2:  # rounds to 0
                raise ValueError(
                    f"the weights of {group['name']!r} are {str(kind).removeprefix('torch.')}, in which "
                    f"eps={group['eps']} is 0 and small gradients' squares are, too: Adam's step would be 0 / 0; "
                    "allowed: float32 weights (model.float()), and where speed is needed the closure under "
                    "torch.autocast(device, torch.float16) with the optimizer's grad_scaler=torch.amp.GradScaler(); "
                    "or bfloat16 weights"
                )


def documented(*kinds: type, **defaults: Any) -> Callable[[type[T]], type[T]]:
    """Class decorator that adds settings of these kinds to an optimizer's docstring and signature.

    Args:
        defaults: defaults that differ from the settings' own.
    """
    known = [(each, defaults.get(each.name, each.default)) for kind in kinds for each in fields(kind)]
    as_keyword = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)

    def document(cls: type[T]) -> type[T]:
        whole: Any = {"break_on_hyphens": False, "break_long_words": False}
        lines = [f"{each.name} ({default!r}): {each.metadata['meaning']}" for each, default in known]
        wrapped = [
            textwrap.fill(line, 112, initial_indent=" " * 8, subsequent_indent=" " * 12, **whole) for line in lines
        ]
        cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", "    Settings (defaults):", *wrapped, "    "])
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD),
                *(as_keyword(each.name, default=default, annotation=each.type) for each, default in known),
                as_keyword("grad_scaler", default=None),
                inspect.Parameter("host", inspect.Parameter.VAR_KEYWORD),
            ]
        )
        return cls

    return document
