"""Pair sources: which images are matched with which. One file per source, and the stage that asks a source for its pairs."""

PAIR_SOURCES = {
    "auto": "sfm_lightglue.pairs.auto:AutoPairs",
    "exhaustive": "sfm_lightglue.pairs.exhaustive:ExhaustivePairs",
    "sequential": "sfm_lightglue.pairs.sequential:SequentialPairs",
    "retrieval": "sfm_lightglue.pairs.retrieval:RetrievalPairs",
    "spatial": "sfm_lightglue.pairs.spatial:SpatialPairs",
    "poses": "sfm_lightglue.pairs.posed:PosesPairs",
    "covisibility": "sfm_lightglue.pairs.covisibility:CovisibilityPairs",
    "list": "sfm_lightglue.pairs.listed:ListedPairs",
    "union": "sfm_lightglue.pairs.union:UnionPairs",
}
"""Name in the configuration -> class, imported when it is chosen."""
