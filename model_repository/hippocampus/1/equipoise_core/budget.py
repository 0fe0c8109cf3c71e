"""How much a sampler run may take at once."""

from __future__ import annotations

from math import prod

from .contract import Contract

RUN_BYTES = 2 * 2**30
"""What a sampler run may take; a single image, or window, is run whatever it takes."""

MAX_VOXELS = 2**25
"""Of one image: 512 × 512 × 128. Moments of three classes then take 1 GB, and all that is held at once several."""

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
    worked_on = 4 * prod(at_a_time(contract, window)) * (contract.channels + MAPS * samples)
    return worked_on + volume_bytes(contract, window)


def at_a_time(contract: Contract, window: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial sizes that a run works on at a time: of a volume of slices one, after the other."""
    return window if contract.slices is None else (1, *window[1:])


def volume_bytes(contract: Contract, window: tuple[int, ...]) -> int:
    """What grows with the number of slices: the volume, once more for each neighbour, and the moments, twice."""
    if contract.slices is None:
        return 0
    maps = contract.channels * (1 + contract.slices) + 2 * (2 * len(contract.classes) + contract.decisions + 1)
    return 4 * min(prod(window), MAX_VOXELS) * maps


def at_once(contract: Contract, window: tuple[int, ...], samples: int, most: int = MOST_AT_ONCE) -> int:
    """Images of a request, or windows of a large one, that share a sampler run: as many as `RUN_BYTES` are enough for.

    Args:
        window, samples: as for `image_bytes`.
        most: what the samplers take at once.
    """
    return max(1, min(most, MOST_AT_ONCE, RUN_BYTES // image_bytes(contract, window, samples)))
