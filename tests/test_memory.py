"""The memory of the machine, and the limit of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_lightglue import memory


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("123456789\n")
    (tmp_path / "unlimited").write_text("max\n")
    for files, expected in [((), 2**30), ((tmp_path / "unlimited",), 2**30), ((tmp_path / "memory.max",), 123456789)]:
        monkeypatch.setattr(memory, "CGROUP_FILES", files)
        found = memory.memory_bytes.__wrapped__()
        assert found == expected if expected != 2**30 else found >= 2**28
