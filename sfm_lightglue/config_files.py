"""Finds the YAML files and lists their choices. It imports nothing heavy, so that help is quick."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = ("dataset", "features", "pairs", "matches", "geometries", "refinement", "database", "reconstruction", "execution")
CONFIG_NAME = "pipeline"
USER_CONFIGS = "SFM_LIGHTGLUE_CONFIGS"
"""Environment variable: a folder of the user's own YAML files, by group."""


def config_dir() -> Path:
    """Folder of the YAML files: inside the installed package, or beside it in a checkout. Raises: FileNotFoundError."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise FileNotFoundError(f"the configuration files are missing from {package}: install the package again")


def choices(group: str) -> list[str]:
    """Names of the choices of a config group, including the user's own, sorted."""
    return sorted({path.stem for folder in _folders() for path in (folder / group).glob("*.yaml")})


def choice_file(group: str, choice: str) -> Path:
    """The YAML file of a choice; the user's own comes last. Raises: KeyError if there is none."""
    for folder in _folders():
        if (path := folder / group / f"{choice}.yaml").is_file():
            return path
    raise KeyError(f"{group}={choice} does not exist")


def choices_with(group: str, option: str) -> list[str]:
    """Names of the choices of a config group whose YAML file has the option, sorted."""
    files = [path for folder in _folders() for path in (folder / group).glob("*.yaml")]
    return sorted({path.stem for path in files if f"\n{option}:" in f"\n{path.read_text(encoding='utf-8')}"})


def _folders() -> list[Path]:
    return [config_dir(), *([Path(os.environ[USER_CONFIGS])] if os.environ.get(USER_CONFIGS) else [])]
