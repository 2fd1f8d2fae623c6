"""Datasets: the shipped lists, downloads (from folders instead of servers), zips, and the ground truth of Strecha's benchmark."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from local_server import Server, serving
from omegaconf import OmegaConf

from sfm_lightglue import cli, datasets, download
from sfm_lightglue.config import compose_config
from sfm_lightglue.datasets import (
    convert_cameras,
    dataset_folder,
    ensure_dataset,
    fetch_dataset,
    list_datasets,
)
from sfm_lightglue.poses import read_poses
from sfm_lightglue.run_context import Run

REPOSITORY = Path(__file__).resolve().parents[1]
PACK = REPOSITORY / ".." / "shared" / "data"
FETCHED = ["fountain_p11", "herzjesu_p8", "sacre_coeur", "sceaux_castle", "south_building"]

CAMERA = """2000 0 800.5
0 2100 600.25
0 0 1
0 0 0
0 0 1
1 0 0
0 1 0
4 5 6
1600 1200
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", str(tmp_path / "cache"))
    for name in ("SFM_LIGHTGLUE_OFFLINE", "SFM_LIGHTGLUE_MIRROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that replaces the servers. The shipped folders are in `tmp_path/shipped` instead of the repository."""
    monkeypatch.setattr(datasets, "_shipped", lambda kind: tmp_path / "shipped" / kind)
    (tmp_path / "shipped" / "configs" / "dataset").mkdir(parents=True)
    (tmp_path / "published").mkdir()
    return tmp_path / "published"


def publish(published: Path, dataset: str, files: dict[str, bytes]) -> None:
    """Puts files on the "server" and their manifest among the shipped datasets."""
    lines = ["# path\tbytes\tsha256\taddress\n"]
    for i, (path, content) in enumerate(files.items()):
        (published / str(i)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f"{path}\t{len(content)}\t{digest}\thttp://127.0.0.1:1/gone {(published / str(i)).as_uri()}\n")
    folder = published.parent / "shipped" / "datasets" / dataset
    folder.mkdir(parents=True)
    (folder / "files.tsv").write_text("".join(lines))


def zipped(members: dict[str, bytes]) -> bytes:
    """The bytes of a zip with these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def publish_zip(published: Path, members: dict[str, bytes]) -> None:
    publish(published, "toy", {"toy.zip": zipped(members)})


def test_the_shipped_datasets_are_listed_with_description_and_licence() -> None:
    entries = {entry.name: entry for entry in list_datasets()}
    assert set(FETCHED) <= set(entries)
    for name in FETCHED:
        entry = entries[name]
        assert entry.description and entry.licence and entry.origin.startswith("https://")
        assert not entry.is_present and entry.folder.parts[-3:] == ("cache", "datasets", name)
        assert all(url.startswith("https://") for file in entry.files for url in file.urls)


def test_only_south_building_cannot_be_verified() -> None:
    assert [entry.name for entry in list_datasets() if not entry.is_verified] == ["south_building"]
    assert [entry.name for entry in list_datasets() if entry.size is None] == ["south_building"]


def test_the_shipped_demo_is_listed_as_present() -> None:
    folder = REPOSITORY / "datasets" / "demo"
    if not (folder / "images").is_dir():
        pytest.skip("no datasets/demo/images in this checkout")
    (entry,) = [entry for entry in list_datasets() if entry.name == "demo"]
    assert (entry.is_present, entry.folder, entry.size) == (True, folder, 0)


@pytest.mark.parametrize("name", FETCHED)
def test_each_config_points_into_the_folder_of_its_dataset(name: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs" / "dataset" / f"{name}.yaml"), resolve=False)
    assert isinstance(config, dict)
    has_poses = name in ("fountain_p11", "herzjesu_p8")
    poses = {"poses": f"${{dataset_folder:{name}}}/poses.txt"} if has_poses else {}
    assert config == {"name": name, "images": f"${{dataset_folder:{name}}}/images"} | poses


def test_the_manifest_of_sacre_coeur_has_the_hashes_of_the_real_photos() -> None:
    photos = sorted((PACK / "sacre_coeur10" / "images").glob("*.jpg"))
    if not photos:
        pytest.skip("no shared photos beside this checkout")
    (entry,) = [entry for entry in list_datasets() if entry.name == "sacre_coeur"]
    listed = {file.path: (file.size, file.sha256) for file in entry.files if file.path.startswith("images/")}
    found = {f"images/{p.name}": (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in photos}
    assert listed == found


@pytest.mark.parametrize("name", FETCHED)
def test_each_dataset_is_fetched_from_its_servers_by_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list of each dataset with its paths, its unknown sizes and hashes, and small files at a local address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        listed = small_dataset(REPOSITORY / "datasets" / name / "files.tsv", server)
        (tmp_path / "shipped" / "datasets" / name).mkdir(parents=True)
        (tmp_path / "shipped" / "datasets" / name / "files.tsv").write_text("".join(listed))
        shutil.copytree(REPOSITORY / "configs" / "dataset", tmp_path / "shipped" / "configs" / "dataset")
        monkeypatch.setattr(datasets, "_shipped", lambda kind: tmp_path / "shipped" / kind)
        assert cli.main(["datasets", "fetch", name]) == 0, capsys.readouterr().err
        folder = Path(capsys.readouterr().out.strip())
        (entry,) = list_datasets()
        assert entry.folder == folder and entry.is_present
        expected = [file.path for file in entry.files if not file.path.endswith(".zip")] or ["images/sub/photo.jpg"]
        assert all((folder / path).is_file() for path in expected)
        assert len(server.requests) == len(listed)
        assert ensure_dataset(name) == folder and len(server.requests) == len(listed)
        if any(path.endswith(".camera") for path in expected):
            assert len(read_poses(folder / "poses.txt")) == sum(path.endswith(".camera") for path in expected)


def small_dataset(manifest: Path, server: Server) -> list[str]:
    """The lines of a manifest for small files on the server; `-` stays where it stands."""
    lines = []
    for line in manifest.read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        path, size, sha256, urls = line.split("\t")
        content = f"photo {path}".encode()
        if path.endswith(".camera"):
            content = CAMERA.encode()
        elif path.endswith(".zip"):
            content = zipped({"scene/images/sub/photo.jpg": b"photo", "scene/database.db": b"no photo"})
        address = "/" + urls.split()[0].split("://")[1]
        server.files[address] = content
        known = ("-" if size == "-" else str(len(content)), "-" if sha256 == "-" else hashlib.sha256(content).hexdigest())
        lines.append("\t".join([path, *known, server.url(address)]) + "\n")
    return lines


def test_a_dataset_is_fetched_whole_and_only_once(published: Path, tmp_path: Path) -> None:
    publish(published, "toy", {"images/a.jpg": b"first", "images/sub/b.jpg": b"second", "Readme.txt": b"by me"})
    assert [entry.is_present for entry in list_datasets()] == [False]
    folder = ensure_dataset("toy")
    assert folder == tmp_path / "cache" / "datasets" / "toy" == Path(dataset_folder("toy"))
    assert (folder / "images" / "sub" / "b.jpg").read_bytes() == b"second"
    assert [entry.is_present for entry in list_datasets()] == [True]
    for file in published.iterdir():
        file.unlink()
    assert ensure_dataset("toy") == fetch_dataset("toy") == folder


def test_only_damaged_and_missing_files_are_fetched_again(published: Path) -> None:
    publish(published, "toy", {"images/a.jpg": b"first", "images/b.jpg": b"second", "images/c.jpg": b"third"})
    folder = fetch_dataset("toy")
    (folder / "images" / "a.jpg").write_bytes(b"FIRST")
    (folder / "images" / "b.jpg").unlink()
    (published / "2").unlink()
    fetch_dataset("toy")
    assert [(folder / "images" / name).read_bytes() for name in ("a.jpg", "b.jpg")] == [b"first", b"second"]


def test_files_that_a_user_put_there_are_hashed_once(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(published, "toy", {"images/a.jpg": b"first", "images/b.jpg": b"second"})
    folder = tmp_path / "cache" / "datasets" / "toy"
    (folder / "images").mkdir(parents=True)
    for name, content in (("a.jpg", b"first"), ("b.jpg", b"SECOND")):  # of the right size
        (folder / "images" / name).write_bytes(content)
    assert ensure_dataset("toy") == folder
    assert (folder / "images" / "b.jpg").read_bytes() == b"second"
    assert "b.jpg is not the file of dataset toy (expected 6 bytes with SHA-256" in caplog.text and "a.jpg" not in caplog.text
    hashed: list[Path] = []
    monkeypatch.setattr(download, "sha256_of", lambda path: hashed.append(path) or hashlib.sha256(path.read_bytes()).hexdigest())
    ensure_dataset("toy")
    assert hashed == []
    (folder / "images" / "a.jpg").write_bytes(b"other")
    assert (ensure_dataset("toy") / "images" / "a.jpg").read_bytes() == b"first"


def test_an_incomplete_dataset_is_completed_before_a_run(published: Path, tmp_path: Path) -> None:
    publish(published, "toy", {"images/a.jpg": b"first", "images/b.jpg": b"second"})
    folder = fetch_dataset("toy")
    (folder / "images" / "b.jpg").unlink()
    own = tmp_path / "own"
    own.mkdir()
    for images, names in ((folder / "images", ["a.jpg", "b.jpg"]), (own, [])):
        run = Run.create(compose_config(["dataset=folder", "dataset.name=toy", f"dataset.images='{images}'", "output=out"]))
        assert sorted(path.name for path in run.images.iterdir()) == names


def test_a_dataset_is_fetched_into_the_requested_folder(published: Path, tmp_path: Path) -> None:
    publish(published, "toy", {"images/a.jpg": b"first"})
    assert fetch_dataset("toy", tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert (tmp_path / "elsewhere" / "images" / "a.jpg").read_bytes() == b"first"


def test_a_shipped_dataset_stays_where_it_is(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shipped" / "datasets" / "demo"
    (folder / "images").mkdir(parents=True)
    (tmp_path / "shipped" / "configs" / "dataset" / "demo.yaml").write_text("# Ten photos\n# licence: CC0-1.0\nname: demo\n")
    (entry,) = list_datasets()
    assert (entry.description, entry.licence, entry.is_present, entry.size) == ("Ten photos", "CC0-1.0", True, 0)
    assert ensure_dataset("demo") == fetch_dataset("demo") == Path(dataset_folder("demo")) == folder


def test_an_unknown_dataset_names_the_closest_one() -> None:
    with pytest.raises(ValueError, match="Did you mean 'fountain_p11'"):
        dataset_folder("fountain")


def test_the_offline_error_names_the_dataset_the_file_and_alternatives(
    published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(published, "toy", {"images/a.jpg": b"first", "images/b.jpg": b"second", "images/c.jpg": b"third"})
    put = tmp_path / "cache" / "datasets" / "toy" / "images" / "c.jpg"
    put.parent.mkdir(parents=True)
    put.write_bytes(b"third")
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    with pytest.raises(ConnectionError, match=r"dataset toy is not complete: 2 of 3 files are missing.*a\.jpg") as caught:
        ensure_dataset("toy")
    assert f"put it at {tmp_path / 'cache' / 'datasets' / 'toy' / 'images' / 'a.jpg'}" in str(caught.value)
    assert "dataset=folder" in str(caught.value)


def test_the_photos_of_a_zip_are_unpacked_and_the_zip_removed(published: Path) -> None:
    publish_zip(published, {"south/images/a.jpg": b"1", "south/images/sub/b.jpg": b"2", "south/database.db": b"3"})
    folder = ensure_dataset("toy")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "images/a.jpg",
        "images/sub/b.jpg",
    ]
    assert [entry.is_present for entry in list_datasets()] == [True]


@pytest.mark.parametrize(
    "name", ["images/../../../escaped.jpg", "/images/escaped.jpg", "images\\..\\..\\e.jpg", "C:/images/e.jpg"]
)
def test_a_zip_that_would_write_outside_its_folder_is_refused(published: Path, tmp_path: Path, name: str) -> None:
    publish_zip(published, {"south/images/a.jpg": b"1", name: b"2"})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="would write outside its folder"):
        fetch_dataset("toy")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_that_is_not_a_zip_is_refused(published: Path) -> None:
    publish(published, "toy", {"toy.zip": b"<html>"})
    with pytest.raises(ValueError, match="not a zip file"):
        fetch_dataset("toy")


def test_a_zip_without_photos_is_refused(published: Path) -> None:
    publish_zip(published, {"south/photos/a.jpg": b"1"})
    with pytest.raises(ValueError, match="no folder named images"):
        fetch_dataset("toy")


def test_fetched_cameras_become_poses(published: Path) -> None:
    publish(published, "toy", {"images/0000.jpg": b"photo", "gt_dense_cameras/0000.jpg.camera": CAMERA.encode()})
    folder = ensure_dataset("toy")
    # Computed by hand: x_cam = y, y_cam = z, z_cam = x of the world, which is a rotation by 120 degrees about (1, 1, 1).
    # C = (4, 5, 6), so t = -(5, 6, 4).
    lines = (folder / "poses.txt").read_text().splitlines()
    assert lines[0].startswith("#") and len(lines) == 2
    assert lines[1] == "0000.jpg 0.5 -0.5 -0.5 -0.5 -5 -6 -4 2000 2100 800.5 600.25 1600 1200"


def test_a_deleted_pose_file_is_written_again(published: Path) -> None:
    publish(published, "toy", {"gt_dense_cameras/0000.jpg.camera": CAMERA.encode()})
    (ensure_dataset("toy") / "poses.txt").unlink()
    assert (ensure_dataset("toy") / "poses.txt").is_file()


def test_a_broken_camera_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "0000.jpg.camera").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"0000\.jpg\.camera: expected the 26 numbers"):
        convert_cameras(tmp_path, tmp_path / "poses.txt")


def rotation_of(w: float, x: float, y: float, z: float) -> np.ndarray:
    """(3, 3) rotation of a unit quaternion; it rotates each axis v to v + 2 w (u x v) + 2 u x (u x v)."""
    u = np.array([x, y, z])
    return np.stack([v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v)) for v in np.eye(3)], axis=1)


@pytest.mark.parametrize("name", ["fountain_p11", "herzjesu_p8"])
def test_cameras_written_from_real_poses_come_back(name: str, tmp_path: Path) -> None:
    path = PACK / name / "poses.txt"
    if not path.is_file():
        pytest.skip("no shared photos beside this checkout")
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    for photo, *rest in lines:
        values = np.array(rest, float)
        rotation, (fx, fy, cx, cy), size = rotation_of(*values[:4]), values[7:11], values[11:]
        rows = [[fx, 0, cx], [0, fy, cy], [0, 0, 1], [0, 0, 0], *rotation.T, -rotation.T @ values[4:7], size]
        text = "\n".join(" ".join(f"{value:.12g}" for value in row) for row in rows)
        (tmp_path / f"{photo}.camera").write_text(text)
    convert_cameras(tmp_path, tmp_path / "poses.txt")
    written = read_poses(tmp_path / "poses.txt")
    for photo, camera in read_poses(path).items():
        found = written[photo]
        np.testing.assert_allclose(found.cam_from_world, camera.cam_from_world, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.camera_matrix, camera.camera_matrix, rtol=1e-9)
        assert found.size == camera.size
