"""What the sampler gains over a loop of passes on this machine: measured, beside what was predicted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from equipoise_core.masks import draw_masks, mask_layout
from numpy.typing import NDArray

from .compiled import Compiled
from .graph.session import OnnxSampler
from .progress import LOGGER

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


def measure_gain(compiled: Compiled, one_pass: Callable[[], object], image: NDArray[np.float32]) -> Gain | None:
    """Times both; None for a network without randomness, which makes one pass.

    Args:
        one_pass: runs the network once on one image, as somebody's loop would.
        image: `[1, C, *nominal]`, normalised.
    """
    contract = compiled.contract
    if not contract.stochastic:
        return None
    LOGGER.info("%s: measuring the gain", contract.name)
    sampler = OnnxSampler(compiled.model.SerializeToString(), weights=compiled.weights)
    one_pass()
    samples = SAMPLES if SAMPLES * _seconds(one_pass) <= PATIENCE else FEW
    masks = draw_masks(mask_layout(contract, contract.nominal), 0, contract.digest, 0, samples)[None]
    sampler(image, masks[:, :1])
    rounds = [(_seconds(lambda: sampler(image, masks)), _seconds(one_pass)) for _ in range(ROUNDS)]
    drawn, passed = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Gain(samples, drawn, passed)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
