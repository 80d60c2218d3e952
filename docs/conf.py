"""The site: `make docs` builds it from these pages and from the docstrings of optim/ into build/site."""

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
import optim.optimizers
from optim.settings import AdamSettings, ComponentSettings, Settings

# The pages show the library as the wheel ships it.
sys.modules |= {"plasls": optim, "plasls.hf": optim.hf, "plasls.optimizers": optim.optimizers}

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
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True


class ListOfSettings(SphinxDirective):
    """Each setting with its default, what is allowed and what it means, as optim/settings.py has them."""

    def run(self) -> list[nodes.Node]:
        text = []
        kinds = {"All optimizers": Settings, "AdamSLS and PLASLS": AdamSettings, "PLASLS": ComponentSettings}
        for title, kind in kinds.items():
            text += [f".. rubric:: {title}", ""]
            for each in fields(kind):
                meaning = each.metadata["meaning"].replace("|", r"\|").replace("*", r"\*")
                allowed = each.metadata["allowed"].words
                text += [f"``{each.name}`` = ``{each.default!r}``", f"    {meaning} Allowed: {allowed}.", ""]
        return self.parse_text_to_nodes("\n".join(text))


def leave_settings_to_their_list(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """`help` lists the settings in each optimizer's docstring; the site has them once."""
    heads = [number for number, line in enumerate(lines) if line.strip() == "Settings (defaults):"]
    if heads:
        lines[heads[0] :] = ["The settings are listed under :ref:`settings`.", ""]


def shorten_signatures(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """An optimizer's signature has all its settings; see above."""
    return ("(params, **settings)", returns) if signature and "criterion=" in signature else None


def write_math(self: Any, node: Any) -> None:
    """MathML, which browsers draw without a script and without a network."""
    block = isinstance(node, nodes.math_block)
    for formula in filter(None, node.astext().split("\n\n")):
        self.body.append(convert(formula, display="block" if block else "inline"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_directive("settings", ListOfSettings)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    # Before napoleon, which reads sections.
    app.connect("autodoc-process-docstring", leave_settings_to_their_list, priority=400)
    app.connect("autodoc-process-signature", shorten_signatures)
