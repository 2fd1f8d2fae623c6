"""Names of former versions still work, with a warning that gives the current name."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import sfm_lightglue
from sfm_lightglue import storage
from sfm_lightglue.config import compose_config
from sfm_lightglue.products import Features
from sfm_lightglue.renames import REMOVED_OPTIONS, RENAMED_MODULES, RENAMED_OPTIONS, current_overrides
from sfm_lightglue.run_options import resolve


@pytest.mark.parametrize(("former", "option"), RENAMED_OPTIONS.items())
def test_a_former_option_sets_the_current_one(former: str, option: str, caplog: pytest.LogCaptureFixture) -> None:
    value = 1 if former == "matches.skip_hopeless" else 2
    config = compose_config([f"{former}={value}"])
    assert OmegaConf.select(config, option) == value
    assert f"{former} is now called {option}" in caplog.text


@pytest.mark.parametrize("former", REMOVED_OPTIONS)
def test_a_removed_option_is_ignored_with_its_reason(former: str, caplog: pytest.LogCaptureFixture) -> None:
    assert current_overrides([former if "=" in former else f"{former}=0", "output=x"]) == ["output=x"]
    assert REMOVED_OPTIONS[former] in caplog.text


def test_current_options_pass_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    overrides = ["matches.trained_for=disk", "+dataset=demo", "~pairs", "experiment=fast", "output='a=b'", "-m"]
    with caplog.at_level(logging.DEBUG):
        assert current_overrides(overrides) == overrides
    assert not caplog.text


def test_a_former_option_in_a_file_of_the_user_raises_an_error_with_the_current_name() -> None:
    config = compose_config(["dataset=demo"])
    OmegaConf.set_struct(config, False)
    config.matches.head = "disk"
    with pytest.raises(ValueError, match=r"unknown option 'matches.head'. It is now called matches.trained_for"):
        resolve(config).matches.check()


@pytest.mark.parametrize(("former", "module"), RENAMED_MODULES.items())
def test_a_former_module_is_imported_with_a_warning(former: str, module: str) -> None:
    for name in [name for name in sys.modules if name in RENAMED_MODULES]:
        del sys.modules[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old, new = importlib.import_module(former), importlib.import_module(module)
    assert any(f"{former} is now called {module}" in str(warning.message) for warning in caught)
    public = [name for name in vars(new) if not name.startswith("_")]
    assert all(getattr(old, name) is getattr(new, name) for name in public)


def test_the_former_import_of_the_hloc_adapter_works() -> None:
    for name in [name for name in sys.modules if name in RENAMED_MODULES]:
        del sys.modules[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from sfm_lightglue.plugins import hloc as former  # type: ignore[import-not-found]

    assert former.register is importlib.import_module("sfm_lightglue.integrations.hloc").register


def test_a_former_option_works_in_python() -> None:
    assert sfm_lightglue.create_matcher("lightglue", head="superpoint-open").options.trained_for == "superpoint-open"  # type: ignore[attr-defined]


def test_former_names_of_records_are_answered_with_a_warning() -> None:
    features = Features(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 4)), (4, 3), pixel_scale=2.0)
    with pytest.warns(DeprecationWarning, match="now called pixel_scale"):
        assert features.uncertainty == 2.0
    with pytest.warns(DeprecationWarning, match="now called GroupData"):
        assert storage.Item is storage.GroupData


def test_a_removed_option_of_a_database_is_ignored_in_python_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FileNotFoundError):  # not: unknown option
        sfm_lightglue.build_database(tmp_path, tmp_path / "f", tmp_path / "m", [], tmp_path / "d", min_inlier_ratio=0.0)
    assert "database.min_inlier_ratio=0.0 was removed" in caplog.text
