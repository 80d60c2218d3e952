"""The optimizers' states, through files and copies, and the hooks and profiles of their steps."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.functional import cross_entropy

from optim import SGDSLS, AdamSLS, split, with_line_search
from tests.contract import CLASSES, batches, by_layer, eq6, every_class, network, train, weights

# -- saving and loading -----------------------------------------------------------------------------------------


def merging(params, **settings):
    return eq6(params, merge_threshold=10.0, **settings)


STATEFUL = {**CLASSES, "merging": merging}
every_state = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL.keys())


def by_parameter(name):
    return name.replace(".", "_")


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_state
def test_a_loaded_optimizer_runs_in_parallel_bit_for_bit(make):
    one, other = network(dropout=0.3), network(1, dropout=0.3)
    optimizer, loaded = make(split(one, by_parameter)), make(split(other, by_parameter))
    train(one, optimizer, batches(5))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(one.state_dict())
    loaded.load_state_dict(through_a_file(state))
    for x, y in batches(8, seed=2):
        torch.manual_seed(7)
        first = train(one, optimizer, [(x, y)])
        torch.manual_seed(7)
        assert train(other, loaded, [(x, y)]) == first
        assert torch.equal(weights(one), weights(other))
        assert repr(loaded.search) == repr(optimizer.search)  # where a number is NaN, no record equals another
    assert repr(loaded) == repr(optimizer)
    assert repr(optimizer.state_dict()) == repr(loaded.state_dict())
    loaded.load_state_dict(kept)
    assert repr(loaded.state_dict()) == repr(kept)  # loading has not changed what it was given


def test_a_state_from_before_merges_is_loaded_by_the_run_that_made_them():
    model = network()
    optimizer = merging(split(model, by_parameter))
    train(model, optimizer, batches(1))
    start, saved = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    saved = through_a_file(saved)
    expected = train(model, optimizer, batches(4))
    names = [group["name"] for group in optimizer.param_groups]
    assert len(names) == 1
    model.load_state_dict(start)
    optimizer.load_state_dict(saved)
    assert len(optimizer.param_groups) == 3
    assert train(model, optimizer, batches(4)) == expected
    assert [group["name"] for group in optimizer.param_groups] == names


@every_state
def test_a_state_that_is_not_understood_is_refused_and_changes_nothing(make):
    model = network()
    optimizer = make(split(model, by_parameter))
    train(model, optimizer, batches(4))
    before = optimizer.state_dict()
    groups = before["param_groups"]
    own = groups[0]["line_search"]

    def with_own(changed):
        return {"param_groups": [groups[0] | {"line_search": own | changed}, *groups[1:]]}

    short = [groups[0] | {"params": groups[0]["params"][1:]}, *groups[1:]]
    merged_short = [groups[0] | {"params": [0], "name": "+".join(group["name"] for group in groups)}]
    for changed, message in [
        (with_own({"radius": 1}), "radius, unknown here: another version"),
        (with_own({"progress": own["progress"] | {"phase": 1}}), "phase, unknown here"),
        ({"param_groups": [g | {"name": "elsewhere"} for g in groups]}, "the state is of the components elsewhere"),
        ({"param_groups": groups[:-1]}, "the state (is of the components|holds no line search)"),
        ({"param_groups": short}, "doesn't match the size"),
        ({"param_groups": merged_short}, "doesn't match the size"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(before | changed)
        assert repr(optimizer.state_dict()) == repr(before)
    plain = [{key: value for key, value in group.items() if key != "line_search"} for group in groups]
    with pytest.raises(ValueError, match="no line search"):
        optimizer.load_state_dict(before | {"param_groups": plain})


@pytest.mark.parametrize(("saved", "here"), [("Adam", "SGD"), ("SGD", "Adam"), ("Adam", "AdamW")])
def test_a_state_of_another_host_is_refused_in_one_line_and_changes_nothing(saved, here):
    hosts = {"Adam": AdamSLS, "SGD": SGDSLS, "AdamW": with_line_search(torch.optim.AdamW)}
    one, other = network(), network(1)
    optimizer, loaded = hosts[saved](one.parameters()), hosts[here](other.parameters())
    train(one, optimizer, batches(4))
    train(other, loaded, batches(4))
    before = repr(loaded.state_dict())
    with pytest.raises(ValueError, match=f"^the state is of a line search on {saved}, and this one is on {here}$"):
        loaded.load_state_dict(optimizer.state_dict())
    assert repr(loaded.state_dict()) == before


@every_class
@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_distributed_checkpoint_resumes_bit_for_bit(make, by_file, tmp_path):
    """torch.distributed.checkpoint keeps state and groups only, and of a file only names that a new optimizer has."""
    one, other = network(), network(1)
    optimizer, loaded = make(split(one, by_layer)), make(split(other, by_layer))
    train(one, optimizer, batches(8))
    other.load_state_dict(one.state_dict())
    state = copy.deepcopy(get_optimizer_state_dict(one, optimizer))
    if by_file:
        dcp.save(state, checkpoint_id=tmp_path)
        state = get_optimizer_state_dict(other, loaded)
        dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, loaded, state)
    assert loaded.turns.progress == optimizer.turns.progress
    assert loaded.counts == optimizer.counts
    assert train(other, loaded, batches(6, seed=2)) == train(one, optimizer, batches(6, seed=2))
    assert torch.equal(weights(one), weights(other))


def test_a_distributed_checkpoint_that_cannot_be_resumed_is_refused():
    one, other = network(), network()
    merged, loaded = merging(split(one, by_layer)), eq6(split(other, by_layer))
    train(one, merged, batches(2))
    with pytest.raises(ValueError, match="the state is of the components"):
        set_optimizer_state_dict(other, loaded, get_optimizer_state_dict(one, merged))
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    train(other, loaded, batches(2))
    with pytest.raises(ValueError, match=r"no line search: .* or it was flattened"):
        set_optimizer_state_dict(other, loaded, get_optimizer_state_dict(other, loaded, options=flat), options=flat)


@every_state
def test_hooks_on_states_fire_once_and_may_replace_what_they_see(make):
    model = network()
    optimizer = make(split(model, by_parameter))
    train(model, optimizer, batches(3))
    fired = []
    optimizer.register_state_dict_pre_hook(lambda o: fired.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, state: fired.append("saved") or {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, state: fired.append("before loading") or {key: value for key, value in state.items() if key != "note"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: fired.append("loaded"))
    state = optimizer.state_dict()
    assert state["note"] == 1
    optimizer.load_state_dict(state)
    assert fired == ["before saving", "saved", "before loading", "loaded"]


@every_state
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_has_all_public_attributes_and_goes_on_as_the_original(make, clone):
    model = network()
    optimizer = make(split(model, by_parameter))
    train(model, optimizer, batches(4))
    other, copied = clone((model, optimizer))

    def public(it):
        return {name for name in vars(it) if not name.startswith("_")}

    assert public(copied) == public(optimizer)
    assert train(other, copied, batches(4)) == train(model, optimizer, batches(4))
    copied.load_state_dict(optimizer.state_dict())
    assert repr(copied.state_dict()) == repr(optimizer.state_dict())


# -- hooks and profiles of steps --------------------------------------------------------------------------------


def beside_torchs_own(make):
    """An optimizer whose host class torch has wrapped for hooks and profiles already."""
    model = network()
    for host in (torch.optim.SGD, torch.optim.Adam):
        host(model.parameters())
    return model, make(model.parameters())


@every_class
def test_step_hooks_see_the_closure_once_and_global_ones_fire_too(make):
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    model, optimizer = beside_torchs_own(make)
    fired = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: fired.append(("own", len(args), sorted(kwargs))))
    optimizer.register_step_post_hook(lambda o, args, kwargs: fired.append(("own after", len(args), sorted(kwargs))))
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: fired.append("global")),
        register_optimizer_step_post_hook(lambda o, args, kwargs: fired.append("global after")),
    ]
    try:
        for x, y in batches(2):
            optimizer.step(closure=lambda x=x, y=y: cross_entropy(model(x), y))
    finally:
        for handle in handles:
            handle.remove()
    assert fired == ["global", ("own", 1, ["closure"]), ("own after", 1, ["closure"]), "global after"] * 2


@every_class
def test_a_profile_names_the_step_once(make):
    model, optimizer = beside_torchs_own(make)
    (x, y), (u, v) = batches(2)
    train(model, optimizer, [(x, y)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, [(u, v)])
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step")]
    assert names == [f"Optimizer.step#{type(optimizer).__name__}.step"]
