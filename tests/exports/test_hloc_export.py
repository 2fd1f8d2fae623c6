"""The files of hloc: names as hloc makes them, contents as the run has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfm_lightglue.exports import export
from sfm_lightglue.model_files import read_model
from sfm_lightglue.products import Matches
from sfm_lightglue.storage import ShardStore, matches_to_group


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


def test_segments_of_a_large_run_become_one_file(run: Path, tmp_path: Path) -> None:
    (run / "pairs.txt").write_text("a b")
    from_scratch(run / "features.h5")
    item = matches_to_group(Matches(np.array([[1, 2]], np.int32), np.ones(1, np.float32)), 3)
    for name, limit in (("matches.h5", 0), ("expected.h5", 9)):
        with ShardStore(run / name, {}, merge_items=limit) as store:
            store.add("a/b", item, "stamp")
            store.merge()
    assert not (run / "matches.h5").exists()
    export("hloc", run, tmp_path / "hloc")
    (matches,) = (tmp_path / "hloc").glob("*_matches-*.h5")
    assert matches.read_bytes() == (run / "expected.h5").read_bytes()


def from_scratch(path: Path) -> None:
    """Writes an empty file of features."""
    with ShardStore(path, {}) as store:
        store.merge()
