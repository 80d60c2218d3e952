"""optim/hosts.py: which of torch's optimizers can be searched on, and that those train as they were written."""

import copy
import itertools
import math

import accelerate
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch.nn.functional import cross_entropy
from transformers.optimization import Adafactor

from optim import DEFAULT, PLASLS, SGDSLS, SMOOTHED, AdamSLS, LineSearch, split, with_line_search
from tests.contract import batches, by_layer, mean, train, weights

KINDS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
]
REFUSED = {
    "LBFGS": "it calls the closure itself",
    "SparseAdam": "it takes sparse gradients only",
    "Rprop": "it ignores the learning rate after its first step",
    "ASGD": "it takes the learning rate of the step before",
}
AdamW = torch.optim.AdamW


def network():
    """All its weights are matrices, as Muon asks."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 12, bias=False), torch.nn.Tanh(), torch.nn.Dropout(0.0), torch.nn.Linear(12, 3, bias=False)
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_optimizer_of_torch_trains_without_a_learning_rate_or_says_why_it_cannot(kind):
    model = network()
    if kind.__name__ in REFUSED:
        with pytest.raises(TypeError, match=rf"^{kind.__name__} cannot be searched on: {REFUSED[kind.__name__]}.*"):
            with_line_search(kind)
        return
    optimizer = with_line_search(kind)(model.parameters())
    assert isinstance(optimizer, LineSearch)
    assert isinstance(optimizer, kind)
    before = weights(model)
    losses = train(model, optimizer, batches(120))
    assert mean(losses[-20:]) < 0.6 * losses[0]
    assert not torch.equal(weights(model), before)
    assert optimizer.counts["trials"] > 5


def test_what_is_refused_is_still_in_torch_and_what_is_no_optimizer_is_refused_too():
    assert REFUSED.keys() <= {kind.__name__ for kind in KINDS}
    with pytest.raises(TypeError, match=r"^Linear is no torch.optim.Optimizer; allowed: "):
        with_line_search(torch.nn.Linear)
    with pytest.raises(TypeError, match=r"^LBFGS cannot be searched on"):
        with_line_search(torch.optim.LBFGS(network().parameters()))


def test_a_class_is_made_once_and_a_line_search_is_not_put_around_another():
    assert with_line_search(AdamW) is with_line_search(AdamW)
    assert with_line_search(with_line_search(AdamW)) is with_line_search(AdamW)
    assert "AdamW" in with_line_search(AdamW).__doc__


# -- an optimizer that is there already ---------------------------------------------------------------------------


def test_an_instance_is_taken_over_with_its_groups_and_its_learning_rate_is_not_used():
    one, other = network(), network()
    settings = {"total_steps": 20, "clip_norm": 1.0, "c": 0.4, "max_interval": 4}
    groups = [{"params": group["params"], "weight_decay": 0.1 * j} for j, group in enumerate(split(one, by_layer))]
    taken = with_line_search(AdamW(groups, lr=1e9), **settings)
    groups = [{"params": group["params"], "weight_decay": 0.1 * j} for j, group in enumerate(split(other, by_layer))]
    made = with_line_search(AdamW)(groups, **settings)
    assert type(taken) is type(made)
    assert taken.preset == DEFAULT.but(c=0.4, max_interval=4)
    assert [group["name"] for group in taken.param_groups] == [group["name"] for group in made.param_groups]
    assert train(one, taken, batches(20)) == train(other, made, batches(20))
    assert torch.equal(weights(one), weights(other))


def test_of_the_rates_of_an_instance_their_ratios_are_used():
    """As a decay over layers has them. A group whose rate is 0 stays."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    parameters = list(model.parameters())[:3]
    rates = (1e-3, 1.6e-2, 0.0)
    groups = [{"params": [each], "lr": rate} for each, rate in zip(parameters, rates, strict=True)]
    optimizer = with_line_search(torch.optim.Adam(groups, betas=(0.0, 0.999), eps=0.0))
    before = [each.detach().clone() for each in parameters]
    x, y = next(iter(batches(1)))
    optimizer.step(lambda: cross_entropy(model(x), y))
    moved = [(each - w).detach().abs() for each, w in zip(parameters, before, strict=True)]
    assert moved[0].max() > 0  # Adam's first step is its rate wherever there is a gradient
    assert moved[1].max().item() == pytest.approx(16 * moved[0].max().item(), rel=1e-4)
    assert not moved[2].any()
    size, same, still = (group["lr"] for group in optimizer.param_groups)
    assert size == same > still == 0.0


def test_the_halves_of_an_adapter_move_as_lora_plus_has_them():
    """peft makes groups for embeddings and biases, too, which are empty here."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "2"], r=2))
    host = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
    optimizer = with_line_search(host, total_steps=60)
    assert {group["lr_scale"] for group in optimizer.param_groups if group["params"] and "lr_scale" in group} == {16.0}
    losses = [float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))) for x, y in batches(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("search", [DEFAULT, SMOOTHED])
def test_a_scaled_group_is_searched_and_moved_as_one_whose_weights_have_another_unit(search):
    """Weights v = w / 10 with lr_scale = 0.1 take Adam's steps of w, as their gradients are ten times as large."""

    def losses(unit):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(6, 3, dtype=torch.float64) / unit)
        bias = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        groups = [{"params": [bias]}, {"params": [weight], "lr_scale": 1 / unit}]
        optimizer = AdamSLS(groups, search=search, eps=0.0, total_steps=30)
        for x, y in batches(30, dtype=torch.float64):
            yield float(optimizer.step(lambda x=x, y=y: cross_entropy(x @ (unit * weight) + bias, y)))

    plain, scaled = list(losses(1.0)), list(losses(10.0))
    assert plain == pytest.approx(scaled, rel=1e-6)
    assert plain[-1] < plain[0]


@pytest.mark.parametrize("bad", [0, -1.0, "2", None])
def test_a_scale_that_is_no_positive_number_is_refused(bad):
    with pytest.raises(ValueError, match=r"lr_scale is .*; allowed: above 0"):
        AdamSLS([{"params": list(network().parameters()), "lr_scale": bad}])


def test_an_instance_that_has_trained_goes_on_with_its_moments():
    model = network()
    host = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for x, y in batches(3):
        host.zero_grad()
        cross_entropy(model(x), y).backward()
        host.step()
    kept = [state["momentum_buffer"].clone() for state in host.state.values()]
    host.zero_grad()
    taken = with_line_search(host)
    assert all(map(torch.equal, kept, (state["momentum_buffer"] for state in taken.state.values())))
    losses = train(model, taken, batches(60, seed=1))
    assert mean(losses[-10:]) < 0.8 * mean(losses[:5])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"c": 2.0}, ValueError, "c is 2.0; allowed"),
        ({"total_steps": 0}, ValueError, "total_steps is 0"),
        ({"momentum": 0.9}, TypeError, "momentum"),
    ],
)
def test_an_instance_that_is_not_taken_over_is_left_as_it_was(settings, error, message):
    model = network()
    host = AdamW(model.parameters(), lr=0.5)
    with pytest.raises(error, match=message):
        with_line_search(host, **settings)
    assert type(host) is AdamW
    assert host.param_groups[0]["lr"] == 0.5


def test_an_instance_with_a_scheduler_is_refused_as_the_schedulers_step_would_hide_the_search():
    model = network()
    host = AdamW(model.parameters(), lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(host, lambda step: 1.0)
    with pytest.raises(TypeError, match="with_line_search first, and then the scheduler"):
        with_line_search(host)


def test_an_optimizer_around_another_is_refused_in_a_line_that_says_what_to_wrap_first():
    """Its state is the inner one's, which a search would not put back between the trials of a first search."""
    accelerator, model = accelerate.Accelerator(cpu=True), network()
    around = accelerator.prepare(AdamW(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"wrapped around another optimizer, AdamW; allowed: with_line"):
        with_line_search(around)
    inside = accelerator.prepare(with_line_search(AdamW(model.parameters(), lr=0.1))).optimizer
    losses = train(model, inside, batches(60))
    assert mean(losses[-10:]) < 0.6 * losses[0]


# -- hosts that keep their learning rate in a tensor, or move less far at first -----------------------------------


def test_a_learning_rate_in_a_tensor_stays_one():
    """As in torchao's 8-bit Adam, whose kernels read it there."""
    one, other = network().double(), network().double()
    in_tensor = with_line_search(
        AdamW(one.parameters(), lr=torch.tensor(0.1, dtype=torch.float64), foreach=False), total_steps=30
    )
    number = with_line_search(AdamW(other.parameters(), foreach=False), total_steps=30)
    for x, y in batches(30, dtype=torch.float64):
        train(one, in_tensor, [(x, y)])
        train(other, number, [(x, y)])
        assert isinstance(in_tensor.param_groups[0]["lr"], torch.Tensor)
        assert in_tensor.search.trials == number.search.trials
        assert in_tensor.search.after == pytest.approx(number.search.after, rel=1e-9)
    assert torch.allclose(weights(one), weights(other), rtol=1e-9)


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
@pytest.mark.filterwarnings("ignore")  # torch's compiler on the packages' tensors
def test_moments_in_eight_bits_are_the_hosts_own_and_train(package):
    host = pytest.importorskip(f"{package}.optim", reason=f"{package} is not installed").AdamW8bit
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64), torch.nn.Tanh())
    model.append(torch.nn.Linear(64, 3))
    optimizer = with_line_search(host)(model.parameters(), total_steps=60)
    losses = train(model, optimizer, batches(60))
    assert mean(losses[-10:]) < 0.6 * losses[0]
    state = optimizer.state[model[2].weight]
    kinds = {inner.dtype for value in state.values() if isinstance(value, torch.Tensor) for inner in parts_of(value)}
    assert torch.uint8 in kinds


def parts_of(tensor):
    """The plain tensors of which a quantised one is made."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return [getattr(tensor, name) for name in names] or [tensor]


@pytest.mark.filterwarnings("ignore")
def test_adapters_learn_on_a_base_in_four_bits_which_stays_as_it_is():
    quantised = pytest.importorskip("bitsandbytes.nn", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    base = torch.nn.Sequential(quantised.Linear4bit(64, 64, compute_dtype=torch.float32), torch.nn.Tanh())
    base.append(torch.nn.Linear(64, 3))
    base.to("cpu")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0"], modules_to_save=["2"]))
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = AdamSLS(model.parameters(), total_steps=60)
    generator = torch.Generator().manual_seed(0)
    data = [(x, x[:, :3].argmax(1)) for x in torch.randn(60, 24, 64, generator=generator)]
    losses = train(model, optimizer, data)
    assert mean(losses[-10:]) < 0.8 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


EVEN = {
    "RMSprop": (torch.optim.RMSprop, {}),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "SGD with dampened momentum": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.9}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (AdamW, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize(("host", "settings"), EVEN.values(), ids=EVEN.keys())
def test_under_equal_gradients_the_first_move_is_as_long_as_later_ones_of_the_same_step_size(host, settings):
    """RMSprop's first one would be ten times too long, that of a momentum of 0.9 ten times too short."""
    w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    preset = SMOOTHED.but(
        first_search="backtrack", initial_step_size=0.01, search_growth=1.0, linear_growth=1.0, growth_steps=math.inf
    )
    optimizer = with_line_search(host)([w], search=preset, **settings)
    moves = []
    for _ in range(30):
        before = w.detach().clone()
        optimizer.step(lambda: -(w * torch.tensor([1.0, 2.0, 3.0])).sum())
        moves.append(float((w.detach() - before).norm()))
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert moves == pytest.approx([moves[0]] * 30, rel=1e-4)


@pytest.mark.parametrize("make", [SGDSLS, AdamSLS, PLASLS, with_line_search(torch.optim.AdamW)])
def test_a_search_that_is_no_preset_is_named_with_what_is_allowed(make):
    with pytest.raises(TypeError, match=r"^search is 'paper'; allowed: a preset, such as DEFAULT, PAPER or PAPER\.but"):
        make([torch.nn.Parameter(torch.ones(2))], search="paper")


def test_an_unknown_setting_beside_an_instance_is_named_with_those_that_there_are():
    host = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(TypeError, match=r"^unknown setting rate; allowed: search, total_steps, averaging, "):
        with_line_search(host, rate=1.0)


class Assigning(torch.optim.Optimizer):
    """SGD that gives its parameters new data."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_a_host_that_assigns_the_data_of_its_parameters_takes_the_steps_of_one_that_moves_them_in_place():
    one, other = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    other.load_state_dict(one.state_dict())
    pairs = (one, with_line_search(Assigning)(one.parameters())), (other, SGDSLS(other.parameters()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        x = torch.randn(8, 3, generator=generator)
        for model, optimizer in pairs:
            optimizer.step(lambda x=x, model=model: (model(x) - x.sum(1, keepdim=True)).square().mean())
    assert torch.allclose(one.weight, other.weight, rtol=1e-5)


class Writing(torch.optim.SGD):
    """SGD that adds its weight decay to .grad itself, as some packages' optimizers do."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(p, alpha=0.5)
        super().step()


@pytest.mark.parametrize("kind", ["foreach", "own"])
def test_a_host_that_writes_into_its_gradients_is_searched_by_the_slopes_of_the_loss(kind):
    """torch's SGD does so for Nesterov's momentum in its foreach form, which is the usual one on CUDA."""
    model = network()
    nesterov = {"momentum": 0.9, "nesterov": True, "foreach": True}
    optimizer = (
        SGDSLS(model.parameters(), **nesterov) if kind == "foreach" else with_line_search(Writing)(model.parameters())
    )
    for k, (x, y) in enumerate(batches(12)):
        expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        before = weights(model)
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x), y))
        if k or kind == "foreach":  # that `Writing` writes is found in its first step
            assert all(torch.equal(p.grad, each) for p, each in zip(model.parameters(), expected, strict=True))
        if k and optimizer.search.trials:
            u = (weights(model) - before) / optimizer.search.before
            slope = float(torch.cat([each.flatten() for each in expected]).double() @ u)
            assert optimizer.search.slope == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adafactors_step_sizes_stay_below_the_largest_rate_that_it_takes(decay):
    """torch's takes at most 1 / sqrt(k) at step k. Step sizes rose to 1e34, and a decay by them erased the weights."""
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(4, 8) / 3), torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = with_line_search(torch.optim.Adafactor)([a, b], weight_decay=decay)
    generator = torch.Generator().manual_seed(1)
    for k in range(1, 151):
        x = torch.randn(64, 8, generator=generator)
        loss = optimizer.step(lambda x=x: cross_entropy(x @ a.T @ b.T, x[:, :3].argmax(1)))
        assert optimizer.search.before <= 1.001 * k**-0.5
    assert loss < 0.4
    assert a.norm() > 1


def test_a_step_without_a_closure_is_refused_where_radams_unit_changes():
    model = network()
    optimizer = with_line_search(torch.optim.RAdam)(model.parameters())
    data = list(batches(7))
    train(model, optimizer, data[:5])
    before = weights(model)
    optimizer.zero_grad()
    cross_entropy(model(data[5][0]), data[5][1]).backward()
    with pytest.raises(RuntimeError, match="no closure, so there is no loss to search on"):
        optimizer.step()
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "x"), "'x' is taken"),
        ((None, "all"), "'all' is taken"),
        (("a+b", "c"), "'a\\+b'; allowed"),
        ((1, 2), "1; allow"),
    ],
)
def test_groups_names_that_a_state_could_not_tell_apart_are_refused_when_an_instance_is_taken_over(names, message):
    groups = [
        {"params": [p]} | ({"name": name} if name else {})
        for p, name in zip(network().parameters(), names, strict=True)
    ]
    host = AdamW(groups, lr=0.5)
    with pytest.raises(ValueError, match=f"^component name {message}"):
        with_line_search(host)
    assert [group["lr"] for group in host.param_groups] == [0.5, 0.5]


class Interrupted(torch.optim.Adam):
    """Adam whose n-th step ends by an exception after the weights have moved."""

    count = 0

    def step(self, closure=None):
        super().step()
        Interrupted.count -= 1
        if not Interrupted.count:
            raise KeyboardInterrupt


@pytest.mark.parametrize("count", [2, 12])
def test_an_exception_in_the_hosts_step_leaves_the_weights_where_they_were(monkeypatch, count):
    model = network()
    monkeypatch.setattr(Interrupted, "count", count)
    optimizer = with_line_search(Interrupted)(model.parameters(), search=DEFAULT.but(max_interval=1))
    data = iter(batches(20))
    while Interrupted.count > (1 if count > 2 else 2):  # a first search steps several times
        train(model, optimizer, itertools.islice(data, 1))
    before, (x, y) = weights(model), next(data)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lambda: cross_entropy(model(x), y))
    assert torch.equal(weights(model), before)


class Deaf(torch.optim.SGD):
    """SGD that takes the rate that it was made with."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        super().step()


@pytest.mark.parametrize("make", [lambda p: Deaf(p, lr=0.1), Adafactor])
def test_a_host_that_does_not_go_by_the_rate_is_refused_and_leaves_weights_and_state(make):
    model = torch.nn.Linear(3, 1)
    optimizer, before = with_line_search(make(model.parameters())), copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"^the optimizer moves at a rate of 0: all of its step must go by group\['lr'\]$"
    ):
        optimizer.step(lambda: model(torch.ones(8, 3)).square().mean())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not optimizer.state


def test_two_parameters_over_one_memory_are_refused_and_one_that_two_modules_have_is_not():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^two parameters, of shapes \(3, 3\) and \(3, 3\), hold the same memory; "):
        AdamSLS(model.parameters(), total_steps=9).step(lambda: model(torch.ones(8, 3)).square().mean())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model[1].weight = model[0].weight
    optimizer = AdamSLS(model.parameters(), total_steps=9)
    assert optimizer.step(lambda: model(torch.ones(8, 3)).square().mean()) > model(torch.ones(8, 3)).square().mean()
