"""Reads a W&B sweep file: its parameters give the cells, and its command gives a cell's command line."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from train.candidates import reads
from train.config import OUTSIDE_IDENTITY, Config, unknown_settings
from train.errors import InputError
from train.places import name_of
from train.tasks import judge

from .schema import read_profile, read_sweep, role

HERE = Path(__file__).parent
STUDY = "study-"
FIELDS = tuple(field.name for field in dataclasses.fields(Config))
CUT_DOWN = ("task", "subset", "seed")
"""fields of which a profile may take fewer values than the sweep file has"""
SIZE = ("model", "data", "epochs", "batch_size", "max_length", *CUT_DOWN)
"""fields that a profile may change although the sweep file sets them; the others are what the sweep is about"""
SPEAKING = ("optimizer", "learning_rate", "task", "subset")
"""fields whose values need no name beside them"""


@dataclass(frozen=True)
class Space:
    """The grid of one call: the sweep file, as a profile and then the command line have changed it."""

    name: str
    """the sweep's name: its file"""
    about: str
    """the question that it asks: the file's first comment"""
    profile: str
    """the profile's name: its file"""
    label: str
    """the profile and the further changes, written for a file name and a caption"""
    metric: str
    """the sweep file's metric, as a key of a run's summary"""
    goal: str
    """maximize or minimize"""
    program: str
    command: tuple[str, ...]
    """the sweep file's command, with W&B's macros"""
    parameters: dict[str, list[Any]]
    """Config field -> its values, in the order of the file"""
    ranges: dict[str, BaseDistribution] = field(default_factory=dict)
    """Config field -> the range in which a tuning study searches"""
    run_cap: int = 0
    """the largest number of runs of a tuning study"""
    part: int | None = None
    """the sweep's place in the study; None: it is no part of it"""
    against: dict[str, Any] = field(default_factory=dict)
    """settings of the arm that the others are tested against, within each choice of the other settings"""

    @property
    def varied(self) -> list[str]:
        """The fields that the sweep compares. The seed is not among them, as it only repeats."""
        return [key for key, values in self.parameters.items() if len(values) > 1 and key != "seed"]

    def cells(self) -> dict[str, Config]:
        """The grid's runs by run id. Seeds are the outermost loop, so that what has finished is balanced at any time.

        If an optimizer does not read a setting, only the first value of that setting is taken for it: ADAMSLS is run
        once, not once for each of ADAM's learning rates.

        Raises:
            InputError: one line for each different thing that is wrong in any cell.
        """
        keys = sorted(self.parameters, key=lambda key: key != "seed")
        cells: dict[str, Config] = {}
        errors: list[str] = []
        for values in itertools.product(*(self.parameters[key] for key in keys)):
            point = dict(zip(keys, values, strict=True))
            optimizer = point.get("optimizer", Config.optimizer)
            if any(not reads(optimizer, key) and value != self.parameters[key][0] for key, value in point.items()):
                continue
            try:
                config = Config.from_dict(point)
            except InputError as error:
                errors.append(str(error))
                continue
            if config.run_id in cells:
                errors.append(f"two cells are the same run: {self.describe(config)}; give each value once")
            cells[config.run_id] = config
        if errors:
            raise InputError("\n".join(dict.fromkeys(errors)))
        return cells

    def measure(self, config: Config) -> str:
        """The key of a run's summary that the sweep is about: its metric; for accuracy, what judges the run's task."""
        return judge(config.task) if self.metric == "eval/accuracy" else self.metric

    def describe(self, config: Config) -> str:
        return ", ".join(f"{key}={value}" for key, value in self._place(config).items())

    def arm(self, config: Config) -> str:
        """The varied settings that its optimizer reads, in few words: adam 2e-05, or split=4."""
        read = {key: getattr(config, key) for key in self.varied if reads(config.optimizer, key)}
        return " ".join(str(value) if key in SPEAKING else f"{key}={value}" for key, value in read.items())

    def _place(self, config: Config) -> dict[str, Any]:
        """The cell's varied settings and seed. None: its optimizer does not read the setting."""
        keys = [*self.varied, "seed"]
        return {key: getattr(config, key) if reads(config.optimizer, key) else None for key in keys}

    def command_line(self, config: Config) -> list[str]:
        """The argument list by which `wandb agent` runs this cell.

        Raises:
            InputError: the command has an unknown macro.
        """
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": ["python"],
            "${program}": [self.program],
            "${args}": [f"--{key}={getattr(config, key)}" for key in self.parameters],
        }
        line: list[str] = []
        for part in self.command:
            if "${" in part and part not in macros:
                raise InputError(f"{self.name}.yaml: unknown macro {part} in command; allowed: {', '.join(macros)}")
            line += macros.get(part, [part])
        return line

    def manifest(self) -> dict[str, Any]:
        """The run folders that this call is about, for readers of the results."""
        cells = self.cells()
        first = next(iter(cells.values())).described()
        return {
            "name": self.name,
            "profile": self.profile,
            "label": self.label,
            "varied": self.varied,
            "fixed": {key: value for key, value in first.items() if key not in (*self.varied, "seed")},
            "cells": [{"run_id": run_id, **self._place(config)} for run_id, config in cells.items()],
        }


def load(name: str, profile: str, overrides: Mapping[str, Sequence[Any]] | None = None) -> Space:
    """Read a sweep file and a profile.

    Args:
        name: NAME for sweeps/NAME.yaml, a grid, or study-NAME for sweeps/studies/NAME.yaml, a tuning study.
        profile: PROFILE of sweeps/profiles/PROFILE.yaml, a flat mapping Config field -> value or list of values. It
            does not change what the sweep is about: a profile's learning rate is ignored if the sweep file has one.
        overrides: Config field -> values. They come before the profile, which comes before the sweep file.

    Raises:
        InputError: there is no such file, its name is not that of its sweep, a key is no Config field, or a method or
            parameter is unknown.
    """
    study = name.startswith(STUDY)
    folder, file = (HERE / "studies", name.removeprefix(STUDY)) if study else (HERE, name)
    path = _path(folder, "tuning study" if study else "sweep", file)
    sweep, about = read_sweep(path), path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    method = "bayes" if study else "grid"
    if sweep.get("method") != method:
        raise InputError(f"{file}.yaml: method {sweep.get('method')} is not run here; allowed: {method}")
    specs = sweep["parameters"]
    # A copied file that keeps the name of another sweep would overwrite the manifest of that sweep.
    for key, found in {"name": sweep["name"], "parameter sweep": specs.get("sweep", {}).get("value")}.items():
        if found != name:
            raise InputError(f"{file}.yaml: {key} is {found}; allowed: {name}, as the file is called")
    ranges = {key: distribution(name, key, spec) for key, spec in specs.items() if study and "min" in spec}
    kept = {
        key
        for key, spec in specs.items()
        if key not in SIZE or (len(spec.get("values", ())) > 1 and key not in CUT_DOWN)
    }
    changes = {
        key: value if isinstance(value, list) else [value]
        for key, value in read_profile(_path(HERE / "profiles", "profile", profile)).items()
        if key not in kept  # a profile says where a sweep runs and how large it is, not what it is about
    }
    parameters = {key: _values(name, key, spec) for key, spec in specs.items() if key not in ranges}
    parameters = parameters | {"profile": [profile]} | changes
    changed = {
        key: list(values)
        for key, values in (overrides or {}).items()
        if list(map(str, parameters.get(key, []))) != list(map(str, values))
    }
    parameters |= changed
    if unknown := [key for key in parameters if key not in FIELDS]:
        raise unknown_settings(unknown, f" in {name} or {profile}")
    if list(map(str, parameters["sweep"])) != [name]:  # else runs of another sweep would be taken for its own
        given = ",".join(map(str, parameters["sweep"]))
        raise InputError(f"--sweep={given}: allowed: {name}, the sweep's own name; --out=FOLDER keeps runs apart")
    for key in OUTSIDE_IDENTITY:
        if len(parameters.get(key, [None])) != 1:
            raise InputError(f"--{key}={','.join(map(str, parameters[key]))}: takes one value in a sweep")
    return Space(
        name=name,
        about=about,
        profile=profile,
        label=_label(profile, changed),
        metric=sweep["metric"]["name"],
        goal=sweep["metric"]["goal"],
        program=sweep["program"],
        command=tuple(map(str, sweep["command"])),
        parameters=parameters,
        ranges={key: found for key, found in ranges.items() if key not in changed},
        run_cap=int(sweep.get("run_cap") or 0),
        **(role(sweep["description"]) if "description" in sweep else {}),
    )


def distribution(sweep: str, key: str, spec: Mapping[str, Any]) -> BaseDistribution:
    """A range as W&B reads it: a named distribution, or one that follows from the kind of its bounds.

    Raises:
        InputError: the distribution is unknown.
    """
    low, high = spec["min"], spec["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    kind = spec.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "int_uniform":
        return IntDistribution(low, high)
    if kind in ("uniform", "log_uniform_values"):
        return FloatDistribution(low, high, log=kind == "log_uniform_values")
    raise InputError(
        f"{sweep}: parameter {key} has distribution {kind}; allowed: int_uniform, uniform, log_uniform_values"
    )


def sweeps() -> list[str]:
    """The names of all sweep files."""
    return _names(HERE)


def studies() -> list[str]:
    """The names of all tuning studies."""
    return [STUDY + name for name in _names(HERE / "studies")]


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _path(folder: Path, kind: str, name: str) -> Path:
    if name not in _names(folder):
        raise InputError(f"unknown {kind} {name}; allowed: {', '.join(_names(folder))}")
    return folder / f"{name}.yaml"


def _values(sweep: str, key: str, spec: dict[str, Any]) -> list[Any]:
    if "values" in spec:
        return list(spec["values"])
    if "value" in spec:
        return [spec["value"]]
    raise InputError(f"{sweep}.yaml: parameter {key} has neither value nor values, which is all that a grid takes")


def _label(profile: str, changed: Mapping[str, list[Any]]) -> str:
    parts = [profile]
    for key, values in changed.items():
        if key in ("model", "data"):
            parts += [name_of(str(value)).rpartition("/")[2] for value in values]
        elif key not in OUTSIDE_IDENTITY:
            parts += [key, *map(str, values)]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))
