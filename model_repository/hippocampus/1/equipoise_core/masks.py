"""Keep/drop bits: which units of which site survive in which sample.

Counter-based (Philox, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): sample i is a function of
(seed, model digest, i) alone, so that chunking, batching, machine and time cannot change it. Bits come from comparing
32-bit integers; no floating point is involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Site

_WORDS_PER_BLOCK = 4  # one step of Philox4x64's counter yields four 64-bit words
_BITS_PER_WORD = 2  # each mask bit is decided by 32 random bits


@dataclass(frozen=True)
class MaskLayout:
    """Where each site's bits lie in a packed mask, for one image size.

    Attributes:
        sites: the sites in bit order.
        shapes: each site's units in numbers.
        thresholds: UINT32 `[bits]`; a unit is dropped where its random integer is below.
    """

    sites: tuple[Site, ...]
    shapes: tuple[tuple[int, ...], ...]
    thresholds: NDArray[np.uint32]

    @property
    def bits(self) -> int:
        """Bits of one sample."""
        return int(self.thresholds.size)

    @property
    def bytes(self) -> int:
        """B: bytes of one sample, ⌈bits/8⌉."""
        return -(-self.bits // 8)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First bit of each site."""
        ends = np.cumsum([0, *(prod(shape) for shape in self.shapes)])
        return tuple(int(end) for end in ends[:-1])


def mask_layout(contract: Contract, spatial: tuple[int, ...]) -> MaskLayout:
    """The layout for images of these spatial sizes (after padding)."""
    sizes: Mapping[str, int] = contract.sizes(spatial)
    shapes = tuple(site.units(sizes) for site in contract.sites)
    thresholds = [
        np.full(prod(shape), round(site.p * 2**32), dtype=np.uint32)
        for site, shape in zip(contract.sites, shapes, strict=True)
    ]
    return MaskLayout(contract.sites, shapes, np.concatenate([np.zeros(0, np.uint32), *thresholds]))


def draw_masks(layout: MaskLayout, seed: int, model_digest: str, first: int, count: int) -> NDArray[np.uint8]:
    """Packed masks of samples `first` … `first + count − 1`, UINT8 `[count, B]`, 1 = keep, little bit order.

    Args:
        seed: 0 ≤ seed < 2⁶⁴.
        model_digest: hex digits; its first 64 bits are the second half of the key, so that no two models share masks.
        first: index of the first sample, ≥ 0.

    Raises:
        ValueError: the seed does not fit into 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie between 0 and 2**64 - 1")
    blocks = -(-layout.bits // (_BITS_PER_WORD * _WORDS_PER_BLOCK))
    key = np.array([seed, int(model_digest[:16], 16)], dtype=np.uint64)
    stream = np.random.Philox(key=key, counter=first * blocks)
    words = stream.random_raw(count * blocks * _WORDS_PER_BLOCK).astype("<u8", copy=False)
    integers = words.view("<u4").reshape(count, -1)[:, : layout.bits]
    return np.packbits(integers >= layout.thresholds, axis=1, bitorder="little")


def unpack_masks(layout: MaskLayout, packed: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], ...]:
    """Packed `[…, B]` → per site a boolean array `[…, *units]`, True = keep: what the graph does, said in NumPy."""
    bits = np.unpackbits(packed, axis=-1, count=layout.bits, bitorder="little").astype(np.bool_)
    leading = packed.shape[:-1]
    return tuple(
        bits[..., offset : offset + prod(shape)].reshape((*leading, *shape))
        for offset, shape in zip(layout.offsets, layout.shapes, strict=True)
    )
