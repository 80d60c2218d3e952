import base64
import html
import json
import re
import shlex
from html.parser import HTMLParser

import pytest

from analysis import exhibits, load
from analysis.__main__ import main
from train.errors import InputError

from .fake_runs import write_sweep

VARIED = {
    "mended": {"task": ["sst2", "mrpc"], "optimizer": ["adam", "sgdsls", "plasls"]},
    "merging": {"merge_threshold": [0, 1e-12]},
    "batches": {"optimizer": ["adam", "plasls"], "batch_size": [16, 32]},
    "splits": {"split": [1, 4, 7, 10, "qkv"]},
    "budget": {"optimizer": ["adam", "plasls"], "learning_rate": [1e-5, 5e-5]},
}
TABLES = ("table1", "numbers", "lead", "hindsight")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A made-up sweep for each kind of figure and table."""
    out = tmp_path_factory.mktemp("study")
    for sweep, varied in VARIED.items():
        write_sweep(out, sweep, varied, seeds=2, epochs=2, **({"rounding": 0} if sweep == "merging" else {}))
    return out


def _made():
    """Each exhibit that the study allows, and the sweep that it is made from."""
    for name, exhibit in exhibits.EXHIBITS.items():
        sweep = next((sweep for sweep in exhibit.sweeps if sweep in VARIED), None)
        if sweep and VARIED[sweep].keys() >= set(exhibit.needs):
            yield name, sweep


MADE = dict(_made())


def test_the_papers_figures_and_tables_are_made_from_their_sweeps():
    of_the_paper = {
        **dict.fromkeys(("table1", "numbers", "lead", "fig3", "fig4", "fig7", "cost", "trials"), "mended"),
        **dict.fromkeys(("fig1", "fig2"), "merging"),
        **dict.fromkeys(("fig9", "step-sizes"), "splits"),
        "fig8": "batches",
        **dict.fromkeys(("budget", "rates", "hindsight"), "budget"),
    }
    assert MADE.items() >= of_the_paper.items()


def test_one_command_makes_all_that_the_finished_sweeps_allow_and_says_why_not_the_rest(study, capsys):
    assert main(["all", f"--out={study}"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == list(exhibits.EXHIBITS)
    for name, line in lines.items():
        if name in MADE:
            endings = ("md", "tex") if name in TABLES else ("png", "pdf")
            files = [study / MADE[name] / "figures" / f"{name}-embedded.{ending}" for ending in endings]
            assert line == " ".join(map(str, files))
            assert all(file.stat().st_size for file in files)
        else:
            why = f"not made: {name} (is made from the sweep [a-z-]+.*: make sweep-|needs a sweep that varies rounding)"
            assert re.match(why, line)


def test_a_table_is_printed_and_written(study, capsys):
    assert main(["numbers", f"--out={study}"]) == 0
    printed = capsys.readouterr().out
    assert (study / "mended/figures/numbers-embedded.md").read_text() in printed
    assert "| sst2 | PLASLS" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table2"], "table2 is made from the sweep long or full: make sweep-long"),
        (["fig8", "--sweep=splits"], "fig8 needs a sweep that varies batch_size; splits varies split"),
        (["fig3", "--sweep=nothing"], "no sweep 'nothing'"),
        (["fig12"], "no sweep 'fig12'"),
        (["fig3", "--profile=paper"], "was last run with the profile 'embedded'"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_one_line_that_says_what_is_missing(study, capsys, args, message):
    assert main([*args, f"--out={study}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_nothing_to_show_is_an_error(tmp_path, capsys):
    for name in ("all", "report"):
        assert main([name, f"--out={tmp_path}"]) == 2
        assert "no figure or table can be made from" in capsys.readouterr().err


def test_line_searches_only_are_shown_where_adam_has_nothing_to_show(study, tmp_path):
    figure = exhibits.make("trials", load(study, "mended"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SGDSLS", "PLASLS"]
    write_sweep(tmp_path, "only-adam", {"learning_rate": [1e-5]}, seeds=1, epochs=1, optimizer="adam")
    only_adam = load(tmp_path, "only-adam")
    with pytest.raises(InputError, match="no run with a line search"):
        exhibits.make("trials", only_adam)


class _Page(HTMLParser):
    """What a page holds, and whether it asks for anything from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.sections, self.links, self.requests = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in ("meta", "img", "br", "link", "hr"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        if tag == "section":
            self.sections.append(values["id"])
        if values.get("href", "").startswith("#"):
            self.links.append(values["href"][1:])
        asked = [values.get("src", "")] + ([values.get("href", "")] if tag == "link" else [])
        self.requests += [url for url in asked if url and not url.startswith("data:")] + [tag] * (tag == "script")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(study):
    assert main(["report", f"--out={study}"]) == 0
    return (study / "report.html").read_text()


def test_the_report_is_one_page_that_asks_for_nothing_from_elsewhere(report):
    page = _Page(report)
    assert page.open == []
    assert page.requests == []
    assert "url(" not in report
    sweeps = ["merging", "batches", "splits", "budget"]  # the tests of "mended" are in Table I
    assert page.sections == [n for n in exhibits.EXHIBITS if n in MADE] + [*sweeps, "settings", "deviations", "made"]
    assert page.links == page.sections
    assert len(page.images) == len(MADE) - len(TABLES)
    for image in page.images:
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
        assert "profile embedded" in image["alt"]
    heads, bodies = (re.findall(rf"<{part}>(.*?)</{part}>", report, re.S) for part in ("thead", "tbody"))
    shown = [re.findall(r'<td class="\w*" data-label="(.*?)"', body.split("</tr>")[0]) for body in bodies]
    # On a phone each cell stands below the one before, with its column's name.
    assert [names for names in shown if names] == [re.findall(r"<th[^>]*>(.*?)</th>", head) for head in heads]


def test_the_report_has_the_users_own_sweeps_and_names_what_it_cannot_show(tmp_path):
    write_sweep(tmp_path, seeds=2)
    write_sweep(tmp_path, "mine", {"c": [0.1, 0.3]}, seeds=2)
    partial = write_sweep(tmp_path, "half", {"c": [0.1, 0.3]}, seeds=2)
    (partial[0] / "summary.json").unlink()
    (tmp_path / "study-mine").mkdir()
    (tmp_path / "study-mine/journal.log").touch()
    summary = json.loads((tmp_path / "mine" / partial[0].name / "summary.json").read_text())
    changes = {"commit": "abc with changes", "changes": "from step 7 on with threads 1 instead of 2"}
    (tmp_path / "mine" / partial[0].name / "summary.json").write_text(json.dumps(summary | changes))
    assert main(["report", f"--out={tmp_path}"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "mine" in _Page(text).sections
    assert "<code>half</code> 1 of 4 cells" in text
    assert f"<code>study-mine</code> a study: python -m sweeps study-mine --out={tmp_path}" in text
    assert "<td>commit of the runs</td><td>abc with changes</td>" in text
    assert "cpu, 2 threads (1 resumed on other ones, or by other code)" in text


@pytest.mark.parametrize(("varied", "seeds"), [({"c": [0.1]}, 1), ({"c": [0.1]}, 2), ({"c": [0.1, 0.5]}, 1)], ids=str)
def test_a_report_of_one_run_or_two_says_what_they_can(tmp_path, varied, seeds):
    model = str(tmp_path / "models/some-bert")
    write_sweep(out := tmp_path / "it's here", "splits", varied, seeds=seeds, epochs=1, model=model)
    assert main(["report", f"--out={out}", "--allow-missing"]) == 0
    text = html.unescape((out / "report.html").read_text())
    runs = len(varied["c"]) * seeds
    assert f"{runs} run{'s' * (runs > 1)} of 1 sweep, from {out}." in text
    assert "<td>model</td><td>some-bert</td>" in text
    assert ("One run an arm: no standard error" in text) == (seeds == 1)
    assert ("One seed: no test." in text) == (len(varied["c"]) == 2)
    commands = re.findall(r"<code>(python -m analysis .*)</code>", text)
    assert ["python", "-m", "analysis", "splits", f"--out={out}", "--allow-missing"] in map(shlex.split, commands)
    assert "nan" not in re.sub(r"data:image[^\"]*", "", text)


def test_a_report_shows_captions_as_text_and_is_dark_where_the_reader_is(report):
    captions, images = re.findall(r"<figcaption>(.*?)</figcaption>", report), _Page(report).images
    assert all(image["alt"].endswith(html.unescape(text)) for image, text in zip(images, captions, strict=True))
    assert "@media screen and (prefers-color-scheme: dark)" in report


def test_a_report_of_an_unfinished_sweep_says_that_it_has_not_finished(tmp_path, capsys):
    (write_sweep(tmp_path, "mine", {"c": [0.1, 0.3]}, seeds=1)[0] / "summary.json").unlink()
    assert main(["report", f"--out={tmp_path}"]) == 2
    assert "1 of 2 cells of the sweep 'mine' have not finished" in capsys.readouterr().err
    assert main(["report", "--out="]) == 2
    assert capsys.readouterr().err.startswith("error: --out=: must be a folder")


def test_the_report_says_what_was_run_with_what_and_where_it_differs_from_the_paper(study, report):
    text = re.sub(r"data:image[^\"]*", "", report)
    summary = json.loads(next((study / "splits").glob("*/summary.json")).read_text())
    for words in (
        f"torch {summary['versions']['torch']}",
        "cpu, 2 threads",
        "<td>model</td><td>bert-base-uncased</td>",
        "<strong>The joint move.</strong>",
        "<code>table2</code> table2 is made from the sweep long or full",
        "Friedman&#39;s test",
    ):
        assert words in text
    assert re.search(r"commit of the analysis</td><td>([0-9a-f]{40}|unknown)", text)
