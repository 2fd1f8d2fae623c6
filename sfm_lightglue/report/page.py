"""`report.html`: one page without a network that shows a run, finished or not, and why photos and pairs are missing.

The page is `web/page.html`, filled with style, scripts and data. Its scripts set every text as text, so that no name of a photo
becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import string
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sfm_lightglue import __version__
from sfm_lightglue.files import foreign_file, result_exists, written_whole
from sfm_lightglue.report.content import content_of
from sfm_lightglue.report.draw import is_marked
from sfm_lightglue.report.freshness import state_of
from sfm_lightglue.report.packing import printable, script_json
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.tables import Tables, tables_of

SCRIPTS = ("data.js", "tables.js", "charts.js", "pairs.js", "matches.js", "scene.js", "scene_controls.js", "main.js")
"""Scripts of the page, in this order."""


def build_report(run: RunFolder, tables: Tables | None = None) -> Path:
    """Writes `report.html` for everything that is in the output folder of a run, and returns its path.

    With many photos, their pictures go to the folder `report` beside it. `tables` are those of `tables_of`, if they are known.

    Raises: FileNotFoundError if the folder holds no run, ValueError if a file that is no report is in the way.
    """
    if not run.path.is_dir():
        raise FileNotFoundError(f"{run.path} does not exist: expected the output folder of a run")
    if not any(result_exists(path) for path in (run.summary, run.features, run.reconstruction)):
        raise FileNotFoundError(
            f"{run.path} holds no run: expected an output folder with {run.summary.name} (output=DIR of the run)"
        )
    check_report(run)
    content = content_of(run, tables or tables_of(run))
    with written_whole(run.report) as temporary:
        temporary.write_text(_page({**content, "drawn_from": state_of(run)}), encoding="utf-8")
    return run.report


def is_up_to_date(run: RunFolder) -> bool:
    """Whether `report.html` shows what is in the folder now, but for the times of stages that had nothing to do."""
    if not run.report.is_file():
        return False
    with run.report.open("rb") as file:
        return state_of(run).encode() in file.read(4096)


def check_report(run: RunFolder) -> None:
    """Raises: ValueError if `report.html` or a picture in the folder `report` exists, but was not written by a run."""
    if os.path.lexists(run.report) and not (run.report.is_file() and is_marked(run.report)):
        raise foreign_file(run.report)
    pictures = run.report_pictures
    if os.path.lexists(pictures) and not pictures.is_dir():
        raise foreign_file(pictures)
    for picture in sorted(pictures.glob("[0-9]*.jpg")):
        if not picture.is_file() or not is_marked(picture):
            raise foreign_file(picture)


def _page(content: Mapping[str, Any]) -> str:
    """The page with this content. Names appear as text only: in the head escaped, in the data as JSON."""
    folder = resources.files("sfm_lightglue.report") / "web"
    style = (folder / "style.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8").replace('"use strict";\n', "", 1) for name in SCRIPTS)
    script = f'"use strict";\n{script}'
    shown = ("title", "heading", "made", "verdict", "state", "drawn_from")
    texts = {key: html.escape(printable(str(content[key]))) for key in shown}
    template = string.Template((folder / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        texts,
        version=__version__,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=script_json(content),
    )


def _hash(text: str) -> str:
    """The hash with which the content security policy of the page allows this text and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
