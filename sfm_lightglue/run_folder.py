"""Names and opens everything in the output folder of a run, without a configuration.

Reports, evaluation, viewers and localization open any run with it, finished or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfm_lightglue.database_mark import SQLITE_SUFFIXES
from sfm_lightglue.files import foreign_file, locked, read_own_json, remove_stale, remove_stale_folders
from sfm_lightglue.pair_files import read_pairs, read_reasons
from sfm_lightglue.products import Pair
from sfm_lightglue.stages import STAGES, check_exists
from sfm_lightglue.storage import H5Reader

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

LOOK_S = 3.0
"""Time for which a shard tries the lock of runs without shards, s: other shards hold it for a moment."""


@dataclass(frozen=True)
class RunFolder:
    """The output folder `path` of a run. Its files need not exist yet."""

    path: Path
    kind: str = ""
    """One of several kinds of features, whose own files `features` and `matches` are; empty for those of all kinds together."""

    def __init__(self, path: Path | str, kind: str = "") -> None:
        object.__setattr__(self, "path", Path(path))
        object.__setattr__(self, "kind", kind)

    @property
    def features(self) -> Path:
        """Keypoints, scores and descriptors of each photo, in hloc's layout. Several kinds together have no descriptors."""
        return self.path / (f"features-{self.kind}.h5" if self.kind else "features.h5")

    @property
    def global_descriptors(self) -> Path:
        """One vector for each photo, in hloc's layout; missing if no pair source needed it."""
        return self.path / "global_descriptors.h5"

    @property
    def codebook(self) -> Path:
        """The collection's own codebook for `global_descriptors`; missing if none was needed, see `pairs/codebooks.py`."""
        return self.path / "codebook.safetensors"

    @property
    def pairs(self) -> Path:
        """List of image pairs, in hloc's format."""
        return self.path / "pairs.txt"

    @property
    def photo_table(self) -> Path:
        """Table of what became of each photo, see `tables.py`."""
        return self.path / "photos.tsv"

    @property
    def pair_reasons(self) -> Path:
        """Table with the source and the similarity of each pair, and of what became of it, see `tables.py`."""
        return self.path / "pairs.tsv"

    @property
    def matches(self) -> Path:
        """Matches and scores of each pair, in hloc's layout."""
        return self.path / (f"matches-{self.kind}.h5" if self.kind else "matches.h5")

    @property
    def verification(self) -> Path:
        """Two-view geometry of each pair."""
        return self.path / "verification.h5"

    @property
    def keypoints(self) -> Path:
        """Refined keypoints of the photos with verified matches; missing with `refinement=none`."""
        return self.path / "keypoints.h5"

    @property
    def orientations(self) -> Path:
        """What was decided about photos that may lie on their side, see `orient/decisions.py`; missing if none may."""
        return self.path / "orientations.tsv"

    @property
    def escalation(self) -> Path:
        """The pairs that get all kinds of features, see `escalation.py`; missing without `matches.escalate`."""
        return self.path / "escalation.tsv"

    @property
    def database(self) -> Path:
        """COLMAP database."""
        return self.path / "database.db"

    @property
    def reconstruction(self) -> Path:
        """Folder of the COLMAP models `0` ... `n`."""
        return self.path / "reconstruction"

    @property
    def clusters(self) -> Path:
        """Folder of the clusters that are finished while `reconstruction=clusters` is not."""
        return self.path / "reconstruction.clusters"

    @property
    def plots(self) -> Path:
        """Folder of pictures."""
        return self.path / "plots"

    @property
    def report(self) -> Path:
        """Page for a browser that shows the run."""
        return self.path / "report.html"

    @property
    def report_pictures(self) -> Path:
        """Folder of the pictures of `report` if they do not fit into the page."""
        return self.path / "report"

    @property
    def shards(self) -> Path:
        """Folder in which the processes of `execution=shards` agree with each other, until `merge` has united their results."""
        return self.path / "shards"

    @property
    def logs(self) -> Path:
        """Folder with a log of each call, and COLMAP's own log."""
        return self.path / "logs"

    @property
    def summary(self) -> Path:
        """What every stage did."""
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        """Scores against ground truth."""
        return self.path / "evaluation.json"

    def open_features(self) -> H5Reader:
        """Reader of the features; use it as a context manager. Raises (on entering): FileNotFoundError if the file is missing."""
        return H5Reader(self.features)

    def open_matches(self) -> H5Reader:
        """Reader of the matches; use it as a context manager. Raises (on entering): FileNotFoundError if the file is missing."""
        return H5Reader(self.matches)

    def open_verification(self) -> H5Reader:
        """Reader of the two-view geometries; use it as a context manager.

        Raises (on entering): FileNotFoundError if the file is missing.
        """
        return H5Reader(self.verification)

    def read_pairs(self) -> list[Pair]:
        """Sorted pairs of the list. Raises: FileNotFoundError if it is missing."""
        check_exists(self.pairs)
        return read_pairs(self.pairs)

    def read_reasons(self) -> list[Pair]:
        """The pairs of the table of reasons, with reasons and scores. Raises: FileNotFoundError if it is missing."""
        check_exists(self.pair_reasons)
        return read_reasons(self.pair_reasons)

    def read_summary(self) -> dict[str, Any]:
        """The content of summary.json; `{"stages": {}}` if no stage has finished yet, or, with a warning, if the file is damaged.

        Raises: ValueError if no run has written the file, see `files.foreign_file`.
        """
        if not os.path.lexists(self.summary):
            return {"stages": {}}
        content = read_own_json(self.summary, ('{"stages":',))
        if content is None:
            logger.warning("%s is damaged: it is written anew, stage by stage", self.summary)
            return {"stages": {}}
        if not isinstance(content["stages"], dict):
            raise foreign_file(self.summary)
        return content

    def photos(self) -> Path | None:
        """Folder of the photos that the run was made from, or None if summary.json does not say."""
        images = self.read_summary().get("dataset", {}).get("images")
        return Path(images) if images else None

    def masks(self) -> Path | None:
        """Folder of the masks of the photos, or the mask for all of them; None without masks, or if summary.json does not say."""
        masks = self.read_summary().get("dataset", {}).get("masks")
        return Path(masks) if masks else None

    def models(self) -> list[Path]:
        """Folders of the COLMAP models, in the order of their numbers; empty if there are none."""
        if not self.reconstruction.is_dir():
            return []
        return sorted((path for path in self.reconstruction.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))

    def largest_model(self) -> Path | None:
        """Folder of the model with most registered images; None if nothing was reconstructed."""
        return max(self.models(), key=lambda folder: self.open_model(folder).num_reg_images(), default=None)

    @staticmethod
    def open_model(folder: Path) -> pycolmap.Reconstruction:
        """The COLMAP model in one of the `models`. Raises: ValueError if it is damaged."""
        from sfm_lightglue.model_files import read_model  # imported here: listing the files of a run must not load pycolmap

        return read_model(folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs, and shards, out of the folder during the block. The folder is created if it does not exist.

        Temporary files that killed runs left in it are deleted.

        Raises: ValueError if another process works in the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                is_alone = stack.enter_context(locked(self.path / ".lock", wait=False))
            except BlockingIOError as error:
                raise self._is_busy() from error
            for lock in sorted(self.shards.glob("*.lock")):
                try:
                    stack.enter_context(locked(lock, wait=False))
                except BlockingIOError as error:
                    raise ValueError(
                        f"the shard {lock.stem} is working in {self.path}: wait for it or choose another output=DIR"
                    ) from error
            if is_alone:
                self._remove_stale()
            yield

    @contextlib.contextmanager
    def locked_for(self, shard: str) -> Iterator[None]:
        """Keeps a second shard of this name, and runs without shards, out of the folder during the block. Creates the folder.

        Raises: ValueError if another process of this kind works in the folder.
        """
        self.shards.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.shards / f"{shard}.lock", wait=False))
            except BlockingIOError as error:
                raise ValueError(
                    f"the shard {shard}, or a run without shards, is working in {self.path}: start each shard once, and wait for "
                    "other runs"
                ) from error
            self._check_no_run()
            yield

    def _check_no_run(self) -> None:
        """Raises: ValueError if a run without shards works in the folder. Shards that look at the same time wait."""
        deadline = time.monotonic() + LOOK_S
        while True:
            try:
                with locked(self.path / ".lock", wait=False):
                    return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise self._is_busy() from error
            time.sleep(0.05)

    def _is_busy(self) -> ValueError:
        return ValueError(f"another run is working in {self.path}: wait for it or choose another output=DIR")

    def _remove_stale(self) -> None:
        for path in (
            *(self.path / name for stage in STAGES for name in stage.writes),
            self.photo_table,
            self.summary,
            self.report,
        ):
            remove_stale(path)
        for suffix in SQLITE_SUFFIXES:
            remove_stale(self.database, suffix)
        remove_stale_folders(self.reconstruction, "settings.json")
