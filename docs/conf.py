"""The site: `make docs` builds it from these pages and from the docstrings of optim/ into build/site."""

import ast
import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))
import optim
import optim.hf
from optim import DEFAULT, PAPER, Preset
from optim.presets import ALLOWED

# The pages show the library as the wheel ships it.
sys.modules |= {"plasls": optim, "plasls.hf": optim.hf}

project = "plasls"
author = "the authors of plasls"
version = release = optim.__version__
html_title = f"plasls {release}"
html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
pygments_style = "tango"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True  # search=DEFAULT, not all that is in it
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True


class ListOfSettings(SphinxDirective):
    """Each setting of a preset: its value in DEFAULT and in PAPER, what is allowed and what it means."""

    def run(self) -> list[nodes.Node]:
        text, body = [], ast.parse(inspect.getsource(Preset)).body[0].body  # type: ignore[attr-defined]
        meanings = [" ".join(ast.literal_eval(each.value).split()) for each in body[2::2] if isinstance(each, ast.Expr)]
        for each, meaning in zip(fields(Preset), meanings, strict=True):
            ours, papers = (getattr(preset, each.name) for preset in (DEFAULT, PAPER))
            text += [f"``{each.name}`` = ``{ours!r}``" + (f", in PAPER ``{papers!r}``" if papers != ours else "")]
            meaning = meaning.replace("|", r"\|").replace("*", r"\*").replace("`", "``")
            text += [f"    {meaning}. Allowed: {ALLOWED[each.name].words}.", ""]
        return self.parse_text_to_nodes("\n".join(text))


def shorten_signatures(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Settings are described once: those of the optimizers under `LineSearch`, and a preset's in a list."""
    if thing is Preset:
        return "(**settings)", returns
    if what == "class" and thing is not optim.LineSearch and issubclass(thing, optim.LineSearch):
        return "(params, **settings)", returns
    return None


def write_math(self: Any, node: Any) -> None:
    """MathML, which browsers draw without a script and without a network."""
    block = isinstance(node, nodes.math_block)
    for formula in filter(None, node.astext().split("\n\n")):
        self.body.append(convert(formula, display="block" if block else "inline"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_directive("settings", ListOfSettings)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("autodoc-process-signature", shorten_signatures)
