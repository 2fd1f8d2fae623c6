"""Configuration of the documentation site. Build it with `python -m sphinx -W --keep-going -b html docs docs/_build`."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

import api_page  # noqa: E402
import docstrings  # noqa: E402
import options_page  # noqa: E402
import outside_pages  # noqa: E402

from sfm_lightglue import __version__  # noqa: E402

project = "sfm_lightglue"
html_show_copyright = False
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # links to headings, as on code hosting sites

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"  # the fields of a record stand below it, not in a long signature
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"sfm_lightglue {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False

MADE_AT_BUILD = {"reference/api": api_page.text, "reference/options": options_page.text}
"""Pages that have only a stub in docs/, and the functions that write them."""


def replace_stub(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fills in the pages that are made at build time, and turns links to files outside docs/ into links of the site."""
    if docname in MADE_AT_BUILD:
        source[0] = MADE_AT_BUILD[docname]()
    else:
        source[0] = outside_pages.text(Path(app.srcdir), docname, source[0])


def always_outdated(*_: object) -> list[str]:
    """The pages whose text Sphinx does not see: they are read in every build."""
    return [*MADE_AT_BUILD, *outside_pages.OUTSIDE]


def setup(app: Sphinx) -> None:
    app.connect("env-get-outdated", always_outdated)
    app.connect("source-read", replace_stub)
    app.connect("autodoc-process-docstring", docstrings.to_restructured_text, priority=400)  # before napoleon's 500
