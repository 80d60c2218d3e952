"""A study: a sampler chooses settings run by run, as a grid would have too many cells.

A trial is one choice of settings. It has one run for each seed, in order, and its value is their mean. It ends early if
after some seed its mean so far is worse than the median of the other trials'. Its runs have train.run's folders, so
that no run is trained twice. If a trial's process dies, the same choice is queued again and finds its finished runs.
"""

import dataclasses
import hashlib
import pkgutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from train import stopping
from train.candidates import find
from train.config import Config
from train.errors import DamagedRun, InputError, one_line
from train.folder import RunFolder, SweepFolder
from train.imports import uncollected

from .space import Space
from .storage import open_journal
from .team import TRIES, Team, Tell, ended_by, send_output_to

IMPORTANCE = optuna.importance.PedAnovaImportanceEvaluator()
STARTUP = 8  # trials that are drawn at random, before the sampler can learn from them
RETRIED = "retried"  # the study's list of failed trials whose choice is queued again


class Plan:
    """What a study searches and repeats, and where it is kept. A plan writes nothing.

    Raises:
        InputError: there is nothing to search, or a value is out of range.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        lists = {
            key: [getattr(Config.from_dict({key: value}), key) for value in values]
            for key, values in space.parameters.items()
            if key != "seed" and len(values) > 1
        }
        self.searched: dict[str, BaseDistribution] = {
            key: CategoricalDistribution(values) for key, values in lists.items()
        } | space.ranges
        if not self.searched:
            raise InputError(f"{space.name}: every setting is given, so there is nothing to search")
        self.fixed = {key: values[0] for key, values in space.parameters.items() if key not in (*lists, "seed")}
        self.seeds = space.parameters.get("seed", [0])
        self.trials = max(1, space.run_cap // len(self.seeds))
        one_choice = {key: _any(found) for key, found in self.searched.items()}
        self.one_trial = [self.config(one_choice, seed) for seed in self.seeds]
        self.measure = space.measure(self.one_trial[0])
        self.held_against = None if "optimizer" in self.searched else find(self.one_trial[0].optimizer).held_against
        self.folder = SweepFolder(self.one_trial[0].folder.parent)
        self.journal = self.folder.journal_file
        what = repr([[config.run_id for config in self.one_trial], sorted(self.searched.items())])
        self.name = f"{space.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    def config(self, choice: dict[str, Any], seed: Any) -> Config:
        return Config.from_dict(self.fixed | choice | {"seed": seed})

    def reference(self) -> list[Config]:
        """The runs with which a study is compared, on the same seeds: a study of ADAM with untuned ADAMSLS."""
        if self.held_against is None:
            return []
        plain = {key: getattr(Config(), key) for key in self.searched}
        return [dataclasses.replace(self.config(plain, seed), optimizer=self.held_against) for seed in self.seeds]

    def result(self, config: Config) -> float:
        """What the tuning study is about, of a finished run."""
        return float(RunFolder(config.folder).summary()[self.space.measure(config)])

    def missing(self) -> int:
        """Trials that have not ended."""
        if not self.journal.exists():
            return self.trials
        try:
            study = optuna.load_study(study_name=self.name, storage=open_journal(self.journal))
        except KeyError:  # the journal belongs to other settings
            return self.trials
        return max(0, self.trials - len(_ended(study)))


class Tuning(Plan):
    """A study's trials. Any number of processes may have a Tuning on the same folder.

    Args:
        space: the study.
        run: as in `tune`.

    Raises:
        InputError: as in `Plan`, or the folder cannot be written.
    """

    def __init__(self, space: Space, run: str) -> None:
        super().__init__(space)
        with uncollected():
            self.train = pkgutil.resolve_name(run)
        with self.folder.locked():
            self.study = optuna.create_study(
                study_name=self.name,
                storage=open_journal(self.journal),
                direction=space.goal,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP // 2),
                load_if_exists=True,
            )

    def retry_failed(self) -> None:
        """Queue the choices of trials that raised an error again. The new trials replace the old ones."""
        with self.folder.locked():
            failed = [trial for trial in self.ended() if "error" in trial.user_attrs]
            self.study.set_user_attr(RETRIED, [*self.study.user_attrs.get(RETRIED, []), *(t.number for t in failed)])
            for trial in failed:
                self.study.enqueue_trial(trial.params)

    def take(self) -> "Trial | None":
        """The next trial, marked as this process's own; None if all are done or being done."""
        with self.folder.locked():
            if self._untaken() < 1:
                return None
            # The seed is the number of choices so far: no two processes draw the same one. Dead trials do not count.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self._choices(), n_startup_trials=STARTUP, constant_liar=True
            )
            trial = self.study.ask(self.searched)
            lock = self.folder.try_lock_trial(self.name, trial.number)
            assert lock is not None, "a new trial's lock is nobody's"
            self.lock = lock
            return trial

    def _choices(self) -> int:
        """Number of trials, without those whose choice another trial has taken over."""
        retried = self.study.user_attrs.get(RETRIED, [])
        return sum(
            trial.number not in retried and (trial.state != TrialState.FAIL or "error" in trial.user_attrs)
            for trial in self.study.get_trials(deepcopy=False)
        )

    def untaken(self) -> int:
        """Number of trials that have not ended and that no process runs."""
        with self.folder.locked():
            return self._untaken()

    def _untaken(self) -> int:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return self.missing() - sum(not self._requeued(trial) for trial in running)

    def ended(self) -> list[FrozenTrial]:
        return _ended(self.study)

    def missing(self) -> int:
        return max(0, self.trials - len(self.ended()))

    def runs(self) -> int:
        """Number of training runs of all trials that have ended."""
        return sum(len(trial.user_attrs.get("values", [])) for trial in self.ended())

    def describe(self, trial: FrozenTrial) -> str:
        choice = ", ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
        values = trial.user_attrs.get("values", [])
        what = trial.user_attrs.get("error") or f"{np.mean(values):.4f} over {len(values)} seeds"
        return f"{choice}: {what}{', pruned' if trial.state == TrialState.PRUNED else ''}"

    def _requeued(self, trial: FrozenTrial) -> bool:
        """Whether the trial's process has died. If so, its choice is queued for the next one that takes a trial."""
        lock = self.folder.try_lock_trial(self.name, trial.number)
        if lock is None:
            return False
        self.study.tell(trial.number, state=TrialState.FAIL)
        if len(trial.params) == len(self.searched):  # a trial that died while it was drawn is drawn anew
            self.study.enqueue_trial(trial.params)
        lock.close()
        return True

    def run(self, trial: Trial) -> None:
        """Train the trial's seeds, and report to the study."""
        try:
            value = self.objective(trial)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except (InputError, OSError) as error:
            traceback.print_exc()
            if not isinstance(error, DamagedRun):  # another choice would fail in the same way
                raise
            trial.set_user_attr("error", one_line(error))
            self.study.tell(trial, state=TrialState.FAIL)
        except Exception as error:
            traceback.print_exc()
            trial.set_user_attr("error", f"{type(error).__name__}: {one_line(error)}")
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value)
        finally:
            self.lock.close()

    def objective(self, trial: Trial) -> float:
        values = []
        for number, seed in enumerate(self.seeds):
            values.append(self.value(self.config(trial.params, seed)))
            trial.report(float(np.mean(values)), number)
            trial.set_user_attr("values", values)
            if number < len(self.seeds) - 1 and trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(values))

    def value(self, config: Config) -> float:
        """Train a run and return its result. If another process runs it already, wait for that first."""
        with RunFolder(config.folder).locked():
            self.train(config)
        return self.result(config)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials with a value, those that were pruned, and those that raised an error, in the order of their ends."""
    retried = study.user_attrs.get(RETRIED, [])
    found = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and "error" in trial.user_attrs and trial.number not in retried)
    ]
    return sorted(found, key=lambda trial: trial.datetime_complete or trial.number)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _any(found: BaseDistribution) -> Any:
    return found.choices[0] if isinstance(found, CategoricalDistribution) else found.low


# -- all of it ------------------------------------------------------------------------------------------------


def work(space: Space, run: str, tell: Tell) -> None:
    """Run trials in this process until none is left. Its output goes to the study's log."""
    tuning = Tuning(space, run)
    send_output_to(tuning.folder.log_file)
    for config in tuning.reference():
        tuning.value(config)
    while (trial := tuning.take()) is not None:
        tuning.run(trial)
        stopping.check()


def tune(space: Space, workers: int, retry_failed: bool, run: str) -> int:
    """Run what is missing of a study, print what it has found and draw its figures.

    Args:
        space: the study.
        workers: processes at a time.
        retry_failed: whether trials that raised an error are run again.
        run: importable name of train.run.run, or of another function of its kind.

    Returns:
        The exit status: 0 if all trials have ended, 1 if one of them ended with an error.

    Raises:
        InputError: the study cannot run, for a reason that the caller can mend.
    """
    tuning = Tuning(space, run)
    if retry_failed:
        tuning.retry_failed()
    deaths, told = 0, len(tuning.ended())
    with Team(work, space, run) as team:
        while tuning.missing():
            if deaths >= TRIES:
                raise InputError(f"{deaths} of the study's processes have died; see {tuning.folder.log_file}")
            team.start(min(workers - len(team.workers), tuning.untaken()))
            for worker, message in team.listen(2):
                if message is None and worker.process.exitcode:
                    deaths += 1
                    how = ended_by(worker.process.exitcode)
                    print(f"{space.name}: a worker {how}; another one goes on with its choice", file=sys.stderr)
            told = _tell_progress(tuning, told)
    _tell_progress(tuning, told)
    print(report(tuning))
    failed = [trial for trial in tuning.ended() if "error" in trial.user_attrs]
    for trial in failed:
        print(f"failed: {tuning.describe(trial)} (see {tuning.folder.log_file})", file=sys.stderr)
    if failed:
        print("the same command with --retry-failed runs failed trials again", file=sys.stderr)
    return int(bool(failed))


def _tell_progress(tuning: Tuning, told: int) -> int:
    ended = tuning.ended()
    for trial in ended[told:]:
        print(f"{len(ended)}/{tuning.trials} trials: {tuning.describe(trial)}", file=sys.stderr)
    return max(told, len(ended))


# -- what it has found --------------------------------------------------------------------------------------


def report(tuning: Tuning) -> str:
    """The best choices and the importances of the settings, as text. It also draws Optuna's own figures.

    For a study of ADAM it says after how many training runs the best choice so far reaches untuned ADAMSLS.
    """
    complete = [trial for trial in tuning.ended() if trial.state == TrialState.COMPLETE]
    if not complete:
        return f"{tuning.space.name}: no trial has come to its end"
    sign = -1 if tuning.space.goal == "maximize" else 1
    best = sorted(complete, key=lambda trial: sign * trial.values[0])
    pruned = sum(trial.state == TrialState.PRUNED for trial in tuning.ended())
    lines = [
        f"{tuning.space.name}: {len(tuning.ended())} trials ({pruned} pruned), {tuning.runs()} runs; "
        f"{tuning.measure}, mean over seeds {', '.join(map(str, tuning.seeds))}. Best:",
        *(f"  {tuning.describe(trial)}" for trial in best[:5]),
    ]
    if importances := _importances(tuning):
        shares = ", ".join(f"{key} {value:.2f}" for key, value in importances.items())
        lines.append(f"Importance (PED-ANOVA over {len(complete)} trials, few tell little): {shares}")
    if reference := tuning.reference():
        lines.append(_answer(tuning, [tuning.result(config) for config in reference]))
    return "\n".join([*lines, *map(str, figures(tuning))])


def _answer(tuning: Tuning, reference: list[float]) -> str:
    target, runs = float(np.mean(reference)), 0
    better = np.greater_equal if tuning.space.goal == "maximize" else np.less_equal
    tuned, untuned = (find(key).name for key in (tuning.one_trial[0].optimizer, tuning.held_against or ""))
    said = f"Untuned {untuned} has {target:.4f} after {len(reference)} runs, one a seed."
    for number, trial in enumerate(tuning.ended(), start=1):
        runs += len(trial.user_attrs.get("values", []))
        if trial.state == TrialState.COMPLETE and better(trial.values[0], target):
            return f"{said} {tuned}'s best choice reaches it with tuning trial {number}, after {runs} runs."
    return f"{said} {tuned}'s best choice has not reached it in {runs} runs."


def _importances(tuning: Tuning) -> dict[str, float]:
    """How important each setting is for being among the better trials; empty if there are too few trials to tell."""
    values = {trial.values[0] for trial in tuning.ended() if trial.state == TrialState.COMPLETE}
    if len(values) < STARTUP:
        return {}
    return optuna.importance.get_param_importances(tuning.study, evaluator=IMPORTANCE)


def figures(tuning: Tuning) -> list[Path]:
    """Draw Optuna's figures of the study, as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.ticker import NullFormatter
    from optuna.visualization import matplotlib as plots

    folder = tuning.folder.figures_folder
    folder.mkdir(exist_ok=True)
    study, named = tuning.study, {"target_name": tuning.measure}
    files = []
    with warnings.catch_warnings(action="ignore"):  # they are experimental; a contour needs three trials
        drawn = {"history": plots.plot_optimization_history(study, **named), "slice": plots.plot_slice(study, **named)}
        if len(tuning.searched) > 1:
            drawn["parallel-coordinate"] = plots.plot_parallel_coordinate(study, **named)
            drawn["contour"] = plots.plot_contour(study, **named)
        if _importances(tuning):
            drawn["importance"] = plots.plot_param_importances(study, evaluator=IMPORTANCE)
        for name, axes in drawn.items():
            panels = np.ravel(axes)
            figure = panels[0].figure
            figure.set_size_inches(max(7, 3.2 * len(panels)) if name == "slice" else 7, 7 if name == "contour" else 4)
            for panel in panels:  # in a narrow panel labels between the decades would overlap
                panel.xaxis.set_minor_formatter(NullFormatter())
            files.append(folder / f"{tuning.space.name}-{tuning.space.label}-{name}.png")
            figure.savefig(files[-1], dpi=130, bbox_inches="tight")
    return files
