"""Situations of mistakes that can be known before the first photo is decoded, of the exit status, and of downloads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from situations.bench import SIFT, Outcome, command, extract, run_scene, save_photos, save_scene

POSE = "00.jpg 1 0 0 0 0 0 0 300 300 160 120 320 240\n"


def _told_first(*overrides: str, words: tuple[str, ...]) -> None:
    """Checks that a run refuses these options before it has extracted anything."""
    save_photos()
    outcome = command("run", "+dataset=folder", "dataset.images=photos", "output=out", *SIFT, *overrides)
    assert not Path("out/features.h5").exists(), outcome.text
    assert outcome.refuses(*words)


def poses_that_are_missing() -> None:
    _told_first("dataset.poses=poses.txt", "reconstruction=triangulation", words=("poses.txt",))


def poses_that_are_malformed() -> None:
    Path("poses.txt").write_text("00.jpg 1 0 0\n")
    _told_first("dataset.poses=poses.txt", "reconstruction=triangulation", words=("poses.txt", "1"))


def intrinsics_for_part_of_the_photos() -> None:
    Path("intrinsics.txt").write_text("00.jpg PINHOLE 320 240 300 300 160 120\n")
    _told_first("database.intrinsics=intrinsics.txt", words=("01.jpg", "intrinsics"))


def panorama_model_for_other_photos() -> None:
    _told_first("database.camera_model=EQUIRECTANGULAR", words=("00.jpg", "twice as wide as high"))


def list_that_is_missing() -> None:
    _told_first("pairs=list", "pairs.path=pairs.txt", words=("pairs.txt",))


def list_with_unknown_names() -> None:
    Path("pairs.txt").write_text("00.jpg 99.jpg\n")
    _told_first("pairs=list", "pairs.path=pairs.txt", words=("99.jpg",))


def missing_global_descriptors() -> None:
    _told_first("pairs=retrieval", "pairs.global_descriptors=netvlad.h5", words=("netvlad.h5",))


def poses_for_pairs_that_are_missing() -> None:
    _told_first("pairs=poses", words=("dataset.poses=FILE",))


def model_for_pairs_that_is_missing() -> None:
    _told_first("pairs=covisibility", "pairs.path=model/0", words=("model/0", "does not exist"))


def pairs_without_number_or_radius() -> None:
    options = "pairs=spatial", "pairs.num_neighbours=null"
    _told_first(*options, words=("pairs.num_neighbours=null", "pairs.max_distance_m=50"))


def rounds_below_one() -> None:
    _told_first("pairs.rounds=0", words=("pairs.rounds", "at least 1"))


def missing_codebook() -> None:
    _told_first("pairs=retrieval", "pairs.codebook=words.safetensors", words=("words.safetensors",))


def missing_weights_of_the_matcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(Path("cache").resolve()))
    _told_first("matches=lightglue", words=("sift-lightglue", "weights fetch"))


def missing_weights_of_raco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(Path("cache").resolve()))
    save_photos()
    outcome = command("run", "+dataset=folder", "dataset.images=photos", "output=out", "features=raco")
    assert not Path("out/features.h5").exists(), outcome.text
    assert outcome.refuses("weights raco (raco.pth", "weights fetch raco-lightglue")


def names_with_one_key() -> None:
    save_photos(names=["a/b.jpg", "a-b.jpg"])
    _told_first(words=("a/b.jpg", "a-b.jpg"))


def range_of_an_option() -> None:
    _told_first("geometries.max_error_px=0", words=("geometries.max_error_px",))


def clusters_that_are_not_joined() -> None:
    _told_first("reconstruction=clusters", "reconstruction.join=false", words=("reconstruction.join=true",))


def priors_without_positions() -> None:
    _told_first("reconstruction.position_priors=gps", words=("needs 5 photos", "0 of 3 photos", "dataset.positions=FILE"))


def priors_without_altitudes() -> None:
    Path("gps.csv").write_text("name,latitude,longitude\n00.jpg,48,9\n01.jpg,48,9.1\n")
    words = ("GPS position and altitude", "0 of 3 photos")
    _told_first("reconstruction.position_priors=gps", "dataset.positions=gps.csv", words=words)


def priors_without_poses() -> None:
    options = ("reconstruction.position_priors=poses", "reconstruction.position_std=0.1")
    _told_first(*options, words=("needs 5 photos", "0 of 3 photos", "dataset.poses=FILE"))
    Path("poses.txt").write_text(POSE)
    _told_first(*options, "dataset.poses=poses.txt", words=("1 of 3 photos",))


def priors_of_known_poses() -> None:
    Path("poses.txt").write_text(POSE)
    mistakes = ("reconstruction=triangulation", "dataset.poses=poses.txt", "reconstruction.position_priors=gps")
    _told_first(*mistakes, words=("part of the final adjustment", "reconstruction=triangulation"))


def several_mistakes() -> None:
    listed = ("pairs=list", "pairs.path=pairs.txt")
    mistakes = ("geometries.max_error_px=-1", "dataset.poses=poses.txt", "reconstruction=triangulation")
    _told_first(*listed, *mistakes, words=("pairs.txt", "geometries.max_error_px", "poses.txt"))


def _run_refuses(*overrides: str, words: tuple[str, ...]) -> None:
    """Checks that a run without other options refuses these before it makes the output folder."""
    save_photos()
    assert command("run", "photos", "out", *overrides).refuses(*words)
    assert not Path("out").exists()


def list_of_one_kind() -> None:
    _run_refuses("features=[sift]", words=("lists one kind of features", "features=sift"))
    _run_refuses("features=[sift,sift]", words=("a list of different kinds of features", "features=[sift,superpoint]"))


def escalation_of_one_kind() -> None:
    _run_refuses("features=sift", "matches.escalate=true", words=("the cheapest first", "features=[sift,superpoint]"))


def option_without_its_kind() -> None:
    words = ("'features.max_keypoints'", "features.sift.max_keypoints")
    _run_refuses("features=[sift,xfeat]", "matches=nearest_neighbor", "+features.max_keypoints=9", words=words)


def several_kinds_in_the_folder_of_one() -> None:
    save_photos()
    assert extract().works()
    outcome = command("extract", "photos", "out", "features=[sift,superpoint]", "matches=nearest_neighbor")
    assert outcome.refuses("out/features.h5 holds one kind of features", "execution.if_settings_changed=recompute")


# --- several machines ------------------------------------------------------------------------------------------------------


def _extract_shard(shard: str, *overrides: str) -> Outcome:
    return extract("execution=shards", f"execution.shard={shard}", *overrides)


def shards_that_do_not_exist() -> None:
    save_photos()
    for shard in ("0/3", "4/3"):
        assert _extract_shard(shard).refuses(f"execution.shard={shard} does not exist", "expected 1/3 to 3/3")
    assert _extract_shard("abc").refuses("execution.shard=abc is no shard", "such as 3/16")
    assert extract("execution=shards").refuses("execution.shard=i/n")
    assert not Path("out").exists()


def whole_run_in_shards() -> None:
    _told_first("execution=shards", "execution.shard=1/2", words=("extract, pairs, match and verify", "merge output=OUT"))


def merge_without_shards() -> None:
    Path("out").mkdir()
    assert command("merge", "output=out").refuses("nothing to merge", "execution.shard=i/n")
    assert command("merge").refuses("usage: merge output=OUT")


def merge_without_all_shards() -> None:
    save_photos()
    assert _extract_shard("1/2").works()
    assert command("merge", "output=out").refuses("1 of 2 shards of extract are not complete", "execution.shard=2/2")
    assert command("pairs", "photos", "out").refuses("merge output=out")


def shard_with_other_options() -> None:
    save_photos()
    assert _extract_shard("1/2").works()
    assert _extract_shard("2/2", "features.max_keypoints=200").refuses("features.max_keypoints: 300 -> 200")


def ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfm_lightglue.execution.ray.find_spec", lambda name: None)
    _told_first("execution=ray", words=("execution=ray needs the package ray", "sfm-lightglue[ray]"))


def address_without_an_answer() -> None:
    _told_first("execution=ray", "execution.address=127.0.0.1:9", words=("execution.address=127.0.0.1:9", "nothing answers"))


# --- exit status -----------------------------------------------------------------------------------------------------------


def nothing_reconstructed() -> None:
    Path("photos").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (240, 320, 3), np.uint8)
        PILImage.fromarray(noise).save(f"photos/{index}.png")
    outcome = command("run", "+dataset=folder", "dataset.images=photos", "output=out", *SIFT)
    assert outcome.status == 1 and outcome.refuses("reconstructed")


def half_of_the_photos_lost() -> None:
    save_scene(8, pairs=[(0, 1), (0, 2), (1, 2)])
    Path("pairs.txt").write_text("00.jpg 01.jpg\n00.jpg 02.jpg\n01.jpg 02.jpg\n")
    listed = ("pairs=list", "pairs.path=pairs.txt")
    assert run_scene(*listed).works()
    assert run_scene(*listed, "strict=true").refuses("3 of 8")


def command_left_out() -> None:
    save_photos()
    assert command("photos", "out").refuses("run photos out")


def flag_instead_of_an_option() -> None:
    save_photos()
    assert command("run", "photos", "out", "--max-keypoints", "500").refuses("features.max_keypoints=VALUE")


def training_without_files() -> None:
    save_photos()
    assert command("train", "data.images=fotos", "output=out").refuses("fotos", "does not exist")
    assert command("train", "data.images=photos", "output=out", "training.start=w.safetensors").refuses(
        "training.start=w.safetensors"
    )
    assert not Path("out").exists()
