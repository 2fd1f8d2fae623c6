"""Pairs that the user lists in a text file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue.pairs.listed import listed_pairs
from sfm_lightglue.products import Pair


def keys(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.name0, pair.name1) for pair in pairs]


def test_unknown_images_are_refused_together_with_the_closest_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("db/0001.jpg db/0002.jpg\ndb/0002.jpg 0003.jpeg")
    with pytest.raises(ValueError, match=r"2 images that are not in the collection.*'0003.jpeg'.*'db/0002.jpg'.*'db/0002.png'"):
        listed_pairs(path, ["db/0001.jpg", "db/0002.png"])


def test_pairs_of_unknown_images_are_skipped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("a.jpg b.jpg\nb.jpg c.jpg")
    assert keys(listed_pairs(path, ["b.jpg", "a.jpg"], skip_unknown=True)) == [("a.jpg", "b.jpg")]
    assert "skipped 1 of 2 pairs" in caplog.text
