"""Local features: one file per extractor, and the stage that runs it over a folder of photos."""

EXTRACTORS = {
    "superpoint": "sfm_lightglue.features.superpoint:SuperPointExtractor",
    "aliked": "sfm_lightglue.features.aliked:AlikedExtractor",
    "raco": "sfm_lightglue.features.raco:RacoExtractor",
    "disk": "sfm_lightglue.features.disk:DiskExtractor",
    "xfeat": "sfm_lightglue.features.xfeat:XFeatExtractor",
    "sift": "sfm_lightglue.features.sift:SiftExtractor",
    "several": "sfm_lightglue.features.several:SeveralExtractors",
    "imported": "sfm_lightglue.features.imported:ImportedExtractor",
}
"""Name in the configuration -> class, imported when it is chosen."""
