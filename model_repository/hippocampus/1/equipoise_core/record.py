"""The record: what is needed to replay a decision. It holds digests and numbers, no pixels and no patient data."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract
from .tolerance import precision_of

FORMAT = "equipoise-record/2"


def input_digest(image: NDArray[np.float32]) -> str:
    """SHA-256 of an image's shape and little-endian float32 bytes, in C order."""
    sha = hashlib.sha256(repr(tuple(image.shape)).encode())
    sha.update(np.ascontiguousarray(image, dtype="<f4").data)
    return sha.hexdigest()


def default_seed(image_digest: str, model_digest: str) -> int:
    """0 ≤ seed < 2⁶⁴, the same for the same image and model: the same image always gets the same answer."""
    return int(hashlib.sha256(f"{image_digest}:{model_digest}".encode()).hexdigest()[:16], 16)


def computed_by(contract: Contract, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What computed a decision: two devices agree within a tolerance, not bit by bit.

    Args:
        stated: what the service knows of it: versions of Triton and ONNX Runtime, execution provider and its options,
            device.
    """
    known = {name: stated.get(name) for name in ("triton", "onnxruntime", "provider", "provider_options", "device")}
    return {
        **known,
        "precision": precision_of(contract.precision, known["provider_options"] or {}).value,
        "generator": contract.generator if contract.stochastic else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def jsonable(value: Any) -> Any:
    """Numbers that JSON cannot say (NaN, ±∞) become None; mappings and sequences are walked."""
    if isinstance(value, float):  # first: most are, and whether something is a mapping takes long to find out
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    return value
