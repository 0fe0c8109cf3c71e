"""What one model may take of a GPU's memory → the limits in its configurations, for `publish` and `serve` alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_core.gpu_memory import CUDA_RESERVE, WORKSPACES, GpuPlan, gpu_plan
from equipoise_core.loading import load_model
from tritonclient.grpc.model_config_pb2 import ModelConfig

from .errors import DeployError

IMAGES_PARAMETER = "images"
"""Of a public model: images that its samplers take in one request."""

_LIMIT = "gpu_mem_limit"
_UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """`24G` (as GPUs are sold: 24·10⁹ bytes), `22.5GiB`, `16000M` → bytes. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]I?)B?", text.strip().upper())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"{text!r} is not an amount of memory; expected a number with a unit, such as 24G or 22GiB")
    return int(float(found[1]) * _UNITS[found[2]])


@dataclass(frozen=True)
class GpuLimits:
    """A plan that fits, and the size it was made for.

    Attributes:
        largest: spatial sizes of the largest image that the network sees at once.
    """

    plan: GpuPlan
    largest: tuple[int, ...]

    def configure_aggregator(self, config: ModelConfig) -> None:
        """Changes the public model's configuration in place."""
        config.parameters[IMAGES_PARAMETER].string_value = str(self.plan.images)

    def configure_sampler(self, config: ModelConfig) -> None:
        """Changes a configuration of a sampler on a GPU in place."""
        images, limit = self.plan.images, str(self.plan.limit(config.name))
        stand_in = config.backend == "python"  # it has the provider's options all in one place
        config.max_batch_size = images
        if not stand_in:
            config.parameters[_LIMIT].string_value = limit
        for group in config.instance_group:
            group.count = self.plan.instances
        for warmup in config.model_warmup:
            if warmup.name == "largest":
                warmup.batch_size = images
        for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
            if stand_in:
                accelerator.parameters[_LIMIT] = limit
            if accelerator.name == "tensorrt":
                accelerator.parameters["max_workspace_size_bytes"] = limit
                for name in ("trt_profile_opt_shapes", "trt_profile_max_shapes"):
                    accelerator.parameters[name] = re.sub(r":\d+", f":{images}", accelerator.parameters[name])

    def document(self) -> dict[str, Any]:
        """For JSON; bytes."""
        return {
            "memory": self.plan.memory,
            "reserve": CUDA_RESERVE,
            "largest": list(self.largest),
            "images": self.plan.images,
            "instances": self.plan.instances,
            "samplers": {
                name: {
                    "samples": need.samples,
                    "measured": need.measured,
                    "run": need.of(self.plan.images),
                    "limit": self.plan.limit(name),
                }
                for name, need in self.plan.needs.items()
            },
        }

    def __str__(self) -> str:
        size = " × ".join(map(str, self.largest))
        lines = [
            f"On a GPU: {_gb(self.plan.memory)} for this model alone, {_gb(CUDA_RESERVE)} of it left to CUDA; up to "
            f"{self.plan.images} images share a run, at {size} at most"
        ]
        for name, need in self.plan.needs.items():
            source = "measured on the CPU" if need.measured else "reckoned from the size; export again to measure it"
            lines.append(
                f"  {name}: {need.samples} samples an image; a run takes {_gb(need.of(self.plan.images))} ({source}, "
                f"× {WORKSPACES:g} for cuDNN's workspaces); limit {_gb(self.plan.limit(name))}"
            )
        return "\n".join(lines)


def gpu_limits(repository: Path, model: str, memory: int, chunk: int | None = None, instances: int = 1) -> GpuLimits:
    """The limits of a public model, its samplers and its first pass, which all run at the same time.

    Args:
        memory: bytes of one GPU that they may take, together.
        chunk: samples of an image per sampler request; None: as the policy has it.
        instances: of each sampler.

    Raises DeployError where a single image of the largest size does not fit.
    """
    version = repository / model / "1"
    loaded = load_model(version, chunk)
    contract, plan = loaded.contract, gpu_plan(repository, loaded.contract, loaded.chunk, memory, instances)
    largest = contract.window(contract.maximum)
    if not plan.fits:
        size = " × ".join(map(str, largest))
        raise DeployError(
            f"{model}: an image of {size} needs {_gb(plan.needed(1))} on a GPU, {_gb(memory)} were given; give it so "
            f"much, or {_smaller(plan, largest, contract.spatial, contract.preprocessing.multiple)}"
        )
    return GpuLimits(plan, largest)


def _smaller(plan: GpuPlan, largest: tuple[int, ...], spatial: tuple[int | str, ...], multiple: int) -> str:
    """What else can be done."""
    fixed = CUDA_RESERVE + plan.instances * sum(need.weights for need in plan.needs.values())
    axes = sum(isinstance(axis, str) for axis in spatial)
    if axes and plan.memory > fixed:
        factor = ((plan.memory - fixed) / (plan.needed(1) - fixed)) ** (1 / axes)
        sizes = [
            int(size * factor) // multiple * multiple if isinstance(axis, str) else size
            for size, axis in zip(largest, spatial, strict=True)
        ]
        if all(sizes):
            return f"export it with a maximum of {' × '.join(map(str, sizes))} (larger images are taken in windows)"
    return "draw fewer samples at a time (--stages of `equipoise calibrate`)"


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
