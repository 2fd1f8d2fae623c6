"""The mapper `clusters`: clusters are mapped side by side and become one model, the same whatever happens in between."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pycolmap
import pytest
from known_scene import MAPPER_OPTIONS, KnownScene, make_database
from test_mapping import aligned_errors, in_a_child, true_poses

from sfm_lightglue.execution.processes import ProcessExecutor
from sfm_lightglue.execution.threads import ThreadExecutor
from sfm_lightglue.reconstruction import ReconstructionReport, clusters, reconstruct
from sfm_lightglue.reconstruction.clusters import find_clusters
from sfm_lightglue.reconstruction.mappers import MANY_PHOTOS, chosen_num_threads

OPTIONS = dataclasses.replace(MAPPER_OPTIONS, name="clusters", min_model_size=3, max_cluster_size=5, cluster_overlap=3)
SIZE = 12
REACH = 3
"""Photos that are at most so far apart are matched."""


@pytest.fixture(scope="module")
def scene() -> KnownScene:
    return KnownScene(SIZE)


@pytest.fixture(scope="module")
def database(scene: KnownScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arc of photos, of which only near ones are matched."""
    pairs = [pair for pair in itertools.combinations(range(SIZE), 2) if pair[1] - pair[0] <= REACH]
    return make_database(tmp_path_factory.mktemp("scene"), scene, range(SIZE), pairs, noise_px=0.3)


def run(database: Path, output: Path, **arguments: Any) -> ReconstructionReport:
    options = arguments.pop("options", OPTIONS)
    return reconstruct(database, database.parent / "images", output, options, **arguments)


def model_bytes(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.bin"))}


def doubled_points(model: pycolmap.Reconstruction, database: Path) -> int:
    """Matches of two keypoints that belong to different points."""
    count = 0
    with pycolmap.Database.open(database) as rows:
        for pair_id, geometry in zip(*rows.read_two_view_geometries(), strict=True):
            first, second = (model.image(image_id).points2D for image_id in pycolmap.pair_id_to_image_pair(pair_id))
            for a, b in geometry.inlier_matches.tolist():
                both = first[a].has_point3D() and second[b].has_point3D()
                count += both and first[a].point3D_id != second[b].point3D_id
    return count


def test_clusters_become_one_right_model_without_doubled_points(database: Path, scene: KnownScene, tmp_path: Path) -> None:
    assert len(find_clusters(database, OPTIONS)) >= 3
    report = run(database, tmp_path / "out")
    assert report.unregistered == [] and len(report.models) == 1
    assert sum("were joined" in note for note in report.joining) >= 2
    model = pycolmap.Reconstruction(tmp_path / "out" / "0")
    distance, angle_deg = aligned_errors(model, true_poses(scene))
    whole = run(database, tmp_path / "whole", options=dataclasses.replace(OPTIONS, name="incremental"))
    reference = aligned_errors(pycolmap.Reconstruction(tmp_path / "whole" / "0"), true_poses(scene))
    assert distance < 1.2 * reference[0] and angle_deg < 1.2 * reference[1]
    assert report.models[0].num_points == whole.models[0].num_points == len(scene.points)
    assert doubled_points(model, database) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]  # finished clusters are deleted


def test_every_executor_gives_the_same_bytes(database: Path, tmp_path: Path) -> None:
    for name, executor in (
        ("one", ThreadExecutor(1)),
        ("two", ThreadExecutor(3)),
        ("processes", ProcessExecutor(["cpu"] * 2, 1)),
    ):
        run(database, tmp_path / name, executor=executor)
    assert model_bytes(tmp_path / "one") == model_bytes(tmp_path / "two") == model_bytes(tmp_path / "processes") != {}


def test_a_killed_run_continues_with_the_finished_clusters(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(database, tmp_path / "whole")
    mapped = list[list[str]]()
    real = pycolmap.incremental_mapping

    def mapping(*arguments: Any, **keywords: Any) -> Any:
        mapped.append(arguments[3].image_names)
        if fails and len(mapped) == 3:
            raise MemoryError("no memory")
        return real(*arguments, **keywords)

    fails = True
    with monkeypatch.context() as patch:
        patch.setattr(clusters.pycolmap, "incremental_mapping", mapping)
        with pytest.raises(RuntimeError, match=r"1 of 4 clusters could not be mapped, first 3: no memory. The others are kept"):
            run(database, tmp_path / "out", executor=ThreadExecutor(1))
    kept = tmp_path / "out.clusters"
    (kept / "3.7.tmp").mkdir()  # of a killed process
    cut = kept / "2" / "0" / "images.bin"
    cut.write_bytes(cut.read_bytes()[:-5])
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        mapped.clear()
        patch.setattr(
            clusters.pycolmap, "incremental_mapping", lambda *args, **keys: (mapped.append(args[3]), real(*args, **keys))[1]
        )
        run(database, tmp_path / "out")
    assert (
        "12 photos are mapped in 4 clusters of 4 to 7; 9 photos are in a second cluster; 2 clusters are finished" in caplog.text
    )
    # a set: a mapper that finds the database being opened by another one tries again
    assert len({tuple(each.image_names) for each in mapped if each.image_names}) == 2
    assert model_bytes(tmp_path / "out") == model_bytes(tmp_path / "whole")
    assert not kept.exists()


def test_a_process_that_is_killed_loses_no_finished_cluster(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sfm_lightglue.reconstruction.stage.complete_models", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        status = in_a_child(lambda: run(database, tmp_path / "out", executor=ThreadExecutor(1)), lambda child: None)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "out.clusters").iterdir()) == ["0", "1", "2", "3", "settings.json"]
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "_map_all", lambda *_: pytest.fail("a cluster was mapped again"))
        assert run(database, tmp_path / "out").unregistered == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_keeps_finished_clusters_and_writes_their_models(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = pycolmap.incremental_mapping, itertools.count(1)

    def mapping(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            while not keywords["cancellation_token"].is_cancelled:
                time.sleep(0.01)
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(clusters.pycolmap, "incremental_mapping", mapping)
        status = in_a_child(lambda: run(database, tmp_path / "out", executor=ThreadExecutor(1)), lambda child: None)
    assert os.waitstatus_to_exitcode(status) == 42
    assert len([path for path in (tmp_path / "out.clusters").iterdir() if path.name.isdigit()]) == 2
    assert len([path for path in (tmp_path / "out").iterdir() if path.name.isdigit()]) == 2
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["unfinished"]
    assert run(database, tmp_path / "out").unregistered == []


def test_clusters_of_other_options_are_not_kept(database: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out.clusters"
    (kept / "0" / "0").mkdir(parents=True)
    (kept / "settings.json").write_text(json.dumps({"clusters": [["00.jpg"]], "options": {}}))
    assert run(database, tmp_path / "out").unregistered == []


def test_a_folder_that_no_run_has_written_is_refused(database: Path, tmp_path: Path) -> None:
    (tmp_path / "out.clusters").mkdir()
    (tmp_path / "out.clusters" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out\.clusters was not written by sfm_lightglue"):
        run(database, tmp_path / "out")
    assert (tmp_path / "out.clusters" / "thesis.txt").read_text() == "mine"


def test_two_sides_that_look_alike_stay_two_models(scene: KnownScene, tmp_path: Path) -> None:
    """Photos of another scene that looks the same from one side: two pairs match by mistake, and nearer ones do not."""
    database = make_database(tmp_path / "in", scene, range(8), itertools.combinations(range(8), 2), noise_px=0.3)
    with pycolmap.Database.open(database) as rows:
        for first, second in itertools.product(range(1, 5), range(5, 9)):
            if (first, second) not in ((2, 5), (3, 6)):
                rows.delete_inlier_matches(first, second)
    report = run(database, tmp_path / "out", options=dataclasses.replace(OPTIONS, max_cluster_size=4, cluster_overlap=0))
    assert [model.registered for model in report.models] == [scene.names[:4], scene.names[4:8]]
    assert any("would show the same things but do not match" in note for note in report.joining)
    assert (tmp_path / "out" / "1" / "points.ply").is_file()


def test_clusters_need_joining() -> None:
    with pytest.raises(ValueError, match=r"it needs reconstruction.join=true"):
        dataclasses.replace(OPTIONS, join=False)


def test_few_photos_have_one_thread_and_many_have_all_cores(
    database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = dataclasses.replace(MAPPER_OPTIONS, num_threads=0)
    assert chosen_num_threads(options, MANY_PHOTOS - 1) == 1 and chosen_num_threads(options, MANY_PHOTOS) == -1
    assert chosen_num_threads(dataclasses.replace(options, num_threads=3), MANY_PHOTOS) == 3
    with caplog.at_level("INFO"):
        run(database, tmp_path / "out", options=options)
    assert "12 photos are mapped with one thread: the same model in every run" in caplog.text
