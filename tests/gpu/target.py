"""What is measured on: the device, sessions on it, and how a step notes what it found."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from equipoise_core.contract import Contract, Precision, load_contract
from equipoise_deploy.repository import parse_configuration
from equipoise_deploy.serving.computing import computed_by
from equipoise_deploy.serving.device import EMBEDDED_CUDA
from equipoise_deploy.serving.engine import find_engine
from equipoise_export.graph.storage import Weights

from ..support.steps import Wrong

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NATIVE = ""  # EQUIPOISE_TRITON_CONFIG of the native backend on a GPU
PHRASES = ("No execution plans", "No valid engine")
"""ONNX Runtime's words where cuDNN has no engine that the options allow: it takes one that they forbid."""


def on_gpu() -> bool:
    """Whether the server that the environment names runs its samplers on a GPU."""
    return find_engine(os.environ).configuration in (EMBEDDED_CUDA, NATIVE)


@dataclass(frozen=True)
class Target:
    """One device and how large the measurement is.

    Attributes:
        small: sizes and times of a run whose figures mean nothing: that the script runs at all.
        seconds: that the step should take at most.
    """

    small: bool
    seconds: float
    begin: float

    @property
    def cuda(self) -> bool:
        """Whether the server's samplers run on a GPU."""
        return on_gpu()

    @property
    def left(self) -> float:
        """Seconds until the step should be done."""
        return self.begin + self.seconds - time.monotonic()

    @property
    def models(self) -> tuple[str, ...]:
        """The reference models that are measured; one of each task at least."""
        return ("pneumonia", "nuclei") if self.small else ("pneumonia", "nuclei", "hippocampus")

    def contract(self, name: str) -> Contract:
        return load_contract(REPOSITORY / name / "1" / "contract.json")

    def sampler(self, name: str) -> Path:
        return REPOSITORY / f"{name}_sampler" / "1" / "model.onnx"

    def session(
        self,
        model: onnx.ModelProto | Path,
        weights: Weights | None = None,
        precision: Precision = Precision.FP32,
        profile: Path | None = None,
    ) -> ort.InferenceSession:
        """On this device, with the options that the stand-in gets there. Raises Wrong where it lands elsewhere."""
        options = ort.SessionOptions()
        options.log_severity_level = 2 if self.cuda else 3
        if weights is not None:
            folder = weights.folder.name
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if self.cuda:
            ort.preload_dlls()
        source = model if isinstance(model, Path) else model.SerializeToString()
        providers = [(CUDA, provider_options(precision))] if self.cuda else [CPU]
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
        if self.cuda and session.get_providers()[0] != CUDA:
            raise Wrong(f"{CUDA} did not start in this process: see ONNX Runtime's log above")
        return session

    def runner(self, name: str) -> Callable[[Any, Any], dict[str, Any]]:
        """The published sampler on this device: `image [N, C, *S]`, `masks [N, T, B]` → its outputs."""
        session = self.session(self.sampler(name))
        outputs = [output.name for output in session.get_outputs()]
        return lambda image, masks: dict(
            zip(outputs, session.run(outputs, {"image": image, "masks": masks}), strict=True)
        )


def provider_options(precision: Precision) -> dict[str, str]:
    """Of the published configuration for the stand-in on a GPU; half precision keeps its tensor cores."""
    config = parse_configuration(REPOSITORY / "nuclei_sampler" / "configs" / f"{EMBEDDED_CUDA}.pbtxt")
    found = dict(config.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters)
    if precision is not Precision.FP32:
        del found["use_tf32"]
    return found


def machine(cuda: bool) -> dict[str, Any]:
    """The device in words, and the versions that its figures depend on."""
    import torch

    name = f"{EMBEDDED_CUDA if cuda else 'embedded'}.pbtxt"
    stated = computed_by(parse_configuration(REPOSITORY / "nuclei_sampler" / "configs" / name))
    return {
        "device": "cuda" if cuda else "cpu",
        "processor": stated["device"],
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "torch_device": torch_device(),
        "driver": nvidia_smi("driver_version"),
        "provider_options": stated["provider_options"],
    }


def torch_device() -> str:
    """Where PyTorch computes here: a CPU build has no other place."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def nvidia_smi(field: str) -> list[str] | None:
    """One value per GPU; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    run = subprocess.run([program, f"--query-gpu={field}", "--format=csv,noheader,nounits"], capture_output=True)
    return run.stdout.decode().split("\n")[:-1] if run.returncode == 0 else None


class Sampled:
    """Context manager: a figure that changes, looked at every tenth of a second meanwhile."""

    def __init__(self, look: Callable[[], float | None]) -> None:
        self._look, self._stop, self.values = look, threading.Event(), list[float]()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            value = self._look()
            if value is not None:
                self.values.append(value)

    def __enter__(self) -> Sampled:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def largest(self) -> float | None:
        return max(self.values, default=None)


def busy() -> float | None:
    """Per cent of the last moments in which the GPU computed; None: no GPU."""
    found = nvidia_smi("utilization.gpu")
    return float(found[0]) if found else None


def phrases_in(log: Sequence[str]) -> list[str]:
    """Lines that say that cuDNN computes with an engine that the options forbid."""
    return [line for line in log if any(phrase in line for phrase in PHRASES)]


def placement(trace: Path) -> dict[str, Any]:
    """From a profile of ONNX Runtime: nodes per provider, copies between them, bytes of what the CPU computed."""
    nodes: dict[str, tuple[str, str, int]] = {}
    for event in json.loads(trace.read_text(encoding="utf-8")):
        given = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in given:
            size = int(given.get("output_size") or 0)
            nodes[event["name"]] = (given["provider"], given.get("op_name", ""), size)
    on_cpu = [(operator, size) for provider, operator, size in nodes.values() if provider == CPU]
    return {
        "nodes": dict(Counter(provider for provider, _, _ in nodes.values())),
        "copies": sum(operator.startswith("Memcpy") for _, operator, _ in nodes.values()),
        "cpu_operators": dict(Counter(operator for operator, _ in on_cpu)),
        "cpu_bytes": sum(size for _, size in on_cpu),
    }


def flat(figures: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """(name, value) of nested figures, as a table shows them."""
    rows: list[tuple[str, str]] = []
    for name, value in figures.items():
        path = f"{above} · {name}" if above else str(name)
        if isinstance(value, Mapping):
            rows += flat(value, path) or [(path, "none")]
        else:
            rows.append((path, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows
