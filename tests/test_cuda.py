"""On an accelerator: searches are those of the CPU, steps keep their randomness, runs resume. Skipped without one."""

import io
import json

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import split
from tests.searching import every_optimizer, network
from tests.small import batches, by_layer, weights
from tests.test_train import config, read
from train.run import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

CUDA = torch.device("cuda")

DEFAULTS = {
    "SGDSLS": lambda model: optim.SGDSLS(model.parameters()),
    "AdamSLS": lambda model: optim.AdamSLS(model.parameters()),
    "AdamSLS, fused": lambda model: optim.AdamSLS(model.parameters(), fused=True),
    "AdamSLS, momentum": lambda model: optim.AdamSLS(model.parameters(), betas=(0.9, 0.999)),
    "AdamW": lambda model: optim.with_line_search(torch.optim.AdamW)(model.parameters()),
    "AdamSLS, decay": lambda model: optim.AdamSLS(model.parameters(), weight_decay=0.1),
    "AdamSLS, averaged": lambda model: optim.AdamSLS(model.parameters(), averaging=9),
    "PLASLS": lambda model: optim.PLASLS(split(model, by_layer)),
    "SaLSA": lambda model: optim.SaLSA(model.parameters()),
}
by_default = pytest.mark.parametrize("make", DEFAULTS.values(), ids=DEFAULTS.keys())


def searched(make, device, steps=20):
    """Trials and accepted step size of each step, and the weights, in float64."""
    model = network().double().to(device)
    optimizer, found = make(model), []
    for x, y in batches(steps):
        x, y = x.double().to(device), y.to(device)
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        found.append((optimizer.search.trials, optimizer.search.after))
    return found, weights(model).cpu()


def assert_same_searches(make):
    (ours, ended), (expected, expected_end) = searched(make, CUDA), searched(make, "cpu")
    assert [trials for trials, _ in ours] == [trials for trials, _ in expected]
    assert [size for _, size in ours] == pytest.approx([size for _, size in expected], rel=1e-6)
    assert torch.allclose(ended, expected_end, rtol=1e-6, atol=1e-8)


@every_optimizer
def test_the_papers_searches_are_those_of_the_cpu(make):
    assert_same_searches(make)


@by_default
def test_searches_by_default_are_those_of_the_cpu(make):
    assert_same_searches(make)


@by_default
def test_a_trial_at_the_unmoved_weights_has_the_loss_of_the_step_though_dropout_draws_on_the_device(make):
    """The closure's own check finds that it is the same function each time, and the device's generator moves once."""
    model = network(dropout=0.5).to(CUDA)
    optimizer = make(model)
    for x, y in batches(5):
        x, y = x.to(CUDA), y.to(CUDA)
        before = torch.cuda.get_rng_state()
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        after = torch.cuda.get_rng_state()
        torch.cuda.set_rng_state(before)
        model(x)
        assert torch.equal(torch.cuda.get_rng_state(), after)
        assert not torch.equal(before, after)


def steps_of(model, optimizer, data):
    return [float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))) for x, y in data]


@by_default
def test_copies_that_are_kept_in_cpu_memory_change_no_bit(make):
    one, other = network().to(CUDA), network().to(CUDA)
    plain, offloaded = make(one), make(other)
    offloaded.offload = True
    data = [(x.to(CUDA), y.to(CUDA)) for x, y in batches(20)]
    assert steps_of(one, plain, data) == steps_of(other, offloaded, data)
    assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("offload", [False, True])
def test_a_trial_holds_one_copy_of_the_weights_on_the_device_or_none_with_offload(offload):
    weight = torch.nn.Parameter(torch.randn(2**20, device=CUDA))
    optimizer, held = optim.SGDSLS([weight], search=optim.DEFAULT.but(max_interval=1), offload=offload), []

    def closure():
        held.append(torch.cuda.memory_allocated())
        return weight.square().mean()

    for _ in range(3):
        optimizer.step(closure)
    first, *trials = held[-1 - optimizer.search.trials :]
    copies = (min(trials) - first) / weight.nbytes
    assert copies == pytest.approx(1 if offload else 2, abs=0.1)  # one of them is the gradient


@by_default
def test_a_resumed_run_is_bit_identical(make):
    model = network(dropout=0.3).to(CUDA)
    optimizer, data = make(model), [(x.to(CUDA), y.to(CUDA)) for x, y in batches(12)]
    steps_of(model, optimizer, data[:5])
    file = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.cuda.get_rng_state()}
    torch.save(state, file)
    expected = steps_of(model, optimizer, data[5:])

    file.seek(0)
    saved = torch.load(file, weights_only=True, map_location="cpu")
    other = network(seed=1, dropout=0.3).to(CUDA)
    other.load_state_dict(saved["model"])
    resumed = make(other)
    resumed.load_state_dict(saved["optimizer"])
    torch.cuda.set_rng_state(saved["rng"])
    assert steps_of(other, resumed, data[5:]) == expected
    assert torch.equal(weights(model), weights(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_learns(dtype):
    model = network().to(CUDA)
    scaler = torch.amp.GradScaler("cuda") if dtype == torch.float16 else None
    optimizer = optim.AdamSLS(model.parameters(), grad_scaler=scaler)

    def loss(x, y):
        with torch.autocast("cuda", dtype):
            return cross_entropy(model(x), y)

    data = [(x.to(CUDA), y.to(CUDA)) for x, y in batches(150)]
    losses = [float(optimizer.step(lambda x=x, y=y: loss(x, y))) for x, y in data]
    assert sum(losses[-10:]) < sum(losses[:10]) / 2


@by_default
def test_parameters_on_two_devices_search_as_on_one(make):
    def spread(model):
        first, rest = model[0], model[1:]
        return lambda x: rest(first(x).to(CUDA))

    data = [(x.double(), y) for x, y in batches(10)]
    one, two = network().double(), network().double()
    ours, expected = make(two), make(one)
    two[1:].to(CUDA)
    of_two = spread(two)
    for x, y in data:
        expected.step(lambda x=x, y=y: cross_entropy(one(x), y))
        ours.step(lambda x=x, y=y: cross_entropy(of_two(x), y.to(CUDA)))
        assert ours.search.trials == expected.search.trials
        assert ours.search.after == pytest.approx(expected.search.after, rel=1e-6)


def test_a_whole_run_is_on_the_device_and_says_so(tiny, tmp_path):
    folder = run(config(tiny, tmp_path, optimizer="untuned", epochs=6)).folder
    assert json.loads((folder / "summary.json").read_text())["device"] == "cuda:0"


@pytest.mark.parametrize("optimizer", ["untuned", "plasls", "adam", "salsa-package"])
def test_a_run_that_was_stopped_resumes_to_the_same_result(tiny, tmp_path, optimizer):
    whole = run(config(tiny, tmp_path / "whole", optimizer=optimizer, dropout=0.1)).folder
    settings = config(tiny, tmp_path / "stopped", optimizer=optimizer, dropout=0.1)

    def stop(done, total):
        if done == 8:  # in the second epoch; the checkpoint is the first one's
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, stop)
    torch.manual_seed(17)
    assert [row for row in read(run(settings).folder) if "run_id" not in row] == [
        row for row in read(whole) if "run_id" not in row
    ]
