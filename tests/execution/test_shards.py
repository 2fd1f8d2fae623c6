"""The executor `shards` and the command `merge`: three processes write the files of one, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_executors import PRODUCTS, compute_products, make_run, photos  # noqa: F401  # a fixture

from sfm_lightglue import cli, pipeline, presentation
from sfm_lightglue.execution.shards import Shard, ShardMismatch, check_merged, read_shard, shard_suffix
from sfm_lightglue.files import locked
from sfm_lightglue.merge import merge_shards
from sfm_lightglue.run_context import check_inputs
from sfm_lightglue.run_folder import RunFolder
from sfm_lightglue.storage import ShardStore

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"options": {"features": {"max_keypoints": 100}}, "run": {}}


def shard(folder: Path, number: int, count: int = 3, about: dict[str, Any] = ABOUT) -> Shard:
    return Shard(folder / "shards", "match", number, count, about)


# --- who gets which keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_keys", "count"), [(0, 3), (2, 5), (10, 3), (1000, 16)])
def test_each_key_belongs_to_one_shard_and_shards_are_equal_and_hold_neighbours(
    tmp_path: Path, num_keys: int, count: int
) -> None:
    keys = [f"{key:04}" for key in range(num_keys)]
    shares = [shard(tmp_path, number, count).share(keys, [False] * num_keys) for number in range(1, count + 1)]
    assert [place for share in shares for place in share] == [*range(num_keys)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_new_is_divided_among_all_shards_although_others_store_results_meanwhile(tmp_path: Path) -> None:
    keys = [f"{key:02}" for key in range(30)]
    is_stored = np.arange(30) < 20
    shares = []
    for number in (1, 2, 3):
        shares.append(shard(tmp_path, number).share(keys, is_stored))
        is_stored[shares[-1]] = True
    assert sorted(place for share in shares for place in share) == [*range(30)]
    assert [len([place for place in share if place >= 20]) for share in shares] == [3, 3, 4]
    assert shard(tmp_path, 2).share(keys, is_stored) == shares[1]  # run again


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shard(tmp_path, 1).share(["a", "b"], [False] * 2)
    with pytest.raises(ShardMismatch, match=r"shard 2/4 of match does not fit .*: they are 3 shards\. Start all shards alike"):
        shard(tmp_path, 2, 4).check()
    other = {"options": {"features": {"max_keypoints": 50}}, "run": {}}
    with pytest.raises(ShardMismatch, match=r"other options \(features\.max_keypoints: 100 -> 50\)"):
        shard(tmp_path, 2, about=other).check()
    with pytest.raises(ShardMismatch, match=r"they are for other pairs \(2, now 3\)"):
        shard(tmp_path, 2).share(["a", "b", "c"], [False] * 3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "execution=shards needs execution.shard=i/n, such as 3/16"),
        ("abc", "execution.shard=abc is no shard: expected i/n"),
        ("3", "execution.shard=3 is no shard"),
        ("0/3", "execution.shard=0/3 does not exist: shards are counted from 1, expected 1/3 to 3/3"),
        ("4/3", "execution.shard=4/3 does not exist: shards are counted from 1, expected 1/3 to 3/3"),
        ("0/0", "shards are counted from 1, and there is at least one"),
    ],
)
def test_a_shard_that_does_not_exist_is_named(text: str | None, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_shard(text)
    assert problem in str(caught.value)
    assert shard_suffix(text) == ""


def test_names_of_folders_sort_as_the_shards() -> None:
    assert read_shard(" 3 / 16") == (3, 16)
    assert shard_suffix("3/16") == "_shard-03-of-16"


# --- who may work beside whom ----------------------------------------------------------------------------------------------


def test_shards_work_side_by_side_but_no_shard_twice_and_no_run_beside_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.locked_for("1-of-3"):
        with folder.locked_for("2-of-3"):
            pass
        with pytest.raises(ValueError, match=r"the shard 1-of-3, or a run without shards, is working in "):
            folder.locked_for("1-of-3").__enter__()
        with pytest.raises(ValueError, match=r"the shard 1-of-3 is working in .*: wait for it"):
            folder.locked().__enter__()
    with folder.locked():
        pass


def test_a_shard_does_not_start_beside_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfm_lightglue.run_folder.LOOK_S", 0.1)
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(ValueError, match="another run is working in"):
        folder.locked_for("1-of-3").__enter__()
    with locked(tmp_path / ".lock"), pytest.raises(ValueError, match="another run is working in"):
        folder.locked_for("2-of-3").__enter__()
    with folder.locked_for("1-of-3"):
        pass


# --- the files -------------------------------------------------------------------------------------------------------------

OPTIONS = ("features=sift", "matches=nearest_neighbor")


def run_shard(folder: Path, stage: str, number: int, *overrides: str) -> None:
    run = make_run(folder, "shards", "execution=shards", f"execution.shard={number}/3", *overrides)
    check_inputs(run, stage)
    pipeline.run_stage(run, stage)


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The next store flushes `count` results and is then interrupted."""
    add, left = ShardStore.add, [count]

    def interrupted(store: ShardStore, *arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(store, *arguments)

    monkeypatch.setattr(ShardStore, "add", interrupted)


def test_shards_and_merge_leave_the_files_of_a_local_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    local = make_run(photos, "local")
    expected = compute_products(local)
    for stage in ("extract", "match", "verify"):
        for number in (3, 1):
            run_shard(photos, stage, number)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, 0 if stage == "extract" else 1)
            run_shard(photos, stage, 2)
        with pytest.raises(ValueError, match=rf"1 of 3 shards of {stage} are not complete(?s:.*)execution\.shard=2/3$"):
            merge_shards(photos / "shards")
        run_shard(photos, stage, 2)
        assert merge_shards(photos / "shards") == [stage]
        if stage == "extract":
            pipeline.run_stage(make_run(photos, "shards"), "pairs")
    folder = photos / "shards"
    assert [(folder / name).read_bytes() for name in PRODUCTS] == expected
    records = [json.loads((photos / output / "summary.json").read_text())["stages"] for output in ("local", "shards")]
    times = {"seconds", "cpu_seconds", "peak_memory_mb"}
    assert len({str({name: {**stage, **dict.fromkeys(times)} for name, stage in record.items()}) for record in records}) == 1
    assert "unreadable image" in records[1]["extract"]["skipped"]["broken.png"]
    assert not [*folder.rglob("*shard*")] and (folder / "photos.tsv").is_file()


def test_an_interrupted_shard_goes_on_where_it_was(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    compute_products(make_run(photos, "shards"))
    (photos / "shards" / "matches.h5").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        run_shard(photos, "match", 1)
    run_shard(photos, "match", 1)
    record = json.loads((photos / "shards" / "shards" / "match.1-of-3.json").read_text())
    assert record["num_computed"] == 1  # of two


def test_a_run_without_shards_finishes_what_shards_began(photos: Path) -> None:  # noqa: F811
    expected = compute_products(make_run(photos, "local"))
    run_shard(photos, "extract", 1)
    with pytest.raises(ValueError, match=r"the results of the shards of extract are not united yet: merge output="):
        check_inputs(make_run(photos, "shards"), "pairs")
    pipeline.run_stage(make_run(photos, "shards"), "extract")
    assert (photos / "shards" / "features.h5").read_bytes() == expected[0]
    check_merged(photos / "shards" / "shards", ["extract"])


def test_a_merge_that_was_killed_can_be_repeated_until_all_is_written(
    photos: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(folder: RunFolder) -> None:
        raise KeyboardInterrupt

    run_shard(photos, "extract", 1, "execution.shard=1/1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "write_tables_of", killed)
        merge_shards(photos / "shards")
    assert not (photos / "shards" / "photos.tsv").exists()
    assert merge_shards(photos / "shards") == ["extract"]
    assert (photos / "shards" / "photos.tsv").exists()


def test_tables_are_written_again_only_if_something_changed(
    photos: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(photos, "out")
    for stage in ("extract", "pairs", "match"):
        pipeline.run_stage(run, stage)
    written: list[RunFolder] = []
    monkeypatch.setattr(presentation, "write_tables", written.append)
    pipeline.run_stage(run, "match")
    assert not written
    os.utime(run.folder.matches)
    pipeline.run_stage(run, "match")
    assert len(written) == 1
    os.utime(run.folder.photo_table)
    os.utime(run.folder.pair_reasons)
    pipeline.run_stage(run, "match")
    assert len(written) == 1
    pipeline.run_stage(make_run(photos, "out", "geometries.min_num_inliers=16"), "match")
    assert len(written) == 2
    run.folder.photo_table.unlink()
    pipeline.run_stage(run, "match")
    assert len(written) == 3


def test_there_must_be_something_to_merge(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            FileNotFoundError, match="has nothing to merge: extract, pairs, match or verify with execution=shards"
        ):
            merge_shards(folder)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "match.json").write_text('{"count": 3, "num')
    with pytest.raises(ValueError, match=r"match\.json is damaged: delete .*shards, which holds no results"):
        merge_shards(tmp_path)


def test_the_command_that_is_missing_can_be_repeated(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    run_shard(photos, "extract", 1, "features.max_keypoints=50")
    assert cli.main(["merge", f"output={photos}/shards"]) == 1
    printed = capsys.readouterr().err
    commands = [line.split()[3:] for line in printed.splitlines() if "execution.shard=" in line]
    assert len(commands) == 2 and "features.max_keypoints=50" in commands[0]
    for command in commands:
        assert cli.main(command) == 0
    assert cli.main(["merge", f"output={photos}/shards", "-q"]) == 0
    logs = [path.name for path in (photos / "shards" / "logs").iterdir() if path.is_dir()]
    assert sorted(name[-7:] for name in logs) == ["-2-of-3", "-3-of-3"]


def test_the_pairs_of_a_second_round_are_divided_too(
    photos: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    walk = ("pairs=sequential", "pairs.overlap=1", "pairs.quadratic_overlap=false", "pairs.rounds=2", "pairs.min_partners=3")
    for output in ("local", "shards"):
        compute_products(make_run(photos, output, *walk))
    local, folder = make_run(photos, "local", *walk), photos / "shards"
    pipeline.run_stage(local, "expand")
    run_shard(photos, "verify", 1, *walk, "execution.shard=1/1")
    merge_shards(folder)
    assert " expand " in caplog.messages[-1] and "execution=shards" in caplog.messages[-1]
    run = make_run(photos, "shards", *walk, "execution=shards")
    check_inputs(run, "expand")
    with pytest.raises(ValueError, match=r"expand is not divided: run it once"):
        check_inputs(make_run(photos, "shards", *walk, "execution=shards", "execution.shard=1/3"), "expand")
    for _ in range(2):  # as if killed before the pairs were matched
        pipeline.run_stage(run, "expand")
    assert len((folder / "pairs.txt").read_text().splitlines()) == 3 + 2  # of them 2 in the second round
    assert "execution.shard=i/n for each i from 1 to n, then merge" in caplog.messages[-1]
    for number in (1, 2, 3):
        run_shard(photos, "match", number, *walk)
    merge_shards(folder)
    run_shard(photos, "verify", 1, *walk, "execution.shard=1/1")
    merge_shards(folder)
    assert caplog.messages[-1].startswith("next: python -m sfm_lightglue run ") and "execution" not in caplog.messages[-1]
    for name in (*PRODUCTS, "pairs.txt", "pairs.tsv"):
        assert (folder / name).read_bytes() == (photos / "local" / name).read_bytes()
    pipeline.run_stage(run, "expand")
    assert "no pairs are added (pairs.rounds=2)" in caplog.messages[-1]


@pytest.mark.parametrize("codebook", ["own", "none"])
def test_shards_describe_the_images_and_merge_finds_the_pairs(photos: Path, codebook: str) -> None:  # noqa: F811
    source = ("pairs=[sequential,retrieval]", "pairs.retrieval.num_neighbours=1", "pairs.retrieval.codebook=own")
    if codebook == "none":
        source = ("pairs=exhaustive",)
    names = ["pairs.txt", "pairs.tsv", *(["global_descriptors.h5", "codebook.safetensors"] if codebook == "own" else [])]
    for output in ("local", "shards"):
        pipeline.run_stage(make_run(photos, output, *source), "extract")
    pipeline.run_stage(make_run(photos, "local", *source), "pairs")
    for number in (2, 3, 1):
        run_shard(photos, "pairs", number, *source)
    done = [json.loads(path.read_bytes())["num_computed"] for path in (photos / "shards" / "shards").glob("pairs.*-of-3.json")]
    assert sorted(done) == ([1, 1, 2] if codebook == "own" else [0, 0, 0])
    assert merge_shards(photos / "shards") == ["pairs"]
    for name in names:
        assert (photos / "shards" / name).read_bytes() == (photos / "local" / name).read_bytes()


def test_pairs_are_not_expanded_before_those_of_the_round_before_are_verified(photos: Path) -> None:  # noqa: F811
    run = make_run(photos, "shards", "pairs.rounds=3", "execution=shards")
    compute_products(make_run(photos, "shards", "pairs.rounds=3"))
    with (photos / "shards" / "pairs.tsv").open("a") as table:
        table.write("2.png\t9.png\texhaustive\t\n")
    with pytest.raises(ValueError, match=r"1 of 7 pairs were not verified, such as '2\.png' and '9\.png': run the stages match"):
        pipeline.run_stage(run, "expand")


@pytest.mark.slow
def test_three_processes_one_of_them_killed(photos: Path) -> None:  # noqa: F811
    """Each shard is a process of its own. The second one is killed as soon as its first result is on disk, and started again."""
    expected = compute_products(make_run(photos, "local", "features.max_keypoints=200"))
    given = ["dataset=folder", f"dataset.images={photos}/photos", f"output={photos}/shards", *OPTIONS]
    given += ["features.max_keypoints=200", "execution=shards"]

    def start(stage: str, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sfm_lightglue", stage, *given, f"execution.shard={number}/3", "-q"]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    for stage in ("extract", "pairs"):
        pipeline.run_stage(make_run(photos, "shards", "features.max_keypoints=200"), stage)
    processes = [start("match", number) for number in (1, 2, 3)]
    deadline = time.monotonic() + 300
    while not [*(photos / "shards" / "matches.h5.shards").glob("*-2-of-3.h5*")] and processes[1].poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    assert [process.wait(300) for process in processes][::2] == [0, 0]
    assert start("match", 2).wait(300) == 0
    merge_shards(photos / "shards")
    assert [(photos / "shards" / name).read_bytes() for name in PRODUCTS[:2]] == expected[:2]
