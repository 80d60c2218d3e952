"""sweeps/ on PostgreSQL: machines that see nothing of each other but the database share a sweep."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy
from optuna.trial import TrialState

from sweeps.queue import Queue
from sweeps.space import load
from sweeps.storage import Storage, reachable
from train.errors import InputError

from .fault_page import Inject
from .postgresql import binaries, server
from .test_sweeps import assert_each_finished_once, start, wait_for, workers_of

pytestmark = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server here: apt-get install postgresql")
BEAT = 1


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server() as url:
        yield url


def queue(out: Path, database: str, **changes: list[object]) -> Queue:
    sizes: dict[str, list[object]] = {"out": [str(out)], "split": [1, 4, "qkv"], "seed": [0, 1]}
    return Queue(load("splits", "embedded", sizes | changes), Storage(database, BEAT))


def waiting_after_refill(queue: Queue) -> int:
    queue.refill()
    return queue.waiting()


def finished_in(out: Path) -> list[str]:
    return [path.parent.name for path in out.glob("splits/*/finishes") for _ in path.read_text()]


def test_two_machines_share_a_sweep_and_one_finishes_what_the_other_died_of(
    tmp_path: Path, database: str, fault: Inject
) -> None:
    """Folders of their own, as without a common disk; kill -9 of one machine's owner and worker in mid-cell."""
    hosts = [tmp_path / "one", tmp_path / "other"]
    owners = []
    for host in hosts:
        host.mkdir()
        (host / "slow").write_text("0.15")
        owners.append(start(host, f"--storage={database}", f"--heartbeat={BEAT}", "--workers=1"))
    wait_for(lambda: all(list(host.glob("splits/*/steps")) for host in hosts) and finished_in(hosts[0]), 60, owners)
    wait_for(lambda: len(list(hosts[0].glob("splits/*/steps"))) > len(finished_in(hosts[0])))
    for process in [owners[0].pid, *workers_of(owners[0].pid)]:
        os.kill(process, signal.SIGKILL)
    owners[0].wait()
    of_the_dead = finished_in(hosts[0])
    begun = {path.parent.name for path in hosts[0].glob("splits/*/steps")}
    lost = begun - set(of_the_dead)
    assert len(lost) == 1
    (hosts[1] / "slow").unlink()

    with fault("a machine of two that share a sweep is killed") as fate:
        assert owners[1].wait(timeout=90) == 0, (hosts[1] / "stderr").read_text()
        finished = of_the_dead + finished_in(hosts[1])
        everything = queue(hosts[1], database)
        assert sorted(finished) == sorted(everything.cells)  # every cell once, on one machine or the other
        assert lost <= set(finished_in(hosts[1]))
        fate.equal = True
    states = Counter((trial.user_attrs["cell"], trial.state) for trial in everything.study.trials)
    assert {cell: n for (cell, state), n in states.items() if state == TrialState.COMPLETE} == dict.fromkeys(
        everything.cells, 1
    )
    assert [cell for (cell, state), n in states.items() if state != TrialState.COMPLETE for _ in range(n)] == list(lost)
    last_line = (hosts[1] / "stdout").read_text().splitlines()[-1]
    here = len(finished_in(hosts[1]))
    assert f"6 cells: {here} run now, {6 - here} by another process meanwhile" in last_line
    told = (hosts[1] / "stderr").read_text().splitlines()[-1]
    assert told.startswith(f"{6 - here} of them in run folders of other machines; copy those to {hosts[1] / 'splits'} ")

    # The dead machine comes back: nothing is missing for it either.
    again = start(hosts[0], f"--storage={database}", f"--heartbeat={BEAT}", "--workers=1")
    assert again.wait(timeout=60) == 0
    assert finished_in(hosts[0]) == of_the_dead
    assert "nothing was missing" in (hosts[0] / "stdout").read_text()


def test_a_cell_is_taken_over_only_after_its_heartbeats_have_stopped(tmp_path: Path, database: str) -> None:
    one, other = (queue(tmp_path / name, database, seed=[3]) for name in ("a", "b"))
    one.refill()
    other.refill()  # at once or not, each cell is queued once
    assert one.waiting() == 3
    cell = one.take()
    assert cell is not None
    with cell:
        time.sleep(5 * BEAT)
        other.refill()
        assert cell.config.run_id in other.running()
        assert other.waiting() == 2
    # As after the death of its machine: no beat, no result. A machine that is alive sees it by its lock, at once.
    other.refill()
    assert other.waiting() == 2
    wait_for(lambda: waiting_after_refill(other) == 3, seconds=20)
    assert cell.config.run_id not in other.running()


def test_a_machine_that_comes_back_late_does_not_undo_the_takeover(tmp_path: Path, database: str) -> None:
    one, other = (queue(tmp_path / name, database, seed=[4], split=[1]) for name in ("a", "b"))
    one.refill()
    late = one.take()
    assert late is not None  # it is not entered: no heart beats, as in a machine that sleeps
    wait_for(lambda: waiting_after_refill(other) == 1, seconds=20)
    new = other.take()
    assert new is not None
    for cell in (new, late):
        (cell.config.folder / "summary.json").write_text(json.dumps({"eval/accuracy": 0.5, "steps": 1}))
        cell.finish()
        cell.lock.close()
    states = [trial.state for trial in one.study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_a_worker_that_dies_between_taking_and_its_first_heartbeat_loses_nothing(tmp_path: Path, database: str) -> None:
    died, other = (queue(tmp_path / name, database, seed=[5], split=[1]) for name in ("a", "b"))
    died.refill()
    died.study.ask(died.distributions)
    other.refill()
    assert other.waiting() == 1


def test_the_queue_is_changed_by_one_machine_at_a_time(tmp_path: Path, database: str) -> None:
    one = queue(tmp_path / "a", database, seed=[6])
    with psycopg.connect(database.replace("+psycopg", "")) as other:
        other.execute("SET lock_timeout = '300ms'")
        other.execute("SELECT pg_advisory_xact_lock(hashtext('another queue'))")
        with one.alone(), pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [one.name])


def test_the_study_can_be_read_by_optunas_own_tools(tmp_path: Path, database: str) -> None:
    one = queue(tmp_path / "a", database, seed=[7])
    one.refill()
    plain = optuna.storages.RDBStorage(database, engine_kwargs={"poolclass": sqlalchemy.NullPool})
    study = optuna.load_study(study_name=one.name, storage=plain)
    assert {trial.system_attrs["fixed_params"]["split"] for trial in study.trials} == {1, 4, "qkv"}


def test_a_database_that_is_lost_in_the_middle_ends_the_sweep_with_one_line(tmp_path: Path, fault: Inject) -> None:
    out = tmp_path / "one"
    out.mkdir()
    (out / "slow").write_text("0.15")
    with server() as lost:
        owner = start(out, f"--storage={lost}", "--workers=1")
        wait_for(lambda: list(out.glob("splits/*/steps")), 60, [owner])
    with fault("a sweep's database is lost") as fate:
        assert owner.wait(timeout=60) == 2
        lines = (out / "stderr").read_text().splitlines()
        said = [line for line in lines if "so far" not in line]
        assert len(said) == 2  # the first says how many cells are to be run
        assert said[1].startswith(f"error: --storage={lost}: ")
        assert said[1].endswith("; the same command runs what is missing")

        (out / "slow").unlink()
        assert start(out).wait(timeout=60) == 0
        assert_each_finished_once(out)
        fate.told = True


def test_a_database_that_is_lost_between_two_queries_is_one_line(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = queue(tmp_path / "a", database, seed=[8])
    one.refill()
    assert one.database is not None

    def lose(connection: Any, cursor: psycopg.Cursor, statement: str, *more: Any) -> None:
        if "FROM trial_params" in statement:
            cursor.connection.close()

    sqlalchemy.event.listen(one.database.engine, "before_cursor_execute", lose)
    optuna.logging.enable_propagation()
    try:
        with pytest.raises(InputError, match=r"; the same command runs what is missing$"), reachable(Storage(database)):
            one.failed()
    finally:
        optuna.logging.disable_propagation()
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # threads share what is ignored
def test_machines_that_begin_at_once_in_an_empty_database_do_not_collide(tmp_path: Path, database: str) -> None:
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    empty = database.removesuffix("postgres") + "empty"
    barrier, waiting = threading.Barrier(6), []

    def begin(name: str) -> None:
        barrier.wait()
        one = queue(tmp_path / name, empty)
        one.refill()
        waiting.append(one.waiting())

    threads = [threading.Thread(target=begin, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting == [6] * 6


def test_a_database_without_an_encoding_will_do(tmp_path: Path, database: str) -> None:
    """As Debian makes it where no locale is set: texts come as bytes."""
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    one = queue(tmp_path / "a", database.removesuffix("postgres") + "plain")
    one.refill()
    assert one.waiting() == 6
