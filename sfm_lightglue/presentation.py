"""What a run shows of itself: pictures, tables and the page."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sfm_lightglue.mistakes import MISTAKES, message_of
from sfm_lightglue.report.freshness import state_of
from sfm_lightglue.report.gallery import draw_match_gallery, drawn_pictures
from sfm_lightglue.report.page import build_report, is_up_to_date
from sfm_lightglue.report.run_data import settings_of
from sfm_lightglue.report.scene import draw_reconstruction
from sfm_lightglue.run_context import Run
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.tables import Tables, write_tables

logger = logging.getLogger(__name__)

GALLERY = "gallery"
"""The pictures of matches in `Run.ahead`."""


@contextlib.contextmanager
def drawing_beside(run: Run) -> Iterator[None]:
    """Draws the pictures of matches during the block, which maps with one thread, if the run has drawn none before.

    `draw_plots` takes them. The page's settings are composed meanwhile too. With `matches.escalate` the block may change the
    matches, so they are drawn after it.
    """
    if run.options.escalate or "plots" in run.folder.read_summary()["stages"]:
        yield
        return
    with ThreadPoolExecutor(1) as thread:
        run.ahead[GALLERY] = thread.submit(draw_match_gallery, run.images, run.folder)
        thread.submit(settings_of, run.options.configuration, {})  # it keeps what it composes
        yield


def draw_plots(run: Run) -> None:
    """Draws a few pairs with their matches, and the largest model: all files before it -> plots.

    Pictures that still show what is in the folder stay.
    """
    state = state_of(run.folder)
    drawn = drawn_pictures(run.folder, state)
    with run.recorded("plots") as record:
        record["drawn_from"] = state
        if drawn is not None:
            record["files"] = drawn
            return
        ahead = run.ahead.pop(GALLERY, None)
        record["files"] = draw_match_gallery(run.images, run.folder) if ahead is None else ahead.result()
        if (largest := run.folder.largest_model()) is not None:
            with run.folder.open_features() as reader:
                orientations = {name: reader.orientation(name) for name in reader.names()}
            draw_reconstruction(largest, run.folder.plots / "reconstruction.png", orientations)
            record["files"].append("plots/reconstruction.png")


def write_report(folder: RunFolder, tables: Tables | None = None) -> None:
    """Writes `report.html` unless it is up to date. `tables` spares reading the files.

    A fault in it is logged as a warning: it must not fail a run.
    """
    try:
        if not is_up_to_date(folder):
            build_report(folder, tables)
    except Exception as error:
        logger.warning("%s was not written: %s", folder.report, message_of(error) or repr(error))
        logger.debug("the reason is", exc_info=True)


def write_tables_of(folder: RunFolder) -> Tables | None:
    """Writes `photos.tsv` and `pairs.tsv`, and returns them.

    A damaged file of another stage does not end a stage that has done its work: the result is None.
    """
    try:
        return write_tables(folder)
    except MISTAKES as error:
        logger.warning("photos.tsv and pairs.tsv are not up to date: %s", message_of(error))
        return None
