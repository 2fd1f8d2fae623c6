"""Which cameras the photos of a run have, before the pairs are verified and after."""

from __future__ import annotations

from pathlib import Path

from sfm_lightglue.cameras import Camera, CameraAssignment, cameras_of_poses, choose_cameras
from sfm_lightglue.geometries.lenses import with_lenses
from sfm_lightglue.poses import read_poses
from sfm_lightglue.run_context import Run


def assign_cameras(run: Run) -> CameraAssignment:
    """The camera of each photo that has features, by `database.intrinsics`.

    The stages of a process share them: choosing reads the headers of all photos, and says what is odd about them.
    """
    with run.folder.open_features() as reader:
        sizes = {name: reader.image_size(name) for name in run.photos_with_features()}
    if run.made.get("sizes") != sizes:
        options = run.options.database
        cameras = choose_cameras(run.images, sizes, options.intrinsics, options.camera_model, _known_cameras(run))
        run.made.update(sizes=sizes, cameras=cameras)
    assignment: CameraAssignment = run.made["cameras"]
    return assignment


def verified_cameras(run: Run) -> CameraAssignment:
    """The cameras that the pairs were verified with."""
    with run.folder.open_verification() as reader:
        return with_lenses(assign_cameras(run), reader)


def _known_cameras(run: Run) -> dict[str, Camera]:
    """Pinhole cameras without distortion from the file of poses, if `database.intrinsics` is `poses`."""
    if not run.options.dataset.poses or run.options.database.intrinsics != "poses":
        return {}
    return cameras_of_poses(read_poses(Path(run.options.dataset.poses)))
