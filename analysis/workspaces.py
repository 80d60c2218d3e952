"""The study's W&B workspaces, built in code. Each figure of the paper has a view with standard-error bands."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from train.arguments import Parser
from train.errors import InputError, one_line, writing
from train.tasks import TASKS

from .metrics import LOGGED, METRICS

SWEEPS = Path(__file__).parent.parent / "sweeps"
NAMES = {"samples": "training rows seen", "epoch": "epochs", "step": "optimizer steps"}
"""what panels have as x-axis -> its name there"""
SMOOTHED: dict[str, Any] = {"smoothing_type": "exponential", "smoothing_factor": 0.8}


@dataclass(frozen=True)
class View:
    """One workspace: the runs of a sweep on a task, a line for each value of a setting.

    Attributes:
        figure: the figure of the paper, or what the view shows.
        sweep: the sweep whose runs are shown.
        setting: the Config field whose values are the lines.
        task: the task of the runs that are shown.
        only: Config field -> value that all shown runs have, as a mean over its values would mean nothing.
        step_sizes: whether the panels of step sizes come first.
        beside: further settings; each choice of `setting` and of these is a line.
    """

    figure: str
    sweep: str
    setting: str
    task: str
    only: dict[str, Any] = field(default_factory=dict)
    step_sizes: bool = False
    beside: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        return [self.setting, *self.beside]

    @property
    def name(self) -> str:
        only = "".join(f", {key} {value}" for key, value in self.only.items())
        return f"{self.figure}: {', '.join(self.lines)} on {self.task} ({self.sweep}{only})"


def views() -> list[View]:
    """The views of each sweep: one for each task, and one for each optimizer if these are not the lines."""
    return [
        *_of("Fig. 1", "merging", "rounding", step_sizes=True),
        *_of("Fig. 2", "merging", "merge_threshold", apart="rounding"),
        *_of("Figs. 3 to 7, Table I", "paper", "optimizer"),
        *_of("Table I, mended", "mended", "optimizer"),
        *_of("Table II", "full", "optimizer"),
        *_of("Figs. 5 to 7", "long", "optimizer", beside=("learning_rate",)),
        *_of("Fig. 8", "batches", "batch_size", apart="optimizer"),
        *_of("Fig. 9", "splits", "split"),
        *_of("Ablation", "dropout", "dropout", apart="optimizer"),
        *(view for setting in ("rounding", "direction", "growth") for view in _of("Ablation", "criterion", setting)),
        *_of("Ablation", "interval", "max_interval", apart="optimizer"),
        *_of("Ablation", "joint", "joint"),
        *_of("Rates", "first-look", "optimizer", beside=("learning_rate",)),
        *_of("Rates and hindsight", "rates", "optimizer", beside=("learning_rate",)),
        *_of("Rates and hindsight", "budget", "optimizer", beside=("learning_rate",)),
    ]


def _of(
    figure: str,
    sweep: str,
    setting: str,
    apart: str | None = None,
    step_sizes: bool = False,
    beside: tuple[str, ...] = (),
) -> list[View]:
    """A view for each task of the sweep's file, and for each value of a setting that is to be kept apart."""
    parameters = yaml.safe_load((SWEEPS / f"{sweep}.yaml").read_text(encoding="utf-8"))["parameters"]

    def values(key: str) -> list[Any]:
        return parameters[key].get("values") or [parameters[key]["value"]]

    return [
        View(figure, sweep, setting, task, only, step_sizes, beside)
        for task in values("task")
        for only in ([{apart: value} for value in values(apart)] if apart else [{}])
    ]


def workspaces(entity: str, project: str) -> list[Any]:
    """A wandb_workspaces.Workspace for each of `views()`. This uses no network."""
    return [_workspace(view, entity, project) for view in views()]


def _workspace(view: View, entity: str, project: str) -> Any:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as ws

    grouped: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    if not view.beside:  # a panel groups by one setting; without it, it takes the groups of the run set below
        grouped["groupby"] = reports.Config(view.setting)

    def panel(title: str, metric: str, axis: str, **settings: Any) -> Any:
        return reports.LinePlot(
            title=title, x=axis, title_x=NAMES[axis], y=[metric], max_runs_to_show=100, **grouped, **settings
        )

    def bars(title: str, metric: str) -> Any:
        return reports.BarPlot(title=title, metrics=[metric], **grouped)

    metrics = {METRICS[key].name: f"{LOGGED}{key}" for key in TASKS[view.task].metrics}
    learning = [
        panel("training loss of the mini-batch", "train/loss", "samples", log_y=True, **SMOOTHED),
        *(panel(f"validation: {name}", metric, "epoch") for name, metric in metrics.items()),
        panel("training loss, mean of the epoch", "train/epoch_loss", "epoch", log_y=True),
        panel("validation loss", "eval/loss", "epoch"),
        *(bars(f"validation: {name}, after the last epoch", metric) for name, metric in metrics.items()),
    ]
    searching = [
        reports.LinePlot(
            title="step size of each component, or learning rate",
            x="step",
            title_x=NAMES["step"],
            metric_regex="step_size/.*",
            log_y=True,
            max_runs_to_show=100,
        ),
        panel("trials of the step", "search/trials", "step", **SMOOTHED),
        panel("seconds of the step", "time/step", "step"),
        bars("trials of the whole run", "search/trials"),
        bars("searches of the whole run that accepted none", "search/failures"),
        bars("seconds of the whole run, evaluations included", "time/total"),
    ]
    sections = [
        ws.Section(name="Learning", panels=learning, is_open=True),
        ws.Section(name="Line search", panels=searching, is_open=view.step_sizes),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=view.name,
        sections=sections[::-1] if view.step_sizes else sections,
        runset_settings=ws.RunsetSettings(
            # Group and tags select the runs: the server would take a setting called sweep for its own.
            filters=[
                ws.Metric("Group") == view.sweep,
                ws.Tags().isin([view.task]),
                *(ws.Config(f"{key}.value") == value for key, value in view.only.items()),
            ],
            groupby=[ws.Config(key) for key in view.lines],
        ),
    )


def main(args: list[str]) -> str:
    """Save the workspaces to `--entity`, or write them to a file if none is given. Returns a message about it.

    Raises:
        InputError: a wrong argument, W&B cannot be reached, or the file cannot be written.
    """
    parser = Parser(prog="python -m analysis workspaces", allow_abbrev=False)
    parser.add_argument("--entity", help="whose W&B project it is; without it only the file is written")
    parser.add_argument("--project", default="plasls", help="the W&B project [plasls]")
    parser.add_argument("--out", default="runs", help="folder of workspaces.json [runs]")
    options = parser.parse_args(args)
    built = workspaces(options.entity or "", options.project)
    if options.entity:
        try:
            return "\n".join(workspace.save().url for workspace in built)
        except Exception as error:  # several libraries raise here: no key, no network, no such project
            raise InputError(
                f"--entity={options.entity}: W&B did not take the workspaces ({one_line(error)[:160]}); "
                "allowed: an entity of yours after `wandb login`, or none for a file"
            ) from None
    path = Path(options.out) / "workspaces.json"
    content = {view.name: as_dict(workspace) for view, workspace in zip(views(), built, strict=True)}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return str(path)


def as_dict(workspace: Any) -> dict[str, Any]:
    """A workspace as it is sent to the server."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
