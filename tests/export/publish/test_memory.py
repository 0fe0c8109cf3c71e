"""What is measured of memory on the CPU holds for larger runs, and for an arena that is limited to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from equipoise_core.contract import Contract, load_contract
from equipoise_core.gpu_memory import gpu_plan
from equipoise_export.errors import ExportError
from equipoise_export.publish import arena, memory
from equipoise_export.publish.memory import arena_bytes, measure_memory

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"

LIMITED = """
import json, sys
import numpy as np, onnxruntime
model, limit, shapes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
memory = onnxruntime.OrtMemoryInfo(
    "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
)
arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_mem": limit})
onnxruntime.create_and_register_allocator(memory, arena)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.use_env_allocators", "1")
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
shrink = onnxruntime.RunOptions()
shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
types = {"image": np.float32, "masks": np.uint8}
for each in shapes:
    session.run(None, {name: np.ones(dims, types[name]) for name, dims in each.items()}, shrink)
"""


def _model(name: str) -> tuple[Path, Contract]:
    return REPOSITORY / f"{name}_sampler" / "1" / "model.onnx", load_contract(REPOSITORY / name / "1/contract.json")


def _shapes(images: int, samples: int, size: tuple[int, ...], mask_bytes: int) -> dict[str, list[int]]:
    return {"image": [images, 1, *size], "masks": [images, samples, mask_bytes]}


def _plan(name: str, size: tuple[int, ...], samples: int, of: int):
    contract = replace(load_contract(REPOSITORY / name / "1/contract.json"), maximum=size)
    return gpu_plan(REPOSITORY, contract, samples, of)


@pytest.mark.parametrize(
    ("name", "size", "samples", "images"),
    [("nuclei", (160, 192), 5, 3), ("nuclei", (64, 200), 20, 2), ("hippocampus", (40, 48, 24), 8, 2)],
)
def test_larger_runs_take_what_is_reckoned_from_smaller_ones(name, size, samples, images):
    """Of other sizes, samples and numbers of images than were measured: not more, and not far less."""
    model, contract = _model(name)
    mask_bytes = -(-sum(site.shape[0] for site in contract.sites) // 8)
    weights, taken = arena_bytes(model, _shapes(images, samples, size, mask_bytes))
    need = _plan(name, size, samples, 10**12).needs[f"{name}_sampler"]
    assert need.measured and need.samples == samples
    assert 0.6 * images * need.image <= taken <= need.of(images) - need.weights
    assert weights <= need.weights


def test_a_limit_holds_what_it_is_planned_for():
    """Runs of all sizes and numbers in turn fit into what the largest needs, and do not fit into half of that."""
    model, contract = _model("nuclei")
    mask_bytes = -(-sum(site.shape[0] for site in contract.sites) // 8)
    mixed = [(2, 10, (128, 128)), (1, 10, (128, 64)), (2, 5, (64, 64)), (1, 1, (128, 128)), (2, 10, (128, 128))]
    need = _plan("nuclei", (128, 128), 10, 10**12).needs["nuclei_sampler"]

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        shapes = json.dumps([_shapes(*each, mask_bytes) for each in mixed])
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(model), str(limit), shapes],
            capture_output=True,
            text=True,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )

    enough = run(need.of(2))
    assert enough.returncode == 0, enough.stderr
    less = run(need.of(1) // 2)
    assert less.returncode and "Available memory of" in less.stderr


def test_measurements_repeat():
    """The same file gives the same bytes; a model of one size is measured at that."""
    model, contract = _model("pneumonia")
    first = measure_memory(model, contract)
    assert [(run["samples"], run["size"]) for run in first["runs"]] == [(1, [28, 28]), (20, [28, 28])]
    assert measure_memory(model, contract) == first


def test_measurements_grow_with_samples_and_voxels():
    """At the largest size that may be measured, and at half of it."""
    model, contract = _model("nuclei")
    found = measure_memory(model, replace(contract, maximum=(64, 64)))
    sizes = [(run["samples"], run["size"]) for run in found["runs"]]
    assert sizes == [(1, [32, 32]), (20, [32, 32]), (1, [64, 64]), (20, [64, 64])]
    few, many, large, most = (run["bytes"] for run in found["runs"])
    assert few < many < most and few < large < most


def test_a_model_that_does_not_run_is_refused(tmp_path, tiny_segmentation):
    """Limits from nothing would be worse than none."""
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="does not run on the CPU"):
        measure_memory(tmp_path / "model.onnx", tiny_segmentation.contract)


@pytest.mark.parametrize(("keeps", "few"), [(3.0, 3), (0.5, 2)])
def test_large_runs_are_reckoned_from_fewer_samples_and_are_no_less_than_measured(keeps, few, monkeypatch):
    """A network of volumes may take a gigabyte a sample, and the machine that exports has to bear it."""
    model, contract = _model("nuclei")
    one, measured = measure_memory(model, contract)["runs"][-2:]
    monkeypatch.setattr(memory, "PEAK_BYTES", int(keeps * one["bytes"]))
    _, reckoned = measure_memory(model, contract)["runs"][-2:]
    assert reckoned["measured_with_samples"] == few and reckoned["samples"] == measured["samples"] == contract.samples
    assert measured["bytes"] <= reckoned["bytes"] <= 1.7 * measured["bytes"]


def test_a_run_that_the_system_kills_says_that_memory_is_short(tmp_path, monkeypatch):
    """The child process ends without a word."""
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(arena, "__file__", str(tmp_path / "killed.py"))
    with pytest.raises(ExportError, match="memory is short"):
        measure_memory(*_model("nuclei"))
