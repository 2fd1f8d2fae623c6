"""Downloads from a server on 127.0.0.1 that can continue transfers, cut connections and serve wrong files."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Server, serving

import sfm_lightglue.download as fetch_module
from sfm_lightglue.download import FetchError, WrongFileError, cache_dir, fetch, matches_checksum, sha256_once
from sfm_lightglue.files import sha256_of

CONTENT = bytes(range(256)) * 1024  # 256 KiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("SFM_LIGHTGLUE_OFFLINE", "SFM_LIGHTGLUE_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        running.files["/weights.pth"] = CONTENT
        yield running


def fetch_to(path: Path, *urls: str, sha256: str | None = SHA256, size: int | None = len(CONTENT)) -> None:
    fetch(urls, path, sha256=sha256, size=size, progress=False)


def test_a_whole_file_arrives_and_leaves_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.pth"
    fetch_to(path, server.url())
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    fetch_to(path, server.url())
    assert server.requests == []


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT[:-1] + b"x")
    fetch_to(path, server.url())
    assert path.read_bytes() == CONTENT


def test_a_cut_transfer_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100_000, 50_000]
    fetch_to(tmp_path / "weights.pth", server.url())
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_the_next_download_continues_a_killed_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:70_000])
    fetch_to(tmp_path / "weights.pth", server.url())
    assert server.requests == [("/weights.pth", "bytes=70000-")]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_connection_that_brings_nothing_is_given_up_at_once(server: Server, tmp_path: Path) -> None:
    server.cut_after = [0] * 10
    with pytest.raises(FetchError, match=f"connection cut after 0 of {len(CONTENT)} bytes"):
        fetch_to(tmp_path / "weights.pth", server.url())
    assert len(server.requests) == 1


def test_a_failed_download_keeps_the_bytes_that_arrived(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 0]
    with pytest.raises(FetchError):
        fetch_to(tmp_path / "weights.pth", server.url())
    assert (tmp_path / "weights.pth.part").read_bytes() == CONTENT[:1000]


def test_a_server_without_ranges_starts_again_cleanly(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "weights.pth.part").write_bytes(b"leftover of something else")
    fetch_to(tmp_path / "weights.pth", server.url())
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_after_a_wrong_leftover_the_file_is_fetched_once_more_from_its_start(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"\xff" * 5000)
    fetch_to(tmp_path / "weights.pth", server.url())
    assert [wanted for _, wanted in server.requests] == ["bytes=5000-", None]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_after_a_leftover_longer_than_the_file_the_file_is_fetched_once_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(CONTENT + b"more")
    fetch_to(tmp_path / "weights.pth", server.url(), size=None)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_after_a_wrong_hash_no_file_is_left_and_the_error_names_both_hashes(server: Server, tmp_path: Path) -> None:
    server.files["/weights.pth"] = CONTENT[::-1]
    found = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 is {found}, expected {SHA256}"):
        fetch_to(tmp_path / "weights.pth", server.url())
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_size_is_not_even_fetched(server: Server, tmp_path: Path) -> None:
    server.files["/weights.pth"] = b"<html>please log in</html>"
    with pytest.raises(FetchError, match=f"has 26 bytes, expected {len(CONTENT)}"):
        fetch_to(tmp_path / "weights.pth", server.url())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", ["/missing.pth", "/wrong.pth"])
def test_the_second_address_is_used_if_the_first_fails(server: Server, tmp_path: Path, bad: str) -> None:
    server.files["/wrong.pth"] = CONTENT[::-1]
    fetch_to(tmp_path / "weights.pth", server.url(bad), server.url())
    assert [path for path, _ in server.requests] == [bad, "/weights.pth"]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_the_mirror_is_tried_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_MIRROR", server.url("/mirror/"))
    server.files["/mirror/weights.pth"] = CONTENT
    fetch_to(tmp_path / "weights.pth", server.url())
    assert [path for path, _ in server.requests] == ["/mirror/weights.pth"]


def test_a_folder_serves_as_mirror(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "weights.pth").write_bytes(CONTENT)
    monkeypatch.setenv("SFM_LIGHTGLUE_MIRROR", (tmp_path / "mirror").as_uri())
    fetch_to(tmp_path / "weights.pth", server.url())
    assert server.requests == []
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_one_error_names_the_file_every_address_and_the_place_to_put_it(server: Server, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:1/weights.pth"
    with pytest.raises(ConnectionError) as caught:
        fetch_to(tmp_path / "weights.pth", server.url("/missing.pth"), closed, "no-address")
    text = str(caught.value)
    assert f"put it at {tmp_path / 'weights.pth'}" in text
    assert f"{server.url('/missing.pth')}: HTTP 404 Not Found" in text
    assert f"{closed}: [Errno" in text
    assert "no-address: unknown url type" in text


def test_a_network_that_does_not_answer_is_noticed_soon_and_each_host_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, ends = list[str](), threading.Event()

    def find_name(host: str, *_: object, **__: object) -> list[object]:
        tried.append(host)
        ends.wait(20)  # as a resolver without network
        return []

    for name in ("http_proxy", "https_proxy", "all_proxy", "SFM_LIGHTGLUE_OFFLINE", "SFM_LIGHTGLUE_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", find_name)
    monkeypatch.setattr(fetch_module, "CONNECT_S", 0.1)
    monkeypatch.setattr(fetch_module, "_tried_hosts", {})
    begin = time.monotonic()
    for file in ("a.pth", "b.pth"):
        with pytest.raises(FetchError, match=r"https://one.invalid/weights.pth: no connection within 0.1 s"):
            fetch_to(tmp_path / file, "https://one.invalid/weights.pth", "https://two.invalid/weights.pth")
    ends.set()
    assert sorted(tried) == ["one.invalid", "two.invalid"]
    assert time.monotonic() - begin < 5


def test_a_host_is_tried_again_later(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.server_address[1]
    monkeypatch.setattr(fetch_module, "_tried_hosts", {("127.0.0.1", port): (time.monotonic() + 60, "no network")})
    with pytest.raises(FetchError, match="no network"):
        fetch_to(tmp_path / "weights.pth", server.url())
    monkeypatch.setattr(fetch_module, "_tried_hosts", {("127.0.0.1", port): (time.monotonic() - 1, "no network")})
    fetch_to(tmp_path / "weights.pth", server.url())
    assert len(server.requests) == 1


def test_offline_touches_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_OFFLINE", "1")
    with pytest.raises(FetchError, match="SFM_LIGHTGLUE_OFFLINE"):
        fetch_to(tmp_path / "weights.pth", server.url())
    assert server.requests == []


def test_two_downloads_of_one_file_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch_to, args=(tmp_path / "weights.pth", server.url())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.pth"]


def test_without_known_hash_and_size_every_file_is_accepted(server: Server, tmp_path: Path) -> None:
    fetch_to(tmp_path / "weights.pth", server.url(), sha256=None, size=None)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("error", [FetchError("text", {"address": "reason"}), WrongFileError("text", {"address": "reason"})])
def test_errors_can_be_pickled(error: FetchError | WrongFileError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reasons) == ("text", {"address": "reason"})


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_LIGHTGLUE_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("SFM_LIGHTGLUE_CACHE")
    assert cache_dir() == Path("/xdg/sfm_lightglue")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/me/.cache/sfm_lightglue")


def test_a_file_matches_checksum_only_with_its_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not matches_checksum(path, None, None)
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert matches_checksum(path, sha256_of(path), 3)
    assert matches_checksum(path, None, None)
    assert not matches_checksum(path, None, 4)
    assert not matches_checksum(path, SHA256, 3)


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hashed = tmp_path / "abc", []
    monkeypatch.setattr(fetch_module, "sha256_of", lambda path: hashed.append(path) or path.read_text())
    path.write_text("first")
    assert [sha256_once(path), sha256_once(path)] == ["first", "first"] and len(hashed) == 1
    path.write_text("second one")
    assert sha256_once(path) == "second one"
