"""optim/compiled.py: the C code finds what torch's operations find, in any number of threads, or leaves it to them."""

import copy
import math
import os
import subprocess
import sys
import tempfile

import pytest
import torch
from optim.directions import plain_directions
from optim.points import Point

import optim
from optim import compiled, split
from tests.small import classic, network, train

PLASLS, AdamSLS = classic(optim.PLASLS), classic(optim.AdamSLS)

pytestmark = pytest.mark.skipif(not compiled.is_available(), reason="no C compiler (cc) on this machine")


def placed(dtype, eta=0.3, sizes=(1, 5000, 3, 8192, 77), ages=(1, 4, 4, 2, 9), **group):
    """Points of these sizes in tensors of two dimensions, what the C code makes of them, and Adam's states."""
    generator = torch.Generator().manual_seed(0)
    group = {"betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.0, "amsgrad": False} | group
    points, states = [], {}
    for size, age in zip(sizes, ages, strict=True):
        parameter = torch.nn.Parameter(torch.randn(1, size, generator=generator, dtype=dtype))
        parameter.grad = torch.randn(1, size, generator=generator, dtype=dtype)
        second = torch.rand(1, size, generator=generator, dtype=dtype)
        states[parameter] = {"step": torch.tensor(float(age)), "exp_avg": second * 0, "exp_avg_sq": second}
        points.append(Point(parameter, None))
    before = copy.deepcopy([(p.parameter.detach(), p.gradient, states[p.parameter]) for p in points])
    with torch.no_grad():
        slopes, left = compiled.place(group, points, states, eta)
    assert not left
    for point, (w, g, state) in zip(points, before, strict=True):  # nothing but the trial point is written
        assert torch.equal(point.unmoved, w)
        assert torch.equal(point.gradient, g)
        assert all(torch.equal(states[point.parameter][name], state[name]) for name in state)
    return points, states, group, [term[0] for term in slopes]


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_c_code_makes_the_plain_trial_point_and_slope(dtype, digits, threads, monkeypatch):
    monkeypatch.setattr(compiled, "SHARE", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    points, states, group, slopes = placed(dtype)
    slope = 0.0
    for point in points:
        (d,) = plain_directions(group, 0.0, [point.gradient], [states[point.parameter]])
        assert torch.allclose(point.trial, point.unmoved + 0.3 * d, rtol=digits, atol=digits)
        slope += (point.gradient.double() * d.double()).sum().item()
    assert slopes[0].dtype == torch.float64
    assert slopes[0].item() == pytest.approx(slope, rel=digits)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("make", [AdamSLS, PLASLS])
def test_steps_are_those_of_torchs_operations(make, decoupled, monkeypatch):
    taken = []
    place = compiled._place
    monkeypatch.setattr(compiled, "_place", lambda *of: (taken.append(len(of[1])), place(*of))[1])

    def run(by_c):
        model = network().double()
        groups = split(model, lambda name: name)
        options = {"weight_decay": 0.01, "decoupled_weight_decay": decoupled}
        return train(model, make(groups, compiled=by_c, **options)), model

    (found, model), (plain, its) = run(True), run(False)
    assert sum(taken) >= 4 * 11  # all but the first step
    assert [trials for trials, *_ in found] == [trials for trials, *_ in plain]
    for column in (1, 2):
        assert [row[column] for row in found] == pytest.approx([row[column] for row in plain], rel=1e-11)
    for p, q in zip(model.parameters(), its.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=0)


def test_the_slope_of_many_float32_entries_keeps_its_digits():
    size = 3_000_000
    points, states, group, slopes = placed(torch.float32, sizes=(size,), ages=(5,))
    (point,) = points
    state = {name: value.double() for name, value in states[point.parameter].items()}
    g = point.gradient.double()
    (d,) = plain_directions(group, 0.0, [g], [state])
    assert slopes[0].item() == pytest.approx((g * d).sum().item(), rel=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 17, 4999])
def test_a_gradient_that_is_not_finite_shows_in_the_slope(value, place):
    """In float32 and at any place of a vectorised loop."""
    parameter = torch.nn.Parameter(torch.ones(5000))
    parameter.grad = torch.ones(5000)
    parameter.grad[place] = value
    state = {"step": torch.tensor(3.0), "exp_avg_sq": torch.ones(5000)}
    group = {"betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.0}
    with torch.no_grad():
        (slope,), _ = compiled.place(group, [Point(parameter, None)], {parameter: state}, 0.1)
    assert not math.isfinite(slope[0])


def halves(w, g, v):
    return w.bfloat16(), g.bfloat16(), v.bfloat16()


def transposed(w, g, v):
    return w.t(), g.t(), v.t()


def mixed(w, g, v):
    return w, g, v.double()


def elsewhere(w, g, v):
    return w.to("meta"), g.to("meta"), v.to("meta")


def negative_view(w, g, v):
    return w, torch._neg_view(g), v


def subclass(w, g, v):
    return w, g, v.as_subclass(type("Other", (torch.Tensor,), {}))


@pytest.mark.parametrize("change", [halves, transposed, mixed, elsewhere, negative_view, subclass])
def test_what_the_c_code_does_not_know_is_left(change):
    w, g, v = change(torch.ones(6, 4), torch.ones(6, 4), torch.ones(6, 4))
    parameter = torch.nn.Parameter(w)
    parameter.grad = g
    state = {"step": torch.tensor(3.0), "exp_avg_sq": v}
    point = Point(parameter, None)
    with torch.no_grad():
        assert compiled.place({}, [point], {parameter: state}, 0.1) == ([], [point])
        assert compiled.place({}, [point], {}, 0.1) == ([], [point])  # Adam has not moved it


@pytest.mark.parametrize("options", [{"direction": "momentum"}, {"amsgrad": True}, {"compiled": False}])
def test_other_directions_are_not_made_by_it(options, monkeypatch):
    monkeypatch.setattr(compiled, "_place", lambda *_: pytest.fail("called"))
    model = network()
    train(model, AdamSLS(model.parameters(), **options), 3)


def test_every_process_finds_the_same_bits(tmp_path):
    """The code is built anew in each."""
    script = (
        "import sys, torch; from tests.small import classic, network, train; from optim import AdamSLS\n"
        "model = network(300); found = train(model, classic(AdamSLS)(model.parameters(), compiled=True))\n"
        "torch.save((list(model.parameters()), found), sys.argv[1])\n"
    )

    def run(path):
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        return torch.load(path)

    (weights, found), (others, found_again) = (run(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert found == found_again
    assert all(torch.equal(w, v) for w, v in zip(weights, others, strict=True))


# -- compilers that are not there, or fail -----------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """Sets the environment variable CC for a library that is not built yet."""
    compiled._library.cache_clear()
    yield lambda command: monkeypatch.setenv("CC", command)
    compiled._library.cache_clear()


FAULTS = {
    "absent": ("no-such-compiler", "no-such-compiler"),
    "failing": ("cc -no-such-option", "no-such-option"),
    "builds nothing": ("true", "adam.so"),
    "builds something else": ("cc -Dplace_float=other", "place_float"),
    "no command": ("cc 'open", "No closing quotation"),
}


@pytest.mark.parametrize(("command", "says"), FAULTS.values(), ids=FAULTS.keys())
def test_without_a_compiler_an_explicit_wish_is_an_error_and_the_default_does_without(command, says, compiler):
    compiler(command)
    model = network()
    with pytest.raises(RuntimeError, match=f"{says}.*allowed: another one by the environment variable CC") as error:
        AdamSLS(model.parameters(), compiled=True)
    assert "\n" not in str(error.value)
    other = network()
    found = train(model, AdamSLS(model.parameters()))
    assert found == train(other, AdamSLS(other.parameters(), compiled=False))


@pytest.mark.parametrize("fault", [FileNotFoundError("no temporary folder"), subprocess.TimeoutExpired("cc", 60)])
def test_a_build_that_cannot_run_does_not_stop_training(fault, compiler, monkeypatch):
    def broken(*_, **__):
        raise fault

    what = (subprocess, "run") if isinstance(fault, subprocess.TimeoutExpired) else (tempfile, "TemporaryDirectory")
    monkeypatch.setattr(*what, broken)
    model = network()
    assert len(train(model, AdamSLS(model.parameters()), 3)) == 3
    with pytest.raises(RuntimeError, match="compiled=True needs a C compiler: cc: "):
        AdamSLS(model.parameters(), compiled=True)


def test_a_compiler_is_asked_once(compiler, monkeypatch):
    compiler("no-such-compiler")
    asked = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *of, **how: (asked.append(of), run(*of, **how))[1])
    for _ in range(2):
        model = network()
        train(model, AdamSLS(model.parameters()), 3)
    assert len(asked) == 1


def test_a_compiler_that_does_not_know_this_processor_builds_for_any(compiler, tmp_path):
    script = tmp_path / "cc"
    script.write_text('#!/bin/sh\ncase "$*" in *native*) exit 1;; esac\nexec cc "$@"\n')
    script.chmod(0o755)
    compiler(str(script))
    assert compiled.is_available()


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(compiled, "SHARE", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (slope,) = placed(torch.float32)[3]
    child = os.fork()
    if not child:
        os._exit(placed(torch.float32)[3][0].item() != slope.item())
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("value", ["yes", 0, 1])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=r"compiled is .*; allowed: True, False or None"):
        AdamSLS(network().parameters(), compiled=value)
