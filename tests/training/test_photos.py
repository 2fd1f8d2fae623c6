"""Training photos: decoded once, resized to one size, in an order that depends only on the seed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from generated_photos import picture, write_photos
from PIL import Image as PILImage

from sfm_lightglue import download
from sfm_lightglue.training import photos
from sfm_lightglue.training.export import hash_of_photos
from sfm_lightglue.training.photos import in_processes, prepare_photos, read_index, read_photo, row_of, stack_photos, write_index


def test_photos_are_grey_and_their_longest_side_is_limited(tmp_path: Path) -> None:
    for name, size in (("wide", (160, 120)), ("high", (90, 240)), ("small", (40, 30))):
        PILImage.fromarray(picture(size, 0)).save(tmp_path / f"{name}.png")
    paths = prepare_photos(tmp_path, ["high.png", "small.png", "wide.png"], tmp_path / "out", 80, 1)
    found = {name: read_photo(path) for name, path in paths.items()}
    assert {name: photo.shape for name, photo in found.items()} == {
        "high.png": (80, 30),
        "small.png": (30, 40),
        "wide.png": (60, 80),
    }
    for name, photo in found.items():
        assert photo.dtype == np.uint8
        with PILImage.open(tmp_path / name) as image:  # Pillow's grey has the same weights, and BOX averages over areas
            expected = image.convert("L").resize(photo.shape[::-1], PILImage.Resampling.BOX)
        assert np.abs(photo - np.asarray(expected, float)).mean() < 3


def test_existing_photos_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_photos(tmp_path / "photos", 3)
    paths = prepare_photos(tmp_path / "photos", names, tmp_path / "out", 80, 1)
    assert list(paths) == names and set(paths.values()) == set((tmp_path / "out").iterdir())
    before = {name: path.read_bytes() for name, path in paths.items()}
    paths["1.png"].unlink()
    made: list[str] = []
    original = photos._prepare_one

    def recorded(images: Path, size: int, job: tuple[str, Path]) -> str | None:
        made.append(job[0])
        return original(images, size, job)

    monkeypatch.setattr(photos, "_prepare_one", recorded)
    assert prepare_photos(tmp_path / "photos", names, tmp_path / "out", 80, 1) == paths
    assert made == ["1.png"]
    assert {name: path.read_bytes() for name, path in paths.items()} == before


def test_each_photo_is_hashed_once_in_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_photos(tmp_path / "photos", 3)
    hashed: list[str] = []
    monkeypatch.setattr(download, "sha256_of", lambda path: hashed.append(path.name) or str(path))
    prepare_photos(tmp_path / "photos", names, tmp_path / "out", 80, 1)
    hash_of_photos(tmp_path / "photos", names)
    assert hashed == names


def test_other_sizes_and_contents_give_other_files(tmp_path: Path) -> None:
    (name,) = write_photos(tmp_path / "photos", 1)
    paths = [prepare_photos(tmp_path / "photos", [name], tmp_path / "out", size, 1)[name] for size in (80, 96)]
    PILImage.fromarray(picture((160, 120), 7)).save(tmp_path / "photos" / name)
    paths.append(prepare_photos(tmp_path / "photos", [name], tmp_path / "out", 80, 1)[name])
    assert len(set(paths)) == 3
    assert [max(read_photo(path).shape) for path in paths] == [80, 96, 80]
    assert not np.array_equal(read_photo(paths[0]), read_photo(paths[2]))


def test_broken_photos_are_left_out_and_named_also_from_other_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "photos" / "empty.png").touch()
    names = sorted([*names, "broken.jpg", "empty.png"])
    found = []
    for processes in (1, 2):
        caplog.clear()
        found.append(prepare_photos(tmp_path / "photos", names, tmp_path / str(processes), 80, processes))
        assert list(found[-1]) == ["0.png", "1.png"]
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 2
        assert warnings[0].startswith("broken.jpg is left out: unreadable image")
        assert warnings[1].startswith("empty.png is left out: the file is empty")
    for name, path in found[0].items():
        assert found[1][name].read_bytes() == path.read_bytes()


def test_without_jobs_nothing_is_done() -> None:
    in_processes(lambda job: pytest.fail("there was one"), [], "photos", 2)


def test_photos_are_stacked_in_the_upper_left_corner() -> None:
    rng = np.random.default_rng(0)
    each = [rng.integers(0, 256, shape, np.uint8) for shape in ((3, 5), (8, 2), (8, 8))]
    stacked, sizes = stack_photos(each, 8)
    assert stacked.shape == (3, 1, 8, 8) and sizes.tolist() == [[5, 3], [2, 8], [8, 8]]
    for place, photo in zip(stacked[:, 0].numpy(), each, strict=True):
        height, width = photo.shape
        np.testing.assert_array_equal(place[:height, :width], photo)
        assert place[height:].sum() == place[:, width:].sum() == 0


def test_the_index_is_read_as_it_was_written_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_index(tmp_path / "index.json", [(Path("a.npy"), Path("b.npz")), (Path("c é.npy"), Path("d.npz"))])
    monkeypatch.chdir("/")
    assert read_index(written) == [[tmp_path / "a.npy", tmp_path / "b.npz"], [tmp_path / "c é.npy", tmp_path / "d.npz"]]


def test_every_row_comes_once_per_epoch_in_a_new_order() -> None:
    rows = [row_of(11, place, 3) for place in range(33)]
    epochs = [rows[:11], rows[11:22], rows[22:]]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [row_of(11, place, 3) for place in reversed(range(33))] == rows[::-1]
    assert [row_of(11, place, 4) for place in range(33)] != rows
