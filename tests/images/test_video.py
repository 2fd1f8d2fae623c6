"""Photos from a video: the sharpest frame of each window, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageFilter

from sfm_lightglue import cli
from sfm_lightglue.images import video
from sfm_lightglue.images.video import extract_frames

RATE = 10
SHARP = (3, 7, 11, 18)
"""Frames of the video that are not blurred: one in each window of half a second."""


@pytest.fixture(scope="module")
def av() -> Any:
    return pytest.importorskip("av")


@pytest.fixture(scope="module")
def clip(av: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of noise. The brightness of a corner tells the number of the frame: 10 * number."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, "yuv420p", 4_000_000
        for number in range(20):
            picture = noise if number in SHARP else noise.filter(ImageFilter.GaussianBlur(2))
            pixels = np.array(picture)
            pixels[:32, :32] = 10 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(path: Path) -> int:
    return round(float(np.asarray(PILImage.open(path))[8:24, 8:24].mean()) / 10)


def test_the_sharpest_frame_of_each_window_becomes_a_photo(clip: Path, tmp_path: Path) -> None:
    names = extract_frames(clip, tmp_path / "photos", every=0.5)
    assert names == sorted(path.name for path in (tmp_path / "photos").iterdir()) == [f"clip_0000{n}.jpg" for n in range(1, 5)]
    assert tuple(number_of(tmp_path / "photos" / name) for name in names) == SHARP


def test_the_command_says_what_it_wrote(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["frames", str(clip), str(tmp_path / "photos"), "every=1"]) == 0
    assert f"2 photos in {tmp_path / 'photos'}" in capsys.readouterr().out


@pytest.mark.parametrize("rotation, corner", [(0, "upper left"), (-90, "upper right"), (90, "lower left"), (-180, "lower right")])
def test_photos_are_upright_as_players_show_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotation: int, corner: str
) -> None:
    """PyAV gives the angle by which a player turns the stored picture, counter-clockwise. -90 is a phone held upright."""

    class TurnedFrame:
        def __init__(self) -> None:
            self.rotation = rotation

        def to_ndarray(self, format: str) -> np.ndarray:
            pixels = np.zeros((40, 80, 3), np.uint8)
            pixels[:16, :16] = 255
            return pixels

    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setattr(video, "_decoded", lambda path, every: iter([video._Frame(0, 1.0, TurnedFrame())]))
    [name] = extract_frames(tmp_path / "a.mp4", tmp_path / "out")
    pixels = np.asarray(PILImage.open(tmp_path / "out" / name))[..., 0]
    assert pixels.shape == ((40, 80) if rotation in (0, -180) else (80, 40))
    vertical, horizontal = corner.split()
    part = pixels[:16] if vertical == "upper" else pixels[-16:]
    assert (part[:, :16] if horizontal == "left" else part[:, -16:]).min() > 200


def test_a_broken_video_gives_the_frames_before_the_fault(clip: Path, tmp_path: Path) -> None:
    raw = tmp_path / "cut.avi"
    _remux(clip, raw)
    raw.write_bytes(raw.read_bytes()[: raw.stat().st_size // 2])
    assert 1 <= len(extract_frames(raw, tmp_path / "photos", every=0.5)) <= 3


def _remux(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def test_mistakes_are_told_before_anything_is_written(
    av: Any, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.jpg").write_bytes(b"mine")
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, message in [
        ([clip, tmp_path / "full"], "has other files already"),
        ([tmp_path / "gone.mp4", tmp_path / "out"], "does not exist"),
        ([tmp_path / "text.mp4", tmp_path / "out"], "cannot be decoded"),
        ([clip, tmp_path / "out", "every=0"], "every=0"),
        ([clip, tmp_path / "out", "every=often"], "every=often"),
        ([clip], "usage: frames VIDEO FOLDER"),
        ([clip, tmp_path / "out", "fps=2"], "usage: frames VIDEO FOLDER"),
    ]:
        assert cli.main(["frames", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and [*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "mine.jpg"]


def test_without_the_package_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'sfm-lightglue\[video\]'"):
        extract_frames(tmp_path / "a.mp4", tmp_path / "out")
