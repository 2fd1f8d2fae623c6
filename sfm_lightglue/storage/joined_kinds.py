"""Whether a file of features or matches was joined from the files of several kinds of features."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sfm_lightglue.storage.reader import H5Reader
from sfm_lightglue.storage.shards import SettingsChanged


def is_joined(path: Path | str) -> bool:
    """Whether a file was joined from several kinds, or does not exist."""
    with contextlib.suppress(FileNotFoundError), H5Reader(path) as reader:
        return "kinds" in reader.settings
    return True


def check_joined(path: Path) -> None:
    """Raises: SettingsChanged if there is a file of one kind, which a joined one would replace."""
    if not is_joined(path):
        raise SettingsChanged(
            f"{path} holds one kind of features, this run has several: choose another output folder, or give "
            "execution.if_settings_changed=recompute to replace it"
        )
