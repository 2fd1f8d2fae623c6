"""Situations of names, of lists and files that people bring, and of files that do not belong to the run."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from known_scene import make_database
from situations.bench import (
    SIFT,
    command,
    extract,
    models,
    num_registered,
    pairs_of,
    photo_names,
    run_scene,
    save_photos,
    save_scene,
    write_hdf5,
)

from sfm_lightglue import select_pairs
from sfm_lightglue.cameras import choose_cameras

# --- files of others -------------------------------------------------------------------------------------------------------


def _survives(path: str) -> None:
    """Checks that a file of the user, at a place that a run uses, keeps its bytes and is named."""
    save_scene()
    own = Path("out") / path
    own.parent.mkdir(parents=True)
    own.write_bytes(b"of the user")
    assert run_scene().refuses(Path(path).parts[0], "output=")
    assert own.read_bytes() == b"of the user"
    assert [other for other in Path("out").rglob("*") if other.is_file() and "logs" not in other.parts] == [own]


def foreign_database() -> None:
    _survives("database.db")


def foreign_reconstruction() -> None:
    _survives("reconstruction/notes.txt")


def foreign_clusters() -> None:
    _survives("reconstruction.clusters/notes.txt")


def database_without_images() -> None:
    """A database of others with verified pairs, whose table images is empty."""
    scene = save_scene()
    make_database(Path("out"), scene, range(5), [(0, 1), (1, 2)])
    with pycolmap.Database.open("out/database.db") as rows:
        rows.clear_images()
    assert run_scene(command_name="reconstruct").refuses("out/database.db", "2 verified pairs of 3 images", "lacks 3 of them")


def foreign_pairs() -> None:
    _survives("pairs.txt")


def own_file_in_a_model() -> None:
    save_scene()
    assert run_scene().works()
    own = Path("out/reconstruction/0/dense/fused.ply")
    own.parent.mkdir()
    own.write_bytes(b"hours of work")
    run_scene("reconstruction.max_error_px=3", command_name="reconstruct")
    assert [path.read_bytes() for path in Path("out").rglob("fused.ply")] == [b"hours of work"]


def output_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    save_photos()
    before = sorted(Path().iterdir())
    assert command("run", "+dataset=folder", "dataset.images=photos", "output=", *SIFT).refuses("output")
    assert command("run", "dataset.images=photos", *SIFT).refuses("output")
    assert sorted(Path().iterdir()) == before


def folder_that_does_not_exist() -> None:
    assert command("run", "+dataset=folder", "dataset.images=fotos", "output=out", *SIFT).refuses("fotos", "does not exist")
    assert not Path("out").exists()


# --- names -----------------------------------------------------------------------------------------------------------------


def _folder_named(name: str) -> None:
    save_photos(str(Path(name).expanduser()))
    assert extract(images=name).works()
    assert photo_names() == ["00.jpg", "01.jpg", "02.jpg"]


def folder_with_an_umlaut() -> None:
    _folder_named("w/Müller")


def folder_with_brackets() -> None:
    _folder_named("(2024)")


def folder_with_an_equals_sign() -> None:
    _folder_named("x=y")


def folder_with_an_apostrophe() -> None:
    _folder_named("it's")


def folder_with_a_comma() -> None:
    _folder_named("a,b")


def folder_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    _folder_named("~/x")


def run_with_two_folders() -> None:
    save_scene()
    assert command("run", "scene/images", "my out", *SCENE_FILES).works()
    assert num_registered("my out") == 5


SCENE_FILES = (
    *("features=imported", "features.path=scene/features.h5", "matches=imported", "matches.path=scene/matches.h5"),
    "database.intrinsics=SIMPLE_PINHOLE,700,320,240",
)


def names_with_spaces() -> None:
    save_scene(names=[f"my photo {index}.jpg" for index in range(5)])
    assert run_scene().works("space", "images.txt")


def twins_of_one_name() -> None:
    save_photos(names=[unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")])
    outcome = extract()
    assert outcome.works("NFC", "NFD")
    assert len(photo_names()) == 2


# --- lists -----------------------------------------------------------------------------------------------------------------


def _list_gives(content: bytes) -> None:
    save_scene(3, names=["a/0.jpg", "a/1.jpg", "b/2.jpg"])
    Path("list.txt").write_bytes(content)
    assert run_scene(command_name="extract").works()
    assert run_scene("pairs=list", "pairs.path=list.txt", command_name="pairs").works()
    assert pairs_of() == {("a/0.jpg", "a/1.jpg"), ("a/1.jpg", "b/2.jpg")}


def pair_list_with_comments() -> None:
    _list_gives(b"# my pairs\r\na/0.jpg a/1.jpg # good\r\n\r\na/1.jpg b/2.jpg\r\n")


def pair_list_with_commas() -> None:
    _list_gives(b"a/0.jpg,a/1.jpg\na/1.jpg, b/2.jpg\n")


def pair_list_of_windows() -> None:
    _list_gives("a\\0.jpg a\\1.jpg\r\n.\\a\\1.jpg .\\b\\2.jpg\r\n".encode("utf-16"))


def pair_list_with_dots() -> None:
    _list_gives(b"./a/0.jpg ./a/1.jpg\n./a/1.jpg ./b/2.jpg\n")


def pair_list_with_scores() -> None:
    _list_gives(b"a/0.jpg a/1.jpg 0.93\na/1.jpg b/2.jpg 0.71\n")


def _cameras(intrinsics: str, names: tuple[str, ...] = ("left/0.jpg", "right/0.jpg")) -> list[tuple[str, tuple[float, ...]]]:
    save_photos(names=names)
    chosen = choose_cameras(Path("photos"), dict.fromkeys(names, (320, 240)), intrinsics, "SIMPLE_RADIAL", {}).cameras
    return [(chosen[name].model, chosen[name].params) for name in names]


def intrinsics_by_folder() -> None:
    Path("intrinsics.txt").write_text("left PINHOLE 320 240 300 300 160 120\nright/*.jpg PINHOLE 320 240 310 310 160 120\n")
    expected = [("PINHOLE", (300, 300, 160, 120)), ("PINHOLE", (310, 310, 160, 120))]
    assert _cameras("intrinsics.txt") == expected


def cameras_txt_of_colmap() -> None:
    Path("cameras.txt").write_text("# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n1 PINHOLE 320 240 300 301 160 120\n")
    assert _cameras("cameras.txt") == [("PINHOLE", (300, 301, 160, 120))] * 2


def camera_in_lower_case() -> None:
    params = (500, 500, 160, 120, 0.1, 0, 0, 0)
    assert _cameras("opencv,500,500,160,120,0.1,0,0,0") == [("OPENCV", params)] * 2


def camera_of_four_numbers() -> None:
    assert _cameras("500,500,160,120") == [("PINHOLE", (500, 500, 160, 120))] * 2


def own_keypoints_and_matches() -> None:
    scene = save_scene()
    write_hdf5("own.h5", {name: {"keypoints": scene.features(index).keypoints} for index, name in enumerate(scene.names)})
    assert run_scene("features.path=own.h5").works()
    assert num_registered() == 5


def list_of_photos() -> None:
    save_photos()
    Path("list.txt").write_text("00.jpg\n02.jpg\n")
    assert extract("dataset.list=list.txt").works()
    assert photo_names() == ["00.jpg", "02.jpg"]


def listed_photo_that_is_corrupt() -> None:
    save_photos()
    Path("photos/01.jpg").write_bytes(Path("photos/01.jpg").read_bytes()[:500])
    Path("pairs.txt").write_text("00.jpg 01.jpg\n00.jpg 02.jpg\n")
    listed = ("pairs=list", "pairs.path=pairs.txt")
    assert extract(*listed).works("01.jpg")
    assert command("pairs", "+dataset=folder", "dataset.images=photos", "output=out", *SIFT, *listed).works("01.jpg")
    assert pairs_of() == {("00.jpg", "02.jpg")}


def stereo_folders() -> None:
    names = [f"{side}/{index:03d}.jpg" for side in ("left", "right") for index in range(3)]
    found = {(pair.name0, pair.name1) for pair in select_pairs(names, "sequential", overlap=1, quadratic_overlap=False)}
    assert {(f"left/{index:03d}.jpg", f"right/{index:03d}.jpg") for index in range(3)} <= found
    assert ("left/000.jpg", "left/001.jpg") in found and ("left/000.jpg", "left/002.jpg") not in found


def video_file() -> None:
    Path("walk.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    assert extract(images="walk.mp4").refuses("walk.mp4", "video", "frames")


# --- imported files --------------------------------------------------------------------------------------------------------


def _bad_features(**changes: np.ndarray) -> None:
    """Writes `own.h5`: the features of the scene, the first photo with other datasets."""
    scene = save_scene()
    groups = {}
    for index, name in enumerate(scene.names):
        features = scene.features(index)
        about = {"descriptors": features.descriptors.T, "scores": features.scores, "image_size": np.array(features.image_size)}
        groups[name] = {"keypoints": features.keypoints, **about}
    groups[scene.names[0]] |= changes
    write_hdf5("own.h5", groups)


def keypoint_far_outside() -> None:
    points = np.full((100, 2), 1e30, np.float32)
    _bad_features(keypoints=points)
    assert run_scene("features.path=own.h5").works("00.jpg is skipped", "keypoints") and num_registered() == 4


def keypoint_that_is_nan() -> None:
    _bad_features(keypoints=np.full((100, 2), np.nan, np.float32))
    assert run_scene("features.path=own.h5").works("00.jpg is skipped", "keypoints") and num_registered() == 4


def infinite_uncertainty() -> None:
    _bad_features()
    with h5py.File("own.h5", "r+") as file:
        file["00.jpg/keypoints"].attrs["uncertainty"] = np.inf
    assert run_scene("features.path=own.h5").works("00.jpg is skipped", "uncertainty") and num_registered() == 4


def _bad_matches(index: int | None, score: float) -> None:
    save_scene()
    with h5py.File("scene/matches.h5", "r+") as file:
        group = file["00.jpg/01.jpg"]
        matches, scores = group["matches0"][()].astype(np.int64), group["matching_scores0"][()].astype(np.float32)
        matches[0], scores[0] = matches[0] if index is None else index, score
        del group["matches0"], group["matching_scores0"]
        group["matches0"], group["matching_scores0"] = matches, scores


def match_index_that_wraps() -> None:
    _bad_matches(2**32 + 5, 1.0)
    assert run_scene().refuses("00.jpg", str(2**32 + 5))


def score_that_is_nan() -> None:
    _bad_matches(None, np.nan)
    assert run_scene().refuses("00.jpg", "score")


def external_link() -> None:
    _bad_features()
    with h5py.File("secret.h5", "w") as file:
        file["numbers"] = np.ones((100, 2), np.float32)
    with h5py.File("own.h5", "r+") as file:
        del file["00.jpg/keypoints"]
        file["00.jpg/keypoints"] = h5py.ExternalLink("secret.h5", "numbers")
    assert run_scene("features.path=own.h5").refuses("own.h5", "link")


def external_storage() -> None:
    _bad_features()
    Path("secret").write_bytes(b"x" * 800)
    with h5py.File("own.h5", "r+") as file:
        del file["00.jpg/keypoints"]
        file["00.jpg"].create_dataset("keypoints", (100, 2), np.float32, external=[(str(Path("secret").resolve()), 0, 800)])
    assert run_scene("features.path=own.h5").refuses("own.h5", "another file")


def virtual_storage() -> None:
    _bad_features()
    with h5py.File("secret.h5", "w") as file:
        file["numbers"] = np.ones((100, 2), np.float32)
    layout = h5py.VirtualLayout((100, 2), np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "numbers", (100, 2))
    with h5py.File("own.h5", "r+") as file:
        del file["00.jpg/keypoints"]
        file["00.jpg"].create_virtual_dataset("keypoints", layout)
    assert run_scene("features.path=own.h5").refuses("own.h5", "virtual")


def size_of_terabytes() -> None:
    _bad_features()
    with h5py.File("own.h5", "r+") as file:
        del file["00.jpg/keypoints"]
        file["00.jpg"].create_dataset("keypoints", (10**12, 2), np.float32, chunks=(1024, 2))
    assert run_scene("features.path=own.h5").refuses("own.h5", "00.jpg")


# --- damaged files ---------------------------------------------------------------------------------------------------------


def _damage(path: str, keep: int) -> None:
    save_scene()
    assert run_scene().works()
    damaged = Path("out") / path
    damaged.write_bytes(damaged.read_bytes()[:keep])
    assert run_scene().works(damaged.name)
    assert num_registered() == 5 and len(models()) == 1


def cut_summary() -> None:
    _damage("summary.json", 40)
    assert json.loads(Path("out/summary.json").read_text())["stages"]


def cut_settings() -> None:
    _damage("reconstruction/settings.json", 5)


def cut_model() -> None:
    _damage("reconstruction/0/points3D.bin", 100)


def missing_model() -> None:
    save_scene()
    assert run_scene().works()
    shutil.rmtree("out/reconstruction/0")
    assert run_scene().works()
    assert num_registered() == 5
