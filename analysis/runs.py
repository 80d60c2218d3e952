"""The runs of one sweep, wherever they are kept -> a tidy table of runs and one of their logged lines."""

import io
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
import pyarrow.feather
import pyarrow.json

from train.candidates import reads
from train.config import OUTSIDE_IDENTITY
from train.errors import InputError

# What is learned: results are compared within a task, never between tasks.
CONDITIONS = ("task", "subset", "data")
# The paper's order of what has no order of its own, for sources that keep none.
ORDER = ("adam", "sgdsls", "adamsls", "plasls", "small", "full", "sst2", "mrpc", "qnli", "mnli")
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Runs:
    """One sweep as it was last called.

    Args:
        name, profile, label: of the sweep, and of what it was called with.
        fixed: the settings that all runs have in common.
        folder: where its tables and figures are written.
        table: a row a run: every Config field, every value of summary.json under its own name (`versions` as
            `versions/<library>`); ordered by the varied settings (numbers first, then texts as in the manifest)
            and the seed. A varied setting that the run's optimizer does not read is None.
        history: a row a logged line, in the same order: `run_id`, the varied settings, `seed`, then the line's keys.
        varied: the settings that the sweep varies, without the seed.
        missing: the cells without a finished run; empty unless `load(..., allow_missing=True)`.
    """

    name: str
    profile: str
    label: str
    varied: list[str]
    fixed: dict[str, Any]
    folder: Path
    table: pd.DataFrame
    history: pd.DataFrame
    missing: list[str]

    @property
    def compared(self) -> list[str]:
        """The varied settings that are alternatives to one another."""
        return [key for key in self.varied if key not in CONDITIONS]

    @property
    def conditions(self) -> list[str]:
        """The varied settings within which the alternatives are compared."""
        return [key for key in self.varied if key in CONDITIONS]

    @property
    def frame(self) -> pd.DataFrame:
        """One tidy table for a notebook: a row a logged line, beside what is known of its run.

        Columns: `run_id`; every Config field under its own name; `diverged`; then the line's keys: `step`, `samples`
        (training rows seen so far), `epoch`, `train/loss` (of the mini-batch), `step_size/<component>`,
        `search/component`, `search/trials`, `search/accepted`, `search/merged`, `time/step` (seconds), and after an
        epoch `eval/accuracy` (0 to 1), `eval/loss`, `train/epoch_loss`, `time/total` (seconds).
        Settings are categories: ten million lines of them take a byte each.
        """
        lines = self.history.drop(columns=[*self.varied, "seed"])
        keys = [key for key in (*self.fixed, *self.varied, "seed", "diverged") if key not in lines]
        codes = lines["run_id"].cat.codes.to_numpy()
        of_run = self.table.set_index("run_id").loc[lines["run_id"].cat.categories]
        settings = {key: _category(of_run[key], codes) for key in keys if key in of_run}
        return pd.concat([lines[["run_id"]], pd.DataFrame(settings), lines.drop(columns="run_id")], axis=1)


@dataclass(frozen=True)
class Found:
    """A run as its source has it.

    Args:
        summary: None where the run has not finished.
        history: reads the logged lines.
        where: its place in words, for an error.
        error: what it failed with, where that is known.
    """

    config: dict[str, Any]
    summary: dict[str, Any] | None
    history: Callable[[], pyarrow.Table]
    where: str
    error: str = ""


def load(out: str | Path, sweep: str, allow_missing: bool = False, profile: str | None = None) -> Runs:
    """Read a sweep's cells.

    Args:
        out: where the sweeps are kept: a folder of run folders (`<out>/<sweep>/sweep.json` says which are read; a last
            line of history.jsonl that a killed writer left half done is dropped), `offline:FOLDER` for the W&B
            runs below a folder, or `wandb:ENTITY/PROJECT` for a project on W&B's server. All give the same tables.
        profile: which profile's runs, where a W&B project has the sweep in several.

    Raises:
        InputError: no such sweep; a cell that has not finished (unless `allow_missing`), whose run has other
            settings than the manifest says, whose accuracy is no number, or one of whose files cannot be read; runs of
            several profiles.
    """
    kind, colon, place = str(out).partition(":")
    if colon and kind in ("offline", "wandb"):
        from . import wandb_runs

        found = wandb_runs.offline(place, sweep) if kind == "offline" else wandb_runs.project(place, sweep)
        manifest = _manifest(found, str(out), sweep, profile)
        folder = Path(place if kind == "offline" else "runs") / sweep
        return _assemble(manifest, {run["run_id"]: run["found"] for run in manifest["runs"]}, folder, allow_missing)
    folder = Path(out) / sweep
    if not (folder / "sweep.json").is_file():
        known = sorted(path.parent.name for path in Path(out).glob("*/sweep.json"))
        allowed = ", ".join(known) if known else "none yet, python -m sweeps NAME makes one"
        raise InputError(f"no sweep {sweep!r} in {out}; allowed: {allowed}")
    manifest = _read(folder / "sweep.json")
    if profile not in (None, manifest["profile"]):
        raise InputError(f"the sweep {sweep!r} in {out} was last run with the profile {manifest['profile']!r}")
    run_ids = [cell["run_id"] for cell in manifest["cells"]]
    return _assemble(manifest, {run_id: _folder(folder / run_id) for run_id in run_ids}, folder, allow_missing)


def _folder(folder: Path) -> Found:
    finished = (folder / "summary.json").is_file()
    error = folder / "error.txt"
    return Found(
        config=_read(folder / "config.json") if finished else {},
        summary=_read(folder / "summary.json") if finished else None,
        history=lambda: _cached(folder),
        where=str(folder / "summary.json"),
        error=error.read_text(encoding="utf-8") if not finished and error.is_file() else "",
    )


def _manifest(found: list[Found], out: str, sweep: str, profile: str | None) -> dict[str, Any]:
    """What sweep.json says, from the runs themselves: W&B knows which there are, not which there should be.

    A sweep is a grid, so a cell that some run's neighbours have and that is not there is missing. It has one point only
    along a setting that its optimizer does not read.
    """
    profiles: dict[str, str] = {run.config["profile"]: run.where for run in found}
    if profile is None and len(profiles) > 1:
        named = ", ".join(f"{name} ({where})" for name, where in profiles.items())
        raise InputError(
            f"the sweep {sweep!r} in {out} has runs of several profiles: {named}; --profile=NAME takes one"
        )
    found = [run for run in found if profile in (None, run.config["profile"])]
    if not found:
        raise InputError(
            f"no runs of the sweep {sweep!r} in {out}{f' with the profile {profile!r}' if profile else ''}"
        )
    keys = [key for key in found[0].config if key not in OUTSIDE_IDENTITY]
    values = {
        key: sorted({run.config[key] for run in found if reads(run.config["optimizer"], key)}, key=_place)
        for key in keys
    }
    varied = [key for key in keys if len(values[key]) > 1 and key != "seed"]
    there: dict[tuple[Any, ...], Found] = {}
    for run in found:  # the newest one of those that finished
        cell = tuple(_read_setting(run.config, key) for key in (*varied, "seed"))
        if cell not in there or run.summary is not None:
            there[cell] = run
    runs: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    grids = (
        itertools.product(
            *(
                [optimizer] if key == "optimizer" else values[key] if reads(optimizer, key) else [None]
                for key in (*varied, "seed")
            )
        )
        for optimizer in values["optimizer"]
    )
    for cell in itertools.chain.from_iterable(grids):
        run_found = there.get(cell)
        summary = run_found.summary if run_found else None
        run_id = summary["run_id"] if summary else (run_found.where if run_found else f"not there {len(cells)}")
        cells.append({"run_id": run_id, **dict(zip((*varied, "seed"), cell, strict=True))})
        runs.append({"run_id": run_id, "found": run_found or Found({}, None, pyarrow.Table, "nowhere")})
    name = next(iter(profiles)) if profile is None else profile
    fixed = {key: value for key, value in found[0].config.items() if key not in (*varied, "seed")}
    return {
        "name": sweep,
        "profile": name,
        "label": name,
        "varied": varied,
        "fixed": fixed,
        "cells": cells,
        "runs": runs,
    }


def _read_setting(config: Mapping[str, Any], key: str) -> Any:
    return config[key] if reads(config["optimizer"], key) else None


def _place(value: Any) -> tuple[int, str]:
    return (ORDER.index(value) if value in ORDER else len(ORDER)), str(value)


def _assemble(manifest: Mapping[str, Any], found: Mapping[str, Found], folder: Path, allow_missing: bool) -> Runs:
    varied = [key for key in manifest["varied"] if key != "seed"]
    cells = sorted(manifest["cells"], key=_order(manifest["cells"], [*varied, "seed"]))
    unfinished = [cell for cell in cells if found[cell["run_id"]].summary is None]
    missing = [_name(cell) + _error(found[cell["run_id"]]) for cell in unfinished]
    if len(missing) == len(cells) or (missing and not allow_missing):
        raise InputError(
            f"{len(missing)} of {len(cells)} cells of the sweep {manifest['name']!r} have not finished: "
            + _listed(missing)
            + (
                ""
                if len(missing) == len(cells)
                else "; run the sweep again, or pass --allow-missing for a partial look"
            )
        )
    finished = [cell for cell in cells if cell not in unfinished]
    rows = [_row(found[cell["run_id"]], cell, manifest["fixed"], varied) for cell in finished]
    table = pd.DataFrame(rows)
    # Settings are labels here: as objects, None stays None and 10 beside "qkv" stays 10.
    table[varied] = pd.DataFrame({key: pd.Series([row[key] for row in rows], dtype=object) for key in varied})
    histories = [_lines(found[cell["run_id"]], cell) for cell in finished]
    return Runs(
        name=manifest["name"],
        profile=manifest["profile"],
        label=manifest["label"],
        varied=varied,
        fixed=manifest["fixed"],
        folder=folder,
        table=table,
        history=_history(table, varied, histories),
        missing=missing,
    )


def _history(table: pd.DataFrame, varied: list[str], histories: list[pyarrow.Table]) -> pd.DataFrame:
    """All lines below one another, each beside its run's id, varied settings and seed."""
    # The run with most components says in which order they are.
    of_each = sorted((lines.column_names for lines in histories), key=len, reverse=True)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(of_each)))
    lines = pyarrow.concat_tables(histories, promote_options="permissive").select(columns)
    lines = lines.unify_dictionaries()
    for place, field in enumerate(lines.schema):
        if pyarrow.types.is_null(field.type):  # never a value: NaN in a column of numbers, not ten million objects
            lines = lines.set_column(place, field.name, lines[field.name].cast(pyarrow.float64()))
    which = np.repeat(np.arange(len(table)), [of_run.num_rows for of_run in histories])
    settings: dict[str, Any] = {"run_id": pd.Categorical.from_codes(which, table["run_id"].astype(object))}
    settings |= {key: table[key].to_numpy()[which] for key in (*varied, "seed")}
    read = lines.to_pandas(split_blocks=True, self_destruct=True)
    return pd.concat([pd.DataFrame(settings), read], axis=1)


def _category(values: pd.Series, codes: np.ndarray) -> pd.Categorical:
    """One value a run, repeated for its lines; None is no category but a missing one."""
    of_run, categories = pd.factorize(values.astype(object), use_na_sentinel=True)
    return pd.Categorical.from_codes(of_run[codes], categories)


def _row(found: Found, cell: Mapping[str, Any], fixed: Mapping[str, Any], varied: list[str]) -> dict[str, Any]:
    summary = dict(found.summary or {})
    config = found.config | {key: _read_setting(found.config, key) for key in varied}
    expected = {key: value for key, value in {**fixed, **cell}.items() if key not in (*OUTSIDE_IDENTITY, "run_id")}
    other = [
        f"{key}={config.get(key)} instead of {value}"
        for key, value in expected.items()
        if reads(config["optimizer"], key) and config.get(key) != value
    ]
    if other:
        raise InputError(f"cell {_name(cell)} was run with other settings: {_listed(other)}; run the sweep again")
    accuracy = summary.get("eval/accuracy")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:  # NaN is not in the range either
        raise InputError(f"cell {_name(cell)} has accuracy {accuracy} in {found.where}; allowed: 0 to 1")
    versions = {f"versions/{library}": version for library, version in summary.pop("versions", {}).items()}
    # Config's `threads` is what was asked for, the summary's what was used: the latter is the one that tells.
    return {"run_id": cell["run_id"]} | config | summary | versions


def _lines(found: Found, cell: Mapping[str, Any]) -> pyarrow.Table:
    try:
        lines = found.history()
    except (OSError, ValueError) as error:
        raise InputError(f"cell {_name(cell)}: {error}") from None
    steps = (found.summary or {}).get("steps", 0)
    last = pyarrow.compute.max(lines["step"]).as_py() if "step" in lines.column_names else 0
    if (last or 0) < steps:  # such as an older copy of the folder that was put over the finished one
        raise InputError(
            f"cell {_name(cell)} finished after {steps} steps, its history in {found.where} ends at step {last or 0}; "
            "copy the whole folder of the run, or remove it and run the sweep again"
        )
    return lines


def _cached(folder: Path) -> pyarrow.Table:
    """history.jsonl, or its columns as they were read before: a copy in Arrow's format, many times faster."""
    path, copy = folder / "history.jsonl", folder.parent / ".cache" / f"{folder.name}.arrow"
    try:
        state = path.stat()
        version = f"{state.st_size} {state.st_mtime_ns}".encode()
        if copy.is_file():
            kept = _read_copy(copy)
            if kept is not None and (kept.schema.metadata or {}).get(b"version") == version:
                return kept
        lines = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({_one_line(error)})") from None
    try:
        copy.parent.mkdir(exist_ok=True)
        partial = copy.with_suffix(".partial")
        pyarrow.feather.write_feather(lines.replace_schema_metadata({b"version": version}), partial, "uncompressed")
        partial.replace(copy)
    except OSError:  # a folder that may only be read is read the slow way
        pass
    return lines


def _read_copy(copy: Path) -> pyarrow.Table | None:
    try:
        return pyarrow.feather.read_table(copy, memory_map=True)
    except (OSError, ValueError):  # a damaged copy is made anew
        return None


def parse(text: bytes) -> pyarrow.Table:
    """Lines of JSON as columns; a last line that was left half done is dropped.

    Raises:
        ValueError: another line is no JSON.
    """
    head, newline, last = text.rstrip(b"\n").rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:
        text = head + newline
    # pyarrow's parser is the fast one, and exact to the last digit.
    lines = pyarrow.json.read_json(io.BytesIO(text))
    for place, field in enumerate(lines.schema):
        if pyarrow.types.is_string(field.type):  # names of components: few, and often
            lines = lines.set_column(place, field.name, lines[field.name].dictionary_encode())
    return lines


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)})") from None


def _order(cells: list[dict[str, Any]], keys: list[str]) -> Any:
    """Sort key: within each setting None first, numbers ascending, then texts as they first appear."""
    texts = {key: list(dict.fromkeys(cell[key] for cell in cells if isinstance(cell[key], str))) for key in keys}

    def rank(key: str, value: Any) -> tuple[int, float]:
        if value is None:
            return 0, 0
        return (2, texts[key].index(value)) if isinstance(value, str) else (1, value)

    return lambda cell: [rank(key, cell[key]) for key in keys]


def _name(cell: Mapping[str, Any]) -> str:
    settings = " ".join(f"{key}={value}" for key, value in cell.items() if key != "run_id")
    return f"{settings} ({cell['run_id']})"


def _error(found: Found) -> str:
    return f" [{_one_line(found.error)}]" if found.error else ""


def _one_line(error: object, width: int = 160) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
