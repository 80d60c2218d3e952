"""A table of texts, as Markdown and as LaTeX."""

import re
import textwrap
from collections.abc import Container, Sequence
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
        parts.append(textwrap.fill(escaped(table.heading), WIDTH, break_long_words=False, break_on_hyphens=False))
        parts.append(pipes(table.cells))
    return "\n\n".join(parts) + "\n"


MARKUP = re.compile(
    r"""[\\`|$\[\]]          # anywhere
    # these where they would begin something, which marks after a number do not
    | \*+ (?= \w ) | (?<! [\w*] ) \*+ (?= [^\s*] )
    | (?<! \w ) _+ (?= \w ) | (?<= \w ) _+ (?! \w )
    | ~ (?= ~ )
    | < (?= [A-Za-z/!?] ) | & (?= \#?\w+; )""",
    re.VERBOSE,
)


def escaped(text: str) -> str:
    """A text that Markdown shows as it is; what needs no backslash has none, so that a terminal shows it as well."""
    return MARKUP.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), text)


def latex(tables: Sequence[Table]) -> str:
    """A `table*` environment for each table, over both columns of a paper, with booktabs' rules and a caption."""
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


def pipes(cells: pd.DataFrame, markdown: Container[str] = ()) -> str:
    """A pipe table. (In that of pandas, headers are padded beyond the width of a terminal.)

    Args:
        cells: texts.
        markdown: columns whose texts are Markdown already; all others are shown as they are.
    """
    columns = []
    for name, right in ((name, is_number(cells[name])) for name in cells):
        texts = [name, *cells[name]] if name in markdown else [escaped(text) for text in (name, *cells[name])]
        width = max(map(len, texts))
        rule = "-" * (width + 1) + ":" if right else ":" + "-" * (width + 1)
        padded = [f" {text:>{width}} " if right else f" {text:<{width}} " for text in texts]
        columns.append([padded[0], rule, *padded[1:]])
    return "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns, strict=True))


def is_number(column: pd.Series) -> bool:
    """Whether a column of texts is aligned to the right, like numbers."""
    return bool(column.str.match(r"[-−+<]?\d|–").mean() > 0.5)


def _tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for plain, tex in {
        "^": r"\textasciicircum ",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "<": "$<$",
        "~": r"\textasciitilde ",
    }.items():
        text = text.replace(plain, tex)
    return text
