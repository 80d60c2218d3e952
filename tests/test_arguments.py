"""train/arguments.py: a wrong command line is one line that fits a screen and says where to look."""

import io
import sys

import pytest

from train.arguments import LONGEST, Parser, any_terminal, unknown
from train.config import Config
from train.errors import InputError


def said(*args: str) -> str:
    parser = Parser(prog="python -m it", allow_abbrev=False)
    parser.add_argument("name")
    for flag in ("batch_size", "batch_rows", "seed", *(f"setting_{number}" for number in range(90))):
        parser.add_argument(f"--{flag}")
    with pytest.raises(InputError) as told:
        parser.parse_args(args)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["x", "--batch-size=4"], "unknown argument --batch-size=4; closest: --batch_size, --batch_rows"),
        (["x", "--sed=a-long-value"], "unknown argument --sed=a-long-value; closest: --seed"),
        (["x", "--sed=4", "--colour=red"], "unknown argument --sed=4, --colour=red; closest: --seed"),
        (["x", "--colour=red"], "unknown argument --colour=red"),
        (["x", "y"], "unknown argument y"),
        (["x", "--seed"], "argument --seed: expected one argument"),
        ([], "the following arguments are required: name"),
    ],
)
def test_a_wrong_argument_is_told_with_the_closest_ones(args: list[str], line: str) -> None:
    assert said(*args) == f"{line}; python -m it --help lists what is allowed"


def test_the_line_is_short_whatever_was_typed() -> None:
    for args in (["x", "--bach_size=" + 5000 * "9"], ["x", *(f"--setting_x{number}=1" for number in range(500))]):
        assert len(said(*args)) < LONGEST + 200
    with pytest.raises(InputError) as told:
        Config.from_dict({"batchsize": 1, **{f"key_{number}": 1 for number in range(500)}})
    assert str(told.value).startswith("unknown setting batchsize, key_0, key_1, ")
    assert len(str(told.value)) < LONGEST + 200


def test_no_more_is_offered_than_looks_alike() -> None:
    told = [str(unknown("word", [word], ["seed", "speed", "split"], "it", " in a file")) for word in ("sede", "xyz")]
    assert told[0] == "unknown word sede in a file; closest: seed, speed; it --help lists what is allowed"
    assert told[1] == "unknown word xyz in a file; it --help lists what is allowed"


def test_a_terminal_that_has_no_sign_for_a_letter_shows_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    any_terminal()
    print("0.861 ± 0.004", flush=True)
    assert written.getvalue() == b"0.861 ? 0.004\n"


def test_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"--out=: must be a folder; allowed: a path, such as \. for"):
        Config.from_args(["--out="])
