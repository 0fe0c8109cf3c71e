"""Masks: frozen, a function of (seed, model, i), exactly as probable as stated, and independent of each other.

The statistical tests take fixed seeds. ALARM bounds how probable it was that one of them would fail although the
generator is sound. Each is shown to fail for a planted fault.
"""

import dataclasses
import hashlib
import os
from fractions import Fraction
from math import exp

import numpy as np
import pytest
from equipoise_core import masks
from equipoise_core.contract import BYTEWISE, MASK_GENERATORS, PHILOX, ContractError, Site, SiteKind, parse_contract
from equipoise_core.masks import GENERATORS, MaskLayout, draw_masks, mask_layout, unpack_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

ALARM = 1e-6
DIGEST = "0123456789abcdef" * 4
OTHER_DIGEST = DIGEST[::-1]

SHAPES = {
    "small": [((13,), 0.3), ((3, 5), 0.5)],
    "hippocampus": [((64,), 0.2), ((48,), 0.2), ((24,), 0.2)],
    # Long runs that begin and end within bytes, among sites that are short.
    "mixed": [((), 0.1), ((130_001,), 0.2), ((13,), 0.3), ((17_003,), 0.5), ((5,), 0.4), ((2, 100, 200), 0.2)],
    # One run: sites that share p.
    "joined": [((8, 50, 50), 0.1), ((3,), 0.1), ((4, 50, 50), 0.1)],
}


def layout_of(name: str, generator: str = BYTEWISE) -> MaskLayout:
    sites = tuple(Site(f"site{n}", SiteKind.ELEMENT, shape, p) for n, (shape, p) in enumerate(SHAPES[name]))
    return MaskLayout(sites, tuple(shape for shape, _ in SHAPES[name]), generator)


# The same on every machine and NumPy.

FROZEN = [
    (PHILOX, "small", 7, DIGEST, 3, "c5dfa603e793450c"),
    (PHILOX, "small", 2**64 - 1, OTHER_DIGEST, 0, "9f072f0cdd1f0d05"),
    (PHILOX, "hippocampus", 0, DIGEST, 2**33, "bff3e52477e69bffbfdff3f7ecbdfbd5ffbff78fffe64977be7bff7f6ffaf95de7bf"),
    (PHILOX, "mixed", 7, DIGEST, 3, "b2d6152d225bfd5cd8b6cdcf59063cc15d2be05c1b9d3713b8bab828fec845bc"),
    (PHILOX, "mixed", 2**64 - 1, OTHER_DIGEST, 0, "059c5b872306a5f1f74dbb4019d18444d55c8ef60ff439e0feda751ca46b4988"),
    (PHILOX, "joined", 0, DIGEST, 2**33, "87f049ebca58b3f0d5ba9647de957ee0b554d8224ca2c53c6cd7e281bb74c8cb"),
    (BYTEWISE, "small", 7, DIGEST, 3, "df1ddc0574df3001"),
    (BYTEWISE, "small", 2**64 - 1, OTHER_DIGEST, 0, "e39d7303b58ee70a"),
    (BYTEWISE, "hippocampus", 0, DIGEST, 2**33, "7ffffe77bfddcfddf99ffffef1c7cf3eff7ffdefffe4bf2fff779a7cfbfdf56ffd9f"),
    (BYTEWISE, "mixed", 7, DIGEST, 3, "c26033b809fdcb4623c7ce7332e5b07a7c999d31d0cc6a5b5a16da4efeab6e32"),
    (BYTEWISE, "mixed", 2**64 - 1, OTHER_DIGEST, 0, "1404c286270c84ae2bd1bf5954daccc23bdceb75433dcf15dc11e23f7a4a768e"),
    (BYTEWISE, "joined", 0, DIGEST, 2**33, "f468350777992cba65a631dc1e3615266268fd785de2f8bdb1f95ca89813dad2"),
]


@pytest.mark.parametrize(("generator", "name", "seed", "digest", "first", "expected"), FROZEN)
def test_bits_never_change_between_releases(generator, name, seed, digest, first, expected):
    """A record must replay years later, on any machine and NumPy: two samples, as bytes or their SHA-256."""
    packed = draw_masks(layout_of(name, generator), seed, digest, first, 2)
    assert packed.dtype == np.uint8 and packed.flags.c_contiguous
    drawn = packed.tobytes()
    assert (drawn.hex() if len(drawn) <= 40 else hashlib.sha256(drawn).hexdigest()) == expected


def test_each_generator_that_a_contract_may_name_is_there_and_its_own(segmentation):
    """What a contract names is what it gets."""
    assert set(GENERATORS) == set(MASK_GENERATORS)
    drawn = {
        draw_masks(mask_layout(dataclasses.replace(segmentation, generator=name), (8, 12)), 1, DIGEST, 0, 9).tobytes()
        for name in MASK_GENERATORS
    }
    assert len(drawn) == len(MASK_GENERATORS)
    assert segmentation.generator == BYTEWISE
    old = dataclasses.replace(segmentation, generator=PHILOX)
    assert parse_contract(old.document()).generator == PHILOX


def test_an_unknown_generator_is_refused_by_name(segmentation):
    """A contract of a newer version is not served with masks that it does not mean."""
    with pytest.raises(ContractError, match=f"'dice'.*{BYTEWISE}, {PHILOX}"):
        parse_contract({**segmentation.document(), "generator": "dice"})


# A function of (seed, model, i) alone.


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 40), st.sampled_from(MASK_GENERATORS))
@settings(max_examples=100)
def test_a_sample_is_the_same_however_it_is_chunked(seed, first, count, generator):
    """Sample i depends on seed, model and i alone."""
    layout = layout_of("small", generator)
    together = draw_masks(layout, seed, DIGEST, first, count)
    alone = [draw_masks(layout, seed, DIGEST, first + i, 1)[0] for i in range(count)]
    assert (together == np.stack(alone)).all()


@pytest.mark.parametrize("generator", MASK_GENERATORS)
@pytest.mark.parametrize("name", ["mixed", "joined"])
def test_threads_and_chunks_give_the_same_bits(name, generator):
    """Of layouts that are looked up too; however many threads, and more than there are samples."""
    layout = layout_of(name, generator)
    together = draw_masks(layout, 5, DIGEST, 0, 7, threads=1)
    for threads in (None, 2, 3, 8):
        assert (draw_masks(layout, 5, DIGEST, 0, 7, threads) == together).all()
    for first, count in ((6, 1), (2, 3)):
        assert (draw_masks(layout, 5, DIGEST, first, count) == together[first : first + count]).all()


@pytest.mark.parametrize(
    ("cores", "samples", "expected"), [(1, 20, None), (3, 20, 3), (64, 20, 8), (64, 2, 2), (64, 1, None)]
)
def test_there_are_no_more_threads_than_cores_and_samples(monkeypatch, cores, samples, expected):
    """A process that may use few cores leaves the others alone."""
    started = []

    class Pool(masks.ThreadPoolExecutor):
        def __init__(self, workers):
            started.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(masks, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    large = MaskLayout((Site("s", SiteKind.ELEMENT, (2_100_000,), 0.5),), ((2_100_000,),), BYTEWISE)
    draw_masks(large, 0, DIGEST, 0, samples)
    draw_masks(layout_of("small"), 0, DIGEST, 0, samples)
    assert started == ([] if expected is None else [expected])


def test_no_random_word_is_read_twice(monkeypatch):
    """Samples and runs share no random words, hence nothing that could tie them together.

    Some 50,000 words of 64 bits: two are equal by chance with probability below 1e-9.
    """
    read = []

    class Spy(masks._Words):
        def read(self, region, place, count):
            read.append(super().read(region, place, count))
            return read[-1].copy()

    monkeypatch.setattr(masks, "_Words", Spy)
    layout = layout_of("mixed")
    for first, count in ((0, 3), (3, 1), (4, 2), (2**40, 2)):
        draw_masks(layout, 5, DIGEST, first, count)
    undecided = sum(masks._tables(threshold)[0].size < 2**16 for _, threshold in layout.long)
    assert undecided and len(read) == 4 + 8 * (len(layout.long) + undecided)
    words = np.concatenate(read)
    assert words.size > 40_000 and np.unique(words).size == words.size


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_exceeds_64_bits_is_refused(seed):
    """A seed that does not fit is refused rather than wrapped round."""
    with pytest.raises(ValueError, match="seed"):
        draw_masks(layout_of("small"), seed, DIGEST, 0, 1)


# How bits are packed.


def test_packing_is_little_endian_and_complete(segmentation):
    """`unpack_masks` inverts the packing that the graph's look-up table assumes."""
    layout = mask_layout(segmentation, (8, 12))
    assert layout.shapes == ((5,), (), (2, 2, 3))
    assert layout.bits == 5 + 1 + 12 and layout.bytes == 3 and layout.offsets == (0, 5, 6)
    packed = np.array([[0b00100001, 0b00000001, 0b00000010]], dtype=np.uint8)
    channel, path, element = unpack_masks(layout, packed)
    assert channel.tolist() == [[True, False, False, False, False]]
    assert path.tolist() == [True]
    assert np.flatnonzero(element[0].ravel()).tolist() == [2, 11]


@pytest.mark.parametrize("generator", MASK_GENERATORS)
@pytest.mark.parametrize("name", SHAPES)
def test_padding_bits_are_zero(name, generator):
    """Behind the last unit nothing is kept, so that equal masks are equal bytes."""
    layout = layout_of(name, generator)
    packed = draw_masks(layout, 3, DIGEST, 0, 50)
    assert packed.shape == (50, layout.bytes)
    assert not np.unpackbits(packed, axis=1, bitorder="little")[:, layout.bits :].any()


def test_a_layout_without_sites_has_no_bytes():
    """Nothing to draw is no special case."""
    assert draw_masks(MaskLayout((), (), BYTEWISE), 0, DIGEST, 0, 3).shape == (3, 0)


@pytest.mark.parametrize("name", SHAPES)
def test_every_byte_is_either_looked_up_or_compared(name):
    """Bytes that are looked up lie within one run; units of the others have their own site's threshold."""
    layout = layout_of(name)
    units = np.concatenate([np.full(int(np.prod(shape)), round(p * 2**32)) for shape, p in SHAPES[name]])
    columns, thresholds = layout.short
    seen = np.zeros(layout.bytes, dtype=int)
    seen[columns] += 1
    for span, threshold in layout.long:
        seen[span] += 1
        assert (units[8 * span.start : 8 * span.stop] == threshold).all()
    assert (seen == 1).all()
    inside = (8 * columns[:, None] + np.arange(8)).ravel()
    assert (thresholds == units[inside[inside < layout.bits]]).all()
    assert len(layout.long) == {"mixed": 3, "joined": 1}.get(name, 0)


# Exactly as probable as stated.

THRESHOLDS = [
    *(0, 1, 2, 2**32 - 2, 2**32 - 1),
    *(k << 24 for k in (1, 51, 64, 127, 128, 192, 255)),
    *(round(p * 2**32) for p in (0.01, 0.1, 0.2, 0.3, 0.7, 0.999)),
]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_each_byte_is_looked_up_with_the_product_of_its_units_probabilities(threshold):
    """All 2²⁵⁶ equally likely numbers are counted, by cell and by rest."""
    table, rest = masks._tables(threshold)
    ends = [0, *(int.from_bytes(bytes(end).ljust(32, b"\0"), "big") for end in rest)]
    whole = np.bincount(table, minlength=256)
    numbers = [(int(whole[byte]) << 240) + ends[byte + 1] - ends[byte] for byte in range(256)]
    assert sum(numbers) == 2**256
    assert (2**16 - table.size) << 240 == ends[-1]
    keep, drop = Fraction(2**32 - threshold, 2**32), Fraction(threshold, 2**32)
    for byte in range(256):
        kept = byte.bit_count()
        assert Fraction(numbers[byte], 2**256) == keep**kept * drop ** (8 - kept)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_last_cells_are_decided_at_the_very_number(threshold):
    """Just below the end of a byte's rest it is that byte or an earlier one, from there on a later one."""
    rest = masks._tables(threshold)[1]
    ends = [int.from_bytes(bytes(end).ljust(32, b"\0"), "big") for end in rest]
    numbers = sorted({number for end in ends for number in (end - 1, end) if 0 <= number < ends[-1]})
    if not numbers:
        assert threshold in (0, 1 << 30, 1 << 31, 3 << 30)
        return
    cells = np.array([number >> 240 for number in numbers], dtype=np.uint16)
    more = np.frombuffer(b"".join(b"\xff\xff" + (n % 2**240).to_bytes(30, "big") for n in numbers), dtype="<u8").copy()
    expected = [sum(end <= number for end in ends) for number in numbers]
    assert masks._decided(rest, cells, more).tolist() == expected


@pytest.mark.parametrize("p", [0.2, 0.25, 1e-3])
def test_every_cell_is_looked_up_as_the_tables_say(p):
    """All 65536 first halves, each once: what is whole by the table, the others by 240 more bits."""
    threshold = round(p * 2**32)
    table, rest = masks._tables(threshold)

    class Every:
        def read(self, region, place, count):
            if region == 7:
                return np.arange(2**16, dtype="<u2").view("<u8")[:count]
            assert (region, place, count) == (8, 3 * 4 * 2**16, 4 * (2**16 - table.size))
            return np.zeros(count, dtype="<u8")

    packed = masks._looked_up(Every(), 7, 3, threshold, 2**16)
    assert (packed[: table.size] == table).all()
    ends = [int.from_bytes(bytes(end).ljust(32, b"\0"), "big") for end in rest]
    assert packed[table.size :].tolist() == [sum(e <= n << 240 for e in ends) for n in range(2**16 - table.size)]
    assert table.size == 2**16 if p == 0.25 else 2**16 - 256 < table.size < 2**16


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_unit_is_dropped_below_its_threshold_and_no_further(threshold):
    """The edges of the comparison of 32 bits."""
    integers = np.array([max(threshold - 1, 0), threshold, 0, 2**32 - 1], dtype="<u4")
    packed = masks._compared(integers.view("<u8"), 1, np.full(4, threshold, dtype=np.uint32))
    kept = np.unpackbits(packed[0], count=4, bitorder="little").tolist()
    assert kept == [threshold == 0, True, threshold == 0, True]


# Statistics.


def bits_of(layout: MaskLayout, seed: int, digest: str, samples: int) -> list[np.ndarray]:
    """Per site `[samples, units]`."""
    drawn = unpack_masks(layout, draw_masks(layout, seed, digest, 0, samples))
    return [site.reshape(samples, -1) for site in drawn]


def rate_chance(bits: np.ndarray, p: float) -> float:
    """How probable it is that independent units are dropped so much too often or seldom: exact binomial test."""
    return float(stats.binomtest(int((~bits).sum()), bits.size, p).pvalue)


def pair_chance(a: np.ndarray, b: np.ndarray, p: float, q: float) -> float:
    """How probable it is at most that independent units covary so much over these pairs, of which none share a unit.

    Bernstein's inequality for the sum of products: bounded, of mean 0 and known variance. It holds for any number.
    """
    total = abs(float(((a - (1 - p)) * (b - (1 - q))).sum()))
    variance, most = a.size * p * (1 - p) * q * (1 - q), max(p, 1 - p) * max(q, 1 - q)
    return min(1.0, 2 * exp(-(total**2) / 2 / (variance + most * total / 3)))


def planted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`b`, of which every twentieth unit is `a`'s."""
    return np.where(np.random.default_rng(0).random(b.shape) < 0.05, a, b)


SAMPLES = {"small": 20_000, "hippocampus": 4_000, "mixed": 12, "joined": 12}


@pytest.mark.parametrize("generator", MASK_GENERATORS)
@pytest.mark.parametrize("name", SHAPES)
def test_units_are_dropped_with_their_own_probability(name, generator):
    """Each site; fails by chance with probability ≤ ALARM, and where p is off by a twentieth of itself and more."""
    layout = layout_of(name, generator)
    sites = bits_of(layout, 1, DIGEST, SAMPLES[name])
    for site, bits in zip(layout.sites, sites, strict=True):
        assert rate_chance(bits, site.p) > ALARM / len(sites), site.name
    most = max(range(len(sites)), key=lambda n: sites[n].size)
    wrong = sites[most] & (np.random.default_rng(0).random(sites[most].shape) > 0.05 * layout.sites[most].p)
    assert rate_chance(wrong, layout.sites[most].p) < ALARM / len(sites)


def _pairs(name: str, generator: str) -> dict[str, tuple[np.ndarray, np.ndarray, float, float]]:
    """By what might tie them together: pairs of units that share none, and the p of either side."""
    layout, samples = layout_of(name, generator), SAMPLES[name]
    sites = bits_of(layout, 1, DIGEST, samples)
    first = max(range(len(sites)), key=lambda n: sites[n].size)
    other = max((n for n in range(len(sites)) if n != first), key=lambda n: sites[n].size)
    bits, p, q = sites[first], layout.sites[first].p, layout.sites[other].p
    width = min(sites[first].shape[1], sites[other].shape[1])
    whole = bits[:, : bits.shape[1] // 16 * 16].reshape(samples, -1, 8)
    again = bits[:, : bits.shape[1] // 2 * 2]
    pairs = {
        "neighbouring units": (again[:, 0::2], again[:, 1::2], p, p),
        "neighbouring samples": (bits[0::2], bits[1::2], p, p),
        "distant samples": (bits[: samples // 2], bits[samples // 2 :], p, p),
        "sites": (bits[:, :width], sites[other][:, :width], p, q),
        "images": (bits, bits_of(layout, 2, DIGEST, samples)[first], p, p),
        "distant seeds": (bits, bits_of(layout, 1 + 2**63, DIGEST, samples)[first], p, p),
        "models": (bits, bits_of(layout, 1, OTHER_DIGEST, samples)[first], p, p),
    }
    if whole.size:
        pairs["neighbouring bytes"] = (whole[:, 0::2], whole[:, 1::2], p, p)
    return pairs


@pytest.mark.parametrize("generator", MASK_GENERATORS)
@pytest.mark.parametrize("name", SHAPES)
def test_units_samples_sites_images_and_models_are_independent(name, generator):
    """Each kind of pair; fails by chance with probability ≤ ALARM, and where a twentieth of the units is copied."""
    pairs = _pairs(name, generator)
    for kind, (a, b, p, q) in pairs.items():
        assert a.shape == b.shape
        assert pair_chance(a, b, p, q) > ALARM / len(pairs), kind
        assert pair_chance(a, planted(a, b), p, q) < ALARM / len(pairs), f"{kind}: a planted fault is not seen"


@pytest.mark.parametrize("generator", MASK_GENERATORS)
@pytest.mark.parametrize("name", ["small", "joined"])
def test_any_two_units_of_the_first_bytes_are_independent(name, generator):
    """All pairs of 28; fails by chance with probability ≤ ALARM, and where one unit repeats another half the time."""
    layout, samples = layout_of(name, generator), 4_000
    packed = draw_masks(layout, 9, DIGEST, 0, samples)[:, :4]
    bits = np.unpackbits(packed, axis=1, count=28, bitorder="little").astype(bool)
    p = np.repeat([p for _, p in SHAPES[name]], [np.prod(shape) for shape, _ in SHAPES[name]])[:28]

    def chance(bits: np.ndarray) -> float:
        pairs = [(i, j) for i in range(28) for j in range(i)]
        return len(pairs) * min(pair_chance(bits[:, i], bits[:, j], p[i], p[j]) for i, j in pairs)

    assert chance(bits) > ALARM
    bits[: samples // 2, 20] = bits[: samples // 2, 3]
    assert chance(bits) < ALARM
