"""Several kinds of features in one run: how they are listed, and how their files are joined."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import sfm_lightglue  # noqa: F401  loads libz before pycolmap
from sfm_lightglue import cameras, pipeline
from sfm_lightglue.changed_options import changed_options
from sfm_lightglue.config import compose_config
from sfm_lightglue.features.several import join_features
from sfm_lightglue.features.superpoint import SuperPointExtractor
from sfm_lightglue.geometries.inputs import scales_of_most
from sfm_lightglue.images import read_header
from sfm_lightglue.kinds import joined_matching
from sfm_lightglue.match_pair import match_pair
from sfm_lightglue.matches.lightglue import LightGlueMatcher
from sfm_lightglue.matches.several import join_matches
from sfm_lightglue.merge import merge_shards
from sfm_lightglue.overrides import hydra_overrides
from sfm_lightglue.products import Features, Matches, Pair
from sfm_lightglue.report import gallery, run_data
from sfm_lightglue.run_cameras import assign_cameras
from sfm_lightglue.run_context import Run, check_inputs
from sfm_lightglue.run_kinds import last_learned
from sfm_lightglue.run_options import resolve, resolve_all
from sfm_lightglue.storage import (
    H5Reader,
    PartOfFeatures,
    SettingsChanged,
    ShardStore,
    comparable_scores,
    features_to_group,
    match_key,
    matches_to_group,
)
from sfm_lightglue.summary import Summary

DEMO = Path(__file__).resolve().parents[1] / "datasets" / "demo" / "images"
BOTH = (
    "features=[sift,superpoint]",
    *("features.sift.resize_max=320", "features.sift.max_keypoints=200"),
    *("features.superpoint.resize_max=320", "features.superpoint.max_keypoints=150", "features.superpoint.enlarge_max=1"),
    *("matches=nearest_neighbor", "matches.superpoint.max_ratio=0.9", "matches.sift.max_ratio=0.8"),
)


# --- the list ----------------------------------------------------------------------------------------------------------------


def test_each_kind_gets_the_matcher_that_suits_it() -> None:
    options = resolve(compose_config(["features=[sift,superpoint,aliked]", "features.sift.max_keypoints=77"]))
    assert [kind.name for kind in options.kinds] == ["sift", "superpoint", "aliked"]
    assert [kind.matches.options.name for kind in options.kinds] == ["nearest_neighbor", "lightglue", "lightglue"]
    assert options.kinds[0].features.options.max_keypoints == 77
    assert options.kinds[0].matches.options.max_ratio == 0.8
    assert [kind.matches.options.trained_for for kind in options.kinds[1:]] == ["superpoint-open", "aliked"]
    assert options.features == options.kinds[0].features and options.orientation == "auto" and not options.escalate


def test_matchers_are_listed_in_the_order_of_the_features_or_given_for_all() -> None:
    listed = resolve(compose_config(["matches=[lightglue,nearest_neighbor]", "features=[disk,sift]"]))
    assert [kind.matches.options.name for kind in listed.kinds] == ["lightglue", "nearest_neighbor"]
    assert listed.kinds[0].matches.options.trained_for == "disk"
    assert listed.kinds[1].matches.options.max_ratio is None  # the file's own default, for the user has chosen it
    same = resolve(compose_config(["features=[sift,disk]", "matches=nearest_neighbor", "matches.disk.max_ratio=0.9"]))
    assert [kind.matches.options.max_ratio for kind in same.kinds] == [None, 0.9]


def test_sift_alone_is_matched_by_nearest_neighbours_unless_another_matcher_is_chosen() -> None:
    assert resolve(compose_config(["features=sift"])).matches.options.max_ratio == 0.8
    assert resolve(compose_config(["features=sift", "matches=lightglue"])).matches.options.trained_for == "sift"
    assert resolve(compose_config(["features=disk"])).matches.options.name == "lightglue"


def test_a_sweep_over_features_with_different_matchers_is_refused_without_a_matcher() -> None:
    with pytest.raises(ValueError, match=r"different default matchers: give matches=\.\.\., or run features=sift alone"):
        hydra_overrides(["features=superpoint,sift", "-m"])
    assert hydra_overrides(["features=superpoint,sift", "matches=lightglue", "-m"])[0] == "features=superpoint,sift"


def test_of_several_lists_the_last_one_counts() -> None:
    listed = resolve(
        compose_config(
            ["features=[sift,disk]", "matches=nearest_neighbor", "features=[disk,sift]", "matches=[lightglue,superglue]"]
        )
    )
    assert [(kind.name, kind.matches.options.name) for kind in listed.kinds] == [("disk", "lightglue"), ("sift", "superglue")]
    assert resolve(compose_config(["features=[sift,disk]", "features=disk"])).kinds == ()
    config = compose_config(["pairs=[sequential,retrieval]", "pairs=[retrieval,exhaustive]", "features=disk", "features=sift"])
    assert [key for key in config.pairs if key in ("sequential", "retrieval", "exhaustive")] == ["retrieval", "exhaustive"]
    assert (config.features.name, config.matches.name) == ("sift", "nearest_neighbor")


def test_overrides_that_were_prepared_stay_as_they_are() -> None:
    once = hydra_overrides(["features=[sift,disk]", "matches.disk.filter_threshold=0.2"])
    assert hydra_overrides(once) == once


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["features=[sift,sift]"], "list of different kinds of features"),
        (["features=[sift]"], "lists one kind of features: write features=sift"),
        (
            ["features=[sift,disk]", "matches=[lightglue]"],
            r"lists 1 matchers, expected 2: one for each of features=\[sift,disk\]",
        ),
        (["features=[sift,diks]"], "features=diks does not exist. Did you mean 'disk'?"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        compose_config(overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["features=several"], "need the same kinds of features, at least two: list them"),
        (["features=[sift,disk]", "+features.max_keypoints=5"], r"name the kind, such as features\.sift\.max_keypoints"),
        (["features=[sift,disk]", "features.disk.max_keypoints=many"], r"features\.disk\.max_keypoints"),
        (["matches.escalate=true"], r"list them, the cheapest first, such as features=\[sift,superpoint\]"),
        (["features=[sift,disk]", "matches.escalate=maybe"], "matches.escalate=maybe is neither true nor false"),
        (["experiment=fast", "features=[sift,superpoint]"], r"'features\.\w+': with several kinds, name the kind"),
    ],
)
def test_options_that_make_no_sense_with_several_kinds_are_refused(overrides: list[str], expected: str) -> None:
    options, mistakes = resolve_all(compose_config(overrides))
    problems = [choice.problem for kind in options.kinds for choice in (kind.features, kind.matches)]
    text = "\n".join([*map(str, mistakes), *problems])
    assert re.search(expected, text), text


def test_the_changed_options_of_several_kinds_are_those_of_the_command_line() -> None:
    given = ["features=[sift,superpoint]", "features.sift.max_keypoints=77", "matches.superpoint.filter_threshold=0.3"]
    changed = changed_options(resolve(compose_config(given)).configuration)
    assert {key: value for key, (value, _) in changed.items()} == {
        "features": "[sift,superpoint]",
        "features.sift.max_keypoints": 77,
        "matches": "[nearest_neighbor,lightglue]",
        "matches.sift.max_ratio": 0.8,
        "matches.superpoint.filter_threshold": 0.3,
    }


def test_networks_that_escalation_may_not_need_are_not_built_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = list[type]()
    for plugin in (SuperPointExtractor, LightGlueMatcher):
        monkeypatch.setattr(plugin, "load", lambda self: built.append(type(self)))
    given = ["+dataset=folder", f"dataset.images={DEMO}", f"output={tmp_path}", "features=[sift,superpoint]"]
    Run.checked(compose_config([*given, "matches.escalate=true"]))
    assert built == []
    Run.checked(compose_config([*given, "matches.escalate=true", "matches.superpoint.trained_for=aliked"]))  # not the usual one
    assert built == [SuperPointExtractor, LightGlueMatcher]
    files = ["features.superpoint.weights=mine.pth", "matches.superpoint.weights=other.pth"]
    with pytest.raises(ValueError, match=r"mine.pth does not exist\n- weights file other.pth"):
        Run.checked(compose_config([*given, "matches.escalate=true", *files]))


def test_commands_for_one_kind_refuse_several(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features=\[sift,disk\] are several kinds, this command takes one of them"):
        match_pair(str(DEMO / "00.jpg"), str(DEMO / "01.jpg"), ["features=[sift,disk]"], as_json=False)


# --- the joined files --------------------------------------------------------------------------------------------------------


def features(count: int, pixel_scale: float, *, seed: int, name: str, orientation: int = 1) -> Features:
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, 99, (count, 2)).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float16).astype(np.float32)
    return Features(
        keypoints, scores, np.ones((count, 4), np.float32), (100, 100), pixel_scale, name=name, orientation=orientation
    )


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """Files of the kinds `a` (photos 0, 1, 2; 5 keypoints) and `b` (photos 0, 1; 7 keypoints), with matches."""
    for kind, names, count, scale in (("a", "012", 5, 2.0), ("b", "01", 7, 1.5)):
        with ShardStore(tmp_path / f"features-{kind}.h5", {"kind": kind}) as store:
            for name in names:
                found = features(count, scale, seed=ord(kind) + int(name), name=name)
                store.add(name, features_to_group(found), f"{kind}{name}")
            store.merge()
        with ShardStore(tmp_path / f"matches-{kind}.h5", {"matcher": kind}) as store:
            for first, second in ("01", "02", "12"):
                if {first, second} <= {*names}:
                    found = Matches(np.array([[1, 2], [3, count - 1]], np.int32), np.array([0.5, 0.75], np.float32), 3)
                    store.add(match_key(first, second), matches_to_group(found, count), f"{kind}{first} {kind}{second}")
            store.merge()
    return tmp_path


def join(folder: Path, **options: Any) -> None:
    files = {kind: folder / f"features-{kind}.h5" for kind in "ab"}
    join_features(files, folder / "features.h5", names=["0", "1", "2"], **options)


def join_both(folder: Path, pairs: list[Pair], only: list[Pair] | None = None) -> None:
    join(folder, only=None if only is None else {"b": sorted({name for pair in only for name in (pair.name0, pair.name1)})})
    files = {kind: folder / f"matches-{kind}.h5" for kind in "ab"}
    join_matches(folder / "features.h5", files, pairs, folder / "matches.h5", only=None if only is None else {"b": only})


PAIRS = [Pair("0", "1"), Pair("0", "2"), Pair("1", "2")]


def test_the_record_of_the_kinds_is_that_of_the_files_and_not_of_the_call() -> None:
    kind = {"weights": [], "num_pairs": 3, "mean_matches": 5.0, "mean_stop_layer": 0.0, "precision": ""}
    first, again = (joined_matching({name: {**kind, "num_computed": number} for name in "ab"}) for number in (3, 0))
    assert (first.pop("num_computed"), again.pop("num_computed")) == (3, 0)  # for the line on the screen
    assert first == again  # else a repeated run would draw its pictures and its page again


def test_the_keypoints_of_the_kinds_follow_each_other(kinds: Path) -> None:
    join(kinds)
    with (
        H5Reader(kinds / "features.h5") as joined,
        H5Reader(kinds / "features-a.h5") as a,
        H5Reader(kinds / "features-b.h5") as b,
    ):
        found = joined.features("0")
        assert np.array_equal(found.keypoints, np.concatenate([a.features("0").keypoints, b.features("0").keypoints]))
        assert np.array_equal(found.scores, np.concatenate([a.features("0").scores, b.features("0").scores]))
        assert found.descriptors.shape == (12, 0) and found.image_size == (100, 100)
        assert found.pixel_scale == 1.5  # that of the finer kind
        assert joined.kinds("0") == (PartOfFeatures("a", 0, 5, 2.0), PartOfFeatures("b", 5, 7, 1.5))
        assert joined.kinds("2") == (PartOfFeatures("a", 0, 5, 2.0),)


def test_the_matches_of_a_pair_join_with_the_indices_of_the_joined_keypoints(kinds: Path) -> None:
    join_both(kinds, PAIRS)
    with H5Reader(kinds / "matches.h5") as reader:
        both, one = reader.find_matches("0", "1"), reader.find_matches("1", "2")
    assert both is not None and both.indices.tolist() == [[1, 2], [3, 4], [6, 7], [8, 11]]
    assert both.scores.tolist() == [0.5, 0.75, 0.5, 0.75] and both.stop_layer == 3
    assert one is not None and one.indices.tolist() == [[1, 2], [3, 4]]  # photo 2 has no features of kind b


def test_keypoints_of_several_kinds_are_shown_by_their_rank_within_the_kind() -> None:
    parts = PartOfFeatures("a", 0, 3, 1.0), PartOfFeatures("b", 3, 2, 1.0)
    scores = np.array([90.0, 10.0, 50.0, 0.02, 0.01])
    assert comparable_scores(scores, parts).tolist() == [1.0, 0.0, 0.5, 1.0, 0.0]
    assert comparable_scores(scores, parts[:1]) is scores


def test_the_error_limit_of_a_pair_is_that_of_the_kind_with_most_matches() -> None:
    kinds0 = PartOfFeatures("a", 0, 5, 2.0), PartOfFeatures("b", 5, 7, 1.5)
    kinds1 = PartOfFeatures("a", 0, 6, 3.0), PartOfFeatures("b", 6, 8, 1.25)

    def scales(*indices0: int) -> tuple[float, float]:
        indices = np.array([(index, index) for index in indices0], np.int32).reshape(-1, 2)
        return scales_of_most(Matches(indices, np.ones(len(indices), np.float32)), kinds0, kinds1)

    assert scales(0, 4, 5) == (2.0, 3.0)
    assert scales(4, 5, 11) == (1.5, 1.25)
    assert scales(4, 5) == scales() == (2.0, 3.0)


def test_a_kind_can_be_joined_for_some_pairs_only_and_changes_reach_the_pair(kinds: Path) -> None:
    join_both(kinds, PAIRS, only=[])
    with H5Reader(kinds / "matches.h5") as reader:
        assert reader.match_counts_of(PAIRS)[:, 0].tolist() == [2, 2, 2]
    with H5Reader(kinds / "features.h5") as reader:
        before = reader.stamps(["0", "1", "2"])
    join_both(kinds, PAIRS, only=[Pair("0", "1")])
    with H5Reader(kinds / "matches.h5") as reader:
        assert reader.match_counts_of(PAIRS)[:, 0].tolist() == [4, 2, 2]
    with H5Reader(kinds / "features.h5") as reader:
        assert [old == new for old, new in zip(before, reader.stamps(["0", "1", "2"]), strict=True)] == [False, False, True]


def test_joining_again_gives_the_same_bytes(kinds: Path) -> None:
    join_both(kinds, PAIRS)
    before = [(kinds / name).read_bytes() for name in ("features.h5", "matches.h5")]
    join_both(kinds, PAIRS, only=[])
    join_both(kinds, PAIRS)
    assert [(kinds / name).read_bytes() for name in ("features.h5", "matches.h5")] == before


def test_files_of_one_kind_are_not_replaced_unasked(kinds: Path) -> None:
    shutil.copy(kinds / "features-a.h5", kinds / "features.h5")
    with pytest.raises(SettingsChanged, match="made with other settings"):
        join(kinds)
    join(kinds, if_settings_changed="recompute")
    with H5Reader(kinds / "features.h5") as reader:
        assert len(reader.kinds("0")) == 2


def test_kinds_of_a_photo_in_different_turns_are_refused(kinds: Path) -> None:
    with ShardStore(kinds / "features-b.h5", {"kind": "b"}) as store:
        store.add("1", features_to_group(features(7, 1.5, seed=0, name="1", orientation=6)), "other")
        store.merge()
    with pytest.raises(ValueError, match="kinds of features of '1' differ in the size or turn"):
        join(kinds)


# --- the stages --------------------------------------------------------------------------------------------------------------


def run_of(folder: Path, *overrides: str) -> Run:
    given = ["+dataset=folder", f"dataset.images={folder / 'images'}", f"output={folder / 'out'}"]
    return Run.create(compose_config([*given, *BOTH, *overrides]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("00.jpg", "01.jpg", "02.jpg"):
        shutil.copy(DEMO / name, tmp_path / "images")
    return tmp_path


def test_a_run_verifies_all_kinds_together_and_repeating_it_changes_nothing(
    photos: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "masks").mkdir()
    PILImage.new("L", (80, 60), 255).save(photos / "masks" / "02.png")
    run = run_of(photos, f"dataset.masks={photos / 'masks'}")
    for stage in ("extract", "pairs", "match", "verify"):
        check_inputs(run, stage)
        pipeline.run_stage(run, stage)
    assert sum("2 of 3 photos have no mask" in message for message in caplog.messages) == 1
    bars = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if " (100 %)" in line]
    assert bars == ["extract sift", "extract superpoint", "match sift", "match superpoint", "verify"]
    content = run.folder.read_summary()["stages"]
    assert content["extract"]["kinds"]["sift"]["mean_keypoints"] > 100
    assert content["extract"]["mean_keypoints"] > content["extract"]["kinds"]["sift"]["mean_keypoints"] + 100
    with run.folder.open_features() as features, run.folder.open_verification() as verified:
        inliers = verified.geometry("00.jpg", "01.jpg").inlier_matches
        start = features.kinds("00.jpg")[1].start
    assert (inliers[:, 0] < start).sum() > 10 and (inliers[:, 0] >= start).sum() > 10
    with run.folder.open_matches() as matches:
        starts = [indices >= start for indices in (matches.find_matches("00.jpg", "01.jpg").indices[:, 0], inliers[:, 0])]
    assert run_data.messages_of(Summary.read(run.folder))[0].startswith("sift: 200 keypoints in each of 3 photos, ")
    drawn = list[str]()
    monkeypatch.setattr(gallery, "draw_matches", lambda *given, note, **more: drawn.append(note))
    gallery.draw_match_gallery(photos / "images", run.folder)
    counts = [f"{(~starts[1]).sum()} of {(~starts[0]).sum()}", f"{starts[1].sum()} of {starts[0].sum()}"]
    assert f"sift: {counts[0]}, superpoint: {counts[1]}" in drawn
    before = {path.name: path.read_bytes() for path in (photos / "out").glob("*.h5")}
    assert {"features.h5", "features-sift.h5", "features-superpoint.h5", "matches.h5", "matches-sift.h5"} < before.keys()
    for stage in ("extract", "match", "verify"):
        pipeline.run_stage(run, stage)
    assert {path.name: path.read_bytes() for path in (photos / "out").glob("*.h5")} == before


def test_a_photo_that_no_kind_can_read_is_one_warning(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "images" / "02.jpg").write_bytes((DEMO / "02.jpg").read_bytes()[:2000])
    pipeline.run_stage(run_of(photos), "extract")
    assert sum("02.jpg is skipped" in message for message in caplog.messages) == 1


def test_the_cameras_are_chosen_once_in_a_run(
    photos: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification, refinement and database need them: with one choice, photos are read and warned about once."""
    for path in (photos / "images").iterdir():
        PILImage.open(path).save(path)  # without EXIF
    read = list[str]()
    monkeypatch.setattr(cameras, "read_header", lambda path: read.append(path.name) or read_header(path))
    intrinsics = "database.camera_model=OPENCV_FISHEYE"
    monkeypatch.setattr(pipeline, "STAGES", [stage for stage in pipeline.STAGES if stage.name in ("verify", "database")])
    for stage in ("extract", "pairs", "match"):
        pipeline.run_stage(run_of(photos, intrinsics), stage)
    run = run_of(photos, intrinsics)
    pipeline.run_all(run)
    assert sum("the fisheye lens is assumed" in message for message in caplog.messages) == 1
    assert read == ["00.jpg", "01.jpg", "02.jpg"]
    (photos / "images" / "02.jpg").unlink()
    assert [*assign_cameras(run).cameras] == ["00.jpg", "01.jpg"]  # other photos: chosen again


def test_similar_photos_and_turns_are_found_with_a_learned_kind() -> None:
    for order in ("sift,superpoint", "superpoint,sift"):
        assert last_learned(Run.create(compose_config([f"features=[{order}]"])).kinds).kind == "superpoint"
    assert last_learned(Run.create(compose_config(["features=[sift,superpoint]"])).kinds[:1]).kind == "sift"


def test_shards_of_several_kinds_give_the_same_files(photos: Path) -> None:
    whole = run_of(photos)
    pipeline.run_stage(whole, "extract")
    expected = (photos / "out" / "features.h5").read_bytes()
    shutil.rmtree(photos / "out")
    for number in (1, 2):
        pipeline.run_stage(run_of(photos, "execution=shards", f"execution.shard={number}/2"), "extract")
    assert not (photos / "out" / "features.h5").exists()
    assert merge_shards(photos / "out") == ["extract"]
    assert (photos / "out" / "features.h5").read_bytes() == expected
