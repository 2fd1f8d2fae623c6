"""The command `export`: reads its arguments and prints what was written. Help and lists load nothing heavy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfm_lightglue.exports import FORMATS, Format, export, find_format
from sfm_lightglue.overrides import output_folder
from sfm_lightglue.registry import closest

OPTIONS = {
    "model": "number of the model; default: the one with most photos",
    "photos": "folder of the photos, if they have moved since the run",
    "masks": "folder of masks or one mask, instead of those of the run; none: no masks",
    "alpha": "true: masks also go into an alpha channel of the photos, which 3DGS reads",
    "factor": "also smaller copies: 2, 4 or 8, or several with commas (images_2, ...)",
}
USAGE = "export FORMAT OUT DIR [key=value ...]"
FACTORS = (2, 4, 8)


def main(arguments: Sequence[str]) -> int:
    """Exports a run and prints what was written, or prints a list of all formats; returns the exit status.

    Raises: ValueError or FileNotFoundError for a mistake of the user, as in `export`.
    """
    if not arguments or list(arguments) == ["list"]:
        print(help_text())
        return 0
    format_ = find_format(arguments[0])
    words = [argument for argument in arguments[1:] if argument.startswith("output=") or not _is_option(argument)]
    if len(words) != 2:
        raise ValueError(f"usage: {USAGE}; found {' '.join(arguments)!r}")
    options = read_options(arguments[0], format_, [argument for argument in arguments[1:] if argument not in words])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(export(arguments[0], Path(output_folder(words[0])), Path(words[1]).expanduser(), options))
    return 0


def help_text() -> str:
    """All formats and their options."""
    formats = "\n".join(f"  {name:12} {one.content}\n{'':15}for {one.programs}" for name, one in FORMATS.items())
    options = "\n".join(f"  {name:12} {about}" for name, about in OPTIONS.items())
    return f"usage: {USAGE}\n\nformats:\n{formats}\n\noptions:\n{options}"


def read_options(name: str, format_: Format, given: Sequence[str]) -> Any:
    """`ExportOptions` from arguments `key=value`. Raises: ValueError with the closest key or the expected value."""
    from sfm_lightglue.exports.source import ExportOptions

    values: dict[str, Any] = {}
    for argument in given:
        key, _, value = argument.partition("=")
        if key not in format_.options:
            raise ValueError(f"export {name} has no option {key!r}. {closest(key, format_.options)}")
        if key == "model":
            values["model"] = _number(key, value)
        elif key == "factor":
            values["factors"] = tuple(sorted({_number(key, part) for part in value.split(",")}))
            if not {*values["factors"]} <= {*FACTORS}:
                raise ValueError(f"factor={value}: expected 2, 4 or 8, or several of them with commas")
        elif key == "alpha":
            if value not in ("true", "false"):
                raise ValueError(f"alpha={value}: expected true or false")
            values["alpha"] = value == "true"
        elif key == "masks" and value == "none":
            values["with_masks"] = False
        else:
            values[key] = Path(value).expanduser()
    return ExportOptions(**values)


def _is_option(argument: str) -> bool:
    """Whether an argument is `key=value`; a path that contains `=` is one that exists or has a slash before it."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in key and "\\" not in key and not Path(argument).exists()


def _number(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{key}={value} is not a whole number") from None
