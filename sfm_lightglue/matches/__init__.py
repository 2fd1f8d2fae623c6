"""Matching: one file per matcher, and the stage that runs it over the pairs."""

MATCHERS = {
    "lightglue": "sfm_lightglue.matches.lightglue:LightGlueMatcher",
    "superglue": "sfm_lightglue.matches.superglue:SuperGlueMatcher",
    "nearest_neighbor": "sfm_lightglue.matches.nearest_neighbor:NearestNeighborMatcher",
    "several": "sfm_lightglue.matches.several:SeveralMatchers",
    "imported": "sfm_lightglue.matches.imported:ImportedMatcher",
}
"""Name in the configuration -> class, imported when it is chosen."""
