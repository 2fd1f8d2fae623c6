"""The command `view`: a viewer for the models of a run, for those that are too large for `report.html`."""

from __future__ import annotations

from sfm_lightglue.commands.table import usage
from sfm_lightglue.overrides import output_folder

PORT = 8080


def main(arguments: list[str]) -> int:
    """Serves the viewer on this machine until Ctrl-C."""
    folders = [argument for argument in arguments if not argument.startswith("port=")]
    ports = [argument.removeprefix("port=") for argument in arguments if argument.startswith("port=")] or [str(PORT)]
    if len(folders) != 1 or len(ports) != 1 or folders[0].startswith("-"):
        raise ValueError(f"usage: {usage('view')}")
    if not ports[0].isdecimal() or not 0 < int(ports[0]) < 65536:
        raise ValueError(f"port={ports[0]} is no port: expected a number from 1 to 65535")
    from sfm_lightglue.run_folder import RunFolder
    from sfm_lightglue.viewer import Viewer

    viewer = Viewer(RunFolder(output_folder(folders[0])), port=int(ports[0]))
    print(f"the viewer is at {viewer.address} (Ctrl-C ends it)", flush=True)
    viewer.serve()
