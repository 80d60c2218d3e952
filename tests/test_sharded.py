"""Four processes: weights sharded in two dimensions, in mixed precision, in CPU memory, with adapters, accumulated."""

import json

import pytest

from tests.forked import Forked
from tests.sharded_worker import KINDS, SEARCHES, made, network, searched


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each of four ranks saw: one start for all tests."""
    folder = tmp_path_factory.mktemp("sharded")
    ran = Forked("-m", "tests.sharded_worker", folder, ranks=4)
    _, stderr = ran.communicate(timeout=250)
    assert ran.returncode == 0, stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_four_ranks_take_the_steps_of_one_process(ranks, kind, name):
    seen = [rank[f"{kind}, {name}"] for rank in ranks]
    assert isinstance(seen[0], list), seen[0]
    assert seen == [seen[0]] * 4
    if kind == "mixed precision":  # its forward passes are in bfloat16, so its digits are others
        assert seen[0][-1][0] < 0.8 * seen[0][0][0]
        return
    model = network(kind)
    alone = searched(kind, model, made(name, kind, model))
    assert [step[1] for step in seen[0]] == [step[1] for step in alone]
    assert sum(step[1] for step in alone) > len(alone)
    for ours, expected in zip(seen[0], alone, strict=True):
        assert ours[0] == pytest.approx(expected[0], rel=1e-5)  # the loss
        assert ours == pytest.approx(expected, rel=5e-5)


def test_a_state_that_torch_has_gathered_goes_on_to_the_same_bits(ranks):
    for rank in ranks:
        goes_on, resumed = rank["state"]
        assert resumed == goes_on
