"""The run folders of one sweep -> a tidy table of runs and one of their logged lines."""

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from train.errors import InputError

# Two runs that differ in nothing else have the same result (train.config.OUTSIDE_IDENTITY).
OUTSIDE_IDENTITY = ("out", "sweep", "profile", "track", "keep_model", "threads", "checkpoint_minutes")
# What is learned: results are compared within a task, never between tasks.
CONDITIONS = ("task", "subset", "data")
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Runs:
    """One sweep as it was last called.

    Args:
        table: a row a run: every Config field, every value of summary.json under its own name (`versions` as
            `versions/<library>`); ordered by the varied settings (numbers first, then texts as in the manifest)
            and the seed.
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


def load(out: str | Path, sweep: str, allow_missing: bool = False) -> Runs:
    """Read the cells of `<out>/<sweep>/sweep.json`; other folders beside them are not read.

    A last line of history.jsonl that a killed writer left half done is dropped.

    Raises:
        InputError: no such sweep; a cell that has not finished (unless `allow_missing`), whose run has other
            settings than the manifest says, whose accuracy is no number, or one of whose files cannot be read.
    """
    folder = Path(out) / sweep
    if not (folder / "sweep.json").is_file():
        known = sorted(path.parent.name for path in Path(out).glob("*/sweep.json"))
        allowed = ", ".join(known) if known else "none yet, python -m sweeps NAME makes one"
        raise InputError(f"no sweep {sweep!r} in {out}; allowed: {allowed}")
    manifest = _read(folder / "sweep.json")
    varied = [key for key in manifest["varied"] if key != "seed"]
    cells = sorted(manifest["cells"], key=_order(manifest["cells"], [*varied, "seed"]))

    unfinished = [cell for cell in cells if not (folder / cell["run_id"] / "summary.json").is_file()]
    missing = [_name(cell) + _error(folder / cell["run_id"]) for cell in unfinished]
    if len(missing) == len(cells) or (missing and not allow_missing):
        raise InputError(
            f"{len(missing)} of {len(cells)} cells of the sweep {sweep!r} have not finished: {_listed(missing)}"
            + (
                ""
                if len(missing) == len(cells)
                else "; run the sweep again, or pass --allow-missing for a partial look"
            )
        )

    rows, histories = [], []
    for cell in cells:
        if cell in unfinished:
            continue
        rows.append(_row(folder / cell["run_id"], cell, manifest["fixed"]))
        histories.append(_history(folder / cell["run_id"] / "history.jsonl", cell))
    table = pd.DataFrame(rows)
    # Settings are labels here: as objects, None stays None and 10 beside "qkv" stays 10.
    table[varied] = pd.DataFrame({key: pd.Series([row[key] for row in rows], dtype=object) for key in varied})
    which = [row for row, lines in enumerate(histories) for _ in range(len(lines))]
    settings = table[["run_id", *varied, "seed"]].take(which).reset_index(drop=True)
    # The run with most components says in which order they are.
    of_each = sorted((list(lines) for lines in histories), key=len, reverse=True)
    columns = dict.fromkeys(itertools.chain.from_iterable(of_each))
    history = pd.concat([settings, pd.concat(histories, ignore_index=True)[list(columns)]], axis=1)
    return Runs(
        name=manifest["name"],
        profile=manifest["profile"],
        label=manifest["label"],
        varied=varied,
        fixed=manifest["fixed"],
        folder=folder,
        table=table,
        history=history,
        missing=missing,
    )


def _row(folder: Path, cell: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    config, summary = _read(folder / "config.json"), _read(folder / "summary.json")
    expected = {key: value for key, value in {**fixed, **cell}.items() if key not in OUTSIDE_IDENTITY}
    other = [
        f"{key}={config.get(key)} instead of {value}" for key, value in expected.items() if config.get(key) != value
    ]
    if other:
        raise InputError(f"cell {_name(cell)} was run with other settings: {_listed(other)}; run the sweep again")
    accuracy = summary.get("eval/accuracy")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:  # NaN is not in the range either
        raise InputError(f"cell {_name(cell)} has accuracy {accuracy} in {folder / 'summary.json'}; allowed: 0 to 1")
    versions = {f"versions/{library}": version for library, version in summary.pop("versions", {}).items()}
    # Config's `threads` is what was asked for, the summary's what was used: the latter is the one that tells.
    return config | summary | versions


def _history(path: Path, cell: Mapping[str, Any]) -> pd.DataFrame:
    try:
        text = path.read_bytes()
        head, newline, last = text.rstrip(b"\n").rpartition(b"\n")
        try:
            json.loads(last)
        except ValueError:
            text = head + newline
        # pyarrow's parser is the fast one, and exact to the last digit.
        return pd.read_json(io.BytesIO(text), lines=True, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise InputError(f"cell {_name(cell)}: {path} cannot be read ({_one_line(error)})") from None


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


def _error(folder: Path) -> str:
    path = folder / "error.txt"
    return f" [{_one_line(path.read_text(encoding='utf-8'))}]" if path.is_file() else ""


def _one_line(error: object, width: int = 160) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
