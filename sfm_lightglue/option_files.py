"""What the YAML files say about options: values and comments, for the help and the options reference. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from sfm_lightglue.config_files import CONFIG_NAME, choice_file, config_dir

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C, if it is there."""

ABOUT = {
    "dataset": "Which photos. `dataset=NAME` chooses one of these.",
    "features": "How keypoints are found and described.",
    "pairs": "Which pairs of images are matched.",
    "matches": "How pairs are matched.",
    "geometries": "How strict the verification of pairs is.",
    "refinement": "How exact the keypoints of verified matches are.",
    "database": "Cameras and the COLMAP database.",
    "reconstruction": "The mapper.",
    "execution": "Where and how the work runs.",
    "training": "Which network the command `train` trains, and how.",
    "experiment": "Presets set several options at once.",
}
"""What each config group is about."""


@dataclass(frozen=True)
class Option:
    """One key of a YAML file."""

    path: tuple[str, ...]
    """Keys from the top of the file."""
    value: str
    """As written in the file; empty for a heading, whose options follow."""
    comment: str


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file."""

    about: str
    """The comment at its head."""
    licence: str
    """Of a dataset; empty for other files."""
    name: str
    """The value of `name`: the plug-in that the file chooses; empty if it has none."""
    bases: list[str]
    """Choices of the same group whose options it starts from; `CHOICE@PLACE` are those that it holds below the key `PLACE`."""
    defaults: dict[str, str]
    """Group -> the choice that the file makes there."""
    options: list[Option]


def read_config(path: Path) -> ConfigFile:
    """The keys of a YAML file in order, with the comments beside and above them. Raises: ValueError if it is no YAML."""
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comments = [line.lstrip("# ") for line in lines[:head] if "@package" not in line]
    about = " ".join(line for line in comments if not line.startswith(("licence: ", "origin: ")))
    licence = next((line.removeprefix("licence: ") for line in comments if line.startswith("licence: ")), "")
    try:
        node = yaml.compose(content, Loader=LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    bases, defaults = _defaults(node)
    options = list(_leaves(node, content, lines, head, ()))
    name = next((option.value for option in options if option.path == ("name",)), "")
    return ConfigFile(about, licence, name, bases, defaults, options)


@functools.cache
def primary_file(name: str = CONFIG_NAME) -> ConfigFile:
    """A file that commands start from: `pipeline` or `train`."""
    return read_config(config_dir() / f"{name}.yaml")


@functools.cache
def read_choice(group: str, choice: str) -> ConfigFile:
    """A choice of a group with the options of the choices that it starts from. Raises: KeyError if it does not exist."""
    config = read_config(choice_file(group, choice))
    options: dict[tuple[str, ...], Option] = {}
    name = config.name
    for base in config.bases:
        choice_of_base, _, place = base.partition("@")
        inherited = read_choice(group, choice_of_base)
        name = name or ("" if place else inherited.name)
        below = tuple(filter(None, place.split(".")))
        options |= {
            (*below, *option.path): dataclasses.replace(option, path=(*below, *option.path)) for option in inherited.options
        }
    for option in config.options:
        before = options.get(option.path, option)
        options[option.path] = dataclasses.replace(option, comment=option.comment or before.comment)
    return dataclasses.replace(config, name=name, options=list(options.values()))


def common_options(group: str, name: str = CONFIG_NAME) -> list[Option]:
    """Options that all choices of a group have, from the primary file. Paths are below the group."""
    options = primary_file(name).options
    return [
        dataclasses.replace(option, path=option.path[1:]) for option in options if option.path[0] == group and option.path[1:]
    ]


def default_choice(group: str, name: str = CONFIG_NAME) -> str:
    """The choice of a group if the user makes none; empty if there is none."""
    return primary_file(name).defaults.get(group, "")


def first_sentence(text: str) -> str:
    """The text up to the first full stop."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _defaults(node: yaml.Node | None) -> tuple[list[str], dict[str, str]]:
    """Hydra's list `defaults`: files of the same group, and choices of other groups."""
    bases: list[str] = []
    groups: dict[str, str] = {}
    entries = [value for key, value in node.value if key.value == "defaults"] if isinstance(node, yaml.MappingNode) else []
    for entry in entries[0].value if entries else []:
        if isinstance(entry, yaml.MappingNode):
            groups |= {str(key.value).removeprefix("override /"): str(value.value) for key, value in entry.value}
        elif entry.value != "_self_":
            bases.append(str(entry.value))
    return bases, groups


def _leaves(node: yaml.Node | None, content: str, lines: list[str], head: int, path: tuple[str, ...]) -> Iterator[Option]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if (path, key.value) == ((), "defaults"):  # Hydra's list of files, no option
            continue
        here = (*path, str(key.value))
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if is_block else value.end_mark
        beside = lines[end.line][end.column :].partition("#")[2].strip() if end.line < len(lines) else ""
        above = _comment_above(lines, key.start_mark.line, head)
        comment = " ".join(part for part in (above, beside) if part)
        if is_block:
            if comment:
                yield Option(here, "", comment)
            yield from _leaves(value, content, lines, head, here)
        else:
            yield Option(here, content[value.start_mark.index : value.end_mark.index], comment)


def _comment_above(lines: list[str], line: int, head: int) -> str:
    first = line
    while first > head and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.strip().lstrip("# ") for text in lines[first:line])
