"""What computes decisions on this machine, for their records: two devices agree within a tolerance, not bit by bit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from .settings import is_stand_in, on_cpu

_RELEASE = "NVIDIA_TRITON_SERVER_VERSION"  # NVIDIA's images set it; it also says which ONNX Runtime the backend has
_WHEEL = "nvidia-pytriton"
_CPU = Path("/proc/cpuinfo")
_DECIDING = ("cudnn_conv_algo_search",)  # which Triton reads outside the accelerator


def computed_by(sampler: ModelConfig, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Of a sampler's configuration as it is served here; what is not known is None. No hardware is waited for."""
    accelerators = sampler.optimization.execution_accelerators.gpu_execution_accelerator
    names = [each.name for each in accelerators]
    provider = "CPU" if on_cpu(sampler) else "Tensorrt" if "tensorrt" in names else "CUDA"
    release = environment.get(_RELEASE)
    runtime = _installed("onnxruntime") or _installed("onnxruntime-gpu")  # the stand-in's: one or the other
    return {
        "triton": release or _installed(_WHEEL),
        "onnxruntime": runtime if is_stand_in(sampler) else release and f"of Triton {release}",
        "provider": f"{provider}ExecutionProvider",
        "provider_options": {name: value for each in accelerators for name, value in each.parameters.items()}
        | {name: sampler.parameters[name].string_value for name in _DECIDING if name in sampler.parameters},
        "device": _processor() if on_cpu(sampler) else _gpu(),
    }


def _installed(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    lines = _CPU.read_text(encoding="utf-8").splitlines() if _CPU.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def _gpu() -> str | None:
    """Names of the GPUs, each once."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(sorted({line.strip() for line in run.stdout.splitlines() if line.strip()})) or None
