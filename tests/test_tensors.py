"""The optimizers on tensors of each data type, shape and layout, and on gradients that come and go."""

import gc
import weakref

import pytest
import torch
from torch.nn.functional import cross_entropy

from optim import PLASLS, SGDSLS, AdamSLS, split
from tests.contract import batches, by_layer, every_class, mean, network, train, weights

# -- dtypes, shapes, layouts ------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_falls_in_every_data_type(make, dtype):
    model = network()
    settings = {"eps": 1e-3} if dtype == torch.float16 and "eps" in make(model.parameters()).defaults else {}
    optimizer = make(split(model.to(dtype), by_layer), **settings)  # float16 has no 1e-8
    data = list(batches(60, dtype=dtype))
    losses = [float(optimizer.step(lambda x=x, y=y: cross_entropy(model(x).float(), y))) for x, y in data]
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])
    assert all(p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("make", [AdamSLS, PLASLS])
def test_float16_weights_in_which_eps_is_0_are_refused_with_what_to_write(make):
    """Adam's second moment underflows there, too: torch's Adam makes NaN of the weights."""
    model = network()
    model.requires_grad_(False)[0].bias.requires_grad_()  # one of them
    optimizer = make(split(model, by_layer))
    model.half()
    before = weights(model)
    x, y = next(batches(1, dtype=torch.float16))
    words = r"float16, in which eps=1e-08 is 0.*allowed: float32.*autocast.*GradScaler"
    for refused in (lambda: make(split(model, by_layer)), lambda: optimizer.step(lambda: cross_entropy(model(x), y))):
        with pytest.raises(ValueError, match=words) as error:
            refused()
        assert "\n" not in str(error.value)
    assert torch.equal(weights(model), before)
    model.float()
    optimizer.step(lambda: cross_entropy(model(x.float()), y))
    assert not torch.equal(weights(model), before)


def test_a_direction_beyond_its_data_type_moves_by_a_step_size_that_is_small_enough():
    """The second moment is 0 in float16, and g / eps infinite."""
    model = network().half()
    for p in model.parameters():
        p.register_hook(lambda g: torch.full_like(g, 5e-3))
    optimizer = AdamSLS(model.parameters(), eps=6e-8)
    before = weights(model)
    for x, y in batches(3, dtype=torch.float16):
        optimizer.step(lambda x=x, y=y: cross_entropy(model(x).float(), y))
    assert 0 < (weights(model) - before).norm() < before.norm()


def test_a_large_float16_gradient_is_finite_where_its_entries_are():
    w = torch.nn.Parameter(torch.zeros(400_000, dtype=torch.float16))
    optimizer = SGDSLS([w])
    optimizer.step(lambda: (w * 200.0).float().sum())
    assert optimizer.counts["nonfinite"] == 0


class Mixed(torch.nn.Module):
    """Parameters of three data types, of no dimension and of no entries, strided ones and a channels_last kernel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.empty = torch.nn.Parameter(torch.ones(0))
        self.strided = torch.nn.Parameter(torch.randn(6, 8, 2)[..., 0])
        self.transposed = torch.nn.Parameter(torch.randn(4, 8).t())
        self.wide = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64) / 2)
        self.narrow = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.conv = torch.nn.Conv2d(2, 4, 2).to(memory_format=torch.channels_last)

    def forward(self, x):
        hidden = torch.tanh(x @ self.strided @ self.transposed) * self.scale + self.empty.sum()
        image = self.conv(torch.cat([x, x[:, :2]], 1).reshape(-1, 2, 2, 2)).flatten(1)
        return ((hidden + image).double() @ self.wide).float() + self.narrow.float()


@every_class
@pytest.mark.parametrize("settings", [{"foreach": True}, {"foreach": False}])
def test_mixed_types_shapes_and_strides_train_in_one_optimizer(make, settings):
    model = Mixed()
    assert not model.strided.is_contiguous()
    strides = [p.stride() for p in model.parameters()]
    optimizer = make(split(model, by_layer), **settings)
    losses = train(model, optimizer, batches(80))
    assert mean(losses[-10:]) < 0.8 * mean(losses[:3])
    assert [p.stride() for p in model.parameters()] == strides


@every_class
def test_a_strided_parameter_takes_the_steps_of_a_contiguous_one(make):
    start = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))[..., 0]

    def run(w):
        optimizer = make([w])
        for x, y in batches(20):
            optimizer.step(lambda x=x, y=y: cross_entropy(x @ w, y))
        return w.detach()

    strided = torch.nn.Parameter(torch.stack([start, start], -1)[..., 0])
    assert torch.allclose(run(strided), run(torch.nn.Parameter(start.contiguous())), rtol=1e-5, atol=1e-6)


@every_class
def test_sparse_gradients_are_refused_in_one_line_and_nothing_moves(make):
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = make(table.parameters())
    before = weights(table)
    with pytest.raises(RuntimeError, match=r"sparse gradients are not supported; allowed: dense ones \(sparse=False\)"):
        optimizer.step(lambda: table(torch.tensor([1, 2])).square().sum())
    assert torch.equal(weights(table), before)
    assert not optimizer.state_dict()["state"]


# -- gradients that come and go ---------------------------------------------------------------------------------


@every_class
def test_layers_are_frozen_and_thawed_between_steps(make):
    model = network()
    optimizer = make(split(model, by_layer))
    train(model, optimizer, batches(4))
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    train(model, optimizer, batches(4))
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    train(model, optimizer, batches(4))
    assert not torch.equal(model[0].weight, before)


@every_class
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("to_none", [True, False])
def test_closures_that_zero_gradients_either_way_and_return_one_number_of_any_shape_are_the_same(make, shape, to_none):
    def run(style):
        model = network(dropout=0.2)
        optimizer = make(split(model, by_layer))
        torch.manual_seed(1)
        for x, y in batches(8):

            def closure(x=x, y=y):
                loss = cross_entropy(model(x), y).reshape(shape)
                if style == "backward":
                    optimizer.zero_grad(set_to_none=to_none)
                    loss.backward()
                return loss

            returned = optimizer.step(closure)
            assert (returned.shape, returned.requires_grad) == ((), False)
        return weights(model)

    assert torch.equal(run("forward"), run("backward"))


@every_class
def test_a_closure_with_backward_may_return_a_float(make):
    model = network()
    optimizer = make(model.parameters())

    def closure(x, y):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss.item()

    losses = [float(optimizer.step(lambda x=x, y=y: closure(x, y))) for x, y in batches(60)]
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])


@every_class
def test_a_step_works_under_no_grad_and_is_refused_under_inference_mode(make):
    one, other = network(), network()
    first, second = make(one.parameters()), make(other.parameters())
    for x, y in batches(4):
        train(one, first, [(x, y)])
        with torch.no_grad():
            train(other, second, [(x, y)])
    assert torch.equal(weights(one), weights(other))
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*outside of it"):
        train(one, first, batches(1))


@every_class
def test_nothing_of_a_step_is_kept_alive(make):
    """Neither batch nor closure nor the loss's graph, also without the garbage collector."""
    model = network()
    optimizer = make(split(model, by_layer))
    gc.collect()
    gc.disable()
    try:
        data = list(batches(4))
        while data:
            x, y = data.pop()
            graph = []

            def closure(x=x, y=y, graph=graph):
                scores = model(x)  # which the loss's graph holds
                graph.append(weakref.ref(scores))
                return cross_entropy(scores, y)

            optimizer.step(closure)
            kept = [weakref.ref(x), weakref.ref(closure), graph[0]]
            del x, y, closure, graph
            assert [reference() for reference in kept] == [None] * 3
    finally:
        gc.enable()
