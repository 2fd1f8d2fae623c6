"""The stages of a run, in order, as data. The command line, the summary and the help read names and files here.

Importing this module loads nothing heavy; a stage's code is imported when it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfm_lightglue.files import result_exists


@dataclass(frozen=True)
class Stage:
    """One step of the flow. It meets the other stages only through files in the output folder."""

    name: str
    """Name of the command and of the entry in summary.json."""
    reads: tuple[str, ...]
    """Files it needs, relative to the output folder."""
    writes: tuple[str, ...]
    """Files it writes, relative to the output folder."""
    about: str
    """One line for the help."""
    function: str
    """`package.module:function`, called with the `run_context.Run`."""
    groups: tuple[str, ...] = ()
    """Config groups whose options it reads, its own first. Its help shows them."""

    def load(self) -> Callable[[Any], None]:
        """The function of the stage."""
        module, _, name = self.function.partition(":")
        function: Callable[[Any], None] = getattr(importlib.import_module(module), name)
        return function

    def check_inputs(self, output: Path) -> None:
        """Raises: FileNotFoundError that names the missing file in the folder `output` and the stage that writes it."""
        for name in self.reads:
            check_exists(output / name)


STAGES = (
    Stage(
        "extract",
        (),
        ("features.h5",),
        "photos -> features.h5",
        "sfm_lightglue.pipeline:extract",
        ("features", "dataset", "execution"),
    ),
    Stage(
        "pairs",
        ("features.h5",),
        ("pairs.txt", "pairs.tsv", "global_descriptors.h5", "codebook.safetensors"),
        "features.h5 -> pairs.txt",
        "sfm_lightglue.pipeline:pairs",
        ("pairs", "dataset", "execution"),
    ),
    Stage(
        "match",
        ("features.h5", "pairs.txt"),
        ("matches.h5",),
        "pairs.txt -> matches.h5",
        "sfm_lightglue.pipeline:match",
        ("matches", "execution"),
    ),
    Stage(
        "verify",
        ("features.h5", "pairs.txt", "matches.h5"),
        ("verification.h5",),
        "matches.h5 -> verification.h5",
        "sfm_lightglue.pipeline:verify",
        ("geometries", "database", "execution"),
    ),
    Stage(
        "orient",
        ("features.h5", "pairs.txt", "matches.h5", "verification.h5"),
        ("orientations.tsv",),
        "verification.h5 -> orientations.tsv, and the stages before again if photos were turned",
        "sfm_lightglue.repeats:orient",
        ("features", "matches", "geometries", "execution"),
    ),
    Stage(
        "expand",
        ("features.h5", "pairs.txt", "pairs.tsv", "matches.h5", "verification.h5"),
        ("pairs.txt", "pairs.tsv"),
        "verification.h5 -> more pairs for photos with few verified ones, matched and verified (pairs.rounds=2)",
        "sfm_lightglue.repeats:expand",
        ("pairs", "matches", "geometries", "execution"),
    ),
    Stage(
        "escalate",
        ("features.h5", "pairs.txt", "matches.h5", "verification.h5"),
        ("escalation.tsv",),
        "verification.h5 -> the other kinds of features for weakly connected pairs (matches.escalate=true)",
        "sfm_lightglue.repeats:escalate",
        ("features", "matches", "geometries", "execution"),
    ),
    Stage(
        "refine",
        ("features.h5", "pairs.txt", "matches.h5", "verification.h5"),
        ("keypoints.h5",),
        "verification.h5 and photos -> keypoints.h5, finer keypoints of the verified matches",
        "sfm_lightglue.pipeline:refine",
        ("refinement", "database", "dataset"),
    ),
    Stage(
        "database",
        ("features.h5", "pairs.txt", "matches.h5", "verification.h5"),
        ("database.db",),
        "verification.h5 -> database.db",
        "sfm_lightglue.pipeline:database",
        ("database", "refinement", "dataset"),
    ),
    Stage(
        "reconstruct",
        ("database.db",),
        ("reconstruction",),
        "database.db -> reconstruction/0 ... n",
        "sfm_lightglue.repeats:reconstruct",
        ("reconstruction", "dataset"),
    ),
    Stage(
        "plots",
        ("features.h5", "pairs.txt", "matches.h5", "verification.h5", "reconstruction"),
        ("plots",),
        "pictures of matches and of the model -> plots",
        "sfm_lightglue.presentation:draw_plots",
    ),
)
"""In the order in which a run does them."""


def stage_names() -> list[str]:
    """Names of all stages, in order."""
    return [stage.name for stage in STAGES]


def find_stage(name: str) -> Stage:
    """The stage called `name`. Raises: KeyError if there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise KeyError(f"there is no stage {name!r}: expected one of {', '.join(stage_names())}")


def check_exists(path: Path) -> None:
    """Raises: FileNotFoundError if a file of a run does not exist; the message names the stage that writes it."""
    if not result_exists(path):
        raise FileNotFoundError(f"{path} does not exist: run the stage {writer_of(path.name)} first")


def writer_of(file: str) -> str:
    """Name of the stage that writes `file`. Raises: KeyError if none does."""
    for stage in STAGES:
        if file in stage.writes:
            return stage.name
    raise KeyError(f"no stage writes {file!r}")
