"""The command `benchmark`: configurations x sets -> benchmark.md and benchmark.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue.benchmark import Options, benchmark, open_sets, parse
from sfm_lightglue.cli import main

QUICK = ("features=sift", "features.first_octave=0", "matches=nearest_neighbor", "matches.max_ratio=0.8", "seeds=2")
SHEAR = np.array([[0.95, 0.06, 6], [-0.04, 1.03, 4], [0, 0, 1]])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one set of HPatches, a photo of random blots and the same photo after a homography."""
    folder = tmp_path_factory.mktemp("data")
    rng, size = np.random.default_rng(0), (320, 240)
    blots = PILImage.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize(size, PILImage.Resampling.BICUBIC)
    sequence = folder / "hpatches" / "v_blots"
    sequence.mkdir(parents=True)
    blots.save(sequence / "1.ppm")
    # In COLMAP's pixels, where the homography is given, pixel (x, y) has its centre at (x + 0.5, y + 0.5), as in PIL's transform.
    inverse = np.linalg.inv(SHEAR)
    blots.transform(size, PILImage.Transform.AFFINE, tuple(inverse[:2].ravel()), PILImage.Resampling.BICUBIC).save(
        sequence / "2.ppm"
    )
    np.savetxt(sequence / "H_1_2", SHEAR)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_command_measures_all_configurations(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["benchmark", str(data), str(out), *QUICK, "features.max_keypoints=200,400", "resize=short:200"]
    assert main(command) == 0
    text = (out / "benchmark.md").read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    assert "## hpatches" in text and "1 pairs, layout HPatches, images resized to short:200, colmap, mean over 2 seeds" in text
    assert "hardware: " in text and "sfm_lightglue " in text
    found = rows(out / "benchmark.csv")
    assert [row["configuration"] for row in found] == ["max_keypoints=200", "max_keypoints=400"]
    for row in found:
        assert float(row["AUC@3 px"]) > 60 and float(row["precision@3 px"]) > 80, row
        assert (row["estimator"], row["resize"], row["limit px"]) == ("colmap", "short:200", "3.0")
    assert float(found[0]["keypoints"]) <= 200 < float(found[1]["keypoints"])
    assert main(command) == 0 and rows(out / "benchmark.csv") == found


def test_options_are_read_and_mistakes_are_told_together(data: Path, tmp_path: Path) -> None:
    options = parse(data, tmp_path, ["sets=a,b", "max_error_px=0.5,1", "estimator=poselib", "seeds=3", "features=xfeat"])
    assert options == Options(data, tmp_path, ("a", "b"), "poselib", (0.5, 1.0), "protocol", 3, ("features=xfeat",))
    for wrong in ("max_error_px=x", "seeds=0", "resize=480", "resize=wide:3"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            parse(data, tmp_path, [wrong])
    wrong = Options(data, tmp_path / "out", ("hpatch",), estimator="magsac", overrides=("features=xfaet",))
    with pytest.raises(ValueError, match=r"(?s)no set 'hpatch'. Did you mean 'hpatches'.*xfaet"):
        benchmark(wrong)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no estimator 'magsac'"):
        benchmark(Options(data, tmp_path / "out", estimator="magsac"))


def test_a_set_alone_and_a_folder_of_sets_are_both_found(data: Path, tmp_path: Path) -> None:
    assert [each.name for each in open_sets(Options(data, tmp_path))] == ["hpatches"]
    assert [each.name for each in open_sets(Options(data / "hpatches", tmp_path))] == ["hpatches"]
    with pytest.raises(ValueError, match="no folder in it"):
        open_sets(Options(tmp_path, tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_sets(Options(tmp_path / "none", tmp_path))


def test_files_of_others_are_not_replaced(data: Path, tmp_path: Path) -> None:
    (tmp_path / "benchmark.md").write_text("my notes")
    with pytest.raises(ValueError, match=r"benchmark\.md"):
        benchmark(Options(data, tmp_path, overrides=("features=sift",)))
