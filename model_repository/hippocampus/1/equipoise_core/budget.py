"""How much a sampler run may take at once."""

from __future__ import annotations

from math import prod

from .contract import Contract

RUN_BYTES = 2 * 2**30
"""What a sampler run may take; a single image, or window, is run whatever it takes."""

MAPS = 100
"""Single-precision maps of the image's size that a sample is reckoned with. ONNX Runtime took 97 at the peak for the
nuclei's U-Net, 45 for one that drops in its last two levels, 36 for the hippocampus'."""

MOST_AT_ONCE = 8
"""Images, or windows, of a run at most: the samplers' `max_batch_size`."""


def at_once(contract: Contract, window: tuple[int, ...], samples: int) -> int:
    """Images of a request, or windows of a large one, that share a sampler run: as many as `RUN_BYTES` are enough for.

    Args:
        window: spatial sizes that the network sees at once.
        samples: that the run draws of each.
    """
    each = 4 * prod(window) * (contract.channels + MAPS * samples)
    return max(1, min(MOST_AT_ONCE, RUN_BYTES // each))
