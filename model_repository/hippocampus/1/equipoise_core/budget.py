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


def image_bytes(contract: Contract, window: tuple[int, ...], samples: int) -> int:
    """What an image of a run is reckoned with, where nothing was measured.

    Args:
        window: spatial sizes that the network sees at once.
        samples: that the run draws of it.
    """
    return 4 * prod(window) * (contract.channels + MAPS * samples)


def at_once(contract: Contract, window: tuple[int, ...], samples: int, most: int = MOST_AT_ONCE) -> int:
    """Images of a request, or windows of a large one, that share a sampler run: as many as `RUN_BYTES` are enough for.

    Args:
        window, samples: as for `image_bytes`.
        most: what the samplers take at once.
    """
    return max(1, min(most, MOST_AT_ONCE, RUN_BYTES // image_bytes(contract, window, samples)))
