"""The command `frames`: photos from a video, the sharpest frame of each short time. Needs the extra `video` (PyAV)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

logger = logging.getLogger(__name__)

SECONDS = 0.5
"""Length of a window, if none is given: two photos per second."""


@dataclass(frozen=True)
class _Frame:
    """A decoded frame that may become a photo."""

    window: int
    sharpness: float
    content: Any
    """PyAV's frame, still in the colours of the video."""


def extract_frames(video: Path | str, output: Path | str, every: float = SECONDS) -> list[str]:
    """Writes the sharpest frame of each window of a video as a JPEG photo, upright as players show it.

    A moving camera blurs its frames, some more than others.

    Args:
        video: The video, in any format of FFmpeg.
        output: Folder for the photos. It must not exist, or be empty.
        every: Length of a window, s. Neighbouring photos should share most of what they show.

    Returns:
        Names of the photos, in the order of time: `clip_00001.jpg`, ...

    Raises:
        FileNotFoundError: If the video does not exist.
        ValueError: If PyAV is not installed, the video cannot be decoded, `output` has files, or `every` is not positive.
    """
    video, output = Path(video), Path(output)
    if not every > 0:
        raise ValueError(f"every={every} must be a number of seconds above 0, for example every=0.5")
    if not video.is_file():
        raise FileNotFoundError(f"the video {video} does not exist")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} has other files already: give a new folder for the photos")
    names: list[str] = []
    for frame in _sharpest(_decoded(video, every)):
        output.mkdir(parents=True, exist_ok=True)
        names.append(f"{video.stem}_{len(names) + 1:05}.jpg")
        turns = round(frame.content.rotation / 90)  # counter-clockwise, from the video's header
        pixels = np.rot90(frame.content.to_ndarray(format="rgb24"), turns)
        PILImage.fromarray(np.ascontiguousarray(pixels)).save(output / names[-1], quality=95, subsampling=0)
    if not names:
        raise ValueError(f"{video} has no frames that can be decoded")
    return names


def _decoded(video: Path, every: float) -> Iterator[_Frame]:
    """All frames of the video with their window and their sharpness. What can be decoded of a broken video is used."""
    try:
        import av  # optional, see pyproject.toml
    except ImportError as error:
        raise ValueError("frames needs the package av: pip install 'sfm-lightglue[video]'") from error
    number = -1
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise ValueError(f"{video} has no pictures, only other streams")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start, rate = None, float(stream.average_rate or 30)
            for number, frame in enumerate(container.decode(stream)):
                seconds = number / rate if frame.time is None else float(frame.time)
                start = seconds if start is None else start
                yield _Frame(int((seconds - start) / every + 1e-6), _sharpness(frame.to_ndarray(format="gray")), frame)
    except av.FFmpegError as error:
        if number < 0:
            raise ValueError(f"{video} cannot be decoded: {error}") from error
        logger.warning("%s is broken after %d frames, the frames before are used: %s", video, number + 1, error)


def _sharpest(frames: Iterator[_Frame]) -> Iterator[_Frame]:
    """The sharpest frame of each window; the first one of equals."""
    best: _Frame | None = None
    for frame in frames:
        if best is not None and frame.window != best.window:
            yield best
            best = None
        if best is None or frame.sharpness > best.sharpness:
            best = frame
    if best is not None:
        yield best


def _sharpness(grey: np.ndarray) -> float:
    """Mean squared difference of neighbouring pixels of a uint8 picture (h, w). Blur makes it smaller."""
    values = grey.astype(np.int16)
    across, down = np.diff(values, axis=1), np.diff(values, axis=0)
    return float(np.square(across, dtype=np.float32).mean() + np.square(down, dtype=np.float32).mean())
