"""The original network of 2D images on a volume: slice by slice in a plain loop, under the same masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from equipoise_core.contract import Contract
from numpy.typing import NDArray

from .references import Network

Array = NDArray[Any]


class SliceBySlice:
    """Volume `[1, C, D, H, W]`, packed mask `[B]` → logits `[K, D, H, W]`.

    A sample is one network, drawn once for the whole volume. With neighbours, the first and the last slice stand for
    those beyond the ends.

    Args:
        network: image `[1, C·slices, H, W]`, packed mask → logits `[K, H, W]`.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    def ready(self) -> Any:
        return self.network.ready()

    def __call__(self, contract: Contract, image: Array, packed: Array) -> Array:
        assert contract.slices is not None
        around, last, flat = contract.slices // 2, image.shape[2] - 1, contract.of_network
        answers = []
        for number in range(last + 1):
            neighbours = (min(max(each, 0), last) for each in range(number - around, number + around + 1))
            seen = np.concatenate([image[:, :, each] for each in neighbours], axis=1)
            answers.append(self.network(flat, np.ascontiguousarray(seen), packed))
        return np.stack(answers, axis=1)
