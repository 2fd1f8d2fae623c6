"""The table of published weights: where files are found, which files are refused, and the messages. No downloads."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfm_lightglue.networks import weights as table
from sfm_lightglue.networks.weights import WEIGHTS, WeightsEntry, available_weights, find_weights, load_weights

SHIPPED = Path(table.__file__).parents[1] / "weights"
CONTENT = b"stands in for a state dict"


@pytest.fixture(autouse=True)
def offline_and_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SFM_LIGHTGLUE_WEIGHTS", raising=False)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> WeightsEntry:
    """A table entry `small`. Its file has the content CONTENT and is in no package."""
    made = WeightsEntry(
        name="small",
        file="small.pth",
        urls=("https://example.invalid/small.pth",),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="MIT",
        for_="features=small",
        origin="this test",
    )
    monkeypatch.setitem(WEIGHTS, "small", made)
    return made


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("entry", WEIGHTS.values(), ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: WeightsEntry) -> None:
    assert all(url.startswith("https://") for url in entry.urls)
    assert entry.urls or find_weights(entry.name).parent == SHIPPED
    assert (entry.sha256 is None) == (entry.name == "raco"), "no public project pins the hash of RaCo"
    assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
    assert entry.licence and entry.origin and entry.for_.startswith(("features=", "matches=", "pairs="))
    assert WEIGHTS[entry.name] is entry


def test_no_two_entries_share_a_file() -> None:
    assert len({entry.file for entry in WEIGHTS.values()}) == len(WEIGHTS)


def test_only_the_weights_of_magic_leap_are_research_only() -> None:
    research_only = {entry.name for entry in WEIGHTS.values() if entry.research_only}
    assert research_only == {"superpoint-official", "superglue-outdoor-official", "superglue-indoor-official"}


@pytest.mark.parametrize("entry", [entry for entry in WEIGHTS.values() if entry.package], ids=lambda entry: entry.name)
def test_the_packages_hold_exactly_the_files_of_the_table(entry: WeightsEntry) -> None:
    assert entry.package is not None
    try:
        importlib.metadata.distribution(entry.package[0])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{entry.package[0]} is not installed")
    content = find_weights(entry.name).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry.sha256, entry.size)


def test_the_users_folder_comes_before_the_cache(entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = put(tmp_path / "cache" / "weights" / "small.pth")
    assert find_weights("small") == cached
    own = put(tmp_path / "own" / "small.pth")
    monkeypatch.setenv("SFM_LIGHTGLUE_WEIGHTS", str(own.parent))
    assert find_weights("small") == own


def test_a_file_with_another_hash_is_skipped_with_a_warning(
    entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = put(tmp_path / "own" / "small.pth", b"my own training")
    monkeypatch.setenv("SFM_LIGHTGLUE_WEIGHTS", str(own.parent))
    cached = put(tmp_path / "cache" / "weights" / "small.pth")
    assert find_weights("small") == cached
    assert f"{own} is not the published file" in caplog.text


def test_a_file_that_changes_is_hashed_again(entry: WeightsEntry, tmp_path: Path) -> None:
    path = put(tmp_path / "cache" / "weights" / "small.pth")
    assert find_weights("small") == path
    put(path, b"damaged")
    with pytest.raises(FileNotFoundError, match="wrong file"):
        find_weights("small")


def test_a_missing_file_is_fetched_into_the_cache(entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = put(tmp_path / "mirror" / "small.pth").parent
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "0")
    monkeypatch.setenv("SFM_LIGHTGLUE_MIRROR", mirror.as_uri())
    path = find_weights("small")
    assert path == tmp_path / "cache" / "weights" / "small.pth"
    assert path.read_bytes() == CONTENT


def test_the_licence_of_research_only_weights_is_logged_before_the_download(
    entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(WEIGHTS, "small", dataclasses.replace(entry, research_only=True, licence="research only, by X"))
    with pytest.raises(FileNotFoundError):
        find_weights("small")
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "weights small: research only, by X")
    ]


def test_one_error_says_what_is_missing_where_it_was_searched_and_what_to_do(
    entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setitem(WEIGHTS, "small", dataclasses.replace(entry, package=("no-such-package", "small.pth")))
    here = dataclasses.replace(entry, name="here", file="here.pth", for_="features=here")
    monkeypatch.setitem(WEIGHTS, "here", here)
    put(tmp_path / "own" / "here.pth")
    with pytest.raises(OSError) as caught:
        find_weights("small")
    text = str(caught.value)
    for part in (
        "small.pth",
        "features=small",
        f"{tmp_path / 'own'} (SFM_LIGHTGLUE_WEIGHTS): not there",
        f"{tmp_path / 'cache' / 'weights'}: not there",
        "package no-such-package: not installed",
        "https://example.invalid/small.pth: not tried because SFM_LIGHTGLUE_OFFLINE is set",
        "Run once with internet access: python -m sfm_lightglue weights fetch small. ",
        f"Or put the file at {tmp_path / 'cache' / 'weights' / 'small.pth'}",
        "features=sift (needs no weights), ",
        "features=here",
    ):
        assert part in text, text


def test_an_unknown_name_names_the_closest_one() -> None:
    with pytest.raises(ValueError, match="Did you mean 'aliked-lightglue'"):
        find_weights("aliked-lightgleu")


@pytest.mark.parametrize("text", ["missing.pth", "folder/missing"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_name(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_weights(text)


def test_listing_says_where_each_file_is_and_fetches_nothing(entry: WeightsEntry, tmp_path: Path) -> None:
    assert dict((found.name, path) for found, path in available_weights())["small"] is None
    cached = put(tmp_path / "cache" / "weights" / "small.pth")
    assert dict((found.name, path) for found, path in available_weights())["small"] == cached


def test_listing_needs_no_torch() -> None:
    code = "import sys; from sfm_lightglue.networks.weights import available_weights as f; f(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_a_path_loads_as_stored(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    loaded, record = load_weights(str(path))
    torch.testing.assert_close(loaded, tensors)
    assert (record.name, record.path, record.licence) == (str(path), str(path), "unknown (given by path)")
    assert (record.sha256, record.research_only) == (hashlib.sha256(path.read_bytes()).hexdigest(), False)


def test_nested_dicts_stay_nested(tmp_path: Path) -> None:
    torch.save({"extractor": {"weight": torch.ones(1)}}, tmp_path / "mine.pth")
    loaded, _ = load_weights(str(tmp_path / "mine.pth"))
    assert loaded == {"extractor": {"weight": torch.ones(1)}}


def test_a_named_file_without_a_published_hash_has_the_licence_of_its_name(
    entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WEIGHTS, "small", dataclasses.replace(entry, sha256=None, size=None, licence="Apache-2.0"))
    monkeypatch.setenv("SFM_LIGHTGLUE_WEIGHTS", str(tmp_path))
    torch.save({"weight": torch.ones(1)}, tmp_path / entry.file)
    _, record = load_weights("small")
    assert (record.name, record.licence) == ("small", "Apache-2.0")
    assert record.sha256 == hashlib.sha256((tmp_path / entry.file).read_bytes()).hexdigest()


def test_a_copy_given_by_path_keeps_its_licence(entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "renamed.pth"
    torch.save({"weight": torch.ones(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHTS, "small", dataclasses.replace(entry, sha256=digest, research_only=True))
    _, record = load_weights(str(path))
    assert (record.licence, record.research_only) == ("MIT", True)


def test_safetensors_files_carry_their_licence(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    metadata = {"licence": "Apache-2.0", "descriptor_sampling": "centred"}
    save_file({"weight": torch.ones(1)}, path, metadata)
    _, record = load_weights(str(path))
    assert (record.licence, record.research_only, record.metadata) == ("Apache-2.0", False, metadata)
    torch.save({"weight": torch.ones(1)}, tmp_path / "mine.pth")
    assert load_weights(str(tmp_path / "mine.pth"))[1].metadata == {}


def test_the_table_gives_the_licence_of_a_published_file(
    entry: WeightsEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.safetensors"
    save_file({"weight": torch.ones(1)}, path, {"licence": "public domain, it says"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHTS, "small", dataclasses.replace(entry, sha256=digest, research_only=True))
    _, record = load_weights(str(path))
    assert (record.licence, record.research_only) == ("MIT", True)


class OpensAFile:
    """A malicious pickle: unpickling it calls open(path, "w")."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "extra": OpensAFile(tmp_path / "created")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"refused: it asks to run _?io.open.*never run"):
        load_weights(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "created").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # this file does run code if it is allowed to
    assert (tmp_path / "created").exists()


def test_a_training_checkpoint_with_other_objects_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=1.0)}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"argparse.Namespace.*Save the plain state_dict"):
        load_weights(str(tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize(
    ("name", "content"), [("page.pth", b"<html>"), ("empty.pth", b""), ("cut.pth", b"PK\x03\x04cut"), ("cut.safetensors", b"cut")]
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"{name} (was refused|is not a readable file of weights)"):
        load_weights(str(path))


def test_a_file_without_a_dict_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor, expected a dict"):
        load_weights(str(tmp_path / "tensor.pth"))


def test_the_installed_weights_load_into_plain_tensors() -> None:
    for entry, path in available_weights():
        if path is not None:
            state, record = load_weights(entry.name)
            assert state and entry.sha256 in (None, record.sha256) and record.licence == entry.licence
