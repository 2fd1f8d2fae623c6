"""The stage `orient` in a run: photos turned at random without EXIF are turned back, whatever interrupts the run."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from sfm_lightglue import pipeline, repeats
from sfm_lightglue.config import compose_config
from sfm_lightglue.escalation import read_escalation
from sfm_lightglue.images import camera_ranges, load_image
from sfm_lightglue.orient import stage, trials
from sfm_lightglue.orient.decisions import Decision, content_hash
from sfm_lightglue.orient.search import Search
from sfm_lightglue.orient.trials import Outcome
from sfm_lightglue.orientation import upright_image
from sfm_lightglue.run_context import Run
from sfm_lightglue.storage import H5Reader

TURNS = {"a.png": 0, "b.png": 0, "c.png": 0, "d.png": 1, "e.png": 2}
"""Quarter turns counter-clockwise with which the photos are stored."""
CODES = {0: 1, 1: 6, 2: 3, 3: 8}
FILES = ("features.h5", "pairs.txt", "pairs.tsv", "matches.h5", "verification.h5")


def write_photos(folder: Path, turns: dict[str, int]) -> Path:
    """Overlapping crops of one smooth texture, stored in these turns as PNG without EXIF."""
    rng = np.random.default_rng(5)
    coarse = PILImage.fromarray(rng.integers(0, 256, (60, 80), np.uint8))
    texture = np.asarray(coarse.resize((320, 240), PILImage.Resampling.BICUBIC))
    folder.mkdir()
    for i, (name, turn) in enumerate(turns.items()):
        left, top = 12 * i, 9 * (i % 3)
        crop = np.repeat(texture[top : top + 140, left : left + 180, None], 3, axis=2)
        PILImage.fromarray(np.ascontiguousarray(np.rot90(crop, turn))).save(folder / name)
    return folder


@pytest.fixture(scope="module", autouse=True)
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes features=patches known."""
    configs = tmp_path_factory.mktemp("configs")
    (configs / "features").mkdir()
    for name in ("patches", "more"):
        (configs / "features" / f"{name}.yaml").write_text("name: turn_sensitive:Patches\nmax_keypoints: 250\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFM_LIGHTGLUE_CONFIGS", str(configs))
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `photos`, and `out` in which the stages up to `verify` have run."""
    folder = tmp_path_factory.mktemp("verified")
    run = open_run(write_photos(folder / "photos", TURNS))
    for name in ("extract", "pairs", "match", "verify"):
        pipeline.run_stage(run, name)
    return folder


@pytest.fixture(scope="module")
def oriented(verified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after the stage `orient`."""
    folder = tmp_path_factory.mktemp("oriented")
    shutil.copytree(verified, folder, dirs_exist_ok=True)
    pipeline.run_stage(open_run(folder / "photos"), "orient")
    return folder


@pytest.fixture
def photos(verified: Path, tmp_path: Path) -> Path:
    """Photos with a copy of `verified`."""
    shutil.copytree(verified, tmp_path, dirs_exist_ok=True)
    return tmp_path / "photos"


def open_run(photos: Path, output: str = "out", *overrides: str) -> Run:
    given = ["dataset=folder", f"dataset.images='{photos}'", f"output='{photos.parent / output}'", "features=patches"]
    matcher = ["matches=nearest_neighbor", "matches.max_distance=0.5", "geometries.min_mean_score=0"]
    return Run.create(compose_config([*given, *matcher, *overrides]))


def run_to_orient(run: Run) -> None:
    for name in ("extract", "pairs", "match", "verify", "orient"):
        pipeline.run_stage(run, name)


def orientations(run: Run) -> dict[str, int]:
    with run.folder.open_features() as reader:
        return {name: reader.orientation(name) for name in reader.names()}


def num_verified(run: Run) -> int:
    with H5Reader(run.folder.verification) as reader:
        return sum(reader.num_inliers(pair.name0, pair.name1) > 0 for pair in run.folder.read_pairs())


def content(run: Run) -> dict[str, bytes]:
    return {name: (run.folder.path / name).read_bytes() for name in (*FILES, "orientations.tsv")}


def test_photos_turned_at_random_are_all_turned_back(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run(photos)
    assert num_verified(run) == 3
    with caplog.at_level(logging.INFO):
        pipeline.run_stage(run, "orient")
    assert orientations(run) == {name: CODES[turn] for name, turn in TURNS.items()}
    assert num_verified(run) == 10, "all pairs, as if the photos had been upright"
    record = json.loads(run.folder.summary.read_text())["stages"]
    assert [*record["orient"]["turned"]] == ["d.png", "e.png"]
    assert record["orient"]["num_tried"] == 2, "of all passes: the last one tries nothing"
    assert record["orient"]["turned"]["e.png"].startswith("orientation 3, turned: 0, 0, ")
    assert record["verify"]["num_verified_pairs"] == 10
    lines = [message for message in caplog.messages if message.startswith("orient: ")]
    assert lines[0].endswith("2 are turned: d.png, e.png (reasons in orientations.tsv)")
    assert sum("may lie on its side" in message for message in lines) == 1


def test_the_same_command_again_tries_nothing(oriented: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(oriented / "photos")
    before = content(run)
    monkeypatch.setattr(trials.Trials, "compare", lambda *arguments: pytest.fail("a photo is tried again"))
    run_to_orient(run)
    assert content(run) == before


INTERRUPTED = [
    "match",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("write_decisions", "extract", "pairs", "verify")),
]


@pytest.mark.parametrize("interrupted", INTERRUPTED)
def test_a_run_killed_anywhere_continues_to_the_same_bytes(
    photos: Path, oriented: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    run = open_run(photos)
    with monkeypatch.context() as patched:
        where = "sfm_lightglue.orient.stage" if interrupted == "write_decisions" else "sfm_lightglue.repeats"
        patched.setattr(f"{where}.{interrupted}", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_stage(run, "orient")
    run_to_orient(open_run(photos))
    assert content(run) == content(open_run(oriented / "photos"))


def test_escalation_turns_only_photos_that_stay_weak_with_all_kinds(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", TURNS)
    given = ["dataset=folder", f"dataset.images='{photos}'", f"output='{tmp_path / 'out'}'", "features=[patches,more]"]
    matcher = ["matches=nearest_neighbor", *(f"matches.{kind}.max_distance=0.5" for kind in ("patches", "more"))]
    run = Run.create(compose_config([*given, *matcher, "matches.escalate=true", "geometries.min_mean_score=0"]))
    run_to_orient(run)
    assert not run.folder.orientations.exists() and set(orientations(run).values()) == {1}
    pipeline.run_stage(run, "escalate")
    assert orientations(run) == {name: CODES[turn] for name, turn in TURNS.items()} and num_verified(run) == 10
    assert all({pair.name0, pair.name1} & {"d.png", "e.png"} for pair in read_escalation(run.folder.escalation))


@pytest.mark.parametrize("orientation", ["exif", "stored"])
def test_without_auto_the_stage_does_nothing(photos: Path, orientation: str) -> None:
    run = open_run(photos, "out", f"features.orientation={orientation}")
    pipeline.run_stage(run, "orient")
    assert set(orientations(run).values()) == {1} and not run.folder.orientations.exists()
    assert "orient" not in json.loads(run.folder.summary.read_text())["stages"]


def test_upright_photos_are_not_tried_and_keep_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright = write_photos(tmp_path / "upright", dict.fromkeys(TURNS, 0))
    monkeypatch.setattr(trials.Trials, "compare", lambda *arguments: pytest.fail("an upright photo is tried"))
    for choice in ("auto", "stored"):
        run_to_orient(open_run(upright, choice, f"features.orientation={choice}"))
    assert not (tmp_path / "auto" / "orientations.tsv").exists()
    for name in FILES:
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes()


def test_a_changed_photo_loses_its_decision(oriented: Path, tmp_path: Path) -> None:
    shutil.copytree(oriented, tmp_path, dirs_exist_ok=True)
    photo = tmp_path / "photos" / "e.png"
    PILImage.open(photo).transpose(PILImage.Transpose.ROTATE_180).save(photo)  # now upright
    run = open_run(tmp_path / "photos")
    run_to_orient(run)
    assert orientations(run)["e.png"] == 1 and num_verified(run) == 10


def write_exif(photo: Path, code: int) -> None:
    """Gives a photo this orientation in EXIF. Its pixels stay."""
    exif = PILImage.Exif()
    exif[0x0112] = code
    PILImage.open(photo).save(photo, exif=exif)


def decided(run: Run) -> dict[str, list[str]]:
    """Name -> the columns of `orientations.tsv` after it."""
    rows = [line.split("\t") for line in run.folder.orientations.read_text().splitlines()[1:]]
    return {name: columns for name, *columns in rows}


def test_one_wrong_note_in_exif_does_not_turn_the_photos_that_are_upright(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", dict.fromkeys(TURNS, 0))
    for name, code in {"a.png": 1, "b.png": 1, "d.png": 6}.items():
        write_exif(photos / name, code)
    run = open_run(photos)
    run_to_orient(run)
    assert orientations(run) == dict.fromkeys(TURNS, 1)
    assert [*decided(run)] == ["d.png"] and decided(run)["d.png"][:2] == ["1", "True"]


def test_as_many_photos_that_exif_turns_decide_what_is_up(tmp_path: Path) -> None:
    """Two photos without EXIF are the largest group. Two others, turned by EXIF, join it, and the first two turn to them."""
    turns = {"a.png": 3, "b.png": 3, "d.png": 1, "e.png": 2}
    photos = write_photos(tmp_path / "photos", turns)
    write_exif(photos / "d.png", 6)
    write_exif(photos / "e.png", 3)
    run = open_run(photos)
    run_to_orient(run)
    assert orientations(run) == {name: CODES[turn] for name, turn in turns.items()}
    for name, (_, turned, reason, *_) in decided(run).items():
        assert reason.startswith("turned" if turned == "True" else "not turned"), name
        assert "best as it is" not in reason


def test_a_photo_of_something_else_keeps_its_orientation(photos: Path) -> None:
    rng = np.random.default_rng(99)
    other = PILImage.fromarray(rng.integers(0, 256, (35, 45, 3), np.uint8)).resize((180, 140), PILImage.Resampling.BICUBIC)
    other.save(photos / "z.png")
    run = open_run(photos)
    run_to_orient(run)
    assert orientations(run)["z.png"] == 1
    row = next(line for line in run.folder.orientations.read_text().splitlines() if line.startswith("z.png"))
    assert "False\tno turn is clearly the best: 0, 0, 0, 0 inliers" in row


def test_photos_that_no_turn_can_help_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has no keypoints, the other is in no pair of the user's list."""
    photos, masks = write_photos(tmp_path / "photos", TURNS), tmp_path / "masks"
    masks.mkdir()
    PILImage.fromarray(np.zeros((180, 140), np.uint8)).save(masks / "d.png")
    (tmp_path / "list.txt").write_text("a.png b.png\na.png c.png\nb.png c.png\na.png d.png\nd.png e.png\n")
    monkeypatch.setattr(trials.Trials, "compare", lambda *arguments: pytest.fail("a photo is tried"))
    run = open_run(photos, "out", "pairs=list", f"pairs.path='{tmp_path / 'list.txt'}'", f"dataset.masks='{masks}'")
    run_to_orient(run)
    assert not run.folder.orientations.exists()


def test_a_turned_photo_stays_turned_if_it_is_tried_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"a.png": 0, "b.png": 0, "d.png": 1})
    known = {"d.png": Decision("d.png", 6, True, "turned: before", 100, 2, content_hash(photos / "d.png"))}
    for inliers in ((0, 0, 0, 0), (99, 0, 0, 0)):
        search = Search(lambda *arguments, inliers=inliers: Outcome(inliers), ["a.png", "b.png"], {})
        search.run([["d.png"]], 5)
        decided = stage._decisions(search, ["a.png", "b.png"], {"a.png": 1, "b.png": 1, "d.png": 6}, photos, known)
        assert decided == known


def test_unrelated_photos_are_given_up_soon_and_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, photos, tried = np.random.default_rng(3), tmp_path / "photos", []
    photos.mkdir()
    for name in "abcdefg":
        pixels = PILImage.fromarray(rng.integers(0, 256, (20, 25, 3), np.uint8))
        pixels.resize((100, 80), PILImage.Resampling.BICUBIC).save(photos / f"{name}.png")
    compare = trials.Trials.compare
    monkeypatch.setattr(trials.Trials, "compare", lambda self, name, *rest: tried.append(name) or compare(self, name, *rest))
    run = open_run(photos)
    run_to_orient(run)
    assert tried == ["b.png", "c.png", "d.png"]
    assert decided(run)["g.png"][2].startswith("not tried: ")
    assert "orient: " in capsys.readouterr().err, "a progress bar"
    pipeline.run_stage(run, "orient")
    assert len(tried) == 3


def test_the_trials_turn_photos_and_masks_and_survive_an_unreadable_photo(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = photos.parent / "masks"
    masks.mkdir()
    upright = np.full((140, 180), 255, np.uint8)
    upright[:70] = 0
    PILImage.fromarray(np.ascontiguousarray(np.rot90(upright, TURNS["d.png"]))).save(masks / "d.png")
    run = open_run(photos, "out", f"dataset.masks='{masks}'")
    tried = repeats._open_trials(run, dict.fromkeys(TURNS, 1))
    (photos / "b.png").write_bytes(b"no photo any more")
    outcome = tried.compare("d.png", ["a.png", "b.png", "c.png"], dict.fromkeys(TURNS, 0))
    assert outcome.is_clear and outcome.best == 1
    calls: list[int] = []
    count = tried._inliers
    monkeypatch.setattr(tried, "_inliers", lambda *both: calls.append(count(*both)) or calls[-1])
    assert tried.compare("d.png", ["a.png", "c.png"], dict.fromkeys(TURNS, 0)).is_clear
    assert len(calls) == 4, "the first partner is enough"
    assert not tried.compare("b.png", ["a.png"], dict.fromkeys(TURNS, 0)).is_clear
    picture = upright_image(dataclasses.replace(tried._picture("d.png"), orientation=CODES[1]))
    np.testing.assert_array_equal(picture.mask, upright > 0)


def test_the_trials_see_the_photos_and_masks_of_the_run(tmp_path: Path) -> None:
    """Masks may be relative to the folder that holds all photos, and 16-bit photos have the range of their camera."""
    (tmp_path / "photos" / "cam").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    ramp = np.linspace(0, 1000, 180 * 140).reshape(140, 180)
    for name, contrast in {"a": 1, "b": 8}.items():
        PILImage.fromarray((1000 + contrast * ramp).astype(np.uint16)).save(tmp_path / "photos" / "cam" / f"{name}.png")
    kept = ramp > 300
    PILImage.fromarray(kept).save(tmp_path / "masks" / "b.png")
    run = open_run(tmp_path / "photos", "out", f"dataset.masks='{tmp_path / 'masks'}'")
    names = ["cam/a.png", "cam/b.png"]
    tried = repeats._open_trials(run, dict.fromkeys(names, 1))
    ranges = camera_ranges(tmp_path / "photos", names)
    for name in names:
        expected = load_image(tmp_path / "photos", name, ranges=ranges).pixels
        np.testing.assert_array_equal(tried._picture(name).pixels, expected)
    assert expected.max() > 3 * load_image(tmp_path / "photos", "cam/a.png", ranges=ranges).pixels.max(), "one range for both"
    assert tried._picture("cam/a.png").mask is None
    np.testing.assert_array_equal(tried._picture("cam/b.png").mask, kept)


@pytest.mark.parametrize(
    ("overrides", "turns"),
    [
        (["features=sift"], False),
        (["features=sift", "matches=lightglue"], True),
        (["features=disk", "matches=nearest_neighbor"], True),
        (["features=[sift,superpoint]", "matches.escalate=true"], True),
    ],
)
def test_features_that_match_turned_photos_are_not_turned_by_pictures(overrides: list[str], turns: bool) -> None:
    made = Run.create(compose_config(["+dataset=folder", "dataset.images=none", "output=none", *overrides]))
    assert repeats._turns_by_pictures(made) == turns
