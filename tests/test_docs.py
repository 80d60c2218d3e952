"""What README and the pages of docs/ show holds: links, Python blocks, command lines, and what the example prints."""

import importlib.util
import inspect
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf

import optim
import optim.hf
from sweeps.__main__ import arguments
from sweeps.space import load, studies, sweeps
from tests.trainers import SIZES, WORDS, Rows
from tests.trainers import arguments as trainer_arguments
from train.config import GROUPS, Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "CHANGELOG.md")]  # they show parts of files
LINKING = [*PAGES, ROOT / "LOG.md", *sorted((ROOT / "log").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as GitHub and the site spell them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=[str(page.relative_to(ROOT)) for page in LINKING])
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_all_lines_of_a_table_have_as_many_cells_as_its_heading(page: Path) -> None:
    """Otherwise Markdown shows no table at all."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, *lines = [re.sub(r"`[^`]*`|\\\|", "", line).count("|") for line in table.splitlines()]
        assert set(lines) == {heading}, table


def test_readme_is_a_screen_and_a_half_of_short_lines() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert [line for line in lines if len(line) > 120] == []


def test_readmes_example_prints_what_readme_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, trainers = blocks(ROOT / "README.md", "python")
    assert len(trainers.split("\n\n")) == 2  # imports, and the line that makes the trainer
    assert len(example.splitlines()) <= 13
    assert max(map(len, example.splitlines())) <= 95  # more does not fit beside the site's menu
    monkeypatch.setitem(sys.modules, "plasls", optim)
    exec(compile(example, "README.md", "exec"), {})
    form = r"loss (\S+), (\d+) trials"
    told = re.search(f"`{form}`", (ROOT / "README.md").read_text(encoding="utf-8"))
    printed = re.fullmatch(form, capsys.readouterr().out.strip())
    assert told
    assert printed
    loss, trials = ([float(each) for each in pair] for pair in zip(told.groups(), printed.groups(), strict=True))
    assert abs(loss[0] - loss[1]) < 0.1  # another machine rounds in another way
    assert abs(trials[0] - trials[1]) <= 10


@pytest.mark.parametrize("page", SHOWN, ids=[str(page.relative_to(ROOT)) for page in SHOWN])
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", ["library.md", "trainers.md"])
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plasls", optim)
    monkeypatch.setitem(sys.modules, "plasls.hf", optim.hf)
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**WORDS, **SIZES | {"num_hidden_layers": 8}))
    rows = Rows(count=32)
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    known = {"model": model, "loader": loader, "rows": rows, "args": trainer_arguments(tmp_path), "torch": torch}
    for block in blocks(ROOT / "docs" / page, "python"):
        if "SFTTrainer" in block:  # of packages that are not required; test_descendants.py has them
            continue
        exec(compile(block, page, "exec"), known)
        if "loader" in block and "optimizer.step(lambda" in block:
            assert known["optimizer"].counts["searches"] > 0


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = re.findall(r"auto(?:class|function|data):: (\w+)", page, re.MULTILINE)
    assert sorted(shown) == sorted({*optim.__all__, *optim.hf.__all__} - {"__version__"})


def test_the_api_page_shows_settings_in_one_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("plasls", "plasls.hf"):  # the configuration sets them
        monkeypatch.setitem(sys.modules, name, optim)
    shorten = runpy.run_path(str(ROOT / "docs/conf.py"))["shorten_signatures"]

    def shown(thing: type) -> object:
        return shorten(None, "class", thing.__name__, thing, None, str(inspect.signature(thing)), None)

    for optimizer in (optim.SGDSLS, optim.AdamSLS, optim.PLASLS, optim.SaLSA):
        assert shown(optimizer) == ("(params, **settings)", None)
    assert shown(optim.Preset) == ("(**settings)", None)
    assert [shown(each) for each in (optim.LineSearch, optim.Search, optim.hf.LineSearchTrainer)] == [None] * 3


def commands() -> Iterator[list[str]]:
    """The words of each command line in the pages' shell blocks and tables."""
    for page in PAGES:
        shown = [line for block in blocks(page, "sh") for line in block.splitlines()]
        shown += re.findall(r"`((?:make|\.venv/bin/python|python) [^`\n]+)`", page.read_text(encoding="utf-8"))
        for line in shown:
            if words := shlex.split(line, comments=True):
                yield words


def test_make_has_the_targets_that_the_pages_name() -> None:
    called = [words[1:] for words in commands() if words[0] == "make"]
    targets = {word for words in called for word in words if re.fullmatch(r"[a-z-]+", word)}
    assert {"sweep-splits", "study-adam", "bench", "docs", "test"} <= targets
    assert targets >= {f"sweep-{name}" for name in sweeps()} | set(studies())
    subprocess.run(["make", "--dry-run", *sorted(targets)], cwd=ROOT, capture_output=True, check=True)


def test_each_python_command_line_of_the_pages_is_taken() -> None:
    modules = [words[words.index("-m") + 1 :] for words in commands() if "-m" in words]
    assert {"train", "sweeps", "analysis"} <= {words[0] for words in modules}
    for module, *options in modules:
        assert importlib.util.find_spec(module), module
        if module == "train" and options != ["--help"]:
            Config.from_args([option for option in options if option != "..."])
        elif module == "sweeps" and options[:1] != ["offline"]:
            call, changes = arguments([option for option in options if option != "NAME"])
            assert call.name is None or load(call.name, call.profile, changes).cells()


def test_the_settings_that_the_pages_give_to_make_are_taken() -> None:
    for words in commands():
        given = dict(word.split("=", 1) for word in words[1:] if re.match(r"[A-Z]+=", word))
        for target in (word for word in words[1:] if re.fullmatch("sweep-[a-z-]+", word)):
            call, changes = arguments([target.removeprefix("sweep-"), *shlex.split(given.get("ARGS", ""))])
            assert load(call.name, given.get("PROFILE", call.profile), changes).cells()


def test_the_help_of_a_run_is_grouped_as_its_settings_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Config.from_args(["--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"^(\w[^:]*):\n  --(\w+)", shown, re.MULTILINE) == [(title, key) for key, title in GROUPS.items()]
    written = re.findall(r"^    # (.*)\n    (\w+):", Path(inspect.getfile(Config)).read_text("utf-8"), re.MULTILINE)
    assert written == [(title, key) for key, title in GROUPS.items()]
