"""What the sampler gains over a loop of passes on this machine: measured, beside what was predicted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch
from equipoise_core.masks import draw_masks, mask_layout
from torch import Tensor, nn

from .compiled import Compiled
from .graph.session import OnnxSampler, session
from .progress import phase
from .volume import slices_of

SAMPLES, FEW = 20, 4
PATIENCE = 5.0
"""Seconds that a loop of `SAMPLES` passes may take; a slower network is measured on `FEW` samples."""
ROUNDS = 3


@dataclass(frozen=True)
class Gain:
    """Medians of a few interleaved rounds: an orientation, no benchmark.

    Attributes:
        samples: T.
        sampler, one_pass: seconds of the sampler for T samples, and of one plain pass of the network.
    """

    samples: int
    sampler: float
    one_pass: float

    @property
    def ratio(self) -> float:
        """How many times as fast as a loop of T passes."""
        return self.samples * self.one_pass / self.sampler

    def document(self) -> dict[str, Any]:
        return {"samples": self.samples, "ratio": round(self.ratio, 3)}

    def __str__(self) -> str:
        return f"measured here for {self.samples} samples: {self.ratio:.1f} × a loop"


def measure_gain(compiled: Compiled, network: nn.Module | onnx.ModelProto, image: Tensor) -> Gain | None:
    """Times both; None for a network without randomness, which makes one pass, and for a file of several images.

    Args:
        network: as it was given; of a module, the training flags change.
        image: `[1, C, *nominal]`, normalised; of a volume, one slice is timed.
    """
    contract = compiled.contract
    if not contract.stochastic or (isinstance(network, onnx.ModelProto) and _images_written(network) > 1):
        return None
    with phase("measuring the gain"):
        return _measured(compiled, network, image)


def _measured(compiled: Compiled, network: nn.Module | onnx.ModelProto, image: Tensor) -> Gain:
    contract = compiled.contract
    if contract.slices is not None:
        image = image[:, :, :1]
    sampler = OnnxSampler(compiled.model, weights=compiled.weights)
    one_pass = _one_pass(network, slices_of(contract, image))
    one_pass()
    samples = SAMPLES if SAMPLES * _seconds(one_pass) <= PATIENCE else FEW
    masks = draw_masks(mask_layout(contract, contract.nominal), 0, contract.digest, 0, samples)[None]
    picture = image.numpy()
    sampler(picture, masks[:, :1])
    rounds = [(_seconds(lambda: sampler(picture, masks)), _seconds(one_pass)) for _ in range(ROUNDS)]
    drawn, passed = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Gain(samples, drawn, passed)


def _one_pass(network: nn.Module | onnx.ModelProto, image: Tensor) -> Callable[[], object]:
    """Runs the network once on one image, as a plain loop does."""
    if isinstance(network, nn.Module):
        return torch.no_grad()(partial(network.eval(), image))
    plain = session(network)
    return partial(plain.run, None, {plain.get_inputs()[0].name: image.numpy()})


def _images_written(file: onnx.ModelProto) -> int:
    """The number of images that an ONNX file says it takes; 0: any."""
    weights = {entry.name for entry in file.graph.initializer}
    image = next(value for value in file.graph.input if value.name not in weights)
    return int(image.type.tensor_type.shape.dim[0].dim_value)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
