"""The start and the end of a process: what loads ahead, when garbage is looked for, and what remains as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from sfm_lightglue import cli
from sfm_lightglue.commands.run import runs_network
from sfm_lightglue.commands.starting import load_torch_ahead, loading


def test_no_garbage_is_looked_for_while_modules_load() -> None:
    with pytest.raises(ValueError, match="a mistake"), loading():
        assert not gc.isenabled()
        with loading():
            pass
        assert not gc.isenabled()
        raise ValueError("a mistake")
    assert gc.isenabled()


def test_the_end_of_a_process_keeps_all_objects(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sfm_lightglue", "runn"])
    try:
        assert cli.main_of_process() == 2 and "there is no command 'runn'" in capsys.readouterr().err
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux only")
def test_torchs_library_is_loaded_without_python() -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from sfm_lightglue.commands.starting import load_torch_ahead
        thread = load_torch_ahead()
        thread.join()
        loaded = "libtorch_cpu.so" in Path("/proc/self/maps").read_text()
        print(loaded, "torch" in sys.modules)
        import torch
        print(torch.ones(3).sum().item(), load_torch_ahead())
    """
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True", "False", "3.0", "None"]


def test_a_library_that_cannot_be_loaded_is_left_to_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "lib" / "libtorch_global_deps.so").write_bytes(b"no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch")
    thread = load_torch_ahead()
    if thread is not None:
        thread.join()
        assert not thread.is_alive()


def test_torch_is_loaded_ahead_only_for_new_results(tmp_path: Path) -> None:
    output = [f"output={tmp_path}", "output='" + str(tmp_path) + "'"]
    for each in output:
        assert (
            runs_network("run", [each]) and runs_network("extract", ["pairs=exhaustive", each]) and runs_network("match", [each])
        )
    (tmp_path / "features.h5").touch()
    for each in output:
        assert not runs_network("run", [each]) and not runs_network("extract", [each]) and runs_network("match", [each])
    assert not any(runs_network(command, [f"output={tmp_path / 'new'}"]) for command in ("verify", "reconstruct", "evaluate"))
    assert not runs_network("run", ["+dataset=demo"])  # its folder is not known yet
