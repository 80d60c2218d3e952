"""sweeps/: W&B reads the files as we do, and no kill loses a cell or runs one twice."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps import grid
from sweeps import space as sweep_space
from sweeps.queue import Queue
from sweeps.space import FIELDS, load
from sweeps.storage import Storage
from train.candidates import reads
from train.config import Config
from train.errors import DamagedRun, InputError

ROOT = Path(__file__).parents[1]
SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
PROFILES = sorted(path.stem for path in (ROOT / "sweeps/profiles").glob("*.yaml"))
STEPS = 8


# -- a run that takes no training: same folder, same contract as train.run.run ---------------------------------


def stand_in(config: Config, progress: Callable[[int, int, float], None]) -> None:
    """Count in a checkpoint; files beside the sweep's folder say how a cell goes wrong."""
    orders, folder = Path(config.out), config.folder
    with (folder / "attempts").open("a") as file:
        file.write("x")
    print("a line that a library prints")
    if (orders / "refused").exists():
        raise InputError("the model cannot be had; allowed: another")
    if (orders / f"broken-{config.split}").exists():
        raise ValueError("loss\nis not finite")
    checkpoint = folder / "checkpoint"
    number, done = json.loads(checkpoint.read_text()) if checkpoint.exists() else (config.seed, 0)
    while done < STEPS:
        number, done = (number * 1103515245 + 12345) % 2**31, done + 1
        time.sleep(float((orders / "slow").read_text()) if (orders / "slow").exists() else 0)
        if (orders / f"deadly-{config.split}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / "steps").open("a") as file:
            file.write(f"{done} ")
        (folder / "partial").write_text(json.dumps([number, done]))
        os.replace(folder / "partial", checkpoint)
        progress(done, STEPS, 1 / done)
    with (folder / "finishes").open("a") as file:
        file.write("x")
    (folder / "config.json").write_text(json.dumps(config.described() | {"run_id": config.run_id}))
    lines = [{"step": step} for step in (*range(1, STEPS + 1), *config.epochs * [STEPS])]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "partial").write_text(json.dumps({"eval/accuracy": number / 2**31, "steps": STEPS}))
    os.replace(folder / "partial", folder / "summary.json")


def start(out: Path, *args: str, run: str = "test_sweeps:stand_in") -> "subprocess.Popen[str]":
    """`python -m sweeps splits` in a process of its own; 3 x 2 cells and one worker unless args say otherwise."""
    out.mkdir(exist_ok=True)
    call = "import sys; from sweeps.__main__ import main; sys.exit(main(sys.argv[2:], sys.argv[1]))"
    settings = [f"--out={out}", "--split=1,4,qkv", "--seed=0,1", "--workers=1"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with (out / "stdout").open("w") as stdout, (out / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", call, run, "splits", *settings, *args],
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )


def sweep(out: Path, *args: str, run: str = "test_sweeps:stand_in") -> tuple[int, str, str]:
    status = start(out, *args, run=run).wait(timeout=120)
    return status, (out / "stdout").read_text(), (out / "stderr").read_text()


class Process(Protocol):
    def poll(self) -> int | None: ...


def wait_for(happened: Callable[[], Any], seconds: float = 30, alive: Sequence[Process] = ()) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert all(process.poll() is None for process in alive), "a process ended before it happened"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def cells(out: Path) -> list[Path]:
    return [out / "splits" / cell["run_id"] for cell in json.loads((out / "splits/sweep.json").read_text())["cells"]]


def states(out: Path) -> dict[str, tuple[int, int]]:
    """What a second run of a finished cell would change."""
    found = {path.parent.name: path.stat() for path in out.glob("splits/*/summary.json")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def results(out: Path) -> dict[str, str]:
    return {path.name: (path / "summary.json").read_text() for path in cells(out)}


def open_queue(out: Path) -> Queue:
    return Queue(load("splits", "embedded", {"out": [str(out)], "split": [1, 4, "qkv"], "seed": [0, 1]}))


def assert_each_finished_once(out: Path) -> None:
    """By the run folders, and by the study: a finished trial for each cell, and nothing left waiting or running."""
    trials = open_queue(out).study.trials
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    complete = [trial.user_attrs["cell"] for trial in trials if trial.state == TrialState.COMPLETE]
    assert sorted(complete) == sorted(path.name for path in cells(out))
    for path in cells(out):
        assert (path / "finishes").read_text() == "x", path
        done = [int(step) for step in (path / "steps").read_text().split()]
        # A kill may come after a step and before its checkpoint: only that one step is done again.
        assert sorted(set(done)) == list(range(1, STEPS + 1)), path
        assert len(done) - STEPS <= len((path / "attempts").read_text()) - 1, path


def workers_of(owner: int) -> list[int]:
    """Processes started by `owner` for its cells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == owner and "spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("unkilled")
    status, stdout, stderr = sweep(out, "--workers=2")
    assert status == 0, stderr
    assert stdout == "splits: 6 cells: 6 run now, 0 finished before, 0 failed\n"
    assert_each_finished_once(out)
    return results(out)


# -- the file, read by us and by W&B ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
def test_every_key_of_a_sweep_and_of_a_profile_is_a_config_field(name: str) -> None:
    assert set(yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text())["parameters"]) <= set(FIELDS)
    for profile in PROFILES:
        assert set(yaml.safe_load((ROOT / f"sweeps/profiles/{profile}.yaml").read_text()) or {}) <= set(FIELDS)
        assert load(name, profile).cells()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # wandb's own
@pytest.mark.parametrize("name", SWEEPS)
def test_wandb_reads_the_parameters_as_we_do(name: str) -> None:
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.launch.sweeps.utils import load_sweep_config
    from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config, sweep_directions

    theirs = load_sweep_config(str(ROOT / f"sweeps/{name}.yaml"))
    assert theirs is not None
    assert _validate_config_and_fill_distribution(theirs) == theirs
    distributions = search_space_from_sweep_config(theirs["parameters"])
    ours = load(name, "paper")
    assert {key: list(found.choices) for key, found in distributions.items()} == ours.parameters
    assert sweep_directions(theirs) == [ours.goal]
    assert theirs["metric"]["name"] == ours.metric == "eval/accuracy"


@pytest.mark.parametrize("name", SWEEPS)
def test_wandbs_agent_runs_the_very_cell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole grid, through the agent's own method: only the process that it would start is caught."""
    from wandb import wandb_agent

    file = yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text())
    started: list[list[str]] = []

    class Caught:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Caught)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "restored after the test")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "restored after the test")
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._in_jupyter, agent._function = list(file["command"]), False, None
    agent._run_processes, agent._forward_signals = {}, False

    grid = [[(key, v) for v in spec.get("values", [spec.get("value")])] for key, spec in file["parameters"].items()]
    for number, point in enumerate(itertools.product(*grid)):
        arguments = {key: {"value": value} for key, value in point}
        agent._command_run({"run_id": f"run{number}", "program": file["program"], "args": arguments})

    ours = load(name, "paper")
    cells = {tuple(ours.command_line(config)): config for config in ours.cells().values()}
    assert all(command[:4] == ["/usr/bin/env", "python", "-m", "train"] for command in started)
    assert set(cells) <= set(map(tuple, started))
    results = {run_id: what_is_read(config) for run_id, config in ours.cells().items()}
    for command in started:  # a grid of W&B's runs an optimizer at each value of what it does not read
        config = Config.from_args(command[4:])
        assert config.run_id in results if tuple(command) in cells else what_is_read(config) in results.values()


def what_is_read(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.described().items() if reads(config.optimizer, key)}


def test_an_optimizer_is_run_once_for_all_values_of_what_it_does_not_read() -> None:
    space = load("budget", "embedded", {"seed": [0], "learning_rate": ["1e-5", "1e-4"]})
    assert [(c.optimizer, c.learning_rate) for c in space.cells().values()] == [
        ("adam", 1e-5),
        ("adam", 1e-4),
        ("adamsls", 1e-5),
    ]
    assert [cell["learning_rate"] for cell in space.manifest()["cells"]] == [1e-5, 1e-4, None]
    assert len(load("mended", "embedded", {"seed": [0], "split": ["4", "10"]}).cells()) == 5


def test_a_profile_does_not_settle_what_a_sweep_compares(own_files: Path) -> None:
    (own_files / "profiles/short.yaml").write_text("split: 4\nseed: [0, 1]\nepochs: 2\n")
    parameters = load("splits", "short").parameters
    assert (parameters["split"], parameters["seed"], parameters["epochs"]) == ([1, 4, 7, 10, "qkv"], [0, 1], [2])


def test_splits_is_the_papers_study() -> None:
    cells = list(load("splits", "paper").cells().values())
    assert [(config.seed, config.split) for config in cells] == list(
        itertools.product(range(5), [1, 4, 7, 10, "qkv"])  # seeds outermost
    )
    papers = Config(optimizer="plasls", sweep="splits", profile="paper").as_dict()
    assert all({**config.as_dict(), "seed": 0, "split": 10} == papers for config in cells)


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sweep files in place of the repository's: splits.yaml, and no profile yet."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "splits.yaml").write_text((ROOT / "sweeps/splits.yaml").read_text())
    monkeypatch.setattr(sweep_space, "HERE", tmp_path)
    return tmp_path


def test_the_command_line_wins_over_the_profile_and_that_over_the_file(own_files: Path) -> None:
    (own_files / "profiles/short.yaml").write_text("model: a-bert\nseed: [0, 1]\nmax_length: 64\neval_rows: 300\n")
    space = load("splits", "short", {"model": ["org/some-bert"], "split": ["4", "qkv"], "seed": ["7"]})
    cells = space.cells().values()
    assert [(c.split, c.seed, c.model, c.max_length, c.eval_rows, c.epochs) for c in cells] == [
        (4, 7, "org/some-bert", 64, 300, 5),
        ("qkv", 7, "org/some-bert", 64, 300, 5),
    ]
    manifest = space.manifest()
    assert manifest["label"] == "short-some-bert-split-4-qkv-seed-7"
    assert manifest["varied"] == ["split"]
    assert manifest["cells"] == [{"run_id": c.run_id, "split": c.split, "seed": 7} for c in cells]
    assert manifest["fixed"].keys() | {"split", "seed"} == set(FIELDS)
    assert manifest["fixed"]["profile"] == "short"
    assert (
        load("splits", "short", {"max_length": ["64"], "seed": ["0", "1"]}).label == "short"
    )  # what changes nothing is not named


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (["nothing"], [f"unknown sweep nothing; allowed: {', '.join(SWEEPS)}"]),
        (["splits", "--profile=big"], ["unknown profile big; allowed: embedded, glue, paper"]),
        (["splits", "--workers=0"], ["--workers=0: must be a whole number of at least 1"]),
        (["splits", "--threads=1,2"], ["--threads=1,2: takes one value in a sweep"]),
        (["splits", "--sweep=mended"], ["--sweep=mended: allowed: splits, the sweep's own name; --out=FOLDER keeps "]),
        (["splits", "--storage=sqlite:///x.db"], ["--storage=sqlite:///x.db: a sqlite database is not used here; "]),
        (["splits", "--storage=nonsense://x"], ["--storage=nonsense://x: a nonsense database is not used here"]),
        (
            ["splits", "--storage=postgresql+psycopg://a:secret@127.0.0.1:1/x"],
            ["--storage=postgresql+psycopg://a:***@"],
        ),
        (["splits", "--trials=9"], ["--trials=9: the cells of a grid all run; allowed: with study-NAME"]),
        (["splits", "--heartbeat=0"], ["--heartbeat=0: must be a whole number of at least 1"]),
        (["splits", "--seed=1,1"], ["two cells are the same run: split=", *4 * ["two cells are the same run: "]]),
        (["splits", "--split=3.5,0,4"], ["--split=3.5: ", "--split=0: "]),
        (
            ["splits", "--bogus=1"],
            ["unknown argument --bogus=1; closest: --out; python -m sweeps --help lists what is allowed"],
        ),
    ],
)
def test_bad_input_is_one_line_each_before_anything_starts(
    args: list[str], lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.__main__ import main

    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main([*args, f"--out={tmp_path}"], "test_sweeps:stand_in") == 2
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(lines)
    for error, line in zip(errors, lines, strict=True):
        assert error.startswith(f"error: {line}")
        assert "secret" not in error
    assert not list(tmp_path.glob("*/*/"))


def test_a_key_that_is_no_config_field_is_refused(own_files: Path) -> None:
    (own_files / "profiles/odd.yaml").write_text("learning_speed: 3\n")
    study = (own_files / "splits.yaml").read_text().replace("grid", "bayes").replace("splits", "random")
    (own_files / "random.yaml").write_text(study)
    with pytest.raises(InputError, match=r"odd\.yaml:1: unknown setting learning_speed; closest: learning_rate; "):
        load("splits", "odd")
    with pytest.raises(InputError, match=r"random\.yaml: method bayes is not run here; allowed: grid"):
        load("random", "odd")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("sweep: {value: splits}", "sweep: {value: small}"), "parameter sweep is small; allowed: splits"),
        (("  sweep: {value: splits}\n", ""), "parameter sweep is None; allowed: splits"),
        (("name: splits", "name: small"), "name is small; allowed: splits"),
        (("program: train\n", ""), None),
    ],
)
def test_a_sweep_file_is_called_as_its_sweep(own_files: Path, change: tuple[str, str], said: str | None) -> None:
    """A copy that keeps the other's name would put its manifest over the other's."""
    (own_files / "profiles/short.yaml").touch()
    (own_files / "studies").mkdir()
    text = (own_files / "splits.yaml").read_text()
    (own_files / "splits.yaml").write_text(text.replace(*change))
    with pytest.raises(InputError, match=rf"splits\.yaml: {said}" if said else r"splits\.yaml:\d+: program is missing"):
        load("splits", "short")
    study = (ROOT / "sweeps/studies/adam.yaml").read_text()
    (own_files / "studies/copy.yaml").write_text(study)
    with pytest.raises(InputError, match=r"copy\.yaml: name is study-adam; allowed: study-copy, as the file is called"):
        load("study-copy", "short")
    (own_files / "studies/copy.yaml").write_text(study.replace("study-adam", "study-copy"))
    assert load("study-copy", "short").parameters["sweep"] == ["study-copy"]


# -- what is run, and how often ---------------------------------------------------------------------------------


def test_a_second_call_finds_nothing_missing(tmp_path: Path, unkilled: dict[str, str]) -> None:
    assert sweep(tmp_path)[0] == 0
    before = states(tmp_path)
    status, stdout, _ = sweep(tmp_path)
    assert status == 0
    assert stdout == "splits: nothing was missing; 6 cells: 0 run now, 6 finished before, 0 failed\n"
    assert states(tmp_path) == before
    assert results(tmp_path) == unkilled
    # Another space on the same folder runs only what it does not share with the first.
    status, stdout, _ = sweep(tmp_path, "--seed=1,2")
    assert stdout == "splits: 6 cells: 3 run now, 3 finished before, 0 failed\n"
    # The study says the same, with the cells of the earlier one.
    queue = Queue(load("splits", "embedded", {"out": [str(tmp_path)], "split": [1, 4, "qkv"], "seed": [1, 2]}))
    assert {t.user_attrs["cell"]: t.value for t in queue.study.trials} == {
        run_id: queue.value(config) for run_id, config in queue.cells.items()
    }
    assert queue.study.best_trial.params == {
        key: getattr(queue.cells[queue.study.best_trial.user_attrs["cell"]], key) for key in ("split", "seed")
    }


def test_a_dry_run_lists_and_writes_nothing(tmp_path: Path) -> None:
    status, stdout, _ = sweep(tmp_path, "--dry-run", "--seed=0")
    assert status == 0
    assert stdout.splitlines()[-1] == "splits: 3 cells: 0 finished, 3 missing"
    assert "  missing   /usr/bin/env python -m train --sweep=splits --profile=embedded" in stdout
    assert not (tmp_path / "splits").exists()


def test_a_killed_worker_is_replaced_and_its_cell_resumed(tmp_path: Path, unkilled: dict[str, str], fault) -> None:
    (tmp_path / "slow").write_text("0.3")
    owner = start(tmp_path, "--workers=2")
    wait_for(lambda: len(list(tmp_path.glob("splits/*/steps"))) == 2 and not states(tmp_path))
    os.kill(workers_of(owner.pid)[0], signal.SIGKILL)
    (tmp_path / "slow").write_text("0")
    with fault("a sweep's worker is killed") as fate:
        assert owner.wait(timeout=60) == 0
        assert (tmp_path / "stdout").read_text() == "splits: 6 cells: 6 run now, 0 finished before, 0 failed\n"
        assert "its worker was ended by SIGKILL" in (tmp_path / "stderr").read_text()
        assert_each_finished_once(tmp_path)
        assert sorted(len((path / "attempts").read_text()) for path in cells(tmp_path)) == [1, 1, 1, 1, 1, 2]
        assert results(tmp_path) == unkilled
        fate.told = fate.equal = True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_owner_loses_nothing(how: int, tmp_path: Path, unkilled: dict[str, str], fault) -> None:
    (tmp_path / "slow").write_text("0.05")
    owner = start(tmp_path, "--workers=2")
    wait_for(lambda: len(states(tmp_path)) >= 2 and len(list(tmp_path.glob("splits/*/steps"))) >= 4)
    workers = workers_of(owner.pid)
    assert len(workers) == 2
    owner.send_signal(how)
    assert owner.wait(timeout=30) == (-how if how == signal.SIGKILL else 128 + how)
    wait_for(lambda: not any(map(is_alive, workers)), seconds=10)
    if how != signal.SIGKILL:
        stderr = (tmp_path / "stderr").read_text()
        assert stderr.endswith("stopping; the same command runs what is missing\n")
        assert "Traceback" not in stderr
    before = states(tmp_path)
    assert 2 <= len(before) <= 4  # it was in the middle

    (tmp_path / "slow").unlink()
    with fault("a sweep's owner is killed or stopped") as fate:
        status, stdout, _ = sweep(tmp_path)
        assert status == 0
        assert stdout == f"splits: 6 cells: {6 - len(before)} run now, {len(before)} finished before, 0 failed\n"
        assert before.items() <= states(tmp_path).items()
        assert_each_finished_once(tmp_path)
        assert results(tmp_path) == unkilled
        fate.told, fate.equal = how != signal.SIGKILL, True


def test_two_owners_at_once_share_the_cells(tmp_path: Path, unkilled: dict[str, str]) -> None:
    (tmp_path / "slow").write_text("0.02")
    owners = [start(tmp_path) for _ in range(2)]
    assert [owner.wait(timeout=60) for owner in owners] == [0, 0]
    assert_each_finished_once(tmp_path)
    assert all((path / "attempts").read_text() == "x" for path in cells(tmp_path))
    assert results(tmp_path) == unkilled


def test_owners_who_look_at_once_queue_each_cell_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def look() -> None:
        queue = open_queue(tmp_path)
        barrier.wait()
        queue.refill()

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue = open_queue(tmp_path)
    assert sorted(trial.user_attrs["cell"] for trial in queue.study.trials) == sorted(queue.cells)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose owner was killed when two cells had finished and a third one had begun."""
    out = tmp_path_factory.mktemp("killed")
    (out / "slow").write_text("0.03")
    owner = start(out)
    wait_for(lambda: len(states(out)) >= 2 and len(list(out.glob("splits/*/steps"))) >= 3)
    workers = workers_of(owner.pid)
    owner.kill()
    owner.wait()
    wait_for(lambda: not any(map(is_alive, workers)))
    (out / "slow").unlink()
    return out


@pytest.mark.parametrize("damage", ["half a line", "a damaged last line", "a damaged line", "no journal"])
def test_a_damaged_journal_loses_nothing(
    damage: str, tmp_path: Path, killed: Path, unkilled: dict[str, str], fault
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    journal = tmp_path / "splits/journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(
        {
            "half a line": b"".join(lines)[:-20],
            "a damaged last line": b"".join(lines) + b"\0\0{not json\n",
            "a damaged line": b"".join([*lines[:12], b"{]\n", *lines[13:]]),
            "no journal": b"",
        }[damage]
    )
    before = states(tmp_path)
    with fault("a sweep's queue file is cut, spoilt or emptied after a kill") as fate:
        status, _, stderr = sweep(tmp_path)
        assert status == 0, stderr
        assert before.items() <= states(tmp_path).items()
        assert_each_finished_once(tmp_path)
        assert results(tmp_path) == unkilled
        fate.equal = True
    assert sweep(tmp_path)[1].startswith("splits: nothing was missing; ")


def test_a_writer_killed_in_the_middle_of_a_line_harms_no_other(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.refill()
    with (tmp_path / "splits/journal.log").open("ab") as journal:
        journal.write(b'{"op_code":5,"worker_id":"dead')
    cell = queue.take()
    assert cell is not None
    with cell:
        trials = open_queue(tmp_path).study.trials
        assert [trial.state for trial in trials] == [TrialState.RUNNING, *5 * [TrialState.WAITING]]
        assert trials[0].params == {"split": 1, "seed": 0}
        open_queue(tmp_path).refill()
        assert queue.running() == [cell.config.run_id]
        assert queue.waiting() == 5
    open_queue(tmp_path).refill()  # the lock is gone, the cell is not finished
    assert queue.running() == []
    assert queue.waiting() == 6


def finish(out: Path) -> list[Config]:
    """All cells of `open_queue`, in this process."""
    done = list(open_queue(out).cells.values())
    for config in done:
        config.folder.mkdir(parents=True)
        stand_in(config, lambda *_: None)
    return done


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`python -m sweeps splits` in this process, for what starts no worker: status, output, errors."""
    from sweeps.__main__ import arguments, one_sweep

    def call(out: Path, *args: str) -> tuple[int, str, str]:
        capsys.readouterr()  # what stand_in has printed
        call = arguments(["splits", f"--out={out}", "--split=1,4,qkv", "--seed=0,1", *args])
        status = one_sweep(*call, "test_sweeps:stand_in")
        return status, *capsys.readouterr()

    return call


def test_finished_runs_that_are_damaged_are_told_each_time(tmp_path: Path, command) -> None:
    done = finish(tmp_path)
    assert command(tmp_path)[:2] == (
        0,
        "splits: nothing was missing; 6 cells: 0 run now, 6 finished before, 0 failed\n",
    )
    history, summary = done[1].folder / "history.jsonl", done[4].folder / "summary.json"
    history.write_bytes(history.read_bytes()[:-5])
    summary.write_text("{")
    (tmp_path / "splits/journal.log").unlink()
    for _ in range(2):
        status, stdout, stderr = command(tmp_path)
        assert status == 1
        assert stdout.endswith("6 finished before, 0 failed, 2 of the finished ones damaged\n")
        assert "nothing was missing" not in stdout
        told = sorted(line for line in stderr.splitlines() if line.startswith("damaged: "))
        assert len(told) == 2
        assert any(f"{history} has {STEPS + 2} of the {STEPS + 3} lines of its run" in line for line in told)
        assert any(f"{summary} cannot be read" in line for line in told)


def test_a_second_call_about_other_runs_is_told_while_the_first_is_at_work(tmp_path: Path, command) -> None:
    finish(tmp_path)
    space = load("splits", "embedded", {"out": [str(tmp_path)], "split": [1, 4], "seed": [0]})
    with open_queue(tmp_path).folder.called(space.manifest()):
        with pytest.raises(InputError, match=r"is being run with other settings \(embedded-.*by another call"):
            command(tmp_path)
        assert len(json.loads((tmp_path / "splits/sweep.json").read_text())["cells"]) == 2
    assert command(tmp_path)[0] == 0


def test_a_sweeps_own_table_is_made_before_another_call_may_be_about_other_runs(
    tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def analysis(arguments: list[str], process_group: int) -> contextlib.nullcontext[SimpleNamespace]:
        with pytest.raises(InputError, match="is being run with other settings"):
            command(tmp_path, "--seed=0")
        called.append((arguments[1:], len(cells(tmp_path))))
        return contextlib.nullcontext(SimpleNamespace(poll=lambda: 0, returncode=0))

    done = finish(tmp_path)
    monkeypatch.setattr("sweeps.__main__.subprocess.Popen", analysis)
    assert command(tmp_path, "--analyse")[0] == 0
    assert called == [(["-m", "analysis", "splits", f"--out={tmp_path}"], 6)]
    assert command(tmp_path, "--analyse", "--dry-run")[0] == 0
    (done[0].folder / "history.jsonl").write_text("")
    assert command(tmp_path, "--analyse")[0] == 1  # a damaged cell comes first
    assert len(called) == 1


def damaged(config: Config, progress: Callable[[int, int, float], None]) -> None:
    if config.split == 4:
        raise DamagedRun("the checkpoint cannot be read; remove it")
    stand_in(config, progress)


def test_a_run_whose_own_files_are_damaged_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "send_output_to", lambda path: None)
    queue = open_queue(tmp_path)
    queue.refill()
    space = load("splits", "embedded", {"out": [str(tmp_path)], "split": [1, 4, "qkv"], "seed": [0, 1]})
    told: list[tuple[Any, ...]] = []
    for config in queue.cells.values():
        config.folder.mkdir(parents=True, exist_ok=True)
    grid.work(space, Storage(), "tests.test_sweeps:damaged", lambda *message: told.append(message))
    assert [what for what, *_ in told if what in ("finished", "failed")].count("finished") == 4
    assert list(queue.failed().values()) == 2 * ["the checkpoint cannot be read; remove it"]


def test_a_queue_that_a_full_disk_does_not_take_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = open_queue(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(
        InputError, match=r"the queue's file .*journal\.log cannot be written \(No space left on device"
    ):
        queue.refill()


def test_the_time_left_is_known_after_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = open_queue(tmp_path)
    progress = grid.Progress("splits", queue, set())
    progress.started(run_id := next(iter(queue.cells)))
    for step in (1, 2):
        progress.step(run_id, step, 8, 0.7)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    progress.show()
    assert re.search(r"2/48 steps, 00:\d\d so far, about \d\d:\d\d left", str(progress.bar))


def test_the_bar_shows_each_arms_loss_of_the_runs_that_have_come_farthest(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    progress = grid.Progress("splits", queue, set())
    of_arm: dict[str, list[str]] = {}
    for run_id in queue.cells:
        of_arm.setdefault(queue.arm(run_id), []).append(run_id)
    (low, (one, other)), (high, (third, *_)) = list(of_arm.items())[:2]
    for run_id, step, loss in ((one, 1, 0.4), (one, 2, 0.4), (other, 1, 9.0), (third, 1, 0.6)):
        progress.started(run_id)
        progress.step(run_id, step, 8, loss)
    progress.show()
    assert str(progress.bar).endswith(f"left, loss: {low} 0.40, {high} 0.60")
    assert (low, high) == ("split=1", "split=4")


def test_a_failed_cell_is_shown_and_runs_again_only_on_request(tmp_path: Path, unkilled: dict[str, str]) -> None:
    (tmp_path / "broken-4").touch()
    failed = "splits: 6 cells: 4 run now, 0 finished before, 2 failed\n"
    assert sweep(tmp_path)[:2] == (1, failed)
    stderr = (tmp_path / "stderr").read_text()
    assert "failed: split=4, seed=1: ValueError: loss is not finite (see " in stderr
    assert "--retry-failed" in stderr
    assert "Traceback" not in stderr
    log = next(path for path in tmp_path.glob("splits/*/log.txt") if "Traceback" in path.read_text())
    assert "a line that a library prints" in log.read_text()
    assert "a line that a library prints" not in stderr + failed

    (tmp_path / "broken-4").unlink()
    before = states(tmp_path)
    assert sweep(tmp_path)[:2] == (1, "splits: 6 cells: 0 run now, 4 finished before, 2 failed\n")
    assert states(tmp_path) == before
    assert sweep(tmp_path, "--retry-failed")[:2] == (0, "splits: 6 cells: 2 run now, 4 finished before, 0 failed\n")
    assert results(tmp_path) == unkilled


def test_a_full_disk_stops_the_sweep_and_loses_nothing(
    tmp_path: Path, mounted: Callable[[str], Path], unkilled: dict[str, str], fault
) -> None:
    out = mounted("size=400k")
    (tmp_path / "slow").write_text("0.03")
    (out / "slow").symlink_to(tmp_path / "slow")
    (out / "stdout").symlink_to(tmp_path / "stdout")
    (out / "stderr").symlink_to(tmp_path / "stderr")
    (tmp_path / "stdout").touch()
    (tmp_path / "stderr").touch()
    owner = start(out)
    wait_for(lambda: len(states(out)) >= 2, alive=[owner])
    with suppress(OSError), (out / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 512):
            pass
    with fault("a sweep's file system is full") as fate:
        assert owner.wait(timeout=60) == 2
        stderr = (tmp_path / "stderr").read_text()
        assert "No space left on device" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr
        before = states(out)
        assert 2 <= len(before) < 6
        (out / "ballast").unlink()
        (tmp_path / "slow").write_text("0")
        assert sweep(out)[0] == 0, (tmp_path / "stderr").read_text()
        assert before.items() <= states(out).items()
        assert_each_finished_once(out)
        assert results(out) == unkilled
        fate.told = fate.equal = True


def test_a_read_only_folder_is_one_line(mounted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    from sweeps.__main__ import arguments, one_sweep

    out = mounted("ro")
    with pytest.raises(InputError, match=r"the sweep folder .* cannot be written \(Read-only file system\)"):
        one_sweep(*arguments(["splits", f"--out={out}"]), "test_sweeps:stand_in")


def test_what_hits_every_cell_stops_the_sweep_at_once(tmp_path: Path) -> None:
    (tmp_path / "refused").touch()
    status, _, stderr = sweep(tmp_path)
    assert status == 2
    assert stderr.splitlines()[-1] == "error: the model cannot be had; allowed: another"
    assert "Traceback" not in stderr
    assert len(list(tmp_path.glob("splits/*/attempts"))) == 1
    (tmp_path / "refused").unlink()
    assert sweep(tmp_path)[:2] == (0, "splits: 6 cells: 6 run now, 0 finished before, 0 failed\n")


def test_a_cell_that_kills_its_process_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "deadly-4").touch()
    status, stdout, stderr = sweep(tmp_path, "--seed=0")
    assert (status, stdout) == (1, "splits: 3 cells: 2 run now, 0 finished before, 1 failed\n")
    assert "failed: split=4, seed=0: its process was killed 3 times" in stderr
    told = [line for line in stderr.splitlines() if "SIGKILL" in line]  # a line a death, at once
    killed = "split=4, seed=0: its worker was ended by SIGKILL (out of memory? fewer --workers take less); "
    goes_on = "another one resumes it from its checkpoint"
    assert told == [killed + goes_on, killed + goes_on, killed + "given up after 3 of them"]


def test_a_worker_that_cannot_start_ends_the_sweep(tmp_path: Path) -> None:
    status, _, stderr = sweep(tmp_path, run="test_sweeps:no_such_function")
    assert status == 2
    assert "error: 3 workers in a row ended before their first cell; the last one ended with exit status 1" in stderr


# -- the same with real training --------------------------------------------------------------------------------


def test_killed_training_resumes_to_the_identical_result(tiny: Path, tmp_path: Path, fault) -> None:
    """kill -9 of owner and workers in the middle of real cells, W&B running: as if nothing had happened."""
    from train.run import run

    sizes = ["--split=1,4", "--seed=0", "--max_length=8", "--batch_size=4", "--epochs=10", "--threads=1"]
    settings = [f"--model={tiny / 'model'}", f"--data={tiny / 'data'}", *sizes]
    out = tmp_path / "killed"
    owner = start(out, *settings, run="train.run:run")
    # After the first cell, in the middle of the last one, past its first checkpoint

    def in_the_last_one() -> bool:
        finished = states(out)
        return len(finished) == 1 and any(p.parent.name not in finished for p in out.glob("splits/*/checkpoint.pt"))

    wait_for(in_the_last_one, seconds=240)
    for victim in [owner.pid, *workers_of(owner.pid)]:
        os.kill(victim, signal.SIGKILL)
    owner.wait()
    before = states(out)
    assert len(before) == 1
    partial = next(path for path in cells(out) if path.name not in before)
    steps = [json.loads(line)["step"] for line in (partial / "history.jsonl").read_text().splitlines()]
    assert 12 <= max(steps) < 120

    last_line = "splits: 2 cells: 1 run now, 1 finished before, 0 failed\n"
    status, said, errors = sweep(out, *settings, run="train.run:run")
    assert (status, said) == (0, last_line), errors
    assert before.items() <= states(out).items()
    assert not (partial / "checkpoint.pt").exists()

    def learnt(folder: Path) -> list[dict[str, Any]]:
        lines = [*(folder / "history.jsonl").read_text().splitlines(), (folder / "summary.json").read_text()]
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    with fault("a sweep's owner and workers are killed in training") as fate:
        for path in cells(out):
            config = json.loads((path / "config.json").read_text())
            assert config.pop("run_id") == path.name
            config |= {"out": str(tmp_path / "unkilled"), "track": False}
            config |= {"model": str(tiny / "model"), "data": str(tiny / "data")}  # their names were stored
            assert learnt(path) == learnt(run(Config.from_dict(config)).folder)
            assert list(path.glob("wandb/offline-run-*/*.wandb"))
        fate.equal = True
