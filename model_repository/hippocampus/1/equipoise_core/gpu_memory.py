"""How many images share a sampler run on a GPU, and the memory that each sampler may take there.

Triton's dynamic batcher joins requests up to `max_batch_size` whatever their size, so this many images of the largest
size must fit. What a run takes is measured at export, on the CPU: see `equipoise_export.publish.memory`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log, pow, prod
from pathlib import Path
from typing import Any

from .budget import MOST_AT_ONCE, at_a_time, image_bytes, volume_bytes
from .contract import Contract

GPU_MEMORY = 24 * 10**9
"""Bytes that a configuration is written for unless it is told: an A10, L4 or A30 with one model."""

CUDA_RESERVE = 2**30
"""Bytes of it that are left to the CUDA context, its kernels and Triton's own pool. Assumed, not measured."""

WORKSPACES = 1.25
"""What a run takes on a GPU, over what it took on the CPU: room for cuDNN's workspaces, which come out of the same
arena. Assumed, not measured."""


@dataclass(frozen=True)
class Need:
    """What one sampler file takes on a GPU, in bytes.

    Attributes:
        samples: of each image in a run.
        weights: once.
        image: each image of the largest size.
        measured: on the CPU; otherwise reckoned from the image's size, and more than it is.
    """

    samples: int
    weights: int
    image: int
    measured: bool

    def of(self, images: int) -> int:
        """Bytes of a run with so many images."""
        return self.weights + ceil(WORKSPACES * self.image * images)


@dataclass(frozen=True)
class GpuPlan:
    """One public model on a GPU.

    Attributes:
        memory: bytes that it may take there.
        instances: of each of its samplers.
        needs: of its samplers and its first pass, by name.
    """

    memory: int
    instances: int
    needs: Mapping[str, Need]

    def needed(self, images: int) -> int:
        """Bytes, with so many images in every run; all samplers run at the same time."""
        return CUDA_RESERVE + self.instances * sum(need.of(images) for need in self.needs.values())

    @property
    def fits(self) -> bool:
        """Whether a single image of the largest size does."""
        return self.needed(1) <= self.memory

    @cached_property
    def images(self) -> int:
        """Images of a run at most, 1 to 8: the samplers' `max_batch_size`."""
        return max((count for count in range(2, MOST_AT_ONCE + 1) if self.needed(count) <= self.memory), default=1)

    def limit(self, sampler: str) -> int:
        """Bytes that an instance of this sampler may take (`gpu_mem_limit`): its share, not only what it needs."""
        total = sum(need.of(self.images) for need in self.needs.values())
        return (self.memory - CUDA_RESERVE) * self.needs[sampler].of(self.images) // (self.instances * total)


def gpu_plan(
    repository: Path, contract: Contract, chunk: int, memory: int | None = None, instances: int = 1
) -> GpuPlan:
    """The plan for a published model.

    Args:
        repository: where the folders of its samplers lie.
        chunk: samples of one of its sampler requests, over all members of an ensemble.
        memory: bytes of a GPU that it may take; None: `GPU_MEMORY`, or what a single image needs where that is more.
    """
    members = max(1, len(contract.samplers))
    each = -(-chunk // members) if contract.stochastic else 1
    samples = {sampler.name: each for sampler in contract.samplers}
    if contract.first_pass is not None:
        samples[contract.first_pass.name] = 1
    needs = {name: _need(repository / name / "1", contract, count) for name, count in samples.items()}
    plan = GpuPlan(GPU_MEMORY if memory is None else memory, instances, needs)
    return plan if memory is not None or plan.fits else GpuPlan(plan.needed(1), instances, needs)


def _need(version: Path, contract: Contract, samples: int) -> Need:
    """Of the sampler in this version directory; reckoned where its `proof.json` has no measurement."""
    window = contract.window(contract.maximum)
    weights = sum(file.stat().st_size for file in version.glob("model.onnx*"))
    proof = version / "proof.json"
    try:
        memory = json.loads(proof.read_text(encoding="utf-8") if proof.is_file() else "")["memory"]
        taken = _extrapolated(memory["runs"], at_a_time(contract, window), samples) + volume_bytes(contract, window)
        return Need(samples, max(weights, int(memory["weights"])), taken, True)
    except (OSError, ValueError, LookupError, TypeError):
        return Need(samples, weights, image_bytes(contract, window, samples), False)


def _extrapolated(runs: list[Mapping[str, Any]], window: tuple[int, ...], samples: int) -> int:
    """Bytes of an image of this size, from runs of one image.

    The peak of a run is the largest of sums that are linear in the samples, so it lies below the line between two
    measurements. In voxels it grows as between the two sizes measured, and linearly at least.
    """
    found: dict[int, dict[int, int]] = {}
    for run in runs:
        found.setdefault(prod(run["size"]), {})[int(run["samples"])] = int(run["bytes"])
    at = {voxels: _line(of, samples) for voxels, of in found.items()}
    small, large = min(at), max(at)
    growth = max(1.0, log(at[large] / at[small]) / log(large / small)) if large > small else 1.0
    return ceil(at[large] * pow(prod(window) / large, growth))


def _line(of: Mapping[int, int], samples: int) -> float:
    few, many = min(of), max(of)
    slope = (of[many] - of[few]) / (many - few) if many > few else 0.0
    return max(1.0, of[few] + slope * (samples - few))
