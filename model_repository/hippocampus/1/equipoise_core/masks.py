"""Keep/drop bits: which units of which site survive in which sample.

Sample i is a function of (seed, model digest, i) alone, so that chunking, batching, machine and time cannot change it.
Bits come from comparing integers; no floating point is involved. A unit is dropped with probability round(p·2³²)/2³²
exactly. Of NumPy only what its bit generators promise to keep is used: `random_raw`, `advance`, SeedSequence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from math import prod

import numpy as np
from numpy.typing import NDArray

from .contract import BYTEWISE, PHILOX, Contract, Site

_RUN = 2048  # bytes of one p from which looking them up is faster than comparing each unit; part of the generator
_REGION = 0x9E3779B97F4A7C15F39CC0605CEDC835  # 2¹²⁸ by the golden ratio: regions neither meet nor share low state bits
_SHARE = 1 << 21  # bits that are worth a thread
_THREADS = 8  # at most


@dataclass(frozen=True)
class MaskLayout:
    """Where each site's bits lie in a packed mask, for one image size.

    Attributes:
        sites: the sites in bit order.
        shapes: each site's units in numbers.
        generator: how masks are drawn, one of GENERATORS.
    """

    sites: tuple[Site, ...]
    shapes: tuple[tuple[int, ...], ...]
    generator: str

    @cached_property
    def bits(self) -> int:
        """Bits of one sample."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """B: bytes of one sample, ⌈bits/8⌉. The padding bits of the last are 0."""
        return -(-self.bits // 8)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First bit of each site."""
        return tuple(accumulate((prod(shape) for shape in self.shapes), initial=0))[:-1]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """`(units, threshold)` of neighbouring sites with one p: a unit is dropped with probability threshold/2³²."""
        each = zip((min(round(site.p * 2**32), 2**32 - 1) for site in self.sites), self.shapes, strict=True)
        return tuple(
            (sum(prod(shape) for _, shape in run), threshold)
            for threshold, run in groupby(each, key=lambda site: site[0])
        )

    @cached_property
    def thresholds(self) -> NDArray[np.uint32]:
        """Each unit's. As large as 32 samples: for what needs them all."""
        counts, thresholds = np.array(self.runs, dtype=np.int64).reshape(-1, 2).T
        return np.repeat(thresholds.astype(np.uint32), counts)

    @cached_property
    def long(self) -> tuple[tuple[slice, int], ...]:
        """`(bytes, threshold)`: whole bytes of one threshold, at least _RUN of them."""
        ends = accumulate(units for units, _ in self.runs)
        inside = ((slice(-(-(end - n) // 8), end // 8), t) for end, (n, t) in zip(ends, self.runs, strict=True))
        return tuple((span, t) for span, t in inside if span.stop - span.start >= _RUN)

    @cached_property
    def short(self) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
        """All other bytes `[m]` in order, and the threshold of each of their units."""
        edges = [0, *(edge for span, _ in self.long for edge in (span.start, span.stop)), self.bytes]
        columns = np.concatenate([np.arange(*gap) for gap in zip(edges[::2], edges[1::2], strict=True)])
        units = (8 * columns[:, None] + np.arange(8)).ravel()
        units = units[units < self.bits]
        counts, thresholds = np.array(self.runs, dtype=np.int64).reshape(-1, 2).T
        return columns, thresholds[np.cumsum(counts).searchsorted(units, side="right")].astype(np.uint32)


def mask_layout(contract: Contract, spatial: tuple[int, ...]) -> MaskLayout:
    """The layout for images of these spatial sizes (after padding)."""
    sizes: Mapping[str, int] = contract.sizes(spatial)
    return _layout(contract.sites, tuple(site.units(sizes) for site in contract.sites), contract.generator)


_layout = lru_cache(maxsize=16)(MaskLayout)  # what follows from a layout takes as long as a small draw


def draw_masks(
    layout: MaskLayout, seed: int, model_digest: str, first: int, count: int, threads: int | None = None
) -> NDArray[np.uint8]:
    """Packed masks of samples `first` … `first + count − 1`, UINT8 `[count, B]`, 1 = keep, little bit order.

    Args:
        seed: 0 ≤ seed < 2⁶⁴.
        model_digest: hex digits; the first 64 bits are part of the key, so that no two models share masks.
        first: index of the first sample, ≥ 0.
        threads: how many share the samples; None: as many as the process may use, where that is faster. The bits are
            the same.

    Raises:
        ValueError: the seed does not fit into 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie between 0 and 2**64 - 1")
    draw, model = GENERATORS[layout.generator], int(model_digest[:16], 16)
    if threads is None:
        threads = min(layout.bits * count // _SHARE, _THREADS)
        threads = min(threads, len(os.sched_getaffinity(0))) if threads > 1 else 1
    threads = min(threads, count)
    if threads <= 1:
        return draw(layout, seed, model, first, count)
    edges = [first + count * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        shares = pool.map(lambda start, end: draw(layout, seed, model, start, end - start), edges, edges[1:])
        return np.concatenate(list(shares))


def _philox(layout: MaskLayout, seed: int, model: int, first: int, count: int) -> NDArray[np.uint8]:
    """32 bits a unit from a counter (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    blocks = -(-layout.bits // 8)  # a step of the counter gives four words of 64 bits
    stream = np.random.Philox(key=np.array([seed, model], dtype=np.uint64), counter=first * blocks)
    words = stream.random_raw(count * blocks * 4).astype("<u8", copy=False)
    return _compared(words, count, layout.thresholds)


def _bytewise(layout: MaskLayout, seed: int, model: int, first: int, count: int) -> NDArray[np.uint8]:
    """A byte of a long run from 16 bits, seldom 256; 32 bits for every other unit (O'Neill's PCG64 DXSM)."""
    words = _Words(seed, model)
    columns, thresholds = layout.short
    each = 4 * len(columns)
    short = _compared(words.read(0, first * each, count * each), count, thresholds)
    if not layout.long:
        return short
    packed = np.empty((count, layout.bytes), dtype=np.uint8)
    packed[:, columns] = short
    for n, (span, threshold) in enumerate(layout.long):
        for i in range(count):
            packed[i, span] = _looked_up(words, 1 + 2 * n, first + i, threshold, span.stop - span.start)
    return packed


GENERATORS: Mapping[str, Callable[[MaskLayout, int, int, int, int], NDArray[np.uint8]]] = {
    PHILOX: _philox,
    BYTEWISE: _bytewise,
}
"""By the name that the contract states: (layout, seed, first 64 bits of the model's digest, first, count) → masks.
What one of them draws never changes."""


class _Words:
    """Random words by their place in the sequence that belongs to (seed, model)."""

    def __init__(self, seed: int, model: int) -> None:
        key = np.array([seed % 2**32, seed >> 32, model % 2**32, model >> 32], dtype=np.uint32)
        self._stream = np.random.PCG64DXSM(np.random.SeedSequence(key))
        self._place = 0

    def read(self, region: int, place: int, count: int) -> NDArray[np.uint64]:
        """`count` little-endian words of a region, from `place` on."""
        place += region * _REGION
        if place != self._place:
            self._stream.advance(place - self._place)
        self._place = place + count
        return self._stream.random_raw(count).astype("<u8", copy=False)


def _compared(words: NDArray[np.uint64], count: int, thresholds: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Packed masks `[count, m]` of units that are dropped where their 32 bits are below the threshold."""
    integers = words.view("<u4").reshape(count, -1)[:, : thresholds.size]
    return np.packbits(integers >= thresholds, axis=1, bitorder="little")


def _looked_up(words: _Words, region: int, sample: int, threshold: int, width: int) -> NDArray[np.uint8]:
    """One sample's packed mask `[width]` of 8·width units with one threshold. Two regions are used."""
    step = -(-width // 4)
    cells = words.read(region, sample * step, step).view("<u2")[:width]
    table, rest = _tables(threshold)
    packed = table.take(cells, mode="clip")
    undecided = np.flatnonzero(cells >= table.size)
    if undecided.size:
        more = words.read(region + 1, sample * 4 * width, 4 * undecided.size)
        packed[undecided] = _decided(rest, cells[undecided] - np.uint16(table.size), more)
    return packed


@lru_cache(maxsize=64)
def _tables(threshold: int) -> tuple[NDArray[np.uint8], NDArray[np.bytes_]]:
    """How a uniform number in [0, 2²⁵⁶) gives a byte of eight independent units that are dropped at threshold/2³².

    A byte with k kept units has weight (2³² − threshold)ᵏ · threshold⁸⁻ᵏ of 2²⁵⁶, that is a whole number of cells of
    2²⁴⁰ and a rest. All whole cells come first and are the table; the rests, joined, fill the last few.

    Returns: the byte that each whole cell stands for, `[≤ 2¹⁶]`; where each byte's rest ends, counted from the last
    whole cell on, `[256]` big-endian numbers of 32 bytes, which compare as texts do.
    """
    weights = [(2**32 - threshold) ** k * threshold ** (8 - k) for k in (byte.bit_count() for byte in range(256))]
    table = np.repeat(np.arange(256, dtype=np.uint8), [weight >> 240 for weight in weights])
    ends = accumulate(weight % 2**240 for weight in weights)
    return table, np.array([end.to_bytes(32, "big") for end in ends], dtype="S32")


def _decided(rest: NDArray[np.bytes_], cells: NDArray[np.uint16], more: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bytes `[m]` of cells that are no whole ones, counted from the first such, by 240 of 256 more bits of each."""
    numbers = more.view(np.uint8).reshape(-1, 32)
    numbers[:, :2] = cells.astype(">u2").view(np.uint8).reshape(-1, 2)
    return rest.searchsorted(numbers.view("S32")[:, 0], side="right").astype(np.uint8)


def unpack_masks(layout: MaskLayout, packed: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], ...]:
    """Packed `[…, B]` → per site a boolean array `[…, *units]`, True = keep: what the graph does, said in NumPy."""
    bits = np.unpackbits(packed, axis=-1, count=layout.bits, bitorder="little").astype(np.bool_)
    leading = packed.shape[:-1]
    return tuple(
        bits[..., offset : offset + prod(shape)].reshape((*leading, *shape))
        for offset, shape in zip(layout.offsets, layout.shapes, strict=True)
    )
