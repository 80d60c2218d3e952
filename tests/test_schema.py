"""sweeps/schema.py: a mistake in a sweep file is told before anything runs, by file and line, and never taken."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sweeps import space
from sweeps.__main__ import arguments, one_sweep
from sweeps.space import load
from train.errors import InputError

from .fault_page import Inject

SWEEPS = Path(space.__file__).parent
MISTAKE = "a sweep file has a key twice, too few, or of another kind"
NAMES = ["splits", "budget", "study-adam"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository's files, to be spoilt."""
    for folder in ("", "studies", "profiles"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for file in (SWEEPS / folder).glob("*.yaml"):
            (tmp_path / folder / file.name).write_text(file.read_text())
    monkeypatch.setattr(space, "HERE", tmp_path)
    return tmp_path


def file_of(files: Path, name: str) -> Path:
    return files / (f"studies/{name.removeprefix('study-')}.yaml" if name.startswith("study-") else f"{name}.yaml")


def keys(text: str) -> Iterator[tuple[int, int]]:
    """The lines of each key of a file, those below it included: (first, behind the last)."""

    def of(node: yaml.Node) -> Iterator[tuple[int, int]]:
        if isinstance(node, yaml.MappingNode) and not node.flow_style:
            for key, value in node.value:
                below = value.end_mark.line
                end = below if isinstance(value, yaml.MappingNode) and not value.flow_style else below + 1
                yield key.start_mark.line, end
                yield from of(value)

    yield from of(yaml.compose(text, Loader=yaml.SafeLoader))


def told(name: str, profile: str = "paper") -> list[str]:
    """What is said of a sweep; nothing if it is taken."""
    try:
        load(name, profile).cells()
    except InputError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_is_there_twice_is_told_with_its_line(files: Path, name: str, fault: Inject) -> None:
    lines = file_of(files, name).read_text().splitlines()
    for start, end in keys("\n".join(lines) + "\n"):
        doubled = [*lines[:end], *lines[start:end], *lines[end:]]
        file_of(files, name).write_text("\n".join(doubled))
        key = lines[start].partition(":")[0].strip()
        with fault(MISTAKE) as fate:
            said = rf"\.yaml:{end + 1}: {key} is there twice; allowed: once$"
            assert any(re.search(said, line) for line in told(name))
            fate.told = True


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_is_missing_is_told_or_has_a_default(files: Path, name: str, fault: Inject) -> None:
    lines = file_of(files, name).read_text().splitlines()
    optional = {"run_cap", "profile", "model", "data", "task", "subset", "epochs", "batch_size", "max_length", "seed"}
    optional |= {"learning_rate", "warmup", "optimizer", "split", "description"}  # Config's own, or a smaller grid
    for start, end in keys("\n".join(lines) + "\n"):
        file_of(files, name).write_text("\n".join([*lines[:start], *lines[end:]]))
        key = lines[start].partition(":")[0].strip()
        said = told(name)
        if not said and key in optional:
            continue
        with fault(MISTAKE) as fate:
            assert said, key
            assert all(re.search(r"\.yaml(:\d+)?: ", line) for line in said)
            fate.told = True


@pytest.mark.parametrize(
    "other", ["7", "0.5", "text", "[]", "[1, [2]]", "{a: 1}", "null", "2020-01-01", "{value: {a: 1}}"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_kind_is_told_with_its_line(files: Path, name: str, other: str, fault: Inject) -> None:
    """A value that Config takes instead, such as another model, is none of another kind."""
    lines = file_of(files, name).read_text().splitlines()
    for start, end in keys("\n".join(lines) + "\n"):
        key = lines[start].partition(":")[0]
        file_of(files, name).write_text("\n".join([*lines[:start], f"{key}: {other}", *lines[end:]]))
        said = told(name)
        if not said and (key, other) in {("program", "text"), ("run_cap", "7"), ("run_cap", "null")}:
            continue
        with fault(MISTAKE) as fate:
            assert said, (key, other)
            assert all(re.search(rf"\.yaml(:{start + 1})?: ", line) for line in said), said
            fate.told = True


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        (
            "  seed: {values: [0, 1",
            "seed: {values: [0, 1",
            23,
            "unknown key seed (a parameter that lost its indentation?); allowed: name",
        ),
        ("name: eval/accuracy", "name: eval/acuracy", 7, "metric.name: input should be 'eval/accuracy', 'eval/f1', "),
        ("goal: maximize", "goal: maximise", 8, "metric.goal: input should be 'maximize' or 'minimize'"),
        ("{values: [1, 4, 7, 10, qkv]}", "", 19, "parameters.split: must have keys of its own below it, indented"),
        (
            "{values: [1, 4, 7, 10, qkv]}",
            "{values: []}",
            19,
            "parameters.split.values: list should have at least 1 item",
        ),
        ("{values: [1, 4,", "{values: [0, 4,", 19, "split: 0: "),
        ("{values: [0, 1, 2", "{values: [-1, 1, 2", 23, "seed: -1: Input should be greater than or equal to 0"),
        ("{values: [0, 1, 2", "{values: [4294967296, 1, 2", 23, "seed: 4294967296: Input should be less than"),
        ("  epochs: {value", "  epoch: {value", 20, "unknown setting epoch; closest: epochs"),
        ("method: grid", "method: grid: x", 5, "no YAML (mapping values are not allowed here)"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(files: Path, old: str, new: str, line: int, said: str) -> None:
    text = (files / "splits.yaml").read_text()
    assert old in text
    (files / "splits.yaml").write_text(text.replace(old, new))
    assert any(f"splits.yaml:{line}: {said}" in each for each in told("splits")), told("splits")


def test_a_mistake_in_a_profile_is_told_with_its_line(files: Path) -> None:
    (files / "profiles/odd.yaml").write_text("# a comment\nepochs: 0\nepochs: 2\nseed: []\n")
    said = told("splits", "odd")
    assert [re.sub(r".*odd\.yaml", "odd.yaml", line) for line in said] == [
        "odd.yaml:3: epochs is there twice; allowed: once",
        "odd.yaml:4: seed: must have at least one value",
    ]


def test_one_file_with_a_mistake_does_not_hide_the_others(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "splits.yaml").write_text("name: [")
    assert one_sweep(*arguments([f"--out={files / 'runs'}"]), "nothing:nothing") == 2
    said = capsys.readouterr()
    assert "splits         cannot be read\n" in said.out
    assert re.search(r"^mended +\d+ +\d+ ", said.out, re.MULTILINE)
    assert re.fullmatch(r"error: .*splits\.yaml:\d+: no YAML \(.*\)\n", said.err)


@pytest.mark.parametrize(("wrong", "right"), [("1e-6", "1.0e-06"), ("2.5e1", "2.5e+01")])
def test_a_number_that_yaml_reads_as_a_text_is_told_how_to_write_it(files: Path, wrong: str, right: str) -> None:
    study = file_of(files, "study-adam")
    text = study.read_text()
    study.write_text(re.sub(r"min: [0-9.e-]+(?=, max: 1.0e-3)", f"min: {wrong}", text))
    (line,) = told("study-adam")
    assert line.endswith(f"must be a number; YAML reads {wrong} as a text, write {right}")
    study.write_text(study.read_text().replace(f"min: {wrong}", f"min: {right}").replace("max: 1.0e-3", "max: 1.0e+3"))
    assert not told("study-adam")


def test_a_text_that_is_no_number_is_told_as_such(files: Path) -> None:
    study = file_of(files, "study-adam")
    study.write_text(study.read_text().replace("min: 1.0e-6", "min: many"))
    assert [line.partition(" parameters")[2] for line in told("study-adam")] == [".learning_rate.min: must be a number"]
