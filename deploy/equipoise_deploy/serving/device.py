"""Where the embedded server's samplers run: on the CPU, or on a GPU by ONNX Runtime's CUDA provider.

EQUIPOISE_DEVICE, or `equipoise serve --device`: auto (the GPU where one is visible and the provider is installed; the
default), cpu, cuda. Nothing here loads ONNX Runtime; a provider that is installed but does not start fails the start of
the server (`model_repository/*_sampler/1/model.py`), it never falls back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

from ..errors import EngineError

DEVICE_VARIABLE = "EQUIPOISE_DEVICE"
EMBEDDED, EMBEDDED_CUDA = "embedded", "embedded_cuda"
"""Configurations of the samplers, `configs/NAME.pbtxt`."""

NVIDIA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where a driver is; the second in WSL."""
_PROVIDER = "libonnxruntime_providers_cuda.so"
_INSTALL = "pip uninstall onnxruntime; pip install 'equipoise[gpu]'"  # both packages install one module


class Device(str, Enum):
    """Which device is asked for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def embedded_configuration(asked: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """(configuration of the samplers, one sentence that says what they run on and why).

    Args:
        asked: a `Device`.
        environment: with CUDA_VISIBLE_DEVICES, where that is set.

    Raises EngineError for another word, and where the GPU is asked for and lacks something.
    """
    try:
        device = Device(asked)
    except ValueError:
        known = ", ".join(each.value for each in Device)
        raise EngineError(f"{DEVICE_VARIABLE} is {asked!r}; expected one of {known}") from None
    if device is Device.CPU:
        return EMBEDDED, "samplers run on the CPU, as asked"
    lacking = _lacking(environment)
    if not lacking:
        return EMBEDDED_CUDA, "samplers run on the GPU (ONNX Runtime's CUDA provider)"
    if device is Device.CUDA:
        raise EngineError(f"--device cuda: {'; '.join(lacking)}. Or serve with --device cpu")
    return EMBEDDED, f"samplers run on the CPU: {lacking[0]}"


def _lacking(environment: Mapping[str, str]) -> list[str]:
    """What the CUDA provider needs and this machine lacks, with the remedy."""
    lacking = []
    if not any(path.exists() for path in NVIDIA_DEVICES):
        lacking.append(f"no GPU is visible here (none of {', '.join(map(str, NVIDIA_DEVICES))}: its driver makes them)")
    elif environment.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        lacking.append("CUDA_VISIBLE_DEVICES hides every GPU; unset it")
    if not _provider_installed():
        lacking.append(f"the installed onnxruntime has no CUDA provider; {_INSTALL}")
    return lacking


def _provider_installed() -> bool:
    """Whether the ONNX Runtime that the samplers will load has the provider; found without loading it."""
    spec = find_spec("onnxruntime")
    locations = spec.submodule_search_locations if spec is not None else None
    return any((Path(folder) / "capi" / _PROVIDER).is_file() for folder in locations or ())
