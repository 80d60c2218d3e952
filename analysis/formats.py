"""A table of texts, as Markdown and as LaTeX."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

WIDTH = 100


@dataclass(frozen=True)
class Table:
    """A table of texts with the paragraph above it."""

    heading: str
    cells: pd.DataFrame


def markdown(tables: Sequence[Table]) -> str:
    """Paragraphs and pipe tables, readable as they are on a terminal of 100 to 120 columns."""
    parts = []
    for table in tables:
        parts.append(textwrap.fill(table.heading, WIDTH, break_long_words=False, break_on_hyphens=False))
        parts.append(pipes(table.cells))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """A `table*` environment each, over both columns of a paper, with booktabs' rules; the heading is the caption."""
    parts = []
    for table in tables:
        cells = table.cells.map(_tex).rename(columns=_tex)
        parts.append(
            cells.style.hide(axis="index").to_latex(
                hrules=True,
                caption=_tex(table.heading),
                position="t",
                position_float="centering",
                environment="table*",
                column_format="".join("r" if is_number(table.cells[column]) else "l" for column in table.cells),
            )
        )
    return "\n".join(parts).replace(r"\centering", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}")


def pipes(cells: pd.DataFrame) -> str:
    """A pipe table; pandas' own has headers padded beyond what fits the terminal."""
    columns = []
    for name, right in ((name, is_number(cells[name])) for name in cells):
        texts = [name, *cells[name]]
        width = max(map(len, texts))
        rule = "-" * (width + 1) + ":" if right else ":" + "-" * (width + 1)
        padded = [f" {text:>{width}} " if right else f" {text:<{width}} " for text in texts]
        columns.append([padded[0], rule, *padded[1:]])
    return "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns, strict=True))


def is_number(column: pd.Series) -> bool:
    """Whether a column of texts is set like numbers, to the right."""
    return bool(column.str.match(r"[-−+<]?\d|–").mean() > 0.5)


def _tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for plain, tex in {"±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", "~": r"\textasciitilde "}.items():
        text = text.replace(plain, tex)
    return text
