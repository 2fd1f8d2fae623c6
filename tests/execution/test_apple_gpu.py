"""`execution.device=mps` without such a device: what is chosen, and which operations of torch are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sfm_lightglue.execution.devices import chosen_devices, default_device, suitable_num_workers
from sfm_lightglue.networks.precision import network_dtype, resolved_precision

REPLACED = {"_scaled_dot_product_flash_attention_for_cpu"}
"""Operations that torch chooses for a CPU; there it chooses others."""
KEYS = {"MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}


def test_a_machine_without_it_is_told_what_to_do() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=r"device=mps is the GPU of an Apple processor, and torch sees none: choose cpu or auto"):
        default_device("mps")


@pytest.mark.parametrize("device", ["mps:0", "MPS"])
def test_it_has_one_name(device: str) -> None:
    with pytest.raises(ValueError, match=rf"execution.device='{device}': torch's name of .* is mps, without a number"):
        default_device(device)


def test_what_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    assert chosen_devices("mps") == ["mps"] and suitable_num_workers("mps") == 1
    assert network_dtype("float32", "mps") == torch.float32 and network_dtype("low", "mps") == torch.float16
    assert resolved_precision("auto", "mps", low_is_enough=True) == "float32"


@pytest.mark.parametrize("features", ["superpoint", "sift"])
def test_all_operations_are_implemented_there(features: str, tmp_path: Path) -> None:
    """By the table of torch's operations that comes with torch, for the open weights and for nearest neighbours."""
    torchgen = pytest.importorskip("torchgen")
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    if not table.is_file():
        pytest.skip("this torch has no table of its operations")
    overrides = [f"features={features}"]
    if features == "superpoint":
        overrides += ["features.precision=float32", "matches.precision=float32", "matches.guided_matching=false"]
    script, root = Path(__file__).with_name("operations.py"), Path(__file__).parents[2]
    environment = {**os.environ, "SFM_LIGHTGLUE_KERNELS": "0", "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), *overrides]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["keypoints"] > 100 and found["matches"] > 20 and len(found["names"]) > (50 if features == "superpoint" else 5)
    assert "torch.float64" not in found["dtypes"]  # Apple's GPUs have none
    entries = {entry["func"].partition("(")[0]: entry for entry in yaml.load(table.read_text(), yaml.CSafeLoader)}
    names = {name.removeprefix("aten::") for name in found["names"]} - REPLACED
    assert [name for name in sorted(names) if not is_implemented(entries[name], entries)] == []


def is_implemented(entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the table has an implementation of an operation for Apple's GPUs, or for all devices."""
    if "structured_delegate" in entry:
        return is_implemented(entries[entry["structured_delegate"]], entries)
    keys = {key.strip() for names in entry.get("dispatch", {}) for key in names.split(",")}
    return not keys or bool(keys & KEYS)
