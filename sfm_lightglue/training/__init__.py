"""Training of the shipped networks: data, losses, the loop, validation and export."""

TRAININGS = {
    "superpoint": "sfm_lightglue.training.superpoint:SuperPointTask",
    "superpoint_light": "sfm_lightglue.training.superpoint_light:SuperPointLightTask",
    "lightglue": "sfm_lightglue.training.lightglue:LightGlueTask",
}
"""Names in the configuration and their classes. A class is imported when it is chosen."""
