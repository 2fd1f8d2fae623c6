"""hloc: features, matches, pairs and model with the names that hloc gives its files."""

from __future__ import annotations

import logging
import shutil

from sfm_lightglue.exports.source import ExportOptions, Source
from sfm_lightglue.exports.target import Target
from sfm_lightglue.files import result_exists
from sfm_lightglue.mistakes import count_of
from sfm_lightglue.storage import write_single_file

logger = logging.getLogger(__name__)

FEATURES = "feats-sfm-lightglue"
PAIRS = "pairs-sfm-lightglue"
MATCHES = f"{FEATURES}_matches-sfm-lightglue_{PAIRS}"
MODEL = "sfm"


def write(source: Source, target: Target, options: ExportOptions) -> str:
    """Writes `feats-*.h5`, `pairs-*.txt`, `feats-*_matches-*_pairs-*.h5` and the model in `sfm`.

    Keypoints of the model have the numbers that they have in the file of features.

    Raises: FileNotFoundError if the run has no features, pairs or matches any more.
    """
    folder = source.folder
    files = {folder.features: f"{FEATURES}.h5", folder.pairs: f"{PAIRS}.txt", folder.matches: f"{MATCHES}.h5"}
    missing = [path.name for path in files if not result_exists(path)]
    if missing:
        raise FileNotFoundError(f"{folder.path} has no {', '.join(missing)}: run again, to export for hloc")
    if source.mirrored:
        logger.warning(
            "%s stored mirrored: in the model, keypoints are those of the flipped photo, in the file of features they are not",
            count_of(len(source.mirrored), "photo is", "photos are"),
        )
    for path, name in files.items():
        if path == folder.pairs:
            shutil.copyfile(path, target.folder / name)
        else:
            write_single_file(path, target.folder / name)
    (target.folder / MODEL).mkdir()
    source.reconstruction.write(target.folder / MODEL)
    source.copy_georeference(target.folder / MODEL)
    return f"{source}\nlocalize_sfm.main({str(target.path / MODEL)!r}, QUERIES, RETRIEVAL, FEATURES, MATCHES, RESULTS)"
