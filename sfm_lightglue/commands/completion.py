"""The command `completion`: a script for the shell that completes commands, choices and options with Tab.

The script asks this module at each Tab. Hydra's own completion is not used: it does not know our commands, and it composes the
configuration at each Tab, which takes ten times as long.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from sfm_lightglue.commands.table import COMMANDS, Command, command_names, usage
from sfm_lightglue.config_files import CONFIG_NAME, GROUPS, choices
from sfm_lightglue.overrides import PATH_OPTION

PROGRAM = "sfm-lightglue"
SCRIPTS = {
    "bash": r"""# Completion of sfm-lightglue. In ~/.bashrc: eval "$(sfm-lightglue completion bash)"
_sfm_lightglue() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" word
    word="${line##*[[:space:]]}"
    COMPREPLY=($("$1" completion --line "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[=:]}"}"}")  # bash replaces only what follows = and :
    [[ "${COMPREPLY[*]}" == *[=./] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _sfm_lightglue sfm-lightglue
""",
    "zsh": r"""#compdef sfm-lightglue
# Completion of sfm-lightglue. In ~/.zshrc, after compinit: eval "$(sfm-lightglue completion zsh)"
_sfm_lightglue() {
    local -a found open closed
    found=("${(@f)$("${words[1]}" completion --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found:#}")
    if (( ! $#found )); then
        compset -P '*='
        _files
        return
    fi
    open=("${(@M)found:#*[=.]}")
    closed=("${(@)found:#*[=.]}")
    (( $#open )) && compadd -Q -S '' -- "${open[@]}"
    (( $#closed )) && compadd -Q -- "${closed[@]}"
}
compdef _sfm_lightglue sfm-lightglue
""",
    "fish": r"""# Completion of sfm-lightglue. In ~/.config/fish/config.fish: sfm-lightglue completion fish | source
function __sfm_lightglue_any
    set -g __sfm_lightglue_found (sfm-lightglue completion --line (commandline -cp) 2>/dev/null)
    test (count $__sfm_lightglue_found) -gt 0
end
complete -c sfm-lightglue -f -n __sfm_lightglue_any -a '$__sfm_lightglue_found'
""",
}


def main(arguments: list[str]) -> int:
    """Prints the script of a shell, or, for the script, what completes a line. Raises: ValueError for another shell."""
    if arguments[:1] == ["--line"] and len(arguments) == 2:
        print("\n".join(completions(arguments[1])))
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        raise ValueError(f"usage: {usage('completion')}; found {' '.join(arguments)!r}")
    print(SCRIPTS[arguments[0]], end="")
    return 0


def completions(line: str) -> list[str]:
    """What the last word of a command line, whose first word is the program, can become. Empty: the shell completes files."""
    words = _words(line)
    if len(words) < 2:
        return []
    last = words[-1]
    if len(words) == 2:
        return [name for name in (*command_names(), "--help", "--version") if name.startswith(last)]
    command = next((command for command in COMMANDS if command.name == words[1]), None)
    return [] if command is None else [found for found in _arguments(command, words[2:-1], last) if found.startswith(last)]


def _words(line: str) -> list[str]:
    """The words of a line; the last is empty after a blank. Quotes that are still open are closed."""
    for end in ("", "'", '"'):
        try:
            return [*shlex.split(line + end), *([""] if not line or line[-1].isspace() else [])]
        except ValueError:
            continue
    return line.split()


def _arguments(command: Command, before: Sequence[str], last: str) -> Iterable[str]:
    if command.name == "help":
        return [*command_names(), *_topics(last)]
    if command.name == "completion":
        return SCRIPTS
    if command.name in ("weights", "datasets"):
        return _names(command.name) if before[:1] == ["fetch"] else ["list", "fetch", "--json", "--help"]
    if last.startswith("-"):
        return [*(spelling for group in command.flags for spelling in group if spelling.startswith("-")), "--help"]
    if before[-1:] == ["--cfg"]:
        return ["job"]
    num_paths = sum("=" not in word and not word.startswith("-") for word in before)
    if not command.groups or (not last and num_paths < 2 and command.name != "train"):
        return []
    return _topics(last, before, command)


def _names(kind: str) -> list[str]:
    if kind == "datasets":
        return [name for name in choices("dataset") if name != "folder"]
    from sfm_lightglue.networks.weights import WEIGHTS

    return [*WEIGHTS]


def _topics(last: str, before: Sequence[str] = (), command: Command | None = None) -> list[str]:
    """Groups, choices, options or values that begin like `last`, given the words before it."""
    primary = "train" if command is not None and command.name == "train" else CONFIG_NAME
    plus = "+" if last.startswith("+") else ""
    key, equals, _ = last.removeprefix(plus).partition("=")
    groups = (*GROUPS, "experiment") if primary == CONFIG_NAME and command else (*GROUPS, "experiment", "training")
    if equals and key in groups:
        listed = re.fullmatch(r"(.*[,\[])?[^,\[]*", last)  # features=disk,aliked and pairs=[sequential,retrieval]
        head = (listed[1] if listed else "") or f"{plus}{key}="
        return [f"{head}{name}" for name in choices(key)]
    if equals:
        return [f"{plus}{key}={value}" for value in _values(key, before, primary)]
    if "." in key and key.split(".")[0] in groups:
        return [f"{plus}{option}=" for option in _options(key.split(".")[0], before, primary)]
    top = ["output=", *(["data.images="] if primary == "train" else ["strict="])]
    return [f"{plus}{name}" for name in (*(f"{group}=" for group in groups), *(f"{group}." for group in groups), *top)]


def _options(group: str, before: Sequence[str], primary: str) -> dict[str, str]:
    """The options of a group, for the choice made before, and their values."""
    from sfm_lightglue.option_files import common_options, default_choice, read_choice

    made = [word.partition("=")[2] for word in before if word.lstrip("+").partition("=")[0] == group]
    names = [name for name in re.findall(r"\w+", made[-1]) if name in choices(group)] if made else []
    default = default_choice(group, primary) or default_choice(group, "train")
    found = {f"{group}.{'.'.join(option.path)}": option.value for option in common_options(group)}
    for name in names or ([default] if default else choices(group)):
        place = f"{group}.{name}" if made and "[" in made[-1] else group
        for option in read_choice(group, name).options:
            if option.value and option.path != ("name",):
                found.setdefault(f"{place}.{'.'.join(option.path)}", option.value)
    return found


def _values(key: str, before: Sequence[str], primary: str) -> list[str]:
    """Values of an option: true and false, or its default. Empty for paths."""
    value = {"strict": "false"}.get(key) or _options(key.split(".")[0], before, primary).get(key, "")
    if value in ("true", "false"):
        return ["true", "false"]
    return [] if PATH_OPTION.fullmatch(key) or not re.fullmatch(r"[\w.-]+", value) else [value]
