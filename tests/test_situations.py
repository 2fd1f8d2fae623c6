"""Situations that people meet with their own photos and files: what is given, and what must happen.

Each row is a test. The functions in `situations/` make the input and check the right value through the commands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from situations import checks, exported, files, geometry, photos


@dataclass(frozen=True)
class Situation:
    """One row of the table."""

    part: str
    given: str
    expected: str
    check: Callable[..., None]
    is_slow: bool = False


S = Situation
SITUATIONS = (
    S("orientation", "portrait and landscape photos, EXIF says which", "all are registered", photos.turned_with_tags),
    S("orientation", "the same photos without EXIF", "all are registered", photos.turned_without_tags, True),
    S("orientation", "a photo that EXIF turns", "keypoints in the stored frame, exactly", photos.coordinates_of_a_turned_photo),
    S("orientation", "`features.orientation=stored`", "EXIF is not applied", photos.orientation_switched_off),
    S("masks", "`00.jpg.png` for `00.jpg`", "applied and counted", photos.mask_with_colmaps_name),
    S("masks", "`00.png` for `00.jpg`", "applied and counted", photos.mask_with_the_stem),
    S("masks", "`00.JPG.PNG` for `00.jpg`", "applied and counted", photos.mask_in_another_case),
    S("masks", "the other Unicode form of an umlaut", "applied and counted", photos.mask_in_another_unicode_form),
    S("masks", "one file for all photos", "applied and counted", photos.one_mask_for_all),
    S("masks", "one mask for a folder", "applied and counted", photos.one_mask_per_folder),
    S("masks", "black where transparent", "applied and counted", photos.mask_in_the_alpha_channel),
    S("masks", "an upright mask for a photo stored on its side", "turned, not stretched", photos.mask_in_the_other_orientation),
    S("masks", "a mask of another shape", "refused before extraction", photos.mask_of_another_shape),
    S("masks", "transparent parts of a photo", "no keypoints there", photos.transparent_parts),
    S("masks", "masks for one of three photos", "`masks: 1 of 3 photos`", photos.photos_without_a_mask),
    S("formats", "WebP photos", "points have colours", photos.points_of_webp_photos_have_colours),
    S("formats", "a 16-bit photo with values 29000 to 29600", "more than 100 grey levels", photos.thermal_photo),
    S("formats", "an EPS file named holiday.jpg", "left out, no interpreter starts", photos.eps_named_jpg),
    S("formats", "a photo of 200 megapixels", "has keypoints", photos.photo_of_200_megapixels),
    S("folders", "thumbnails, a recycle bin, masks beside images", "no photos", photos.folders_that_hold_no_photos),
    S("folders", "an earlier output among the photos", "no photos", photos.earlier_output_among_the_photos),
    S("folders", "a linked folder, and a link in a circle", "followed once", photos.linked_folders),
    S("GPS", "GPS in EXIF", "pose priors of all photos", geometry.gps_becomes_pose_priors),
    S("GPS", "GPS in EXIF", "the model is in metres", geometry.gps_gives_metres),
    S("GPS", "one wild position", "the others are in metres", geometry.one_wild_position),
    S("GPS", "`dataset.positions=gps.csv`", "the model is in metres", geometry.positions_from_a_table),
    S("GPS", "GPS in EXIF, `reconstruction.align=none`", "COLMAP's own frame", geometry.alignment_switched_off),
    S("GPS", "`reconstruction.position_priors=gps`, one wild position", "priors without effect of that one", geometry.wild_prior),
    S("GPS", "`pairs=spatial`", "pairs of photos taken side by side", geometry.pairs_of_neighbours),
    S("overlays", "a logo in every photo", "its matches are dropped", geometry.logo_in_every_photo),
    S("models", "two scenes, the smaller one found first", "0 is the largest", geometry.largest_model_first),
    S("models", "a pair that is no part of the scene", "no model below the minimum", geometry.models_below_the_minimum),
    S("models", "a second run that finds nothing", "the good model stays", geometry.good_model_and_a_run_that_finds_nothing),
    S("models", "a photo added in front", "the others keep their image ids", geometry.photo_added_in_front),
    S("files of others", "`database.db`", "refused, same bytes", files.foreign_database),
    S("files of others", "`reconstruction/notes.txt`", "refused, same bytes", files.foreign_reconstruction),
    S("files of others", "`reconstruction.clusters/notes.txt`", "refused, same bytes", files.foreign_clusters),
    S("files of others", "a database with pairs, but no images", "the message says so", files.database_without_images),
    S("files of others", "`pairs.txt`", "refused, same bytes", files.foreign_pairs),
    S("files of others", "`dense/fused.ply` in a model", "kept when models are replaced", files.own_file_in_a_model),
    S("files of others", "`output=` or no dataset", "refused, no folder is made", files.output_without_a_name),
    S("files of others", "a photo folder that does not exist", "refused, no folder is made", files.folder_that_does_not_exist),
    S("names", "`w/Müller`", "just works", files.folder_with_an_umlaut),
    S("names", "`(2024)`", "just works", files.folder_with_brackets),
    S("names", "`x=y`", "just works", files.folder_with_an_equals_sign),
    S("names", "`it's`", "just works", files.folder_with_an_apostrophe),
    S("names", "`a,b`", "just works", files.folder_with_a_comma),
    S("names", "`~/x`", "just works", files.folder_in_the_home_folder),
    S("names", "`run PHOTOS OUT`", "just works", files.run_with_two_folders),
    S("names", "names with spaces", "a warning about `images.txt`", files.names_with_spaces),
    S("names", "two Unicode forms of one name", "told apart", files.twins_of_one_name),
    S("lists", "pairs with comments and CRLF", "read", files.pair_list_with_comments),
    S("lists", "pairs with commas", "read", files.pair_list_with_commas),
    S("lists", "pairs with backslashes in UTF-16", "read", files.pair_list_of_windows),
    S("lists", "pairs that begin with `./`", "read", files.pair_list_with_dots),
    S("lists", "pairs with scores", "read", files.pair_list_with_scores),
    S("lists", "intrinsics of a folder and of a pattern", "read", files.intrinsics_by_folder),
    S("lists", "COLMAP's `cameras.txt`", "read", files.cameras_txt_of_colmap),
    S("lists", "`opencv,500,...`", "read", files.camera_in_lower_case),
    S("lists", "`500,500,160,120`", "read", files.camera_of_four_numbers),
    S("lists", "own keypoints without descriptors and sizes", "all are registered", files.own_keypoints_and_matches),
    S("lists", "`dataset.list=list.txt`", "only these photos", files.list_of_photos),
    S("lists", "a listed photo that is corrupt", "its pairs are left out", files.listed_photo_that_is_corrupt),
    S("lists", "folders left and right, in sequence", "pairs at equal times", files.stereo_folders),
    S("lists", "a video", "the answer says how to make frames", files.video_file),
    S("imported files", "keypoints at 1e30", "the photo is left out", files.keypoint_far_outside),
    S("imported files", "keypoints that are NaN", "the photo is left out", files.keypoint_that_is_nan),
    S("imported files", "an uncertainty that is infinite", "the photo is left out", files.infinite_uncertainty),
    S("imported files", "the match index 2^32 + 5", "refused by name", files.match_index_that_wraps),
    S("imported files", "a score that is NaN", "refused by name", files.score_that_is_nan),
    S("imported files", "an external link", "refused", files.external_link),
    S("imported files", "external storage", "refused", files.external_storage),
    S("imported files", "a virtual dataset", "refused", files.virtual_storage),
    S("imported files", "10^12 keypoints", "refused before they are read", files.size_of_terabytes),
    S("damaged files", "a cut `summary.json`", "named and rebuilt", files.cut_summary),
    S("damaged files", "a cut `settings.json`", "named and rebuilt", files.cut_settings),
    S("damaged files", "a cut `points3D.bin`", "named and rebuilt", files.cut_model),
    S("damaged files", "a model that was deleted", "rebuilt", files.missing_model),
    S("exports", "a folder that is not empty", "refused, same bytes", exported.folder_with_other_files),
    S("exports", "a file that was added to an earlier export", "refused, same bytes", exported.file_added_to_an_export),
    S("exports", "photos that have moved since the run", "`photos=DIR` is named", exported.photos_that_have_moved),
    S("exports", "`export gsplatting`", "the closest format is named", exported.format_that_does_not_exist),
    S("exports", "a run without a model", "told at once", exported.run_without_a_model),
    S(
        "exports",
        "`export openmvg`, two focal lengths",
        "refused, not rounded",
        exported.camera_with_two_focal_lengths,
    ),
    S("check first", "poses that are missing", "told at once", checks.poses_that_are_missing),
    S("check first", "poses that are malformed", "told at once", checks.poses_that_are_malformed),
    S("check first", "intrinsics for one of three photos", "told at once", checks.intrinsics_for_part_of_the_photos),
    S("check first", "the camera model of panoramas for other photos", "told at once", checks.panorama_model_for_other_photos),
    S("check first", "a list of pairs that is missing", "told at once", checks.list_that_is_missing),
    S("check first", "a list of pairs with unknown names", "told at once", checks.list_with_unknown_names),
    S("check first", "global descriptors that are missing", "told at once", checks.missing_global_descriptors),
    S("check first", "`pairs=poses` without poses", "told at once", checks.poses_for_pairs_that_are_missing),
    S("check first", "`pairs=covisibility` without its model", "told at once", checks.model_for_pairs_that_is_missing),
    S("check first", "`pairs=spatial` without number or radius", "told at once", checks.pairs_without_number_or_radius),
    S("check first", "`pairs.rounds=0`", "told at once", checks.rounds_below_one),
    S("check first", "a codebook that is missing", "told at once", checks.missing_codebook),
    S("check first", "the matcher's weights are missing", "told at once", checks.missing_weights_of_the_matcher),
    S("check first", "`features=raco`, its weights and LightGlue's are missing", "told at once", checks.missing_weights_of_raco),
    S("check first", "`a/b.jpg` and `a-b.jpg`", "told at once", checks.names_with_one_key),
    S("check first", "`geometries.max_error_px=0`", "told at once", checks.range_of_an_option),
    S("check first", "`reconstruction.position_priors=gps`, photos without GPS", "told at once", checks.priors_without_positions),
    S("check first", "`reconstruction.position_priors=gps`, no altitudes", "told at once", checks.priors_without_altitudes),
    S("check first", "`reconstruction.position_priors=poses` without poses", "told at once", checks.priors_without_poses),
    S("check first", "`reconstruction.position_priors=gps` with known poses", "told at once", checks.priors_of_known_poses),
    S("check first", "`reconstruction=clusters reconstruction.join=false`", "told at once", checks.clusters_that_are_not_joined),
    S(
        "several machines",
        "`execution.shard=0/3`, `4/3`, `abc`",
        "told at once what is expected",
        checks.shards_that_do_not_exist,
    ),
    S("several machines", "`run execution=shards`", "the commands that can be divided are named", checks.whole_run_in_shards),
    S("several machines", "`merge` without shards", "told what comes first", checks.merge_without_shards),
    S("several machines", "one of two shards is missing", "its command is named", checks.merge_without_all_shards),
    S("several machines", "a shard with other options", "refused, the option is named", checks.shard_with_other_options),
    S("several machines", "`execution=ray` without Ray", "told what to install", checks.ray_is_missing),
    S("several machines", "nothing answers at `execution.address`", "told at once", checks.address_without_an_answer),
    S("several kinds", "a list of one kind, or of one kind twice", "told at once", checks.list_of_one_kind),
    S("several kinds", "`matches.escalate=true` with one kind", "told at once", checks.escalation_of_one_kind),
    S("several kinds", "an option that does not name its kind", "told at once", checks.option_without_its_kind),
    S("several kinds", "an output folder of one kind", "refused", checks.several_kinds_in_the_folder_of_one),
    S("check first", "three mistakes", "all in one message", checks.several_mistakes),
    S("command line", "the command `run` is left out", "the answer has the whole command", checks.command_left_out),
    S("command line", "`--max-keypoints` instead of an option", "the option is named", checks.flag_instead_of_an_option),
    S(
        "command line",
        "`train` with photos or weights that are missing",
        "refused, no folder is left",
        checks.training_without_files,
    ),
    S("exit status", "photos of noise", "status 1 and the reason", checks.nothing_reconstructed),
    S("exit status", "3 of 8 photos, `strict=true`", "status 1", checks.half_of_the_photos_lost),
)


def _parameters() -> list[object]:
    marks = {True: (pytest.mark.slow,), False: ()}
    return [pytest.param(row, id=f"{row.part}: {row.given}: {row.expected}", marks=marks[row.is_slow]) for row in SITUATIONS]


def page() -> str:
    """The page `docs/reference/situations.md`: the table without the functions."""
    head = (
        "# Situations",
        "",
        "What happens with photos and files that are not as they should be. Each row is a test with a small input",
        "([tests/test_situations.py](../../tests/test_situations.py)).",
        "",
        "| | given | what happens |",
        "| --- | --- | --- |",
    )
    rows = [f"| {row.part} | {row.given} | {row.expected} |" for row in SITUATIONS]
    return "\n".join([*head, *rows]) + "\n"


def test_the_page_of_situations_shows_this_table() -> None:
    path = Path(__file__).resolve().parents[1] / "docs" / "reference" / "situations.md"
    assert path.read_text() == page(), "write the text of page() there"


@pytest.mark.parametrize("situation", _parameters())
def test_a_situation(situation: Situation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SFM_LIGHTGLUE_OFFLINE", "SFM_LIGHTGLUE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sfm_lightglue.presentation.draw_match_gallery", lambda *_, **__: [])  # pictures are tested elsewhere
    monkeypatch.setattr("sfm_lightglue.presentation.draw_reconstruction", lambda *_, **__: None)
    wanted = inspect.signature(situation.check).parameters
    situation.check(**({"monkeypatch": monkeypatch} if "monkeypatch" in wanted else {}))
