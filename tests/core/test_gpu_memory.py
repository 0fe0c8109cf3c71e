"""Plans for a GPU: from measurements where there are some, never below them, and never more than was given."""

from __future__ import annotations

import dataclasses
import json

import pytest
from equipoise_core.budget import image_bytes
from equipoise_core.contract import FirstPass, Sampler
from equipoise_core.gpu_memory import CUDA_RESERVE, GPU_MEMORY, WORKSPACES, gpu_plan

GB = 10**9


def _measured(repository, sampler: str, runs, weights: int = 1000) -> None:
    version = repository / sampler / "1"
    version.mkdir(parents=True)
    listed = [{"samples": samples, "size": size, "bytes": taken} for samples, size, taken in runs]
    (version / "proof.json").write_text(json.dumps({"memory": {"weights": weights, "runs": listed}}))


@pytest.fixture
def contract(segmentation):
    return dataclasses.replace(segmentation, maximum=(64, 64), samplers=(Sampler("a", "0" * 64),), first_pass=None)


def test_samples_lie_on_the_line_between_two_measurements_and_voxels_grow_as_measured(contract, tmp_path):
    """Linear in voxels at least: attention grows faster, and padding makes small images dear."""
    _measured(tmp_path, "a", [(1, [16, 16], 100), (20, [16, 16], 2000), (1, [32, 32], 400), (20, [32, 32], 8000)])
    assert gpu_plan(tmp_path, contract, 20).needs["a"].image == pytest.approx(32000, abs=1)
    assert gpu_plan(tmp_path, contract, 10).needs["a"].image == pytest.approx(16000, abs=1)
    for large, expected in ((32000, 512000), (2000, 8000)):  # voxels ** 2, and below linear
        runs = [(20, [16, 16], 2000), (20, [32, 32], large)]
        _measured(tmp_path / str(large), "a", runs)
        assert gpu_plan(tmp_path / str(large), contract, 20).needs["a"].image == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("proof", [None, "", "[]", "{}", '{"memory": {"weights": 1, "runs": [{}]}}'])
def test_without_a_measurement_the_size_decides(contract, tmp_path, proof):
    """More than any network took; a damaged proof is as none."""
    (tmp_path / "a" / "1").mkdir(parents=True)
    if proof is not None:
        (tmp_path / "a" / "1" / "proof.json").write_text(proof)
    (need,) = gpu_plan(tmp_path, contract, 20).needs.values()
    assert not need.measured
    assert need.image == image_bytes(contract, contract.window(contract.maximum), 20)


def test_all_that_runs_at_the_same_time_shares_the_memory(contract, tmp_path):
    """Members draw their parts of the samples, the first pass one; each limit holds its run and cuDNN's workspaces."""
    both = dataclasses.replace(
        contract, samplers=(Sampler("a", "0"), Sampler("b", "1")), first_pass=FirstPass("first", "2")
    )
    for name in ("a", "b", "first"):
        _measured(tmp_path, name, [(1, [64, 64], GB // 10), (20, [64, 64], 2 * GB)], weights=GB // 2)
    plan = gpu_plan(tmp_path, both, 21, 16 * GB)
    assert {name: need.samples for name, need in plan.needs.items()} == {"a": 11, "b": 11, "first": 1}
    assert plan.images == max(count for count in range(1, 9) if plan.needed(count) <= 16 * GB)
    assert sum(map(plan.limit, plan.needs)) + CUDA_RESERVE <= 16 * GB
    for name, need in plan.needs.items():
        assert plan.limit(name) >= need.of(plan.images) >= GB // 2 + WORKSPACES * need.image * plan.images
    assert gpu_plan(tmp_path, both, 21, 16 * GB, instances=2).images < plan.images


def test_a_default_always_holds_one_image(contract, tmp_path):
    """Where one takes more than the default, the plan is for one; what was given is never exceeded."""
    _measured(tmp_path, "a", [(20, [64, 64], 40 * GB)])
    plan = gpu_plan(tmp_path, contract, 20)
    assert plan.images == 1 and plan.memory > GPU_MEMORY and plan.limit("a") >= 40 * GB
    given = gpu_plan(tmp_path, contract, 20, 30 * GB)
    assert given.memory == 30 * GB and not given.fits
