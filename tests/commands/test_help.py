"""The help: about a command, a group, a choice, an option or a word, made from the YAML files and the dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing

import pytest

from sfm_lightglue import cli
from sfm_lightglue.commands.table import COMMANDS
from sfm_lightglue.config_files import GROUPS, choices
from sfm_lightglue.option_files import common_options, read_choice
from sfm_lightglue.option_types import Field, fields_of
from sfm_lightglue.registry import load_class
from sfm_lightglue.stages import STAGES


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> typing.Callable[..., str]:
    """Runs a command that prints help and returns the text with single blanks."""

    def run(*arguments: str, status: int = 0) -> str:
        assert cli.main(arguments) == status
        printed = capsys.readouterr()
        assert not (printed.err if status == 0 else printed.out)
        return " ".join((printed.out or printed.err).split())

    return run


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_of_its_own(shown: typing.Callable[..., str], command: typing.Any) -> None:
    text = shown(command.name, "--help")
    assert text.startswith(f"usage: {command.name}")
    assert command.about in text
    assert all(spelling in text for group in command.flags for spelling in group)
    assert text == shown("help", command.name) == shown("--help", command.name)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_help_of_a_stage_shows_all_options_of_its_groups(shown: typing.Callable[..., str], stage: typing.Any) -> None:
    text = shown(stage.name, "--help")
    for group in stage.groups if len(stage.groups) <= 3 else ():
        default = {"features": "superpoint", "pairs": "auto", "matches": "lightglue"}.get(group)
        options = common_options(group) + (read_choice(group, default).options if default else [])
        for option in options:
            assert option.path == ("name",) or f" {group}.{'.'.join(option.path)}=" in text
    for name in stage.writes:
        assert name in text


def test_arguments_choose_what_the_help_of_a_command_shows(shown: typing.Callable[..., str]) -> None:
    assert "features.variant=n16 n16, n16rot" in shown("extract", "features=aliked", "--help")
    assert "features.variant" not in shown("extract", "--help")
    text = shown("run", "photos", "out", "pairs=[sequential,retrieval]", "-h")
    assert "pairs.sequential.overlap=10 number" in text
    assert "pairs.retrieval.num_neighbours=20 number" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["help", "features.max_keypoints"],
        ["run", "features.max_keypoints", "--help"],
        ["features.max_keypoints", "-h"],
        ["help", "max_keypoints"],
        ["match", "p", "o", "features.max_keypoints=9", "--help"],
        ["help", "+features.max_keypoints=1"],
    ],
)
def test_one_option_is_explained_with_its_value_in_each_choice(shown: typing.Callable[..., str], arguments: list[str]) -> None:
    text = shown(*arguments)
    assert text.startswith("features.max_keypoints=VALUE int, at least 1 ")
    assert "features=aliked, disk, raco, superpoint (default) 2048 per photo" in text
    assert "features=xfeat 4096 per photo, as published" in text


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("features", "features=xfeat XFeat (arXiv:2404.19174): fast."),
        ("aliked", "options of features=aliked ALIKED"),
        ("features=disk", "options of features=disk DISK"),
        ("experiment=fast", "features.max_keypoints=${if_known:1024}"),
        ("training.loop", "options of training=superpoint training.loop.steps=4000"),
        ("training.views.homographies.min_scale", "training.views.homographies.min_scale=VALUE float"),
        ("geometries.confidence", "VALUE float, more than 0 and less than 1 geometries=ransac (default) 0.9999"),
        ("dataset.masks", "dataset.masks=VALUE str or null null (default) folder of masks"),
        ("features.orientation", "auto (default) photos are turned upright"),
        ("strict", "strict=VALUE false (default) true = the command ends with status 1"),
        ("data.images", "data.images=VALUE ??? (default) folder of photos"),
        ("gps", "pairs=spatial Each photo with the photos that were taken nearest to it"),
        ("video", "frames video -> photos"),
    ],
)
def test_help_about_a_topic(shown: typing.Callable[..., str], topic: str, expected: str) -> None:
    assert expected in shown("help", topic)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("features=alikd", "features=alikd does not exist. Did you mean 'aliked'?"),
        ("features.max_keypoint", "there is no option 'features.max_keypoint'. Did you mean 'features.max_keypoints'?"),
        ("database.max_error_px", "there is no option 'database.max_error_px'. It is now called geometries.max_error_px."),
        ("matchs", "nothing is about 'matchs'. Did you mean 'matches'? `help` lists"),
    ],
)
def test_help_about_nothing_names_the_closest(shown: typing.Callable[..., str], topic: str, expected: str) -> None:
    assert shown("help", topic, status=2).startswith(f"error: {expected}")


def test_an_option_in_the_user_s_own_file_is_explained(
    shown: typing.Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: typing.Any
) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.yaml").write_text("# Corners.\nname: my_module:Corners\nstep: 4 # px\n", encoding="utf-8")
    module = (
        "class Options:\n    name: str\n    step: int\n\nclass Corners:\n    def create(cls, options: Options, device): ...\n"
    )
    (tmp_path / "my_module.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SFM_LIGHTGLUE_CONFIGS", str(tmp_path))
    assert "options of features=mine Corners. features.orientation=auto" in shown("help", "features=mine")
    assert shown("help", "features.step") == "features.step=VALUE int features=mine 4 px"


def runtime_types(options: type, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """The types of a dataclass as Python resolves them."""
    found = {}
    for name, hint in typing.get_type_hints(options).items():
        if dataclasses.is_dataclass(hint):
            found |= runtime_types(typing.cast(type, hint), (*path, name))
        else:
            found[(*path, name)] = spelled(hint)
    return found


def spelled(hint: object) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(spelled(part) for part in typing.get_args(hint))
    if arguments := typing.get_args(hint):
        return f"{getattr(typing.get_origin(hint), '__name__', hint)} of {spelled(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "dataset"])
def test_types_in_the_sources_are_those_of_the_imported_classes(group: str) -> None:
    from sfm_lightglue.config import options_class
    from sfm_lightglue.run_options import PLUGINS, RunOptions

    for choice in choices(group):
        plugin = read_choice(group, choice).name
        if group in PLUGINS:
            expected = runtime_types(options_class(load_class(plugin, PLUGINS[group], group)))
        else:
            expected = runtime_types(typing.get_type_hints(RunOptions)[group])
        found = fields_of(group, plugin)
        if plugin != "union":  # its options are those of its sources
            assert {path: field.type for path, field in found.items()} == expected
    assert fields_of("features", "no_such_module:Class") == {}


def test_a_field_has_its_docstring_and_range() -> None:
    field = fields_of("features", "aliked")["detection_threshold",]
    assert field == Field("float", "Smallest score of a keypoint, 0..1.", "at least 0 and at most 1")
