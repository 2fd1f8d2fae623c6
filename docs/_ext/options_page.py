"""The options reference: every key of the YAML files with its value, its comment, and the type in the package's dataclass."""

from __future__ import annotations

from collections.abc import Mapping

from sfm_lightglue.config_files import GROUPS, choice_file, choices
from sfm_lightglue.option_files import ABOUT, Option, common_options, default_choice, primary_file, read_choice, read_config
from sfm_lightglue.option_types import Field, fields_of

INTRODUCTION = """\
# Options

An option is written `GROUP.KEY=VALUE` on the command line and in `sfm_lightglue.run`. `GROUP=CHOICE` selects one of a group's
files. This page is made from the YAML files in `configs/` and the dataclasses that give them types.

`--cfg job` prints the values of a command. `null` means no value. `???` must be given. `${...}` takes the value of another
option.
"""


def text() -> str:
    """The Markdown of the page."""
    top = [option for option in primary_file().options if len(option.path) == 1]
    sections = [INTRODUCTION, "## Options of the run", _table(top, {})]
    for group in (*GROUPS, "training", "experiment"):
        default = default_choice(group)
        sections += [f"## {group}", f"{ABOUT[group]}{f' The default is `{default}`.' if default else ''}"]
        if common := common_options(group):
            sections += ["" if group == "dataset" else "All choices have:", _table(common, fields_of(group, ""))]
        if group == "dataset":
            sections.append(_datasets())
            continue
        for name in choices(group):
            sections += _choice(group, name)
    return "\n\n".join(section for section in sections if section)


def _choice(group: str, name: str) -> list[str]:
    config = read_config(choice_file(group, name))
    options = [option for option in config.options if option.path != ("name",)]
    inherited = " and ".join(f"`{base}`" for base in config.bases if "@" not in base)
    base = f"All other options are those of {inherited}." if inherited else ""
    held = [base.split("@") for base in config.bases if "@" in base]
    if held:
        base = "All other options of " + ", ".join(f"`{group}={choice}` stand below `{place}`" for choice, place in held) + "."
    fields = {} if group == "experiment" else fields_of(group, read_choice(group, name).name)
    table = _table(options, fields) if options else ""
    return [f"### {group}={name}", config.about, table, base]


def _datasets() -> str:
    rows = []
    for name in choices("dataset"):
        config = read_choice("dataset", name)
        rows.append(f"| `{name}` | {_cell(config.about)} | {_cell(config.licence)} |")
    return "\n".join(["| dataset | photos | licence |", "| --- | --- | --- |", *rows])


def _table(options: list[Option], fields: Mapping[tuple[str, ...], Field]) -> str:
    rows = []
    for option in options:
        kind = fields[option.path].type if option.path in fields and option.value else ""
        value = f"`{' '.join(option.value.split())}`" if option.value else ""
        rows.append(f"| `{'.'.join(option.path)}` | {value} | {kind} | {_cell(option.comment)} |")
    return "\n".join(["| option | value | type | meaning |", "| --- | --- | --- | --- |", *rows])


def _cell(comment: str) -> str:
    """The comment as the text of a table's cell."""
    return comment.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("~", "\\~")
