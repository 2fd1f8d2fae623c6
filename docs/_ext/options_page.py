"""The options reference: every key of the YAML files with its value, its comment, and the type in the package's dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from sfm_lightglue.config import options_class
from sfm_lightglue.config_files import GROUPS, choices, config_dir
from sfm_lightglue.registry import load_class
from sfm_lightglue.run_options import PLUGINS, RunOptions
from sfm_lightglue.training import TRAININGS

INTRODUCTION = """\
# Options

An option is written `GROUP.KEY=VALUE` on the command line and in `sfm_lightglue.run`. `GROUP=CHOICE` selects one of a group's
files. This page is made from the YAML files in `configs/` and the dataclasses that give them types.

`--cfg job` prints the values of a command. `null` means no value. `???` must be given. `${...}` takes the value of another
option.
"""
ABOUT = {
    "dataset": "Which photos. `+dataset=NAME` chooses one of these.",
    "features": "How keypoints are found and described. The default is `superpoint`.",
    "pairs": "Which pairs of images are matched. The default is `exhaustive`.",
    "matches": "How pairs are matched. The default is `lightglue`.",
    "geometries": "How strict the verification of pairs is.",
    "database": "Cameras and the COLMAP database.",
    "reconstruction": "The mapper. The default is `incremental`.",
    "execution": "Where and how the work runs.",
    "training": "`python -m sfm_lightglue train training=CHOICE data.images=DIR` trains a network.",
    "experiment": "Presets set several options at once: `experiment=NAME`.",
}


@dataclass(frozen=True)
class Option:
    """One key of a YAML file."""

    path: tuple[str, ...]
    value: str
    """As written in the file."""
    comment: str


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file."""

    about: str
    """The comment at its head."""
    bases: list[str]
    """Choices of the same group whose options it starts from."""
    options: list[Option]


def text() -> str:
    """The Markdown of the page."""
    sections = [INTRODUCTION]
    for group in (*GROUPS, "training", "experiment"):
        sections += [f"## {group}", ABOUT.get(group, "")]
        if group == "dataset":
            sections += [_table(_options_of_dataset(), types_of(group, "")), _datasets()]
            continue
        for name in choices(group):
            sections += _choice(group, name)
    return "\n\n".join(section for section in sections if section)


def read_config(path: Path) -> ConfigFile:
    """The keys of a YAML file in order, with the comments beside and above them."""
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = " ".join(line.lstrip("# ") for line in lines[:head] if "@package" not in line)
    node = yaml.compose(content)
    loaded = yaml.safe_load(content) or {}
    bases = [base for base in loaded.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    options = [] if node is None else list(_leaves(node, content, lines, head, ()))
    return ConfigFile(about, bases, options)


def types_of(group: str, name: str) -> type | None:
    """The dataclass that gives the options of a choice their types; None for presets."""
    if group == "experiment":
        return None
    if group == "training":
        network = yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")).get("name")
        network = network or read_config(config_dir() / group / f"{name}.yaml").bases[0]
        hints = typing.get_type_hints(load_class(network, TRAININGS, "training").create)
        return typing.cast(type, hints["options"])
    if group in PLUGINS:
        return options_class(load_class(name, PLUGINS[group], group))
    return typing.cast(type, typing.get_type_hints(RunOptions)[group])


def _choice(group: str, name: str) -> list[str]:
    config = read_config(config_dir() / group / f"{name}.yaml")
    options = [option for option in config.options if option.path != ("name",)]
    inherited = " and ".join(f"`{base}`" for base in config.bases)
    base = f"All other options are those of {inherited}." if inherited else ""
    table = _table(options, types_of(group, name)) if options else ""
    return [f"### {group}={name}", config.about, table, base]


def _leaves(node: yaml.Node, content: str, lines: list[str], head: int, path: tuple[str, ...]) -> Iterator[Option]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if (path, key.value) == ((), "defaults"):  # Hydra's list of files, no option
            continue
        here = (*path, str(key.value))
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if is_block else value.end_mark
        beside = lines[end.line][end.column :].partition("#")[2].strip()
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


def _options_of_dataset() -> list[Option]:
    options = read_config(config_dir() / "pipeline.yaml").options
    return [
        dataclasses.replace(option, path=option.path[1:]) for option in options if option.path[0] == "dataset" and option.path[1:]
    ]


def _datasets() -> str:
    rows = []
    for name in choices("dataset"):
        head = (config_dir() / "dataset" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comments = [line.lstrip("# ") for line in head if line.startswith("#")]
        licence = next((line.removeprefix("licence: ") for line in comments if line.startswith("licence: ")), "")
        about = " ".join(line for line in comments if not line.startswith(("licence: ", "origin: ")))
        rows.append(f"| `{name}` | {_cell(about)} | {_cell(licence)} |")
    return "\n".join(["| dataset | photos | licence |", "| --- | --- | --- |", *rows])


def _table(options: list[Option], options_type: type | None) -> str:
    rows = []
    for option in options:
        kind = _type_name(options_type, option.path) if option.value else ""
        value = f"`{' '.join(option.value.split())}`" if option.value else ""
        rows.append(f"| `{'.'.join(option.path)}` | {value} | {kind} | {_cell(option.comment)} |")
    return "\n".join(["| option | value | type | meaning |", "| --- | --- | --- | --- |", *rows])


def _type_name(options_type: type | None, path: tuple[str, ...]) -> str:
    found: object = options_type
    for key in path:
        if not dataclasses.is_dataclass(found):
            return ""
        found = typing.get_type_hints(found).get(key, "")
    return "" if dataclasses.is_dataclass(found) else _spell(found)


def _spell(hint: object) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_spell(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if arguments := typing.get_args(hint):
        return f"{getattr(typing.get_origin(hint), '__name__', hint)} of {_spell(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def _cell(comment: str) -> str:
    """The comment as the text of a table's cell."""
    return comment.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("~", "\\~")
