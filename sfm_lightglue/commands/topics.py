"""Help about one command, a group of options, a choice, one option, or any word. It is made from the YAML files.

It imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

from sfm_lightglue.commands import flags
from sfm_lightglue.commands.table import COMMANDS, Command, command_names, find_command, usage
from sfm_lightglue.config_files import CONFIG_NAME, GROUPS, choices
from sfm_lightglue.option_files import (
    ABOUT,
    Option,
    common_options,
    default_choice,
    first_sentence,
    primary_file,
    read_choice,
)
from sfm_lightglue.option_types import fields_of
from sfm_lightglue.registry import closest
from sfm_lightglue.renames import explain_former
from sfm_lightglue.stages import find_stage, stage_names

ALL_GROUPS = (*GROUPS, "experiment", "training")
MAX_GROUPS = 3
"""The help of a command with more groups lists their choices, and shows options only of the groups that the arguments name."""
COLUMN = 44
"""Width of the column of options."""
MAX_FOUND = 30
"""Most options that a search prints."""


def of_topics(words: Sequence[str]) -> str:
    """Help about commands, groups, choices, options, or words. Raises: KeyError for a word that nothing is about."""
    if words[0] in command_names():
        return of_command(words[0], words[1:])
    return "\n\n".join(_of_topic(word) for word in words if not word.startswith("-"))


def of_command(name: str, arguments: Sequence[str] = ()) -> str:
    """What a command does, its flags and its options. Arguments choose: `features=aliked` shows the options of ALIKED.

    If the arguments name options, such as `features.max_keypoints`, the help is about these. Raises: KeyError for a wrong name.
    """
    given = [argument.lstrip("+") for argument in arguments if not argument.startswith("-")]
    if options := [argument for argument in given if _root(argument) in ALL_GROUPS and "." in argument.partition("=")[0]]:
        return "\n\n".join(map(_of_topic, options))
    command = find_command(name)
    chosen = {group: choice for group, _, choice in (argument.partition("=") for argument in given) if group in ALL_GROUPS}
    primary = "train" if name == "train" else CONFIG_NAME
    sections = [f"usage: {usage(name)}\n\n{_about(command)}", _flags(command), _run_options(command, primary)]
    is_long = len(command.groups) > MAX_GROUPS
    own = () if is_long else command.groups[:1]
    for group in dict.fromkeys((*own, *chosen, *(() if is_long else command.groups))):
        sections.append(_of_group(group, chosen.get(group, ""), primary, is_listed=group in own))
    if is_long:
        groups = (*command.groups, *(("experiment",) if command.takes_configuration else ()))
        listed = "\n".join(f"  {group:15}{_choices(group, primary)}" for group in groups)
        stages = "; `extract --help` and so on show those of a stage" if name == "run" else ""
        sections.append(
            f"GROUP=CHOICE chooses, GROUP.KEY=VALUE sets an option. `help GROUP` shows all options{stages}.\n{listed}"
        )
    return "\n\n".join(section for section in sections if section)


def _run_options(command: Command, primary: str) -> str:
    """Options that belong to no group."""
    names = {"train": ("data", "output"), "run": ("output", "strict"), "reconstruct": ("output", "strict")}
    shown = names.get(command.name, ("output",) if command.takes_configuration else ())
    return _table([(option, option.path, "") for option in _top_options(primary) if option.path[0] in shown])


def _about(command: Command) -> str:
    if command.name not in stage_names():
        return "\n".join(filter(None, (command.about, command.read_more())))
    stage = find_stage(command.name)
    return f"{stage.about}\nreads {', '.join(stage.reads) or 'the photos'}; writes {', '.join(stage.writes)} in OUT"


def _flags(command: Command) -> str:
    lines = [
        _row(", ".join(spelling) if spelling[0] != "--cfg" else " ".join(spelling), flags.ABOUT[spelling])
        for spelling in command.flags
    ]
    return "\n".join(lines)


def _choices(group: str, primary: str = CONFIG_NAME) -> str:
    default = _default(group, primary)
    return ", ".join(f"{name} (default)" if name == default else name for name in choices(group))


def _default(group: str, primary: str = CONFIG_NAME) -> str:
    """The default choice of a group in the file `primary`; `training` is in its own."""
    return default_choice(group, primary) or default_choice(group, "train")


def _of_topic(word: str) -> str:
    """Help about one word, as `of_topics`."""
    word = word.lstrip("+~")
    key, _, value = word.partition("=")
    if key in ALL_GROUPS:
        return _of_group(key, value)
    if word in command_names():
        return of_command(word)
    if _root(key) in (*ALL_GROUPS, *(option.path[0] for file in (CONFIG_NAME, "train") for option in _top_options(file))):
        return _of_option(key)
    if groups := [group for group in ALL_GROUPS if word in choices(group)]:
        return "\n\n".join(_of_group(group, word) for group in groups)
    return _search(key)


def _of_group(group: str, choice: str = "", primary: str = CONFIG_NAME, *, is_listed: bool = True) -> str:
    """The choices of a group, and the options of `choice`, or of the default.

    With `is_listed`, each choice has a line. Raises: KeyError if the choice does not exist.
    """
    default, known = _default(group, primary), choices(group)
    names = [name for name in re.split(r"[\[\],\s'\"]+", choice) if name]
    for name in names:
        if name not in known:
            raise KeyError(f"{group}={name} does not exist. {closest(name, known)}")
    lines = [f"{group}: {ABOUT[group]}"]
    if not choice and len(known) > 1:
        abouts = {
            name: f"{first_sentence(read_choice(group, name).about)}{' (default)' if name == default else ''}" for name in known
        }
        lines += (
            [_row(f"{group}={name}", about) for name, about in abouts.items()] if is_listed else [f"  {_choices(group, primary)}"]
        )
    sections = ["\n".join(lines)]
    for name in names or ([default] if default else []):
        place: tuple[str, ...] = (group, name) if "[" in choice else (group,)  # a source of `pairs=[a,b]` is at pairs.a
        place = () if group == "experiment" else place
        rows = [(option, (*place, *option.path), about) for option, about in _options(group, name)]
        head = f"options of {group}={name}" if len(known) > 1 else "options"
        about = f"\n{_wrapped(read_choice(group, name).about, '')}" if choice else ""
        sections.append(f"{head}{about}\n{_table(rows)}" if rows else f"{head}: none{about}")
    if group == "dataset" and not choice:
        sections.append(_table([(option, (group, *option.path), "") for option in common_options(group)]))
    return "\n\n".join(sections)


def _options(group: str, choice: str) -> list[tuple[Option, str]]:
    """The options of a choice with the docstrings of their fields: those of all choices first."""
    config = read_choice(group, choice)
    fields = {} if group == "experiment" else fields_of(group, config.name)
    own = [option for option in config.options if option.path != ("name",)]
    common = [option for option in common_options(group) if option.path not in {each.path for each in own} and group != "dataset"]
    return [(option, fields[option.path].about if option.path in fields else "") for option in (*common, *own)]


def _of_option(path: str) -> str:
    """One option with its type, and its value in each choice; or all options below a heading.

    Raises: KeyError if there is no such option.
    """
    group, *keys = path.split(".")
    wanted = tuple(keys)
    rows: dict[tuple[str, str], list[str]] = {}
    kind = ""
    headed: list[str] = []
    for name, options in _sources(group):
        for option in options:
            if option.value and option.path == wanted[: len(option.path)]:
                rows.setdefault((option.value, option.comment), []).append(name)
                kind = kind or _kind(group, name, wanted)
        if below := [option for option in options if option.value and wanted == option.path[: len(wanted)]]:
            table = _table([(option, (group, *option.path), "") for option in below])
            headed.append(f"options of {group}={name}\n{table}" if name else table)
    if rows:
        return "\n".join(
            [f"{path}=VALUE{kind}", *(_values(group, names, value, comment) for (value, comment), names in rows.items())]
        )
    if headed:
        return "\n\n".join(headed)
    known = {".".join((group, *option.path)) for _, options in _sources(group) for option in options}
    raise KeyError(f"there is no option {path!r}.{explain_former(path) or f' {closest(path, known)}'}")


def _kind(group: str, choice: str, path: tuple[str, ...]) -> str:
    """Type and range of an option after four blanks; empty if they are unknown."""
    field = fields_of(group, read_choice(group, choice).name if choice else "").get(path)
    return "    " + ", ".join(part for part in (field.type, field.range) if part) if field else ""


def _values(group: str, names: Sequence[str], value: str, comment: str) -> str:
    """The value of an option in some choices of its group."""
    default = _default(group)
    listed = ", ".join(f"{name} (default)" if name == default else name for name in names if name)
    value = " ".join(value.split())
    return _row(f"{group}={listed}", f"{value}   {comment}") if listed else _row(f"{value} (default)", comment)


def _sources(group: str) -> list[tuple[str, list[Option]]]:
    """The options of each choice of a group; those of all choices have no name. Other words are options of the run."""
    if group not in ALL_GROUPS:
        found = [option for name in (CONFIG_NAME, "train") for option in _top_options(name) if option.path[0] == group]
        return [("", [dataclasses.replace(option, path=option.path[1:]) for option in found])]
    if group == "dataset":
        return [("", common_options(group))]
    return [("", common_options(group)), *((name, read_choice(group, name).options) for name in choices(group))]


def _search(word: str) -> str:
    """All commands, choices and options that have the word in their name or text. Raises: KeyError if there are none."""
    pattern = re.compile(rf"(?<![a-z]){re.escape(word)}", re.IGNORECASE)
    rows = {f"{command.name}": command.about for command in COMMANDS if pattern.search(command.about)}
    exact: set[str] = set()
    for group in ALL_GROUPS:
        for name in choices(group):
            if pattern.search(about := read_choice(group, name).about):
                rows[f"{group}={name}"] = first_sentence(about)
        for _, options in _sources(group) if group != "experiment" else ():
            for option in options:
                path = ".".join((group, *option.path))
                if option.path[-1] == word != "name":
                    exact.add(path)
                if option.value and pattern.search(f"{option.path[-1]} {option.comment}"):
                    rows.setdefault(f"{path}={' '.join(option.value.split())}", option.comment)
    if exact:
        return "\n\n".join(map(_of_option, sorted(exact)))
    if not rows:
        words = {*command_names(), *ALL_GROUPS, *(name for group in ALL_GROUPS for name in choices(group))}
        raise KeyError(
            f"nothing is about {word!r}. {closest(word, words).partition('There are: ')[0]}`help` lists commands and groups"
        )
    rest = f"\n  and {len(rows) - MAX_FOUND} more" if len(rows) > MAX_FOUND else ""
    return f"about {word!r}:\n" + "\n".join(_row(*row) for row in list(rows.items())[:MAX_FOUND]) + rest


def _root(option: str) -> str:
    return re.split(r"[.=]", option, maxsplit=1)[0]


def _top_options(name: str) -> list[Option]:
    """Options of the primary file that belong to no group."""
    return [option for option in primary_file(name).options if option.value and option.path[0] not in (*ALL_GROUPS, "hydra")]


def _table(rows: Iterable[tuple[Option, Sequence[str], str]]) -> str:
    """Options with their values and comments; without a comment, the docstring of the field."""
    lines = []
    for option, path, about in rows:
        value = f"={' '.join(option.value.split())}" if option.value else ": ..."
        lines.append(_row(f"{'.'.join(path)}{value}", option.comment or first_sentence(about)))
    return "\n".join(lines)


def _row(head: str, text: str) -> str:
    """A line of a table. A long head has a line of its own."""
    first = f"  {head}"
    if not text:
        return first
    wrapped = _wrapped(text, " " * (COLUMN + 2))
    return f"{first:{COLUMN + 2}}{wrapped.lstrip()}" if len(first) < COLUMN + 2 else f"{first}\n{wrapped}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _width() -> int:
    """Columns of the terminal, between 70 and 130; 110 if there is none."""
    try:
        return max(70, min(130, os.get_terminal_size(sys.__stdout__.fileno()).columns))  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return 110
