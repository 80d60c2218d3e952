"""optim/guard: what it leaves alone, what it refuses, and what a closure can ask."""

import copy
import threading
import warnings

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy, mse_loss

from optim import AdamSLS, is_trial
from tests.small import batches, weights


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def losses(optimizer, closure, steps=15):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning)
        return [float(optimizer.step(closure)) for _ in range(steps)]


# -- what is left alone ---------------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    """As torchao's weights: it can be multiplied, and nothing else."""

    @staticmethod
    def __new__(cls, inner):
        shape, dtype = inner.shape, torch.float32
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, requires_grad=False)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f"no {function} of this subclass")


class Quantised(torch.nn.Module):
    """A frozen weight in a data type that cannot be trained, and two small weights beside it that can."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        rounded = (torch.randn(3, 8) * 16).round()
        held = Subclass(rounded) if kind == "subclass" else rounded.abs().to(kind)
        self.weight = torch.nn.Parameter(held, requires_grad=False)
        self.down, self.up = torch.nn.Linear(8, 2, bias=False), torch.nn.Linear(2, 3, bias=False)

    def forward(self, x):
        weight = self.weight.inner if isinstance(self.weight, Subclass) else self.weight.float()
        return x @ weight.T / 16 + self.up(self.down(x))


@pytest.mark.parametrize("whole", [False, True], ids=["trained ones are given", "all are given"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.bool, torch.float8_e4m3fn, "subclass"], ids=str)
@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_a_frozen_weight_of_any_type_is_left_alone(kind, whole, check):
    if kind == "subclass" and whole:
        pytest.skip("the trial points copy every parameter that they are given")
    model = Quantised(kind)
    given = model.parameters() if whole else [p for p in model.parameters() if p.requires_grad]
    x, y = next(batches(1))
    found = losses(AdamSLS(given, check_closure=check), lambda: cross_entropy(model(x), y))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_an_ensemble_by_vmap_trains_whatever_its_base_is_on(device):
    models = [torch.nn.Sequential(network(), torch.nn.BatchNorm1d(3, track_running_stats=False)) for _ in range(4)]
    for model in models:
        model.register_buffer("scale", torch.ones(3))
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to(device)
    buffer = base.scale
    x, y = next(batches(1))

    def loss():
        outputs = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
        return cross_entropy(outputs.flatten(0, 1), y.repeat(4))

    found = losses(AdamSLS(parameters.values()), loss)
    assert found[-1] < 0.9 * found[0]
    assert base.scale is buffer


# -- what is refused ------------------------------------------------------------------------------------------


def test_an_optimizer_of_another_model_is_refused_in_the_first_step_and_nothing_has_changed():
    given, trained = network(), network()
    optimizer = AdamSLS(given.parameters())
    x, y = next(batches(1))
    before = weights(given)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"none of the optimizer's parameters has a gradient.*adapters.*fully_shard"
        ):
            optimizer.step(lambda: cross_entropy(trained(x), y))
    assert torch.equal(weights(given), before)
    assert not optimizer.state
    assert optimizer.counts["searches"] == 0


def test_a_later_step_without_gradients_moves_nothing_and_says_so_once():
    model, other = network(), network()
    optimizer = AdamSLS(model.parameters())
    x, y = next(batches(1))
    optimizer.step(lambda: cross_entropy(model(x), y))
    before = weights(model)
    with pytest.warns(RuntimeWarning, match="none of the optimizer's parameters has a gradient"):
        optimizer.step(lambda: cross_entropy(other(x), y))
    losses(optimizer, lambda: cross_entropy(other(x), y), steps=3)  # where a warning is an error
    assert torch.equal(weights(model), before)


def divided(value):
    return value / value.detach()


def straight_through(value):
    return value - value.detach() + 2.0


@pytest.mark.parametrize("constant", [divided, straight_through])
@pytest.mark.parametrize("backward", [False, True])
def test_a_loss_that_is_constant_but_has_a_gradient_is_refused_for_that_reason(constant, backward):
    model = network()
    optimizer = AdamSLS(model.parameters())
    x, y = next(batches(1))
    before = weights(model)

    def closure():
        optimizer.zero_grad()
        loss = constant(cross_entropy(model(x), y))
        if backward:
            loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"although its gradient does not vanish: .*value\.detach\(\)"):
        optimizer.step(closure)
    assert torch.equal(weights(model), before)


# -- what is beside the loss ----------------------------------------------------------------------------------


def test_a_closure_knows_whether_it_is_evaluated_for_a_trial():
    model = network()
    optimizer = AdamSLS(model.parameters())
    asked = []
    for x, y in batches(10):
        start = len(asked)

        def closure(x=x, y=y):
            asked.append(is_trial())
            return cross_entropy(model(x), y)

        optimizer.step(closure)
        assert not asked[start]
        assert all(asked[start + 1 :])
        assert not is_trial()
    assert sum(asked) >= optimizer.counts["trials"] > 0


def test_an_error_in_a_trial_ends_the_trial_for_is_trial():
    model = network()
    optimizer = AdamSLS(model.parameters())
    x, y = next(batches(1))

    def closure():
        if is_trial():
            raise KeyError("a mistake")
        return cross_entropy(model(x), y)

    with pytest.raises(KeyError, match="a mistake"):
        optimizer.step(closure)
    assert not is_trial()


class Metric(torch.nn.Module):
    """As torchmetrics has it: the state is in attributes."""

    def __init__(self):
        super().__init__()
        self.count, self.total, self.last = 0, torch.zeros(()), None

    def update(self, prediction):
        self.count += len(prediction)
        self.total = self.total + prediction.sum()
        self.last = prediction.detach()  # the same at each evaluation of the same weights


@pytest.mark.parametrize("asks", [False, True], ids=["as it comes", "with is_trial"])
def test_a_metric_that_counts_beside_the_loss_is_named_once_unless_the_closure_asks(asks):
    model, metric = network(), Metric()
    optimizer = AdamSLS(model.parameters())

    def closure(x, y):
        prediction = model(x)
        if not (asks and is_trial()):
            metric.update(prediction.detach())
        return cross_entropy(prediction, y)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for x, y in batches(40):
            optimizer.step(lambda x=x, y=y: closure(x, y))
    messages = [str(each.message) for each in said]
    if asks:
        assert not messages
        assert metric.count == 40 * 24
    else:
        assert len(messages) == 1
        assert "in Metric.count, Metric.total; allowed: a buffer" in messages[0]
        assert "is_trial()" in messages[0]


def test_a_cache_that_is_filled_once_is_no_counter():
    class Cached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.cache = network(), {}

        def forward(self, x):
            if not torch.is_grad_enabled():
                self.cache["without gradients"] = True
            return self.inner(x)

    model = Cached()
    x, y = next(batches(1))
    losses(AdamSLS(model.parameters()), lambda: mse_loss(model(x)[:, 0], y.float()), steps=3)
    assert model.cache


def test_weights_that_parametrize_has_cached_around_the_step_are_computed_anew_in_trials():
    ends = []
    for cached in (False, True):
        torch.manual_seed(0)
        model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 3))
        optimizer = AdamSLS(model.parameters())
        for x, y in batches(10):
            with torch.nn.utils.parametrize.cached() if cached else torch.no_grad():
                optimizer.step(lambda x=x, y=y, model=model: cross_entropy(model(x), y))
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_threads_that_train_models_of_their_own_take_the_steps_of_one_after_the_other():
    def train(model):
        optimizer = AdamSLS(model.parameters(), max_interval=1)
        for x, y in batches(30):
            optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))

    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3))]
    models += [copy.deepcopy(models[0]) for _ in range(3)]
    threads = [threading.Thread(target=train, args=(model,)) for model in models[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train(models[0])
    for model in models[1:]:
        assert torch.equal(weights(model), weights(models[0]))
        assert torch.equal(model[1].running_mean, models[0][1].running_mean)
