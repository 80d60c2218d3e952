"""The pages of results are made of the runs alone, and follow them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from analysis import archive, choices, facts, results
from analysis.__main__ import main
from analysis.evidence import arm
from analysis.study import read
from sweeps import plan
from train.config import Config
from train.tasks import TASKS

from .fake_runs import edit, write_run

ROOT = Path(__file__).parents[1]


def test_the_committed_pages_are_what_make_results_makes_of_the_committed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    committed = read("results", "study")
    measured, drawn = results.page(committed)
    for name, text in ((results.PAGE, measured), (facts.PAGE, facts.page(committed))):
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "make results makes it anew"
    pictures = ROOT / "docs" / results.PICTURES
    assert {path.stem for path in pictures.glob("*.png")} == set(drawn)


def test_no_digit_of_the_page_is_written_by_hand() -> None:
    text = (ROOT / "analysis" / facts.TEMPLATE).read_text(encoding="utf-8")
    by_hand = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.DOTALL)  # what the build puts in
    by_hand = re.sub(r"\]\([^)]*\)", "", by_hand)  # addresses
    by_hand = re.sub(rf"\b({'|'.join(TASKS)})\b", "", by_hand)  # names
    assert re.findall(r".*\d.*", by_hand) == []


def test_the_page_is_short() -> None:
    text = (ROOT / "docs" / facts.PAGE).read_text(encoding="utf-8")
    assert len(re.findall(r"\S*[a-zA-Z]\S*", text)) <= 1500  # numbers and the marks of tables are no words


def test_the_page_claims_the_default_on_unseen_seeds_only_once_all_of_their_runs_are_there(tmp_path: Path) -> None:
    cells = list(plan.spaces("study", {"out": [str(tmp_path)]})["confirm"].cells().values())
    best = {"sst2": 1e-4, "mrpc": 1e-4, "qnli": 3e-4, "mnli": 3e-4}
    for config in cells:
        write_run(config, 0)
        of_adam = 0.7 if config.learning_rate == best[config.task] else 0.6
        of_default = 0.72 + 0.001 * config.seed if config.task == "sst2" else 0.7
        edit(config.folder / "summary.json", eval__accuracy=of_adam if config.optimizer == "adam" else of_default)

    def told() -> str:
        page = facts.page(read(str(tmp_path), "study"))
        return " ".join(page.split("## In short")[1].split("## Longer runs")[0].split())

    whole = told()
    assert "seeds 5, 6, 7, 8, 9, which no choice has seen;" in whole
    assert re.search(
        r"best of 5e-5, 1e-4, 2e-4, 3e-4 for each, FOLLOW is 0\.[67] points ahead \(0\.6 to 0\.7\)\.", whole
    )
    assert "interval over tasks is −1.5 to 2.8: on another task there may be no lead." in whole
    assert "On qnli, mnli the highest rate is the best one" in whole
    assert whole.count("| 3e-4 |") >= 2  # of qnli and of mnli
    shutil.rmtree(cells[-1].folder)
    assert "119 of 120 runs have finished, so nothing is claimed yet." in told()
    assert "points ahead" not in told()


def test_the_table_of_adapters_has_only_seeds_that_all_share_and_rates_that_ran_with_these(tmp_path: Path) -> None:
    shared = {"sweep": "adapters", "out": str(tmp_path / "runs"), "profile": "study", "model": "bge", "data": "glue"}
    accuracies = {("lora", 1e-3): 0.6, ("lora", 1e-2): 0.7, ("ia3", 1e-3): 0.66, ("ia3", 1e-2): 0.5}
    for task, adapter in (("sst2", "lora"), ("sst2", "ia3"), ("mrpc", "lora")):
        for seed in (5, 6, 7)[: 3 if (task, adapter) == ("sst2", "lora") else 2]:  # ia3 lacks the third one
            arms = [("follow", 1e-3, 0.71)] + [("adamw", rate, accuracies[adapter, rate]) for rate in (1e-3, 1e-2)]
            for optimizer, rate, accuracy in arms + [("adamw", 1e-4, 0.99)] * (seed == 5):
                arm = {"task": task, "adapter": adapter, "optimizer": optimizer, "learning_rate": rate}
                config = Config.from_dict(shared | arm | {"seed": seed})
                write_run(config, 0)
                edit(config.folder / "summary.json", eval__accuracy=accuracy)
    archive.add(tmp_path / "runs", tmp_path, unclean=True)
    write_run(next(iter(plan.spaces("study", {"out": [str(tmp_path)]})["rates"].cells().values())), 0)
    page = facts.page(read(str(tmp_path), "study"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    found = {(row[0], row[4]): row for row in rows if len(row) == 8}
    assert found["lora", "0.01"][3::2] == ["70.0 ± 0.0", "+1.0", "+11.0"]
    assert found["ia3", "0.001"][3::2] == ["66.0 ± 0.0", "+5.0", "+5.0"]
    assert found["all", "best of each"][3::2] == ["68.0 ± 0.0", "+3.0", "+8.0"]
    assert "On sst2, seeds 5, 6:\n" in page
    told = " ".join(page.split())
    assert "With adapters FOLLOW is 3.0 points ahead (3.0 to 3.0), on sst2;" in told
    assert "; 1.0 points ahead (1.0 to 1.0), with lora alone, on mrpc," in told
    assert ("all", "0.001") not in found
    assert "99.0" not in page


def test_the_page_tells_of_arms_on_different_devices_without_an_interval(tmp_path: Path) -> None:
    spaces = plan.spaces("study", {"out": [str(tmp_path)], "task": ["sst2"]})
    for name in ("rates", "paper"):
        for config in spaces[name].cells().values():
            if not config.folder.exists():
                write_run(config, 0)
            accuracy = 0.8 if config.optimizer == "adam" else 0.75
            edit(config.folder / "summary.json", eval__accuracy=accuracy)
    ours, adam = (arm("paper", optimizer=key, task="sst2") for key in ("plasls", "adam"))
    assert facts.Facts(read(str(tmp_path), "study")).ahead(ours, adam) == "5.0 points behind (−5.0 to −5.0)"
    for config in spaces["paper"].cells().values():
        if config.optimizer == "plasls":
            edit(config.folder / "summary.json", device="cuda:0")
    assert facts.Facts(read(str(tmp_path), "study")).ahead(ours, adam) == "5.0 points behind (devices differ)"


@pytest.mark.parametrize("most", [100, 101])
def test_a_run_of_the_papers_search_that_was_cut_is_named_with_what_makes_it_anew(tmp_path: Path, most: int) -> None:
    cells = plan.spaces("study", {"out": [str(tmp_path)]})["paper"].cells().values()
    cut = next(config for config in cells if (config.optimizer, config.task, config.seed) == ("plasls", "qnli", 3))
    write_run(cut, 0)
    history = cut.folder / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    rows[3]["search/trials"], rows[7]["search/trials"] = 100, most
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(str(tmp_path), "study")
    page = results.page(found)[0]
    assert bool(re.search(r"\| paper \| qnli \| +3 \|", page)) == (most == 100)
    again = ".venv/bin/python -m sweeps paper --profile=study --out=runs --task=qnli --optimizer=plasls --seed=3"
    assert (again in page) == (most == 100)
    assert ("these runs: 1 of `paper`, " in facts.page(found)) == (most == 100)


def test_runs_that_were_cut_stand_beside_the_same_runs_without_the_bound_and_so_do_verdicts(tmp_path: Path) -> None:
    spaces, device = plan.spaces("study", {"out": [str(tmp_path)]}), "cuda:0"
    for config in (*spaces["paper"].cells().values(), *spaces["rates"].cells().values()):
        if config.task == "sst2" and config.optimizer in ("plasls", "adam") and config.learning_rate in (None, 2e-5):
            write_run(config, 0)
            accuracy = (0.5 if config.optimizer == "plasls" else 0.7) + 0.01 * config.seed**2
            edit(config.folder / "summary.json", eval__accuracy=accuracy, device=device)
    cut = sorted(path for path in (tmp_path / "paper").iterdir() if '"plasls"' in (path / "config.json").read_text())
    for run in cut:
        rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        rows[3]["search/trials"] = 100
        (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "no verdict would change." in facts.page(read(str(tmp_path), "study"))
    for run in cut:
        again = tmp_path / "again" / "uncapped" / run.name
        shutil.copytree(run, again)
        accuracy = 0.9 + 0.01 * json.loads((run / "config.json").read_text())["seed"]
        edit(again / "summary.json", eval__accuracy=accuracy, device="cpu")
    archive.add(tmp_path / "again", tmp_path, unclean=True)
    found = read(str(tmp_path), "study")
    page, short = results.page(found)[0], facts.page(found)
    assert len(re.findall(r"\| paper \| sst2 \| +\d \| cuda +\| +[56]\d\.0 .*\| cpu +\| +9\d\.0 ", page)) == 5
    assert "claim 4, about 3 % better on small sets (PLASLS, as in the paper): holds, not does not hold" in short
    assert [claim.judge(found.evidence).verdict for claim, _ in found.findings][3] == "does not hold"


def test_a_choice_is_shown_beside_the_runs_that_claim_it(tmp_path: Path) -> None:
    for config in plan.spaces("study", {"out": [str(tmp_path)], "seed": [0, 1]})["joint"].cells().values():
        write_run(config, 0)
    rows = {row["choice"]: row for row in choices.rows(read(str(tmp_path), "study").runs)}
    assert rows["the test of the joint move"]["claimed on"] == "joint (sst2, 2 seeds (0, 1), not complete)"
    assert rows["no momentum in longer runs"]["claimed on"] == "long (no run yet)"


def test_the_page_shows_who_is_ahead_in_long_runs_and_the_best_rate_once_all_rates_are_there(tmp_path: Path) -> None:
    def of_part() -> str:
        return results.page(read(str(tmp_path), "study"))[0].split("### Part long")[1]

    ahead, best = "Who is ahead when", "with the best one of the sweep"
    cells = plan.spaces("study", {"out": [str(tmp_path)], "task": ["sst2"]})["long"].cells().values()
    default, *others = [c for c in cells if c.optimizer == "untuned"]
    write_run(default, 0)
    assert ahead not in of_part()
    first, *adam = [c for c in cells if c.optimizer == "adam"]
    write_run(first, 1)
    assert ahead in of_part()
    for config in (*others, *adam[1:]):
        write_run(config, 0)
    assert best not in of_part()
    write_run(adam[0], 0)
    assert best in of_part()


def test_the_page_tests_the_arms_of_a_part_against_the_one_that_the_plan_names(tmp_path: Path) -> None:
    cells = plan.spaces("study", {"out": [str(tmp_path)], "seed": [0, 1]})["joint"].cells().values()
    for place, config in enumerate(cells):
        write_run(config, place % 5)
    page = results.page(read(str(tmp_path), "study"))[0].split("### Part joint")[1].split("###")[0]
    assert page.count("difference from joint always, paired over seeds") == 1


def test_the_page_shows_peers_beside_the_default_at_their_best_rates_and_those_without_one(tmp_path: Path) -> None:
    space = plan.spaces("study", {"out": [str(tmp_path)]})["peers"]
    cells = list(space.cells().values())
    for place, config in enumerate(cells[:-1]):
        write_run(config, place % 7)

    def of_part() -> str:
        return results.page(read(str(tmp_path), "study"))[0].split("### Part peers")[1].split("### Part")[0]

    assert "with the best one of the sweep" not in of_part()
    write_run(cells[-1], 0)
    page = of_part()
    best = page.split("with the best one of the sweep")[1].split("difference from")[0]
    assert "| all  | UNTUNED        | SCHEDULE-FREE" in best
    assert "PRODIGY" not in best
    assert page.count("difference from UNTUNED, paired over seeds") == 1
    assert page.count("| all  | PRODIGY") == 1
    assert "ADAMW" not in page.split("difference from UNTUNED")[1]


def test_a_folder_that_cannot_be_written_is_one_line_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "read", lambda out, profile: None)
    monkeypatch.setattr(results, "page", lambda study: ("text", {}))
    monkeypatch.setattr(facts, "page", lambda study: "text")
    (tmp_path / "file").touch()
    assert main(["results", f"--out={tmp_path}", f"--to={tmp_path / 'file'}"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "file cannot be written (Not a directory); --to takes a writable folder" in told
