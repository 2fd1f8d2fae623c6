"""Training of the networks that are shipped: data, losses, the loop, validation, export."""

TRAININGS = {
    "superpoint": "sfm_lightglue.training.superpoint:SuperPointTask",
    "lightglue": "sfm_lightglue.training.lightglue:LightGlueTask",
}
"""Name in the configuration -> class, imported when it is chosen."""
