"""The HDF5 files between the stages: features, matches and two-view geometries. The only user of h5py.

`layout.py` converts the records of `products` to and from HDF5 groups, `reader.py` reads files, `shards.py` writes them.
`safety.py` refuses files that point to other files or exhaust the memory, `values.py` refuses numbers that are not valid.
No h5py object leaves this package.

hloc reads the features and matches. A features file has one group `NAME` per image, with the datasets `keypoints`, `scores`,
`descriptors` and `image_size`. A matches file has one group `NAME0/NAME1` per pair, with `matches0` and `matching_scores0`; `/`
in the names becomes `-`. `verification.h5` has a group with the same key per pair, with `inlier_matches` and the estimated
matrices `E`, `F` and `H`. Keypoints are float32, because float16 would round them to whole pixels above 1024.

The root of each file that we write holds the settings of the run as JSON, and their fingerprint. Each group holds a stamp: a
string that says from which input the group was computed.
"""

import warnings

from sfm_lightglue.storage.calibration import read_calibration
from sfm_lightglue.storage.joined_kinds import check_joined, is_joined
from sfm_lightglue.storage.kinds import PartOfFeatures, comparable_scores, joined_features_to_group
from sfm_lightglue.storage.layout import (
    CONFIGURATIONS,
    check_match_keys,
    features_to_group,
    geometry_to_group,
    match_key,
    matches_to_group,
)
from sfm_lightglue.storage.merging import write_single_file
from sfm_lightglue.storage.numbers import REASONS, GeometryNumbers, numbers_of, unknown_numbers
from sfm_lightglue.storage.reader import H5Reader
from sfm_lightglue.storage.record import GroupData
from sfm_lightglue.storage.safety import RefusedFile
from sfm_lightglue.storage.shards import SettingsChanged, ShardStore, check_output
from sfm_lightglue.storage.sources import pairs_in_segments
from sfm_lightglue.storage.values import check_features


def __getattr__(name: str) -> object:
    if name == "Item":
        warnings.warn("sfm_lightglue.storage.Item is now called GroupData", DeprecationWarning, stacklevel=2)
        return GroupData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CONFIGURATIONS",
    "REASONS",
    "GeometryNumbers",
    "GroupData",
    "H5Reader",
    "PartOfFeatures",
    "RefusedFile",
    "SettingsChanged",
    "ShardStore",
    "check_features",
    "check_joined",
    "check_match_keys",
    "check_output",
    "comparable_scores",
    "features_to_group",
    "geometry_to_group",
    "is_joined",
    "joined_features_to_group",
    "match_key",
    "matches_to_group",
    "numbers_of",
    "pairs_in_segments",
    "read_calibration",
    "unknown_numbers",
    "write_single_file",
]
