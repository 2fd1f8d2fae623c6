"""The files of hloc: names as hloc makes them, contents as the run has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue.exports import export
from sfm_lightglue.model_files import read_model


def test_the_files_have_the_names_that_hloc_makes(run: Path, tmp_path: Path) -> None:
    for name in ("pairs.txt", "matches.h5"):
        (run / name).write_text(name)
    with pytest.raises(FileNotFoundError, match=r"has no features\.h5"):
        export("hloc", run, tmp_path / "hloc")
    from_scratch(run / "features.h5")
    export("hloc", run, tmp_path / "hloc")
    features, pairs = (next((tmp_path / "hloc").glob(name)) for name in ("feats-*light*ue.h5", "pairs-*.txt"))
    matches = tmp_path / "hloc" / f"{features.stem}_matches-sfm-lightglue_{pairs.stem}.h5"
    assert matches.read_text() == "matches.h5"
    assert features.read_bytes() == (run / "features.h5").read_bytes()
    assert read_model(tmp_path / "hloc" / "sfm").num_reg_images() == 3


def from_scratch(path: Path) -> None:
    """Writes an empty file of features."""
    from sfm_lightglue.storage import ShardStore

    with ShardStore(path, {}) as store:
        store.merge()
