"""What people type: `PHOTOS OUT`, and names of files with any characters, as overrides in Hydra's grammar."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfm_lightglue.config import compose_config
from sfm_lightglue.overrides import PATH_OPTION, hydra_overrides, literal, separate_paths, with_photos_and_output

NAMES = (
    *(
        "w/Müller",
        "(2024)",
        "x=y",
        "it's",
        "a,b",
        "my photos",
        "photos/",
        "[a]",
        "{b}",
        "a#b",
        "100%",
        "😀",
        "a;b",
        "a:b",
        "$HOME",
    ),
    *(
        "007",
        "true",
        "1e5",
        " lead",
        "trail ",
        'a"b',
        "a\\b",
        "back\\",
        "a\\'b",
        "@x",
        "*",
        "a?b",
        "&x",
        "<x>",
        "-x",
        "+x",
        "~x~",
    ),
)
"""Ordinary names of folders that mean something else to a shell, to YAML or to Hydra."""
ONLY_IF_THERE = ("null", "'q'", '"q"', "${HOME}", "\\${x}", "x\\${y}", "choice(a)")
"""Names that have their meaning for Hydra unless a file of this name exists."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# --- values that are paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exists", [True, False])
def test_a_path_may_have_any_characters(name: str, exists: bool) -> None:
    if exists:
        Path(name).mkdir(parents=True)
    config = compose_config(["dataset=folder", f"dataset.images={name}", f"output={name}", "pairs=list", f"pairs.path={name}"])
    assert (config.dataset.images, config.output, config.pairs.path) == (name, name, name)


@pytest.mark.parametrize("name", ONLY_IF_THERE)
def test_a_path_that_exists_is_taken_literally(name: str) -> None:
    Path(name).mkdir()
    assert compose_config([f"dataset.images={name}", f"output={name}"]).dataset.images == name
    assert compose_config([f"output={literal(name)}"]).output == name


def test_interpolations_and_values_quoted_for_hydra_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS", "/my photos")
    given = [
        "dataset.images=${oc.env:PHOTOS}/(1)",
        "dataset.masks='my masks'",
        'dataset.poses="it\'s"',
        "output=out/${dataset.masks}",
    ]
    config = compose_config(given)
    assert (config.dataset.images, config.dataset.masks, config.dataset.poses) == ("/my photos/(1)", "my masks", "it's")
    assert config.output == "out/my masks"
    assert compose_config(["dataset.images=null", "dataset.masks="]).dataset.images is None


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    config = compose_config(["dataset.images=~/x", "dataset.masks='~/y'", "output=~"])
    assert [config.dataset.images, config.dataset.masks, config.output] == [f"{tmp_path}/home{end}" for end in ("/x", "/y", "")]
    Path("~").mkdir()
    assert compose_config(["output=~"]).output == "~"
    assert compose_config(["features.weights=~"]).features.weights == "~"


@pytest.mark.parametrize(
    "option",
    [
        *("dataset.images", "dataset.masks", "dataset.poses", "dataset.pairs", "output", "features.path", "matches.path"),
        *("pairs.path", "pairs.retrieval.global_descriptors", "features.weights", "matches.weights", "database.intrinsics"),
        *("data.images", "training.start", "training.teacher.weights", "training.to_teacher"),
    ],
)
def test_options_that_may_be_files_are_paths(option: str) -> None:
    assert PATH_OPTION.fullmatch(option)


def test_commas_sweep_over_paths_only_with_m() -> None:
    assert hydra_overrides(["dataset.images=a,b"]) == ["dataset.images='a,b'"]
    assert hydra_overrides(["dataset.images=it's,(b)", "-m"]) == ["dataset.images='it\\'s','(b)'", "-m"]
    assert hydra_overrides(["database.intrinsics=exif,single", "-m"]) == ["database.intrinsics='exif','single'", "-m"]
    assert hydra_overrides(["features.weights=choice(a,b)", "-m"]) == ["features.weights=choice(a,b)", "-m"]
    for camera in ("PINHOLE,1,2,3,4", "opencv,500,500,320,213,0,0,0,0", "500,500,320,213"):
        assert hydra_overrides([f"database.intrinsics={camera}", "-m"]) == [f"database.intrinsics='{camera}'", "-m"]
    Path("a,b").mkdir()
    assert hydra_overrides(["dataset.images=a,b", "-m"]) == ["dataset.images='a,b'", "-m"]


# --- PHOTOS OUT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        (["photos", "out", "features=sift", "-m"], ["photos", "out"]),
        (["features=sift", "photos", "--cfg", "job", "out"], ["photos", "out"]),
        (["a b/x=y", "w/x=y", "C:\\x=y", "~/x=y", "~/x"], ["a b/x=y", "w/x=y", "C:\\x=y", "~/x=y", "~/x"]),
        (["dataset=folder", "+dataset=a/b", "++output=a/b", "pairs@pairs.a=list", "~pairs", "hydra/job_logging=none"], []),
        (["feature=sift", "--config-dir", "folder", "-c", "job", "--resolve"], []),
    ],
)
def test_paths_are_told_from_options(arguments: list[str], paths: list[str]) -> None:
    assert separate_paths(arguments) == (paths, [argument for argument in arguments if argument not in paths])


def test_a_folder_that_looks_like_an_option_is_a_path_if_it_exists() -> None:
    assert separate_paths(["x=y", "output=z"])[0] == []
    for name in ("x=y", "output=z"):
        Path(name).mkdir()
    assert separate_paths(["x=y", "output=z"])[0] == ["x=y"]


@pytest.mark.parametrize("name", [*NAMES, *ONLY_IF_THERE])
def test_photos_and_output_are_short_for_three_options(name: str) -> None:
    name = f"./{name}"  # as a shell completes it, and needed for -x and x=y
    config = compose_config(with_photos_and_output([name, f"{name}-out", "features=sift"]))
    assert (config.dataset.name, config.dataset.images, config.output) == ("folder", name, f"{name}-out")
    assert config.features.name == "sift"
    assert compose_config(with_photos_and_output([name, f"output={name}", "dataset=folder"])).dataset.images == name


def test_other_arguments_stay_as_they_are() -> None:
    assert with_photos_and_output(["dataset=demo", "-m", "features=sift,disk"]) == ["dataset=demo", "-m", "features=sift,disk"]
    assert with_photos_and_output(["photos", "--cfg", "job"])[-2:] == ["--cfg", "job"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["photos"], "no output folder was given: write the photos and a folder for the results, such as photos OUT"),
        (["a", "b", "c"], "cannot read 'c': expected key=value, or PHOTOS OUT in front"),
        (["a", "b", "dataset.images=c"], "cannot read 'b': expected key=value"),
        (["dataset.images=c", "output=d", "nonsense"], "cannot read 'nonsense': expected key=value"),
        (["a", "b", "+dataset=demo"], r"the photos are given twice: leave out 'a' or '\+dataset=demo'"),
        (["a", "b", "output=c"], "the output folder is given twice: leave out 'b' or 'output=c'"),
    ],
)
def test_what_is_missing_or_given_twice_is_named(arguments: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        with_photos_and_output(arguments)


def test_a_path_of_python_is_quoted() -> None:
    assert literal(Path("it's (1)") / "b") == f"'it\\'s (1){os.sep}b'"


def test_photos_instead_of_their_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for name in ("p/1.jpg", "p/2.JPG"):
        (tmp_path / name).touch()
    for given, shown in ((["p/1.jpg", "p/2.JPG", "out"], "p out"), (["p/1.jpg", "p/2.JPG"], "p OUT")):
        with pytest.raises(ValueError, match=f"give the folder that holds the photos, not each photo, such as {shown}$"):
            with_photos_and_output([*given, "features=sift"])
