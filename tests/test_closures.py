"""What a closure may do: whatever it is, each trial is this step's loss at the trial's weights, or a word is said."""

import copy
import functools
import random
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy

import optim
from optim import split
from tests.small import batches, by_layer, classic, weights

PLASLS, SGDSLS, AdamSLS = classic(optim.PLASLS), classic(optim.SGDSLS), classic(optim.AdamSLS)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


OPTIMIZERS = {
    "SGDSLS": lambda model, **settings: SGDSLS(model.parameters(), **settings),
    "AdamSLS": lambda model, **settings: AdamSLS(model.parameters(), **settings),
    "PLASLS": lambda model, **settings: PLASLS(split(model, by_layer), **settings),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def loss_of(model, x, y):
    return lambda: cross_entropy(model(x), y)


# -- the same gradient ----------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("style", ["forward only", "backward inside"])
def test_accumulated_gradients_are_an_error_that_names_the_list_of_closures(make, steps, style):
    model = network()
    optimizer = make(model)
    for x, y in batches(steps):
        optimizer.step(loss_of(model, x, y))
    (one, other) = batches(2, seed=5)
    loss_of(model, *one)().backward()
    before, accumulated = weights(model), [p.grad.clone() for p in model.parameters()]

    def closure():
        loss = loss_of(model, *other)()
        if style == "backward inside":
            loss.backward()
        return loss

    for _ in range(2):  # they stay
        with pytest.raises(RuntimeError, match=r"would drop the gradients .*; allowed: a list of closures, step\(\["):
            optimizer.step(closure)
        assert torch.equal(weights(model), before)
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), accumulated, strict=True))
    model.zero_grad()
    optimizer.step([loss_of(model, *one), loss_of(model, *other)])
    assert not torch.equal(weights(model), before)


@every_optimizer
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("who", ["the caller", "the closure", "a closure with backward"])
def test_gradients_that_are_cleared_before_or_in_the_closure_are_no_error_and_change_nothing(make, to_none, who):
    def run(who):
        model = network()
        optimizer = make(model)
        for x, y in batches(6):
            if who:
                loss_of(model, x, y)().backward()
            if who == "the caller":
                model.zero_grad(to_none)

            def closure(x=x, y=y):
                if who in ("the closure", "a closure with backward"):
                    model.zero_grad(to_none)
                loss = cross_entropy(model(x), y)
                if who == "a closure with backward":
                    loss.backward()
                return loss

            optimizer.step(closure)
        return weights(model)

    assert torch.equal(run(who), run(None))


def test_gradients_that_another_search_has_left_are_not_taken_for_accumulated_ones():
    """Two players: the loss of one goes through the other."""
    one, other = network(), torch.nn.Linear(3, 3)
    first, second = AdamSLS(one.parameters()), AdamSLS(other.parameters())
    for x, y in batches(4):
        first.step(lambda x=x, y=y: cross_entropy(other(one(x)), y))
        assert other.weight.grad is not None
        second.step(lambda x=x, y=y: cross_entropy(-other(one(x)), y))
        second.zero_grad()
        (-cross_entropy(other(one(x)), y)).backward()
        second.step()
        second.step(lambda x=x, y=y: cross_entropy(-other(one(x)), y))


@every_optimizer
@pytest.mark.parametrize("to_none", [True, False])
def test_a_closure_that_clears_gradients_and_calls_no_backward_learns_as_one_that_does_not(make, to_none):
    def run(clears, count):
        model = network()
        optimizer = make(model)

        def closure(x, y):
            if clears:
                optimizer.zero_grad(to_none)
            return cross_entropy(model(x), y)

        for x, y in batches(6):
            optimizer.step([lambda x=x, y=y: closure(x, y), lambda x=x, y=y: closure(-x, y)][:count])
        return weights(model)

    for count in (1, 2):
        assert torch.equal(run(True, count), run(False, count))


@every_optimizer
@pytest.mark.parametrize("clears", ["own", "all"])
def test_gradients_of_another_optimizer_are_those_of_the_unmoved_point(make, clears):
    body, head = network(), torch.nn.Linear(3, 3)
    optimizer, other = make(body), torch.optim.SGD(head.parameters(), lr=0.1)
    for x, y in batches(5):
        right = torch.autograd.grad(cross_entropy(head(body(x)), y), head.weight)[0]
        other.zero_grad()

        def closure(x=x, y=y):
            optimizer.zero_grad()
            if clears == "all":
                other.zero_grad()
            loss = cross_entropy(head(body(x)), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert optimizer.search.trials
        assert torch.allclose(head.weight.grad, right)
        other.step()


@every_optimizer
def test_a_closure_that_calls_no_backward_any_more_moves_nothing_and_is_said_once(make):
    """As a trainer's that only runs the model: statistics are updated."""
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), network())
    optimizer = make(model)

    def closure(x, y, learns=True):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        if learns:
            loss.backward()
        return loss.detach()

    for x, y in batches(3):
        optimizer.step(lambda x=x, y=y: closure(x, y))
    before, (x, y) = weights(model), next(batches(1))
    with pytest.warns(RuntimeWarning, match="has called no backward, as it did in the steps before.*nothing moves"):
        loss = optimizer.step(lambda: closure(x, y, learns=False))
    assert optimizer.step(lambda: closure(x, y, learns=False)) == loss
    assert torch.equal(weights(model), before)
    assert int(model[0].num_batches_tracked) == 5
    for x, y in batches(3):
        optimizer.step(lambda x=x, y=y: closure(x, y))
    assert not torch.equal(weights(model), before)
    with pytest.raises(RuntimeError, match="has no graph"):
        make(model).step(lambda: closure(x, y, learns=False))


# -- the same objective ---------------------------------------------------------------------------------------


def ridge(make, decay, start):
    """f(w) = 1/2 mean (A w - b)^2, of which the step's closure knows nothing of decay/2 |w|^2."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(99, 8, generator=generator, dtype=torch.float64)
    target = rows.sum(1) + 0.1 * torch.randn(99, generator=generator, dtype=torch.float64)
    solution = torch.linalg.solve(rows.T @ rows / 99 + decay * torch.eye(8).double(), rows.T @ target / 99)
    least_squares = torch.linalg.lstsq(rows, target[:, None]).solution[:, 0]
    weight = torch.nn.Parameter(torch.zeros(8).double() if start == "zero" else least_squares)
    return (
        make([weight], weight_decay=decay, check_closure=False),
        weight,
        solution,
        lambda: 0.5 * (rows @ weight - target).square().mean(),
    )


@pytest.mark.parametrize("start", ["zero", "least squares"])
@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (optim.SGDSLS, 300),
        (SGDSLS, 300),
        (functools.partial(optim.AdamSLS, total_steps=3000), 3000),
        (AdamSLS, 3000),
    ],
    ids=["SGDSLS", "SGDSLS, classic", "AdamSLS", "AdamSLS, classic"],
)
def test_ridge_regression_by_weight_decay_reaches_its_solution(make, steps, start):
    """The moves decay to 0 here: at an exact minimum Adam's mean square decays too, and with a
    constant step size of .05 torch's own Adam (beta_1 = .5) leaves the minimum now and then by a tenth of its norm.
    """
    optimizer, weight, solution, closure = ridge(make, 0.5, start)
    for _ in range(steps):
        optimizer.step(closure)
    assert float((weight - solution).detach().norm() / solution.norm()) < 1e-6


@pytest.mark.parametrize("make", [SGDSLS, AdamSLS, PLASLS])
def test_the_value_and_slope_of_a_step_with_weight_decay_are_those_of_the_penalised_loss(make):
    decays = {"0": 0.3, "2": 0.05}

    def run(inside):
        model = network().double()
        settings = [{"weight_decay": 0.0 if inside else decays[group["name"]]} for group in split(model, by_layer)]
        optimizer = make([group | own for group, own in zip(split(model, by_layer), settings, strict=True)])
        found = []
        for x, y in batches(12):

            def closure(x=x, y=y):
                loss = cross_entropy(model(x.double()), y)
                return loss + penalty() if inside else loss

            def penalty():
                return sum(decays[name[0]] / 2 * p.square().sum() for name, p in model.named_parameters())

            optimizer.step(closure)
            search = optimizer.search
            found.append((search.trials, search.slope, search.base - search.trial, search.accepted))
        return found, weights(model)

    (found, ends), (expected, theirs) = run(False), run(True)
    for ours, reference in zip(found, expected, strict=True):
        assert ours == pytest.approx(reference, rel=1e-6, abs=1e-12)
    assert torch.allclose(ends, theirs, rtol=1e-7)


# -- the same weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", ["always", "never"])
@pytest.mark.parametrize("view", [False, True])
def test_each_trial_sees_its_own_weights_whatever_the_closure_assigns(joint, view):
    """Trials against the same weights in a model of their own, without an optimizer."""
    model, twin = network().double(), network().double()
    # With c near 1 searches take several trials: what does not move must not be assigned anew in each of them.
    optimizer = PLASLS(split(model, by_layer), joint=joint, first_steps=2, check_closure=False, c=0.95)
    views = [p.detach() for p in model.parameters()] if view else []
    identities = [id(p) for p in model.parameters()]
    seen = []

    def closure(x, y):
        given = weights(model)
        for p in model.parameters():
            p.data = p.data * 0.9
        loss = cross_entropy(model(x.double()), y)
        seen.append((given, loss.item()))
        return loss

    for x, y in batches(8):
        seen.clear()
        optimizer.step(lambda x=x, y=y: closure(x, y))
        moved = [given for given, _ in seen[1:]]
        assert len({tuple(given.tolist()) for given in moved}) == len(moved) or optimizer.search.trials == 0
        for given, loss in seen:
            torch.nn.utils.vector_to_parameters(given * 0.9, twin.parameters())
            with torch.no_grad():
                assert float(cross_entropy(twin(x.double()), y)) == pytest.approx(loss, rel=1e-12)
        base = seen[0][0] * 0.9
        for given in moved:  # what does not move in a trial is as the first evaluation has left it
            away = (given - base).abs() > 1e-15
            assert away.any()
            if joint == "never" and optimizer.search.component == "0":
                assert not away[-51:].any()
    assert [id(p) for p in model.parameters()] == identities
    assert len(views) in (0, 4)


# -- the same state -------------------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """Its method is called, not itself."""

    def __init__(self):
        super().__init__()
        self.linear = network()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("queue", torch.zeros(0))
        self.register_buffer("mean", None)

    def loss(self, x, y):
        self.calls += 1
        self.queue = torch.cat([self.queue, x.detach().mean()[None]])
        self.mean = x.mean() if self.mean is None else 0.5 * (self.mean + x.mean())
        return cross_entropy(self.linear(x), y) + 0.01 * len(self.queue)


class Holder:
    def __init__(self, model):
        self.model = model

    def loss(self, x, y):
        return self.model.loss(x, y)


@every_optimizer
@pytest.mark.parametrize("through", ["method", "object", "partial", "list"])
def test_buffers_of_a_module_whose_method_is_called_end_as_after_one_forward(make, through):
    model = Seen()
    optimizer = make(model)
    holder, several = Holder(model), [model]
    call = {
        "method": model.loss,
        "object": holder.loss,
        "partial": functools.partial(Seen.loss, model),
        "list": lambda x, y: several[0].loss(x, y),
    }[through]
    mean = None
    for k, (x, y) in enumerate(batches(6)):
        optimizer.step(lambda x=x, y=y: call(x, y))
        mean = x.mean() if mean is None else 0.5 * (mean + x.mean())
        assert optimizer.search.trials
        assert optimizer.search.accepted
        assert (float(model.calls), model.queue.shape) == (k + 1, (k + 1,))
        assert torch.equal(model.mean, mean)


@every_optimizer
@pytest.mark.parametrize("by", ["no_grad", "data"])
def test_a_teacher_that_the_closure_updates_ends_as_after_one_update(make, by):
    model, teacher, alone = network(), network(), network()
    teacher.requires_grad_(False)
    optimizer = make(model)

    def update(teacher):
        for p, q in zip(teacher.parameters(), model.parameters(), strict=True):
            if by == "data":
                p.data.mul_(0.9).add_(q.data + 0.1, alpha=0.1)
            else:
                with torch.no_grad():
                    p.mul_(0.9).add_(q + 0.1, alpha=0.1)

    def closure(x):
        update(teacher)
        return (model(x) - teacher(x) - 1).square().mean()

    for x, _ in batches(6):
        update(alone)
        optimizer.step(lambda x=x: closure(x))
        assert optimizer.search.trials
        assert torch.equal(weights(teacher), weights(alone))


class WithTeacher(torch.nn.Module):
    """As MoCo has it: the teacher is a part of the model, starts as a copy, and is updated in the forward pass."""

    def __init__(self):
        super().__init__()
        self.student = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
        torch.nn.init.zeros_(self.student[0].bias)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def update(self, teacher):
        for p, q in zip(teacher.parameters(), self.student.parameters(), strict=True):
            p.mul_(0.9).add_(q, alpha=0.1)

    def forward(self, x):
        self.update(self.teacher)
        return (self.student(x) - self.teacher(x + 0.1) - x[:, :3]).square().mean()


@pytest.mark.parametrize("given", ["all", "trained"])
def test_a_teacher_that_starts_as_a_copy_ends_as_after_one_update_also_where_the_optimizer_has_it(given):
    """Biases of 0 do not change in the first evaluation, only in its trials."""
    torch.manual_seed(0)
    model = WithTeacher()
    alone = copy.deepcopy(model.teacher)
    optimizer = optim.AdamSLS([p for p in model.parameters() if given == "all" or p.requires_grad])
    for x, _ in batches(12):
        model.update(alone)
        optimizer.step(lambda x=x: model(x))
    assert optimizer.counts["trials"] > 5
    assert torch.equal(weights(model.teacher), weights(alone))


class Initialised(torch.nn.Module):
    """As Glow's ActNorm: the first forward pass sets its parameter from the data."""

    def __init__(self):
        super().__init__()
        self.scale, self.done = torch.nn.Parameter(torch.ones(8)), False

    def forward(self, x):
        if not self.done:
            with torch.no_grad():
                self.scale.copy_(1 / x.std(0))
            self.done = True
        return x * self.scale


def test_a_parameter_that_a_closure_has_changed_and_that_is_trained_later_moves_as_the_search_has_tested():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Initialised(), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = optim.AdamSLS(model[3].parameters(), max_interval=1)
    data = list(batches(8))
    for x, y in data[:4]:
        optimizer.step(loss_of(model, x, y))
    model.zero_grad()
    optimizer.add_param_group({"params": [*model[0].parameters(), *model[1].parameters()], "name": "body"})
    for x, y in data[4:]:
        optimizer.step(loss_of(model, x, y))
        assert optimizer.search.trial == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-6)
    before = weights(model)
    optimizer.step(lambda: cross_entropy(model(x), y) + (float("nan") if optim.is_trial() else 0.0))
    assert not optimizer.search.accepted
    assert torch.equal(weights(model), before)


@every_optimizer
def test_a_scripted_models_statistics_are_updated_once_a_step(make):
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        model = torch.jit.script(plain)
    optimizer = make(model)
    for k, (x, y) in enumerate(batches(4)):
        optimizer.step(loss_of(model, x, y))
        assert optimizer.search.trials
        (count,) = [int(buffer) for name, buffer in model.named_buffers() if "num_batches" in name]
        assert count == k + 1


# -- the same kernels -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of that path, which the check takes once
@every_optimizer
def test_an_encoder_in_eval_mode_is_the_same_function_in_trials(make):
    """Without gradients torch takes another path, which zeroes what is padded."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = torch.nn.ModuleDict({"encoder": torch.nn.TransformerEncoder(layer, 2), "head": torch.nn.Linear(8, 3)})
    model.eval()
    optimizer = make(model)
    x, y = torch.randn(24, 6, 8), torch.randint(0, 3, (24,))
    padding = torch.arange(6)[None] >= torch.randint(1, 7, (24, 1))
    for _ in range(12):
        optimizer.step(
            lambda: cross_entropy(model["head"](model["encoder"](x, src_key_padding_mask=padding).mean(1)), y)
        )
        assert optimizer.search.accepted
    assert optimizer.counts["trials"] < 60


@every_optimizer
@pytest.mark.parametrize("check", [True, False])
def test_a_derivative_inside_a_forward_only_closure_works(make, check):
    model = network()
    optimizer = make(model, check_closure=check)
    x = torch.randn(9, 8, requires_grad=True)
    losses = []
    for _ in range(20):
        losses.append(
            float(
                optimizer.step(
                    lambda: (torch.autograd.grad(model(x).sum(), x, create_graph=True)[0] - 1).square().mean()
                )
            )
        )
    assert losses[-1] < 0.9 * losses[0]


# -- the model's domain ---------------------------------------------------------------------------------------


def normal(scale, validate=True):
    data = torch.randn(99, generator=torch.Generator().manual_seed(0)) * 0.02
    return lambda: -torch.distributions.Normal(0.0, scale, validate_args=validate).log_prob(data).mean()


@pytest.mark.parametrize("make", [SGDSLS, AdamSLS])
def test_a_trial_outside_of_the_models_domain_is_a_rejected_trial_that_is_counted(make):
    scale = torch.nn.Parameter(torch.tensor(0.05))
    optimizer = make([scale])
    for _ in range(30):
        optimizer.step(normal(scale))
    assert optimizer.counts["outside"] > 0
    assert optimizer.counts["failures"] == 0
    assert scale.item() == pytest.approx(0.02, rel=0.2)


def test_outside_of_its_domain_at_the_unmoved_point_the_models_error_is_raised():
    scale = torch.nn.Parameter(torch.tensor(-0.05))
    with pytest.raises(ValueError, match="parameter scale"):
        AdamSLS([scale]).step(normal(scale))


@pytest.mark.parametrize("fault", [ValueError, ZeroDivisionError, torch.linalg.LinAlgError, TypeError, KeyError])
@pytest.mark.parametrize("closures", [1, 2])
def test_the_same_error_at_every_trial_is_raised_and_so_are_faults_of_the_program(fault, closures):
    model = network()
    optimizer = AdamSLS(model.parameters(), check_closure=False)
    before = weights(model)

    def closure(x, y):
        if not torch.equal(weights(model), before):
            raise fault("at this trial")
        return cross_entropy(model(x), y)

    with pytest.raises(fault, match="at this trial"):
        optimizer.step([lambda x=x, y=y: closure(x, y) for x, y in batches(closures)])
    assert torch.equal(weights(model), before)
    for x, y in batches(3):
        optimizer.step(loss_of(model, x, y))


# -- what is detected -----------------------------------------------------------------------------------------


def nothing_runs(model):
    x, y = next(batches(1))
    logits = model(x)
    return lambda: cross_entropy(logits, y)


def fetches(model):
    data = batches(1000)

    def closure():
        x, y = next(data)
        return cross_entropy(model(x), y)

    return closure


def changes_its_batch(model):
    x, y = next(batches(1))
    return lambda: cross_entropy(model(x.mul_(1.1)), y)


class Remembers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.state = network(), 0.0

    def forward(self, x):
        scores = self.body(x) + self.state
        self.state = self.state + 0.1 * torch.arange(3)
        return scores


def keeps_a_state(model):
    remembers = Remembers()
    remembers.body = model
    x, y = next(batches(1))
    return lambda: cross_entropy(remembers(x), y)


def draws(model):
    generator = torch.Generator().manual_seed(0)
    x, y = next(batches(1))
    return lambda: cross_entropy(model(x) + torch.rand(3, generator=generator), y)


@every_optimizer
@pytest.mark.parametrize(
    ("closure", "word"),
    [
        (nothing_runs, r"returned .* at all \d+ trial points"),
        (fetches, "it was given other data: the closure fetches"),
        (changes_its_batch, "it was given other data: the closure fetches its batch, changes it in place"),
    ],
)
def test_where_nothing_can_be_right_the_first_step_is_one_error_and_changes_nothing(make, closure, word):
    model = network()
    optimizer = make(model)
    before, state = weights(model), repr(optimizer.state_dict()["state"])
    with pytest.raises(RuntimeError, match=word + ".*allowed: .*check_closure=False"):
        optimizer.step(closure(model))
    assert torch.equal(weights(model), before)
    assert repr(optimizer.state_dict()["state"]) == state


@every_optimizer
@pytest.mark.parametrize(
    ("closure", "word"),
    [
        (keeps_a_state, "a state that torch does not list, in Remembers.state;"),
        (draws, "a random generator of its own"),
    ],
)
def test_where_losses_drift_the_first_step_warns_once_of_the_likeliest_cause(make, closure, word):
    model = network()
    optimizer = make(model)
    f = closure(model)
    with pytest.warns(RuntimeWarning, match=word):
        optimizer.step(f)
    for _ in range(3):  # where a warning is an error
        optimizer.step(f)
    quiet = network()
    optimizer = make(quiet, check_closure=False)
    for _ in range(3):
        optimizer.step(closure(quiet))


def test_hooks_that_each_evaluation_adds_are_no_state_to_warn_of():
    """TRL's DPOTrainer does so, as it turns gradient checkpointing off and on in its loss."""
    model = network()
    optimizer = AdamSLS(model.parameters())
    x, y = next(batches(1))

    def closure():
        model[0].register_forward_hook(lambda *_: None)
        return cross_entropy(model(x), y)

    for _ in range(3):  # where a warning is an error
        optimizer.step(closure)
    assert len(model[0]._forward_hooks) > 3


def test_checks_are_at_most_one_forward_in_a_hundred_over_80_steps():
    model, calls = network(), []
    optimizer = AdamSLS(model.parameters())
    for x, y in batches(80):
        optimizer.step(lambda x=x, y=y: (calls.append(None), cross_entropy(model(x), y))[1])
    assert optimizer.counts["forwards"] == 80 + optimizer.counts["trials"]
    assert 0 < len(calls) - optimizer.counts["forwards"] <= optimizer.counts["forwards"] / 100


def test_searches_that_fail_in_a_row_are_said_once():
    model, (x, y) = network(), next(batches(1))
    for p in model.parameters():
        p.register_hook(lambda g: -g)  # uphill
    optimizer = AdamSLS(model.parameters())
    for _ in range(10):
        optimizer.step(loss_of(model, x, y))
    with pytest.warns(RuntimeWarning, match=r"searches in a row have failed.*gradient is not that of the loss"):
        optimizer.step(loss_of(model, x, y))
    for _ in range(19):  # where a warning is an error
        optimizer.step(loss_of(model, x, y))
    assert optimizer.counts["failures"] == 30


# -- around the step ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_step_inside_of_a_compiled_function_runs_uncompiled():
    model, twin = network(), network()
    optimizer, plain = AdamSLS(model.parameters()), AdamSLS(twin.parameters())
    step = torch.compile(lambda x, y: optimizer.step(loss_of(model, x, y)), backend="eager")
    for x, y in batches(3):
        step(x, y)
        plain.step(loss_of(twin, x, y))
    assert torch.equal(weights(model), weights(twin))


def test_a_learning_rate_that_a_trainer_passes_is_refused_with_what_to_write():
    with pytest.raises(TypeError, match=r"skorch, fastai\): lambda params, lr, \*\*settings: AdamSLS") as error:
        AdamSLS(network().parameters(), lr=0.01)
    assert "\n" not in str(error.value)


# -- all of it together ---------------------------------------------------------------------------------------


class Drawn(torch.nn.Module):
    """Drawn by a seed: normalisation, a queue, a recurrent state, dropout, its own generator, tied weights, hooks."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        parts = ("norm", "queue", "hidden", "dropout", "tied", "hook", "generator")
        self.has = {part: draw.random() < (0.2 if part in ("hidden", "generator") else 0.5) for part in parts}
        torch.manual_seed(seed)
        self.body, self.inner, self.head = (torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
        self.norm, self.dropout = torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3)
        self.register_buffer("queue", torch.zeros(0, 8))
        self.hidden, self.generator = torch.zeros(8), torch.Generator().manual_seed(seed)
        if self.has["tied"]:
            self.inner.weight = self.body.weight
        if self.has["hook"]:
            self.body.register_forward_hook(lambda module, given, out: out * 1.1)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.body(x))
        h = self.norm(h) if self.has["norm"] else h
        h = self.dropout(h) if self.has["dropout"] else h
        if self.has["queue"]:
            self.queue = torch.cat([self.queue, h.detach().mean(0)[None]])[-3:]
            h = h - self.queue.mean(0)
        if self.has["hidden"]:
            h = h + self.hidden
            self.hidden = 0.5 * (self.hidden + h.detach().mean(0) + 1)
        if self.has["generator"]:
            h = h + torch.rand(8, generator=self.generator, dtype=h.dtype)
        return self.head(torch.tanh(self.inner(h)))


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("joint", ["always", "never"])
def test_every_trial_of_a_drawn_model_is_the_loss_at_its_weights_or_a_word_is_said(seed, joint):
    """By brute force: each evaluation against a copy of the model and of the random state from before the step."""
    model = Drawn(seed)
    optimizer = PLASLS(split(model, by_layer), joint=joint, first_steps=2)
    right = True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for x, y in batches(6, seed=seed):
            x, randomness, before, seen = x.double(), torch.get_rng_state(), copy.deepcopy(model.state_dict()), []
            hidden, drawn = model.hidden, model.generator.get_state()

            def closure(x=x, y=y, seen=seen):
                given = weights(model)
                loss = cross_entropy(model(x), y)
                seen.append((given, loss.item()))
                return loss

            optimizer.step(closure)
            after, moved = torch.get_rng_state(), (copy.deepcopy(model.state_dict()), model.hidden)
            drawn_after = model.generator.get_state()
            for given, loss in seen:
                torch.set_rng_state(randomness)
                model.generator.set_state(drawn)
                model.hidden, model.queue = hidden, before["queue"].clone()
                model.load_state_dict(before)
                torch.nn.utils.vector_to_parameters(given, model.parameters())
                with torch.no_grad():
                    right &= cross_entropy(model(x), y).item() == pytest.approx(loss, rel=1e-10)
            torch.set_rng_state(after)
            model.generator.set_state(drawn_after)
            model.queue = moved[0]["queue"].clone()
            model.load_state_dict(moved[0])
            model.hidden = moved[1]
    assert right or any("at the same weights" in str(each.message) for each in said)
    if not (model.has["hidden"] or model.has["generator"]):
        assert right
        assert not said
