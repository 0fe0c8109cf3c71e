"""What sampler runs take of ONNX Runtime's arena, measured on the CPU at export and kept in `proof.json`.

A proxy for the arena of a GPU: the same planner places the same tensors. The CPU adds its layouts of convolutions, the
GPU cuDNN's workspaces. Read from the allocator's log: the largest total of two runs of one image (the second follows
the planned pattern), in an arena that extends by what is requested and shrinks after each run, as configurations say.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from equipoise_core.budget import at_a_time, image_bytes
from equipoise_core.contract import Contract
from equipoise_core.masks import mask_layout

from ..errors import ExportError
from . import arena

MEASURED_BYTES = 2**28
"""What a measurement may take by `image_bytes`: larger images are reckoned from the largest that keeps within it."""
PEAK_BYTES = 2**32
"""What a run may take by what one sample took: larger ones are reckoned from as many samples as keep within it, at
least two."""

_EXTENDED = re.compile(r"Extended allocation by (\d+) bytes")
_TOTAL = re.compile(r"Total allocated bytes: (\d+)")


def measure_memory(model: Path, contract: Contract) -> dict[str, Any]:
    """`weights` and per run of one image its `samples`, `size` and `bytes`, as `equipoise_core.gpu_memory` reads them.

    A peak is the largest of sums with a constant and a part per sample, so what is reckoned from fewer samples in
    proportion is no less than it. `measured_with_samples` says how many those were.

    Args:
        contract: the model's own, so that a first pass has no sites.

    Raises ExportError where the model does not run.
    """
    samples = contract.samples if contract.stochastic else 1
    runs, weights = list[dict[str, Any]](), 0
    for size in _sizes(contract, samples):
        held, one = arena_bytes(model, _shapes(contract, 1, size))
        runs.append({"samples": 1, "size": list(size), "bytes": one})
        weights = max(weights, held)
        if samples > 1:
            few = min(samples, max(2, PEAK_BYTES // one))
            held, taken = arena_bytes(model, _shapes(contract, few, size))
            run = {"samples": samples, "size": list(size), "bytes": -(-taken * samples // few)}
            runs.append(run if few == samples else run | {"measured_with_samples": few})
            weights = max(weights, held)
    return {
        "method": "arena of ONNX Runtime on the CPU, one image, one thread, as requested, shrunk after each run",
        "onnxruntime": onnxruntime.__version__,
        "weights": weights,
        "runs": runs,
    }


def _shapes(contract: Contract, samples: int, size: tuple[int, ...]) -> dict[str, list[int]]:
    masks = {"masks": [1, samples, mask_layout(contract, size).bytes]} if contract.stochastic else {}
    return {"image": [1, contract.channels, *size], **masks}


def arena_bytes(model: Path, shapes: Mapping[str, list[int]]) -> tuple[int, int]:
    """Bytes of the weights, and of a run with inputs of these shapes.

    In a process of its own, for what is left of another shape would count. Raises ExportError where it does not run.
    """
    child = subprocess.run(
        [sys.executable, "-I", arena.__file__, str(model), json.dumps(shapes)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    log = child.stderr.partition(arena.BEFORE_RUNS)[2]
    extended, totals = _EXTENDED.search(log), [int(total) for total in _TOTAL.findall(log)]
    if child.returncode or extended is None:
        if child.returncode == -signal.SIGKILL:
            raise ExportError(
                f"a run of {model} with inputs {dict(shapes)} was killed, as the system does where memory is short; "
                "export for smaller images, or on a machine with more memory"
            )
        last = [line for line in child.stderr.splitlines() if line.strip()][-1:]
        raise ExportError(f"{model} does not run on the CPU, so its memory is not known: {' '.join(last)[-300:]}")
    weights = totals[0] - int(extended[1])
    return weights, max(totals) - weights


def _sizes(contract: Contract, samples: int) -> list[tuple[int, ...]]:
    """The largest size that may be measured, and half of it, if the network takes several."""
    size = at_a_time(contract, contract.window(contract.maximum))
    while image_bytes(contract, size, samples) > MEASURED_BYTES and (half := _half(contract, size)) != size:
        size = half
    return [size] if _half(contract, size) == size else [_half(contract, size), size]


def _half(contract: Contract, size: tuple[int, ...]) -> tuple[int, ...]:
    """Half of each dynamic axis, padded as the network needs it."""
    return contract.window(tuple(max(1, extent // 2) for extent in size))
