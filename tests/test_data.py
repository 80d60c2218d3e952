"""Rows are checked where they come in; batches depend on the seed and the epoch only."""

import json
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import BertTokenizer

from train import data
from train.data import eval_batches, load_rows, small_subset, tokenize, train_batches
from train.errors import InputError
from train.tasks import TASKS

from .shared import real

ROOT = Path(__file__).resolve().parents[1]
GLUE = real("data")
WORDS = [f"w{number}" for number in range(100)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return BertTokenizer(str(vocabulary))


@pytest.fixture(scope="module")
def encoded(tokenizer):
    """50 rows of unlike length; a row's label is the parity of its first word."""
    generator = random.Random(0)
    rows = []
    for number in range(50):
        words = [WORDS[number], *generator.choices(WORDS, k=generator.randrange(12))]
        rows.append({"sentence": " ".join(words), "label": number % 2})
    return tokenize(rows, tokenizer, TASKS["sst2"], 64)


def write(folder: Path, task: str, part: str, *lines: object) -> str:
    (folder / task).mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / task / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def first_words(batches) -> list[int]:
    return [int(row[1]) for batch in batches for row in batch["input_ids"]]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


# -- rows


def test_rows_hold_the_tasks_columns_and_the_label_in_the_files_order(tmp_path):
    rows = [{"idx": n, "premise": f"p{n} é", "hypothesis": f"h{n}", "label": n, "more": None} for n in (2, 0, 1)]
    folder = write(tmp_path, "mnli", "validation", *rows)
    assert load_rows(folder, "mnli", "validation") == [
        {"premise": f"p{n} é", "hypothesis": f"h{n}", "label": n} for n in (2, 0, 1)
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"sst2/train\.jsonl, line 2: not a JSON object"),
        ("[1]", r"line 2: not a JSON object"),
        ({"text": "a", "label": 1}, "line 2: no column sentence; columns there: text, label"),
        ({"sentence": "a"}, "line 2: no column label; columns there: sentence"),
        ({"sentence": "a \ud83d b", "label": 1}, r'line 2: column sentence has "\\ud83d", half of a character'),
        ({"sentence": None, "label": 1}, "line 2: column sentence is no text: null"),
        ({"sentence": "a", "label": 2}, r"line 2: unknown label 2; allowed: 0 \(negative\), 1 \(positive\)"),
        ({"sentence": "a", "label": -1}, "line 2: unknown label -1; allowed"),
        ({"sentence": "a", "label": "positive"}, 'line 2: unknown label "positive"; allowed'),
        ({"sentence": "a", "label": 1.0}, r"line 2: unknown label 1\.0; allowed"),
        ({"sentence": "a", "label": True}, "line 2: unknown label true; allowed"),
    ],
)
def test_bad_row_is_one_line_with_its_number(tmp_path, line, problem):
    folder = write(tmp_path, "sst2", "train", {"sentence": "good", "label": 1}, line)
    with pytest.raises(InputError, match=problem) as caught:
        load_rows(folder, "sst2", "train")
    assert "\n" not in str(caught.value)


def test_blank_lines_are_skipped_and_counted_in_what_is_told(tmp_path):
    folder, good = write(tmp_path, "sst2", "train"), '{"sentence": "a", "label": 1}\n'
    file = tmp_path / "sst2" / "train.jsonl"
    file.write_text(f"\n{good} \t\n{good}\r\n\n")
    assert len(load_rows(folder, "sst2", "train")) == 2
    file.write_text(f"\n{good}\nnothing\n")
    with pytest.raises(InputError, match="line 4: not a JSON object"):
        load_rows(folder, "sst2", "train")


def test_both_halves_of_a_character_are_one_character(tmp_path):
    folder = write(tmp_path, "sst2", "train")
    (tmp_path / "sst2" / "train.jsonl").write_text('{"sentence": "\\ud83d\\ude00", "label": 1}\n')
    assert load_rows(folder, "sst2", "train")[0]["sentence"] == "\U0001f600"


def test_line_that_is_not_utf8_is_named(tmp_path):
    folder = write(tmp_path, "sst2", "train")
    (tmp_path / "sst2" / "train.jsonl").write_bytes(b'{"sentence": "caf\xe9", "label": 1}\n')
    with pytest.raises(InputError, match="line 1: not a JSON object in UTF-8"):
        load_rows(folder, "sst2", "train")


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"sst2/train\.jsonl: no rows"):
        load_rows(write(tmp_path, "sst2", "train"), "sst2", "train")


def test_missing_task_or_part_lists_the_tasks_there(tmp_path):
    write(tmp_path, "mrpc", "train", {})
    folder = write(tmp_path, "sst2", "train", {})
    with pytest.raises(InputError, match=r"no qnli/train\.jsonl; tasks there: mrpc, sst2"):
        load_rows(folder, "qnli", "train")
    with pytest.raises(InputError, match=r"no sst2/validation\.jsonl; tasks there: none"):
        load_rows(folder, "sst2", "validation")


@pytest.fixture
def hub(monkeypatch):
    """A hub that serves the columns of mnli; what it was asked for is kept."""
    import datasets

    asked = []

    def load_dataset(*args, **settings):
        asked.append((*args, settings["split"]))
        labels = [0, -1] if settings["split"] == "train" else [0, 2]
        return datasets.Dataset.from_dict({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": labels})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(data, "hub_answers", lambda: True)
    return asked


def test_hubs_matched_validation_split_is_mnlis(hub):
    rows = load_rows("nyu-mll/glue", "mnli", "validation")
    assert rows == [{"premise": "a", "hypothesis": "c", "label": 0}, {"premise": "b", "hypothesis": "d", "label": 2}]
    assert hub == [("nyu-mll/glue", "mnli", "validation_matched")]


def test_rows_of_the_hub_are_checked_as_well(hub):
    with pytest.raises(InputError, match="--data=nyu-mll/glue, mnli/train, line 2: unknown label -1"):
        load_rows("nyu-mll/glue", "mnli", "train")


def test_hub_out_of_reach_is_one_line_with_the_alternatives(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("train.packaged.hub_answers", lambda: False)
    monkeypatch.setattr(data, "hub_answers", lambda: False)
    with pytest.raises(
        InputError, match=r"hub cannot be reached; allowed: a folder, .* in PLASLS_DATA, a hub id, .*film-snippets"
    ) as caught:
        load_rows("nobody/nothing-of-this-name", "sst2", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not GLUE.is_dir(), reason="no GLUE: PLASLS_DATA names none")
@pytest.mark.parametrize(
    ("task", "part", "counts"),
    [
        ("sst2", "validation", [428, 444]),
        ("mrpc", "train", [1194, 2474]),
        ("mrpc", "validation", [129, 279]),
        ("qnli", "validation", [2702, 2761]),
        ("mnli", "validation", [3479, 3123, 3213]),
    ],
)
def test_real_glue_has_its_known_label_counts(task, part, counts):
    labels = [row["label"] for row in load_rows(str(GLUE), task, part)]
    assert [labels.count(label) for label in range(len(TASKS[task].labels))] == counts


def test_small_subset_is_drawn_by_the_seed_alone():
    rows = [{"sentence": str(number), "label": 0} for number in range(2000)]
    random.seed(1)
    first = small_subset(rows, seed=3)
    random.seed(2)
    assert small_subset(rows, seed=3) == first != small_subset(rows, seed=4)
    numbers = [int(row["sentence"]) for row in first]
    assert len(set(numbers)) == 500
    assert 800 < sum(numbers) / 500 < 1200  # from everywhere, not the first rows
    assert sorted(small_subset(rows[:20], 0), key=rows.index) == rows[:20]


# -- tokens


@pytest.mark.parametrize(("first", "second", "left"), [(30, 3, (6, 3)), (3, 30, (3, 6)), (30, 30, (4, 5))])
def test_longer_text_of_a_pair_is_cut_first(tokenizer, first, second, left):
    row = {"sentence1": "w1 " * first, "sentence2": "w2 " * second, "label": 1}
    (encoded,) = tokenize([row], tokenizer, TASKS["mrpc"], 12)
    ids = encoded["input_ids"].tolist()
    one, two = tokenizer.convert_tokens_to_ids(["w1", "w2"])
    assert (len(ids), ids.count(one), ids.count(two)) == (12, *left)
    assert encoded["token_type_ids"].tolist() == [0] * (left[0] + 2) + [1] * (left[1] + 1)
    assert encoded["labels"] == 1


def test_chunks_of_tokenising_leave_no_seam(tokenizer):
    rows = [{"sentence": WORDS[number % 100], "label": number % 2} for number in range(2101)]
    encoded = tokenize(rows, tokenizer, TASKS["sst2"], 8)
    assert [row["input_ids"][1] - 5 for row in encoded] == [number % 100 for number in range(2101)]
    assert [row["labels"] for row in encoded] == [number % 2 for number in range(2101)]


# -- batches


def test_order_depends_on_seed_and_epoch_only(encoded, tokenizer):
    def batches(seed, epoch):
        return list(train_batches(encoded, 8, seed, epoch, tokenizer))

    random.seed(0)
    torch.manual_seed(0)
    first = batches(0, 0)
    state = random.getstate(), torch.get_rng_state()
    assert same(first, batches(0, 0))
    assert state[0] == random.getstate()
    assert torch.equal(state[1], torch.get_rng_state())
    others = [first_words(batches(*key)) for key in ((0, 1), (1, 0), (1, 1))]
    assert all(other != first_words(first) for other in others)
    assert others[0] != others[1] != others[2]


def test_epoch_has_every_row_once_with_its_own_label(encoded, tokenizer):
    batches = list(train_batches(encoded, 8, 0, 0, tokenizer))
    assert [len(batch["labels"]) for batch in batches] == [8] * 6 + [2]
    words = first_words(batches)
    assert sorted(words) == [5 + number for number in range(50)]
    assert words != sorted(words)
    assert [int(label) for batch in batches for label in batch["labels"]] == [(word - 5) % 2 for word in words]


def test_batch_is_padded_to_its_own_longest_row(encoded, tokenizer):
    lengths = {int(row["input_ids"][1]): len(row["input_ids"]) for row in encoded}
    for batch in train_batches(encoded, 8, 0, 0, tokenizer):
        expected = [lengths[int(row[1])] for row in batch["input_ids"]]
        assert batch["attention_mask"].sum(1).tolist() == expected
        assert batch["input_ids"].shape == batch["token_type_ids"].shape == (len(expected), max(expected))
        assert bool((batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all())
        assert {values.dtype for values in batch.values()} == {torch.int64}


def test_resumed_epoch_goes_on_without_collating_what_was_done(encoded, tokenizer, monkeypatch):
    whole = list(train_batches(encoded, 8, 0, 2, tokenizer))
    pad = Mock(side_effect=tokenizer.pad)
    monkeypatch.setattr(tokenizer, "pad", pad)
    assert same(list(train_batches(encoded, 8, 0, 2, tokenizer, start=5)), whole[5:])
    assert pad.call_count == 2


def test_evaluation_sees_every_row_once_with_little_padding(encoded, tokenizer):
    batches = list(eval_batches(encoded, 8, tokenizer))
    assert sorted(first_words(batches)) == [5 + number for number in range(50)]
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_neither_padding_nor_a_later_fork_says_anything(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    script = f"""
import os
from transformers import AutoTokenizer
from train.data import eval_batches, tokenize
from train.tasks import TASKS
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})
rows = [{{"sentence": "w1 w2", "label": 0}}] * 3000
list(eval_batches(tokenize(rows, tokenizer, TASKS["sst2"], 8), 64, tokenizer))
child = os.fork()
if child == 0:
    tokenizer(["w1 w2"] * 3000)
    os._exit(0)
os.waitpid(child, 0)
"""
    # What Python itself says of a fork, from 3.12 on, is not meant.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout + done.stderr == ""
