"""train/candidates.py and train/tasks.py: a row says all that the study knows of a candidate or a task."""

import dataclasses
import math
import pkgutil
import typing
from typing import Any

import pytest
import torch

from optim import PAPER, handover
from train import candidates
from train.builders import LEVERS, MENDED, PRESETS, preset
from train.candidates import CANDIDATES, SEARCHES, USED_BY, Candidate, find, reads
from train.config import Config
from train.errors import InputError
from train.peers import PublishedSaLSA

from .families import bert


@pytest.mark.parametrize("row", CANDIDATES.values(), ids=CANDIDATES)
def test_a_row_names_settings_a_builder_and_candidates_that_there_are(row: Candidate) -> None:
    assert set(row.settings) <= {field.name for field in dataclasses.fields(Config)}
    assert callable(pkgutil.resolve_name(row.builder))
    assert row.held_against is None or find(row.held_against).searches
    assert row.searches == (row.trials > 0)


def test_no_two_candidates_look_alike() -> None:
    for key in ("key", "name", "colour"):
        assert len({getattr(row, key) for row in CANDIDATES.values()}) == len(CANDIDATES)


def test_a_setting_is_read_by_all_candidates_or_by_those_whose_rows_name_it() -> None:
    assert {setting for row in CANDIDATES.values() for setting in row.settings} == set(USED_BY)
    for key, row in CANDIDATES.items():
        for setting in USED_BY:
            assert reads(key, setting) == (setting in row.settings)
        assert reads(key, "batch_size")


def test_an_unknown_candidate_is_one_line_that_names_those_allowed() -> None:
    said = f"--optimizer=lion: unknown candidate; allowed: {', '.join(CANDIDATES)}$"
    with pytest.raises(InputError, match=said):
        find("lion")
    with pytest.raises(InputError, match=said):
        Config(optimizer="lion")


def test_a_run_id_is_a_digest_of_the_settings_that_its_candidate_reads() -> None:
    """Whatever else a configuration says, or will say with a new setting of other candidates, it is the same run."""
    plain = {key: Config(optimizer=key) for key in CANDIDATES}
    others: dict[str, Any] = {"learning_rate": 1.0, "c": 0.3, "split": 4, "joint": "never", "batch_size": 8}
    for key, config in plain.items():
        for setting, other in others.items():
            changed = dataclasses.replace(config, **{setting: other})
            assert (changed.run_id != config.run_id) == reads(key, setting), (key, setting)
    assert len({config.run_id for config in plain.values()}) == len(CANDIDATES)


def test_a_search_is_its_preset_itself_unless_the_configuration_changes_it() -> None:
    for search, own in (("paper", PAPER), ("mended", MENDED)):
        assert preset(Config(search=search)) is own  # type: ignore[arg-type]
    changed = preset(
        Config(optimizer="plasls", search="paper", c=0.3, direction="momentum", merge_threshold=0.0, joint=7)
    )
    expected = PAPER.but(c=0.3, tested="move", merge_threshold=0.0, joint=7)
    assert changed == expected
    assert changed.criterion.c == 0.3


def test_a_setting_that_is_not_given_has_the_searchs_own_value() -> None:
    """The table that needs no torch says what the presets say."""
    assert SEARCHES.keys() == PRESETS.keys() == set(typing.get_args(typing.get_type_hints(Config)["search"]))
    for search, own in SEARCHES.items():
        made = PRESETS[search]
        values = {key: getattr(made, {"direction": "tested"}.get(key, key)) for key in own if key != "c"}
        assert own == values | {"c": made.criterion.c}
        config = Config(search=search)  # type: ignore[arg-type]
        assert {key: getattr(config, key) for key in own} == own
        assert dataclasses.replace(config, **own).run_id == config.run_id
    assert Config(search="paper").run_id != Config(search="mended", rounding=0.0, joint="never").run_id


@pytest.mark.parametrize("key", ["sgdsls", "adamsls", "plasls"])
@pytest.mark.parametrize("search", ["paper", "mended"])
def test_a_line_search_of_the_study_has_the_settings_of_its_preset(key: str, search: str) -> None:
    config = Config(optimizer=key, search=search, split=3)  # type: ignore[arg-type]
    built = CANDIDATES[key].build(config, bert(), 16)
    assert built.preset == PRESETS[search]


@pytest.mark.parametrize("lever", sorted(LEVERS.keys() - {"components"}))
def test_each_lever_of_the_default_search_changes_what_it_names_and_nothing_else(lever: str) -> None:
    changes = {
        "none": set(),
        "momentum": {"betas"},
        "decay": {"total_steps"},
        "average": {"total_steps", "averaging"},
        "criterion": {"criterion"},
        "c": {"criterion"},
        "nonmonotone": {"criterion"},
        "interval": {"max_interval"},
        "first_search": {"first_search", "initial_step_size"},
        "growth": {"search_growth", "growth_steps"},
    }

    def settings(**changes: Any) -> dict[str, Any]:
        built = find("untuned").build(Config(optimizer="untuned", **changes), torch.nn.Linear(3, 2), 16)
        return vars(built.preset) | {"total_steps": built.turns.total_steps, "averaging": built.averaging}

    default, found = settings(), settings(lever=lever)
    assert {key for key in found if found[key] != default[key]} == changes[lever]
    assert default["total_steps"] == 16 * Config.epochs
    assert set(typing.get_args(typing.get_type_hints(Config)["lever"])) == LEVERS.keys()


def test_an_optimizer_of_torch_becomes_a_candidate_by_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for builder, searches in (("hosted", True), ("scheduled", False)):
        row = Candidate(
            "nadam", "NADAM", "#000000", f"train.builders:{builder}", (), searches, host="torch.optim:RAdam"
        )
        monkeypatch.setitem(candidates.CANDIDATES, "nadam", row)
        if builder == "scheduled":
            row = dataclasses.replace(row, host="torch.optim:AdamW")
            monkeypatch.setitem(candidates.CANDIDATES, "nadam", row)
        config = Config(optimizer="nadam", learning_rate=0.05, epochs=8)
        assert_learns_and_goes_on(config)


def test_the_lever_of_components_gives_each_of_ten_the_default_search() -> None:
    model = bert()

    def optimizer(**changes: Any) -> Any:
        return find("untuned").build(Config(optimizer="untuned", **changes), model, 16)

    one, ten = optimizer(), optimizer(lever="components")
    assert (len(one.param_groups), len(ten.param_groups)) == (1, 10)
    assert ten.preset == one.preset
    assert ten.preset.joint == "always"
    with pytest.raises(InputError, match=r"^--lever=components: "):
        find("untuned").build(Config(optimizer="untuned", lever="components"), torch.nn.Linear(3, 2), 16)


def test_the_published_salsa_repeats_a_run_and_goes_on_from_its_state() -> None:
    published = pytest.importorskip("salsa.SaLSA")

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))

    def train(model: torch.nn.Module, optimizer: Any, steps: range) -> list[tuple[float, int]]:
        found = []
        for k in steps:
            torch.manual_seed(k)
            x = torch.randn(16, 4)
            loss = optimizer.step(lambda x=x: torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)))
            found.append((float(loss), optimizer.search.trials))
        return found

    first, second, third = network(), network(), network()
    whole = train(first, PublishedSaLSA(published, list(first.parameters())), range(30))
    optimizer = PublishedSaLSA(published, list(second.parameters()))
    begun = train(second, optimizer, range(14))
    resumed = PublishedSaLSA(published, list(third.parameters()))
    third.load_state_dict(second.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert begun + train(third, resumed, range(14, 30)) == whole
    assert sum(trials for _, trials in whole) > 30


def test_a_checkpoint_of_the_published_salsa_goes_to_the_device_of_the_parameters() -> None:
    published = pytest.importorskip("salsa.SaLSA")
    optimizer = PublishedSaLSA(published, [torch.nn.Parameter(torch.ones(3))])
    optimizer.step(lambda: optimizer.param_groups[0]["params"][0].square().sum())
    elsewhere = PublishedSaLSA(published, [torch.nn.Parameter(torch.ones(3, device="meta"))])
    elsewhere.load_state_dict(optimizer.state_dict())
    tensors = [value for value in vars(elsewhere.inner).values() if isinstance(value, torch.Tensor)]
    moments = [*elsewhere.inner.state["gv"], *elsewhere.inner.state["mv"]]
    assert len(tensors) >= 2
    assert len(moments) == 2
    assert {tensor.device.type for tensor in (*tensors, *moments)} == {"meta"}


@pytest.mark.parametrize("key", sorted(CANDIDATES.keys() - {"sgdsls", "adamsls", "plasls", "follow"}))
def test_a_candidate_learns_and_its_state_goes_on_as_if_it_had_not_stopped(key: str) -> None:
    assert_learns_and_goes_on(Config(optimizer=key, learning_rate=0.05, epochs=8, split=1))


def test_handover_is_the_default_for_an_epoch_and_then_adam_at_the_step_size_found() -> None:
    def losses(key: str) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer: Any = find(key).build(Config(optimizer=key, epochs=4), model, steps_per_epoch=20)
        found = []
        for k in range(80):
            x = torch.randn(32, 4, generator=torch.Generator().manual_seed(k))

            def closure(x: torch.Tensor = x) -> torch.Tensor:
                return torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))

            if key == "follow" and k == 20:
                optimizer = handover(optimizer)
                schedule = torch.optim.lr_scheduler.LambdaLR(
                    optimizer, lambda j: (1 + math.cos(math.pi * (20 + j) / 80)) / 2
                )
            if key == "follow" and k >= 20:
                optimizer.zero_grad()
                found.append(closure())
                found[-1].backward()
                optimizer.step()
                schedule.step()
            else:
                found.append(optimizer.step(closure))
        return [loss.item() for loss in found]

    torch.testing.assert_close(losses("handover"), losses("follow"), rtol=1e-6, atol=0)


def assert_learns_and_goes_on(config: Config) -> None:
    def learner() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        return model, find(config.optimizer).build(config, model, steps_per_epoch=20)

    def train(model: Any, optimizer: Any, steps: range) -> list[float]:
        if hasattr(optimizer, "train"):
            optimizer.train()
        found = []
        for k in steps:
            x = torch.randn(32, 4, generator=torch.Generator().manual_seed(k))
            step = optimizer.step(lambda x=x: torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)))
            found.append(float(step))
        return found

    model, optimizer = learner()
    losses = train(model, optimizer, range(160))  # L-DoG starts with very small moves
    assert losses[-1] < losses[0]
    first, begun = learner()
    train(first, begun, range(15))
    second, resumed = learner()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(begun.state_dict())
    assert train(second, resumed, range(15, 160)) == losses[15:]


def test_l_dog_is_evaluated_at_its_average_and_trains_on_from_its_iterates() -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = find("l-dog").build(Config(optimizer="l-dog"), model, steps_per_epoch=20)
    optimizer.param_groups[0]["lr"] = 1e4  # its first moves are too short to tell the average from the iterates
    average = torch.zeros(3, 4)
    for k in range(1, 6):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(k))
        optimizer.step(lambda x=x: torch.nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)))
        share = 9 / (8 + k)  # of polynomial decay averaging with gamma = 8
        average = (1 - share) * average + share * model.weight.detach()
    last = model.weight.detach().clone()
    optimizer.eval()
    torch.testing.assert_close(model.weight.detach(), average)
    assert not torch.equal(model.weight, last)
    optimizer.train()
    assert torch.equal(model.weight, last)
