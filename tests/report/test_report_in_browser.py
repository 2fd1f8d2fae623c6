"""The page works in a browser: no error, 3D drawn, a click on a camera shows its photo, tables sort, on a desk and on a phone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from stub_run import make_run

from sfm_lightglue.report.page import build_report
from sfm_lightglue.run_folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]
NAMES = ["<img src=x onerror=alert(1)>.jpg", "</script><b>.jpg", "Überwald 写真.jpg", *(f"{index:02d}.jpg" for index in range(9))]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Twelve photos in two models; one photo has no pose."""
    run = make_run(tmp_path_factory.mktemp("run"), NAMES, models=[range(7), range(8, 12)])
    build_report(run)
    return run


@pytest.fixture(scope="module", params=SIZES)
def browser(request: pytest.FixtureRequest, run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page, opened once in each size. The tests leave it as it was."""
    with Browser(tmp_path_factory.mktemp("profile"), *SIZES[request.param], dark=request.param == "phone") as opened:
        opened.open(run.report)
        yield opened
        assert opened.problems == []


def lit_pixels(browser: Browser) -> int:
    """Pixels of the 3D view that do not have the colour of its background."""
    browser.evaluate("document.getElementById('scene-canvas').scrollIntoView({block: 'center'})")
    browser.evaluate("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    box = browser.evaluate("(b => [b.left, b.top, b.right, b.bottom])(report.scene.canvas.getBoundingClientRect())")
    with Image.open(io.BytesIO(browser.screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    left, top, right, bottom = (round(value) for value in box)
    view = pixels[top + 6 : bottom - 6, left + 6 : right - 6]
    return int((np.abs(view - view[0, 0]).max(axis=2) > 24).sum())


def test_the_page_has_no_error_and_fits_the_window(browser: Browser) -> None:
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate("document.getElementById('fault').hidden")
    assert browser.evaluate("document.querySelectorAll('nav a').length") == 8
    assert browser.evaluate("document.querySelectorAll('main b img, main td b').length") == 0
    assert browser.problems == []


def test_points_and_cameras_are_drawn(browser: Browser) -> None:
    everything = lit_pixels(browser)
    browser.evaluate("report.scene.show.points = false; report.scene.redraw()")
    cameras = lit_pixels(browser)
    browser.evaluate("report.scene.show.cameras = false; report.scene.redraw()")
    nothing = lit_pixels(browser)
    browser.evaluate("report.scene.show.points = report.scene.show.cameras = true; report.scene.redraw()")
    assert everything > cameras > 200 and nothing == 0 and lit_pixels(browser) == everything


def test_a_click_on_a_camera_shows_its_photo(browser: Browser) -> None:
    lit_pixels(browser)  # scrolls to the view
    for camera in (2, 4):
        x, y = browser.evaluate(
            "((s, b, c) => { const p = s.project(s.matrix(), s.center(c)); return [p[0] + b.left + 1, p[1] + b.top + 1]; })"
            f"(report.scene, report.scene.canvas.getBoundingClientRect(), {camera})"
        )
        browser.click(x, y)
        name = browser.evaluate(f"report.data.photos.photo[report.scene.model.photos[{camera}]]")
        assert browser.evaluate("document.querySelector('#scene-panel h3').textContent") == name
        browser.wait_for("document.querySelector('#scene-panel img').naturalWidth > 0")
    partners = browser.evaluate("document.querySelectorAll('#scene-panel .partners li').length")
    assert partners == browser.evaluate(f"report.partnersOf(report.scene.model.photos[{camera}]).length") > 0
    browser.press("n")
    assert browser.evaluate("report.scene.chosen") == 5


def test_another_model_can_be_chosen(browser: Browser) -> None:
    choose = "(s => { s.value = '%d'; s.dispatchEvent(new Event('change')); })(document.querySelector('#scene-controls select'))"
    browser.evaluate(choose % 1)
    assert browser.evaluate("report.scene.model.photos.length") == 4 and lit_pixels(browser) > 200
    browser.evaluate(choose % 0)
    assert browser.evaluate("report.scene.model.photos.length") == 7


def test_tables_sort_and_filter(browser: Browser) -> None:
    table = "document.getElementById('photo-table')"
    column = f"[...{table}.querySelectorAll('tbody tr')].map(row => row.cells[%d].textContent)"
    click = f"{table}.querySelectorAll('thead button')[%d].click()"
    browser.evaluate(click % 0)
    names = browser.evaluate(column % 0)
    browser.evaluate(click % 0)
    assert browser.evaluate(column % 0) == names[::-1] and sorted(names) == sorted(NAMES)
    browser.evaluate(click % 7)  # inliers, the largest first
    inliers = [int(text) for text in browser.evaluate(column % 7)]
    assert inliers == sorted(inliers, reverse=True) and inliers[0] > inliers[-1]
    search = f"(i => {{ i.value = '%s'; i.dispatchEvent(new Event('input')); }})({table}.querySelector('input'))"
    browser.evaluate(search % "überwald")
    assert browser.evaluate(column % 0) == ["Überwald 写真.jpg"]
    browser.evaluate(search % "")
    assert len(browser.evaluate(column % 0)) == len(NAMES)


def test_reasons_are_in_sight(browser: Browser) -> None:
    """Each photo that is not in the largest model says why, within the width of the window, once."""
    shown = browser.evaluate(
        "[...document.querySelectorAll('#photo-table tbody .why, #photo-table tbody td.long')].filter("
        "cell => cell.textContent && cell.checkVisibility()).map(cell => cell.getBoundingClientRect().right)"
    )
    assert len(shown) == browser.evaluate("report.data.photos.reason.filter(Boolean).length") == 5
    assert max(shown) <= browser.evaluate("innerWidth")


def test_dialogs_show_photos_and_matches(browser: Browser) -> None:
    browser.evaluate("report.openPair(0)")
    assert browser.evaluate("document.getElementById('pair-dialog').open")
    browser.wait_for("document.querySelector('#pair-dialog canvas').width === 1200")
    browser.press("Escape")
    browser.evaluate("document.querySelectorAll('dialog').forEach(dialog => dialog.close())")
    browser.evaluate("document.querySelector('#photo-table tbody button').click()")
    assert browser.evaluate("document.querySelector('#photo-dialog h3').textContent.length") > 0
    browser.evaluate("document.querySelectorAll('dialog').forEach(dialog => dialog.close())")


def test_pictures_beside_the_page_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfm_lightglue.report.pictures.MAX_EMBEDDED", 2)
    run = make_run(tmp_path / "run", NAMES[:5])
    build_report(run)
    with Browser(tmp_path / "profile") as browser:
        browser.open(run.report)
        browser.evaluate("report.openPhoto(1)")
        browser.wait_for("document.querySelector('#photo-dialog img').naturalWidth > 0")
        assert browser.problems == []
