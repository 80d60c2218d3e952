"""analysis/workspaces.py: the W&B workspaces are about runs, settings and metrics that there are."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.exhibits import EXHIBITS
from analysis.workspaces import NAMES, main, views
from sweeps.space import load, sweeps
from train.errors import InputError
from train.tasks import TASKS
from train.tracking import AXES

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::pydantic.warnings.PydanticDeprecatedSince20"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("workspaces")
    assert main([f"--out={out}"]) == str(out / "workspaces.json")
    return json.loads((out / "workspaces.json").read_text())


def test_every_view_is_of_a_sweep_and_of_what_it_varies(written: dict[str, Any]) -> None:
    assert {view.sweep for view in views()} <= set(sweeps())
    assert list(written) == [view.name for view in views()]
    for view in views():
        space = load(view.sweep, "paper")
        assert view.setting in space.varied
        assert view.task in space.parameters["task"]
        (runs,) = written[view.name]["section"]["runSets"]
        shown = [(part["key"], part["op"], part["value"]) for part in runs["filters"]["filters"]]
        # A run's group is its sweep, and its task is one of its tags (tests/test_wandb.py).
        assert shown == [
            ({"section": "run", "name": "group"}, "=", view.sweep),
            ({"section": "run", "name": "tags"}, "IN", [view.task]),
            *(({"section": "config", "name": f"{key}.value"}, "=", value) for key, value in view.only.items()),
        ]
        assert all(value in space.parameters[key] for key, value in view.only.items())
        for key in {"optimizer", "learning_rate"} & set(space.varied):  # a mean over these means nothing
            assert key in {*view.lines, *view.only}
        assert set(view.lines) <= set(space.varied)
        assert [group["name"] for group in runs["grouping"]] == [f"{key}.value" for key in view.lines]
    small = {view.task for view in views() if view.sweep == "paper"}
    assert small == set(load("paper", "paper").parameters["task"])


def test_every_sweep_that_an_exhibit_is_made_from_has_a_view() -> None:
    assert {sweep for exhibit in EXHIBITS.values() for sweep in exhibit.sweeps} <= {view.sweep for view in views()}


def test_panels_show_logged_metrics_over_their_axis_with_standard_errors(written: dict[str, Any]) -> None:
    for content in written.values():
        panels = [
            panel["config"] for part in content["section"]["panelBankConfig"]["sections"] for panel in part["panels"]
        ]
        shown = [metric for panel in panels for metric in panel["metrics"]]
        assert {"train/loss", "search/trials", "search/failures", "time/total"} <= set(shown)
        (tags,) = [part for part in content["section"]["runSets"][0]["filters"]["filters"] if part["op"] == "IN"]
        judged = {f"eval/{metric}" for metric in TASKS[tags["value"][0]].metrics}
        assert {metric for metric in shown if metric.startswith("eval/")} == {*judged, "eval/loss"}
        assert len({(panel["chartTitle"], *panel["metrics"]) for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["chartTitle"]  # in words
            assert "/" not in panel["chartTitle"]
            assert panel.get("xAxisTitle") == NAMES.get(panel.get("xAxis"))
            for metric in panel["metrics"]:
                assert f"{metric.split('/')[0]}/*" in AXES
                assert (panel["groupAgg"], panel["groupArea"]) == ("mean", "stderr")
            if panel["metrics"] == ["train/loss"]:
                assert panel["xAxis"] == "samples"


def test_without_a_server_saving_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr("analysis.workspaces.workspaces", lambda entity, project: [Refused()])
    with pytest.raises(InputError, match=r"--entity=me: W&B did not take the workspaces \(no server\); allowed: "):
        main(["--entity=me"])
    with pytest.raises(InputError, match="unknown argument --colour=red"):
        main(["--colour=red"])


class Refused:
    def save(self) -> None:
        raise ConnectionError("no\nserver")
