"""The metrics of a training, as a table and as a plot."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from sfm_lightglue.training.curves import History, write_curves


@pytest.fixture
def history() -> History:
    made = History()
    made.add(20, "training", {"loss": 1.0, "top1": 0.125})
    made.add(20, "validation", {"precision": 50})
    made.add(40, "training", {"loss": 1 / 3, "top1": 0.25})
    return made


def test_the_newest_metrics_of_a_kind_are_returned(history: History) -> None:
    assert history.last("training") == {"loss": 1 / 3, "top1": 0.25}
    assert history.last("validation") == {"precision": 50.0}
    assert history.describe_last("training") == "loss 0.3333, top1 0.25"
    assert History().last("training") == {} and History().describe_last("training") == ""


def test_the_table_holds_every_metric_with_all_digits(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_curves(history, tmp_path)
    assert (tmp_path / "curves.csv").read_text() == (
        "step,kind,figure,value\n"
        "20,training,loss,1.0\n20,training,top1,0.125\n20,validation,precision,50.0\n"
        "40,training,loss,0.3333333333333333\n40,training,top1,0.25\n"
    )


def test_with_matplotlib_the_curves_are_plotted(history: History, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_curves(history, tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_table_is_written_and_the_log_says_so(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.INFO):
        write_curves(history, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.csv"]
    assert 'pip install "sfm-lightglue[train]"' in caplog.text
