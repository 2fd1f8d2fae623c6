"""The YAML files: each binds to its dataclass, and the message for a mistake names the closest valid name."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image as PILImage
from safetensors.numpy import save_file

from sfm_lightglue import api, cli, pipeline, run_context
from sfm_lightglue.changed_options import changed_options
from sfm_lightglue.config import bind, check_keys, compose_config, options_class, without_keys
from sfm_lightglue.config_files import GROUPS, USER_CONFIGS, choices, config_dir
from sfm_lightglue.database import DatabaseOptions
from sfm_lightglue.features import EXTRACTORS
from sfm_lightglue.geometries.verification import VerificationOptions
from sfm_lightglue.matches import MATCHERS
from sfm_lightglue.networks.weights import HYPERCOLUMNS, find_weights
from sfm_lightglue.overrides import overrides_of
from sfm_lightglue.reconstruction import ReconstructionOptions
from sfm_lightglue.refinement import RefinementOptions
from sfm_lightglue.registry import load_class
from sfm_lightglue.run_context import Run, check_inputs
from sfm_lightglue.run_options import KEYS_OF_RUN, PLUGINS, DatasetOptions, choose_lightglue, choose_plugin, resolve, resolve_all
from sfm_lightglue.storage import H5Reader, SettingsChanged
from sfm_lightglue.training import TRAININGS
from sfm_lightglue.training.superpoint import SuperPointTraining

CHOICES = [(group, name) for group in GROUPS for name in choices(group) if name not in ("union", "several")]
"""Without the files of lists, which have no options of their own."""


def dataclass_of(group: str, node: DictConfig) -> type:
    """The dataclass that a group's values are bound to."""
    if group in PLUGINS:
        return options_class(load_class(str(node.name), PLUGINS[group], group))
    return {
        "dataset": DatasetOptions,
        "geometries": VerificationOptions,
        "refinement": RefinementOptions,
        "database": DatabaseOptions,
        "reconstruction": ReconstructionOptions,
    }[group]


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working folder, and the state that Hydra changes put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["sfm-lightglue"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


# --- every file binds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_binds_to_its_dataclass_with_equal_keys(group: str, name: str) -> None:
    config = compose_config([f"{group}={name}"])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "given by the user")
    bound_to, node = dataclass_of(group, config[group]), without_keys(config[group], KEYS_OF_RUN.get(group, ()))
    assert set(node) == {field.name for field in dataclasses.fields(bound_to)}
    options = bind(bound_to, node, group)
    assert dataclasses.asdict(options) == OmegaConf.to_container(node, resolve=True)


ANY_NUMBER = ("disk.detection_threshold", "imported.min_score")
"""Options for which every number makes sense: a logit, and scores of another program."""


@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] != "dataset"])
def test_every_number_has_a_range(group: str, name: str) -> None:
    config = compose_config([f"{group}={name}"])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "given by the user")
    bound_to, node = dataclass_of(group, config[group]), without_keys(config[group], KEYS_OF_RUN.get(group, ()))
    right = typing.cast(dict[str, Any], OmegaConf.to_container(node))
    types = typing.get_type_hints(bound_to)
    numbers = [key for key in types if {int, float} & {types[key], *typing.get_args(types[key])}]
    for key in set(numbers) - {field.partition(".")[2] for field in ANY_NUMBER if field.startswith(f"{name}.")}:
        for wrong in (-7, *([math.nan, math.inf] if float in (types[key], *typing.get_args(types[key])) else [])):
            node[key] = wrong
            with pytest.raises(ValueError, match=rf"{group}\.{key} "):
                bind(bound_to, node, group)
        node[key] = right[key]


def test_all_numbers_of_a_group_that_are_wrong_are_named() -> None:
    config = compose_config(["geometries.max_error_px=0", "geometries.confidence=1", "geometries.min_num_inliers=-1"])
    with pytest.raises(ValueError) as caught:
        bind(VerificationOptions, config.geometries, "geometries")
    assert str(caught.value).splitlines() == [
        "geometries.max_error_px must be more than 0, found 0.0",
        "geometries.min_num_inliers must be at least 0, found -1",
        "geometries.confidence must be more than 0 and less than 1, found 1.0",
    ]


def test_every_file_belongs_to_a_group() -> None:
    folders = {path.relative_to(config_dir()).parts[0] for path in config_dir().rglob("*.yaml")}
    assert folders - {"hydra", "experiment"} == {*GROUPS, "training", "pipeline.yaml", "train.yaml"}


@pytest.mark.parametrize("name", choices("training"))
def test_every_training_binds_to_its_dataclasses_with_equal_keys(name: str) -> None:
    config = compose_config([f"training={name}", "data.images=photos"], "train")
    network = config.training.name
    assert network in TRAININGS and name in (network, f"{network}_tuning", "superpoint_octaves")
    if name in ("superpoint_tuning", "superpoint_octaves"):
        config.training.start = "weights.safetensors"  # an output of the training of SuperPoint
    assert ("muon_momentum" in config.training.loop) == (network != "lightglue")  # LightGlue has no convolutions for Muon
    bound_to = typing.get_type_hints(load_class(network, TRAININGS, "training").create)["options"]
    options = bind(bound_to, config.training, "training")
    assert dataclasses.asdict(options) == OmegaConf.to_container(config.training, resolve=True)


def test_the_options_for_the_validation_of_a_training_bind_too() -> None:
    config = compose_config(["data.images=photos"], "train")
    for group, table in (("features", EXTRACTORS), ("matches", MATCHERS)):
        bind(options_class(load_class(config[group].name, table, group)), config[group], group)
    assert choose_plugin(config.execution, "execution").options.num_workers == 0
    assert OmegaConf.missing_keys(compose_config([], "train")) == {"data.images"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.views.width=many", r"option 'training\.views\.width': Value 'many' of type 'str' could not be converted"),
        ("+training.views.photometric.blurr=1", r"unknown option 'training\.views\.photometric\.blurr'\. Did you mean 'blur'\?"),
        ("training.losses.contrast=???", r"the option 'training\.losses\.contrast' must be given"),
        ("training.views.homographies=null", r"training\.views\.homographies=None is one value, expected a group of options"),
    ],
)
def test_a_mistake_in_a_nested_option_is_named_in_full(override: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        bind(SuperPointTraining, compose_config([override], "train").training, "training")


@pytest.mark.parametrize(("group", "table"), PLUGINS.items())
def test_every_plug_in_has_a_file_of_its_name(group: str, table: dict[str, Any]) -> None:
    assert set(choices(group)) == set(table)
    for name in choices(group):
        assert compose_config([f"{group}={name}"])[group].name == name


@pytest.mark.parametrize("name", choices("dataset"))
def test_every_dataset_has_the_name_of_its_file_and_knows_its_photos(name: str) -> None:
    dataset = OmegaConf.to_container(compose_config([f"dataset={name}"]).dataset, resolve=True)
    assert dataset["name"] == name
    assert (dataset["images"] is None) == (name == "folder")
    for key in ("images", "poses", "masks"):
        assert dataset[key] is None or Path(dataset[key]).parent.name == name


@pytest.mark.parametrize("name", choices("dataset"))
def test_a_dataset_is_chosen_with_and_without_plus(name: str) -> None:
    assert compose_config([f"dataset={name}"]) == compose_config([f"+dataset={name}"])


@pytest.mark.parametrize("name", choices("experiment"))
def test_a_preset_binds_and_explicit_options_override_it(name: str) -> None:
    config = compose_config([f"experiment={name}", "features.max_keypoints=77"])
    assert config == compose_config([f"+experiment={name}", "features.max_keypoints=77"])
    assert config.features.max_keypoints == 77
    check_keys(config)
    choose_lightglue(config.features, config.matches)
    for group, table in (("features", EXTRACTORS), ("matches", MATCHERS)):
        node = without_keys(config[group], KEYS_OF_RUN.get(group, ()))
        bind(options_class(load_class(config[group].name, table, group)), node, group)


@pytest.mark.parametrize("name", choices("experiment"))
@pytest.mark.parametrize("features", [name for name in choices("features") if name != "several"])
@pytest.mark.parametrize("matches", [name for name in choices("matches") if name != "several"])
def test_a_preset_works_with_all_features_and_matchers(name: str, features: str, matches: str) -> None:
    choice = [f"features={features}", f"matches={matches}", *(["matches.trained_for=disk"] if matches == "lightglue" else [])]
    config = compose_config([f"experiment={name}", "dataset.images=photos", *choice])
    for group in ("features", "matches"):
        if OmegaConf.is_missing(config[group], "path"):
            config[group].path = "given by the user"
    options = resolve(config)
    assert (options.features.options.name, options.matches.options.name) == (config.features.name, config.matches.name)


def test_a_preset_sets_only_options_that_the_features_have() -> None:
    options = resolve(compose_config(["experiment=fast", "features=disk", "dataset.images=photos"]))
    assert (options.features.options.max_keypoints, options.matches.options.precision) == (1024, "low")
    assert "precision" not in options.configuration["features"]


def test_an_option_that_the_features_do_not_have_is_refused_if_the_user_gives_it() -> None:
    config = compose_config(["experiment=fast", "features=disk", "features.precision=low", "dataset.images=photos"])
    with pytest.raises(ValueError, match=r"unknown option 'features\.precision'"):
        resolve(config).features.create("cpu")


def test_the_former_default_preset_equals_no_preset() -> None:
    assert compose_config(["experiment=default"]) == compose_config([])
    assert compose_config(["experiment=fast"]) != compose_config(["experiment=quality"]) != compose_config([])


def test_a_list_of_devices_is_one_value_and_no_sweep() -> None:
    assert compose_config(["execution.device=cuda:0,cuda:1"]).execution.device == "cuda:0,cuda:1"
    assert compose_config(["execution.device=cpu,cpu"]).execution.device == "cpu,cpu"


def test_the_output_is_named_after_the_dataset() -> None:
    assert compose_config(["dataset=fountain_p11"]).output == "outputs/fountain_p11"
    assert compose_config(["dataset=fountain_p11", "output=elsewhere"]).output == "elsewhere"


# --- overrides -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "camera",
    [
        *("PINHOLE,1,2,3,4", "PINHOLE,1.5,2e3,-3,+4", "SIMPLE_RADIAL,1,2,3,-0.1", "PINHOLE:1:2:3:4", "'PINHOLE 1 2 3 4'", "exif"),
        *("opencv,1,2,3,4,5,6,7,8", "500,500,320,213", "5e2,320,213"),
    ],
)
def test_a_camera_is_given_without_quotes(camera: str) -> None:
    assert compose_config([f"database.intrinsics={camera}"]).database.intrinsics == camera.strip("'")


@pytest.mark.parametrize(
    ("intrinsics", "refined"),
    [
        *((intrinsics, True) for intrinsics in ("exif", "single", "per_folder", "per_image")),
        *((intrinsics, False) for intrinsics in ("poses", "PINHOLE:1:2:3:4", "PINHOLE,1,2,3,4", "folder/intrinsics.txt")),
    ],
)
def test_intrinsics_are_refined_unless_given(intrinsics: str, refined: bool) -> None:
    assert compose_config([f"database.intrinsics={intrinsics}"]).reconstruction.refine_intrinsics is refined


def test_refining_can_be_chosen_against_the_default() -> None:
    config = compose_config(["database.intrinsics=exif", "reconstruction.refine_intrinsics=false"])
    assert config.reconstruction.refine_intrinsics is False


def test_the_weights_of_the_matcher_follow_the_features() -> None:
    assert compose_config(["features=disk", "matches=lightglue"]).matches.trained_for == "disk"


@pytest.mark.parametrize(
    "path",
    [
        "plain",
        "with blanks",
        "o'brien's (1), 50% {off} [x] a=b",
        "C:\\back\\slash\\",
        "\\\\'\\x",
        "东京/ü",
        "#1",
        "null",
        "1.0",
        "a:b",
        '"quoted"',
    ],
)
def test_paths_with_special_signs_reach_the_run_from_python(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(
        pipeline, "run_all", lambda run: {"images": run.options.dataset.images, "output": str(run.options.output)}
    )
    assert api.run(path, path) == {"images": path, "output": str(Path(path))}


def test_values_of_any_kind_can_be_given_from_python() -> None:
    overrides = overrides_of("features", {"a": None, "b": True, "c": 1e-3, "d": "text, text", "e": 7})
    assert overrides == ["features.a=null", "features.b=true", "features.c=0.001", "features.d='text, text'", "features.e=7"]


# --- the user's own files --------------------------------------------------------------------------------------------------


def test_the_extractor_of_the_documentation_is_all_that_a_plug_in_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "guide" / "plugins.md").read_text()
    (tmp_path / "corners_of_the_documentation.py").write_text(text.split("```python\n")[1].split("```")[0])
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "corners.yaml").write_text("name: corners_of_the_documentation:Corners\nstep: 8\n")
    PILImage.new("RGB", (64, 48), "red").save(tmp_path / "photo.png")
    (tmp_path / "masks").mkdir()
    PILImage.fromarray(np.repeat(np.uint8([[255, 0]]), 32, axis=1)).resize((64, 48)).save(tmp_path / "masks" / "photo.png.png")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(USER_CONFIGS, str(tmp_path))
    given = ["features=corners", "dataset=folder", f"dataset.images='{tmp_path}'", f"output='{tmp_path}/out'"]
    given.append(f"dataset.masks='{tmp_path}/masks'")
    pipeline.extract(Run.create(compose_config([*given, "experiment=quality"])))
    with H5Reader(tmp_path / "out" / "features.h5") as reader:
        assert len(reader.features("photo.png")) == 24  # of 48, the mask leaves the left half
    with pytest.raises(SettingsChanged, match=r"options\.step: 8 -> 4"):
        pipeline.extract(Run.create(compose_config([*given, "features.step=4"])))


def test_the_user_s_own_folder_adds_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "few.yaml").write_text("defaults: [sift]\nmax_keypoints: 7\n")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("name: mine\nimages: /photos\n")
    monkeypatch.setenv(USER_CONFIGS, str(tmp_path))
    config = compose_config(["features=few", "dataset=mine"])
    assert (config.features.name, config.features.max_keypoints) == ("sift", 7)
    assert resolve(config).dataset.images == "/photos"
    assert "few" in choices("features")
    with pytest.raises(ValueError, match=r"features=feew does not exist. Did you mean 'few'\?"):
        compose_config(["features=feew"])


def test_masks_cannot_be_used_with_imported_matches() -> None:
    given = ["features=imported", "features.path=f.h5", "matches=imported", "matches.path=m.h5", "+dataset=folder"]
    resolve(compose_config([*given, "dataset.images=photos"]))
    with pytest.raises(ValueError, match=r"dataset\.masks drops keypoints"):
        resolve(compose_config([*given, "dataset.images=photos", "dataset.masks=masks"]))


def test_a_mistyped_key_in_the_user_s_own_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("name: mine\nimagez: /photos\n")
    monkeypatch.setenv(USER_CONFIGS, str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown option 'dataset.imagez'. Did you mean 'images'\?"):
        resolve(compose_config(["dataset=mine"]))


# --- mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+dataset=fontain_p11"], "dataset=fontain_p11 does not exist. Did you mean 'fountain_p11'? There are: "),
        (["dataset=fontain_p11"], "dataset=fontain_p11 does not exist. Did you mean 'fountain_p11'? There are: "),
        (["features=alikd"], "features=alikd does not exist. Did you mean 'aliked'? There are: "),
        (["pairs=sequental"], "pairs=sequental does not exist. Did you mean 'sequential'? There are: "),
        (["matches=lightgleu"], "matches=lightgleu does not exist. Did you mean 'lightglue'? There are: "),
        (["reconstruction=globl"], "reconstruction=globl does not exist. Did you mean 'global'? There are: "),
        (["feature=disk"], "unknown option 'feature'. Did you mean 'features'? There are: "),
        (["+feature=disk"], "unknown option 'feature'. Did you mean 'features'? There are: "),
        (["++feature=disk"], "unknown option 'feature'. Did you mean 'features'? There are: "),
        (["datasset.images=x"], "unknown option 'datasset'. Did you mean 'dataset'? There are: "),
        (["outputs=x"], "unknown option 'outputs'. Did you mean 'output'? There are: "),
        (["features.max_keypoint=9"], "unknown option 'features.max_keypoint'. Did you mean 'max_keypoints'? There are: "),
        (["+features.max_keypoint=9"], "unknown option 'features.max_keypoint'. Did you mean 'max_keypoints'? There are: "),
        (["++features.max_keypoint=9"], "unknown option 'features.max_keypoint'. Did you mean 'max_keypoints'? There are: "),
        (
            ["+matches.filter_treshold=1"],
            "unknown option 'matches.filter_treshold'. Did you mean 'filter_threshold'? There are: ",
        ),
        (["+pairs.nam=1"], "unknown option 'pairs.nam'. Did you mean 'name'? There are: "),
        (["+database.intrinsic=x"], "unknown option 'database.intrinsic'. Did you mean 'intrinsics'? There are: "),
        (["+reconstruction.sed=1"], "unknown option 'reconstruction.sed'. Did you mean 'seed'? There are: "),
        (["+execution.devise=cpu"], "unknown option 'execution.devise'. Did you mean 'device'? There are: "),
        (["dataset.image=x"], "unknown option 'dataset.image'. Did you mean 'images'? There are: "),
        (["+dataset.image=x"], "unknown option 'dataset.image'. Did you mean 'images'? There are: "),
        (["features.max_keypoints=many"], "option 'features.max_keypoints': Value 'many' of type 'str' could not be converted"),
        (["features.name=alikd"], "features 'alikd' does not exist. Did you mean 'aliked'? There are: "),
        (["reconstruction.name=globl"], "there is no mapper 'globl'. Did you mean 'global'? There are: "),
        (
            ["execution.if_settings_changed=recomput"],
            "execution.if_settings_changed='recomput' does not exist. Did you mean 'recompute'? There are: ",
        ),
        (
            ["execution=thread"],
            "execution=thread does not exist. Did you mean 'threads'? There are: ",
        ),
        (
            ["execution.name=dask"],
            "execution 'dask' does not exist. There are: local, processes, ray, shards, threads; or give your own as ",
        ),
        (["execution.name=proceses"], "execution 'proceses' does not exist. Did you mean 'processes'? There are: "),
        (["execution.num_processes=2"], "unknown option 'execution.num_processes'. "),
        (
            ["execution=processes", "execution.num_processes=-1"],
            "execution.num_processes must be 0 (chosen by the device)",
        ),
        (["execution.num_workers=-1"], "execution.num_workers must be 0 (one per core) or more, found -1"),
        (["database.camera_model=PINHOL"], "database.camera_model='PINHOL' does not exist. Did you mean 'PINHOLE'? There are: "),
        (["database.intrinsics=exiff"], "database.intrinsics='exiff' is not known. Did you mean 'exif'? There are: "),
        (["features=imported"], "the option 'features.path' must be given: features.path=..."),
        (["dataset.images=/no/such/folder"], "image folder /no/such/folder does not exist: give a folder of photos"),
        (["dataset.images=null"], "no photos were given: add dataset.images=DIR, or +dataset=NAME"),
        (["nonsense"], "cannot read 'nonsense': expected key=value"),
        (["dataset.images=/photos(1)"], "image folder /photos(1) does not exist: give a folder of photos"),
        (["features.max_keypoints=(1)"], "cannot read 'features.max_keypoints=(1)': expected key=value, or key="),
    ],
)
def test_a_mistake_is_explained_in_one_line_before_any_work(
    command_line: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str
) -> None:
    (command_line / "photo.jpg").touch()
    known = [] if any(override.lstrip("+").startswith("dataset=") for override in overrides) else ["+dataset=folder"]
    assert cli.main(["run", *known, f"dataset.images={command_line}", "output=out", *overrides]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: {expected}")


def test_a_mistyped_key_far_from_all_others_names_no_closest(command_line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "+dataset=demo", "zzzz=1"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown option 'zzzz'. There are: ")


# --- sweeps ----------------------------------------------------------------------------------------------------------------


def test_a_sweep_writes_each_job_to_a_folder_of_its_own(command_line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "extract", runs.append)
    assert cli.main(["extract", "dataset=folder", "dataset.images=/a/b", "output=out", "features=xfeat,disk", "-m"]) == 0
    assert [run.options.features.options.name for run in runs] == ["xfeat", "disk"]
    assert [run.options.output for run in runs] == [Path("out/features=xfeat"), Path("out/features=disk")]


def test_the_folder_of_a_job_is_named_after_all_that_the_sweep_varies(
    command_line: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "extract", runs.append)
    swept = ["database.intrinsics=PINHOLE,1,2,3,4", "dataset.images=a/x,b/y", "reconstruction.seed=1,2"]
    assert cli.main(["extract", "dataset=folder", f"dataset.poses='{'very long ' * 50}'", *swept, "--multirun"]) == 0
    names = [run.options.output.relative_to("outputs/folder").name for run in runs]
    assert names == [f"dataset.images={images},reconstruction.seed={seed}" for images in ("a_x", "b_y") for seed in (1, 2)]
    assert {run.options.database.intrinsics for run in runs} == {"PINHOLE,1,2,3,4"}


def test_the_folder_of_a_job_with_several_kinds_is_named_after_what_varies_alone(
    command_line: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "extract", runs.append)
    swept = ["features=[sift,superpoint]", "matches.escalate=true,false"]
    assert cli.main(["extract", "dataset=folder", "dataset.images=a", *swept, "-m"]) == 0
    names = {run.options.output.relative_to("outputs/folder").name: run.options for run in runs}
    assert [*names] == ["matches.escalate=True", "matches.escalate=False"]
    assert all(options.kinds[1].matches.options.trained_for == "superpoint-open" for options in names.values())


def test_jobs_of_a_sweep_go_on_after_one_that_fails(
    command_line: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []

    def extract(run: Run) -> None:
        if run.options.reconstruction.seed == 1:
            raise ValueError("the first job failed")
        done.append(run.options.reconstruction.seed)

    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "extract", extract)
    assert cli.main(["extract", "dataset=folder", "reconstruction.seed=1,2", "-m"]) == 1
    assert done == [2]
    assert "error: the first job failed\n" in capsys.readouterr().err


def test_a_single_run_keeps_its_output(command_line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    monkeypatch.setattr(run_context, "check_inputs", lambda *_: None)
    monkeypatch.setattr(pipeline, "extract", runs.append)
    assert cli.main(["extract", "dataset=folder", "output=out"]) == 0
    assert runs[0].options.output == Path("out")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "superpoint-open"),
        (["matches.weights=mine.safetensors"], "superpoint-open"),
        (["features.weights=superpoint-official"], "superpoint"),
        (["matches.weights=superpoint-lightglue"], "superpoint"),
        (["features=disk"], "disk"),
        (["matches=nearest_neighbor"], None),
    ],
)
def test_lightglue_is_the_one_trained_for_the_superpoint_that_gives_the_features(overrides: list[str], expected: str) -> None:
    options = resolve(compose_config(["dataset=demo", *overrides])).matches.options
    assert getattr(options, "trained_for", None) == expected


def trained(path: Path, **metadata: str) -> Path:
    """A file of weights with the metadata that our training writes."""
    save_file({"weight": np.zeros(1, np.float16)}, path, {"network": "SuperPoint", "origins": "aliked-n16 5be87", **metadata})
    return path


def test_copies_of_the_open_superpoint_and_weights_with_its_descriptors_get_its_lightglue(tmp_path: Path) -> None:
    tuned = trained(tmp_path / "tuned.safetensors", descriptors=HYPERCOLUMNS)
    for path in (Path(shutil.copy(find_weights("superpoint-open"), tmp_path / "copy.safetensors")), tuned):
        matches = resolve(compose_config(["dataset=demo", f"features.weights='{path}'"])).matches
        assert matches.options.trained_for == "superpoint-open" and not matches.problem


def test_a_superpoint_trained_from_scratch_needs_its_own_lightglue(tmp_path: Path) -> None:
    path = trained(tmp_path / "mine.safetensors")
    given = ["dataset=demo", f"features.weights='{path}'"]
    run = Run.create(compose_config(given))  # extracting with these weights is allowed
    with pytest.raises(ValueError, match=r"mine\.safetensors: give matches\.weights=FILE"):
        check_inputs(run)
    with pytest.raises(ValueError, match=r"mine\.safetensors: give matches\.weights=FILE"):
        run.matcher()
    for more in (
        "matches.weights=yours.safetensors",
        "matches.trained_for=superpoint",
        "matches=nearest_neighbor",
        "features=aliked",
    ):
        assert not resolve(compose_config([*given[: 1 if "aliked" in more else 2], more])).matches.problem


def test_weights_that_are_no_safetensors_get_the_lightglue_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"no safetensors")
    for name in ("superpoint_v1.pth", "damaged.safetensors"):
        matches = resolve(compose_config(["dataset=demo", f"features.weights='{tmp_path / name}'"])).matches
        assert matches.options.trained_for == "superpoint" and not matches.problem


class WithoutCreate:
    pass


class WithoutAnnotation:
    @classmethod
    def create(cls, options, device):  # type: ignore[no-untyped-def]
        return cls()


@pytest.mark.parametrize("plugin", [WithoutCreate, WithoutAnnotation])
def test_a_class_that_is_no_plug_in_is_named(plugin: type) -> None:
    with pytest.raises(ValueError, match=rf"{plugin.__name__} is no plug-in: it needs a classmethod create"):
        options_class(plugin)


@pytest.mark.parametrize("listed", ["['sequential','exhaustive']", '["sequential", "exhaustive"]', "[sequential,exhaustive]"])
def test_names_of_pair_sources_may_be_quoted(listed: str) -> None:
    assert {"sequential", "exhaustive"} <= {*compose_config([f"pairs={listed}"]).pairs}


def test_a_class_in_a_list_of_pair_sources_is_answered_with_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"cannot read 'pairs=\[package:Class\]': expected a list of different pair sources"):
        compose_config(["pairs=[package:Class]"])


@pytest.mark.parametrize("features", ["superpoint", "sift", "imported"])
def test_how_photos_are_turned_is_an_option_of_all_features_and_not_of_the_plug_in(features: str) -> None:
    given = [f"features={features}", "dataset.images=x", *(["features.path=x.h5"] if features == "imported" else [])]
    assert resolve(compose_config(given)).orientation == "auto"
    options = resolve(compose_config([*given, "experiment=fast", "features.orientation=stored"]))
    assert options.orientation == options.configuration["features"]["orientation"] == "stored"
    assert not hasattr(options.features.options, "orientation")


def test_an_unknown_way_to_turn_photos_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features\.orientation=upright does not exist\. There are: auto, exif, stored"):
        resolve(compose_config(["dataset.images=x", "features.orientation=upright"]))
    with pytest.raises(ValueError, match="an extractor has no option 'orientation'"):
        api.create_extractor("sift", orientation="exif")


@pytest.mark.parametrize("matches", ["imported", "nearest_neighbor"])
def test_imported_features_without_a_path_are_one_mistake_with_each_matcher(matches: str) -> None:
    """Only LightGlue has an option that follows the features."""
    options, _ = resolve_all(compose_config(["features=imported", f"matches={matches}"]))
    assert "features.path" in options.features.problem and "features.path" not in options.matches.problem


def test_the_changed_options_of_imported_files_are_told() -> None:
    """The report lists them."""
    given = ["features=imported", "features.path=a.h5", "matches=imported", "matches.path=b.h5"]
    changed = changed_options(resolve(compose_config(given)).configuration)
    assert {key: value for key, (value, _) in changed.items()} == {
        "features": "imported",
        "features.path": "a.h5",
        "matches": "imported",
        "matches.path": "b.h5",
    }
