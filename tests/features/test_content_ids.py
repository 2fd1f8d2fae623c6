"""Content ids: the full hash of a photo is computed only if its size, time or samples differ from what is remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sfm_lightglue.features import content_ids
from sfm_lightglue.features.content_ids import ContentIds, ids_file


def old(path: Path, content: bytes, time_ns: int = 10**18) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(time_ns, time_ns))
    return path


def ids_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str | OSError], list[str]]:
    """The ids of the photos of a folder as a new run finds them, and the photos that were read whole."""
    read: list[str] = []
    original = content_ids.sha256_of
    with monkeypatch.context() as patch:
        patch.setattr(content_ids, "sha256_of", lambda path: (read.append(path.name), original(path))[1])
        ids = ContentIds(ids_file(folder.with_name("features.h5")))
        found = ids.of_files((path.name, path) for path in sorted(folder.iterdir()))
        ids.save()
    return found, sorted(read)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        old(folder / f"{number}.jpg", bytes([number]) * 50_000)
    return folder


def test_the_id_is_the_beginning_of_the_sha_256(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So features of earlier versions stay valid."""
    found, _ = ids_of(photos, monkeypatch)
    assert found == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in photos.iterdir()}


def test_photos_are_read_whole_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = ids_of(photos, monkeypatch)
    assert read == ["0.jpg", "1.jpg", "2.jpg"]
    before = ids_file(photos.with_name("features.h5")).stat().st_mtime_ns
    assert ids_of(photos, monkeypatch) == (first, [])
    assert ids_file(photos.with_name("features.h5")).stat().st_mtime_ns == before


@pytest.mark.parametrize("place", [0, 25_000, 49_999])
def test_a_photo_with_another_time_size_or_sample_is_read_again(
    photos: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    first, _ = ids_of(photos, monkeypatch)
    content = bytearray(50_000)
    content[place] = 7
    old(photos / "0.jpg", bytes(content))
    old(photos / "1.jpg", bytes([1]) * 50_001)
    old(photos / "2.jpg", bytes([2]) * 50_000, 10**18 + 1)
    second, read = ids_of(photos, monkeypatch)
    assert read == ["0.jpg", "1.jpg", "2.jpg"]
    assert [second[name] == first[name] for name in sorted(first)] == [False, False, True]


def test_a_photo_that_has_just_changed_is_not_remembered(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again within the resolution of the file system's clock, with the same size."""
    (photos / "0.jpg").write_bytes(b"new")
    assert ids_of(photos, monkeypatch)[1] == ["0.jpg", "1.jpg", "2.jpg"]
    assert ids_of(photos, monkeypatch)[1] == ["0.jpg"]


@pytest.mark.parametrize(
    "damage", [b"", b'{"photos": {"0.jpg": [1', b'{"photos": 3}', b'{"photos": {"0.jpg": null, "1.jpg": [1, 2]}}']
)
def test_a_damaged_memory_counts_as_none(photos: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    first, _ = ids_of(photos, monkeypatch)
    ids_file(photos.with_name("features.h5")).write_bytes(damage)
    assert ids_of(photos, monkeypatch) == (first, ["0.jpg", "1.jpg", "2.jpg"])


def test_a_file_of_others_is_kept(photos: Path) -> None:
    path = ids_file(photos.with_name("features.h5"))
    path.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="was not written by sfm_lightglue"):
        ContentIds(path)


def test_a_missing_photo_gives_its_error(photos: Path) -> None:
    found = ContentIds(ids_file("f.h5")).of_files([("0.jpg", photos / "0.jpg"), ("no.jpg", photos / "no.jpg")])
    assert isinstance(found["no.jpg"], FileNotFoundError) and isinstance(found["0.jpg"], str)
