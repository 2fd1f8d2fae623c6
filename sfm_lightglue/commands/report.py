"""The command `report`: the page `report.html` of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from sfm_lightglue.commands.table import usage
from sfm_lightglue.overrides import output_folder


def main(arguments: list[str]) -> int:
    """Builds the page of an output folder, prints its path, and opens it in a browser if `--open` is given."""
    folders = [argument for argument in arguments if argument != "--open"]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise ValueError(f"usage: {usage('report')}")
    from sfm_lightglue.report.page import build_report
    from sfm_lightglue.run_folder import RunFolder

    page = build_report(RunFolder(output_folder(folders[0])))
    print(page.resolve())
    if "--open" in arguments:
        open_page(page)
    return 0


def open_page(page: Path) -> None:
    """Opens a page in the browser of the user. Without a browser it prints how to open it."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        print(f"no browser was found: open {page.resolve()} yourself", file=sys.stderr)
