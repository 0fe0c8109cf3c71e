import dataclasses

import numpy as np
import pytest
from equipoise_core.masks import draw_masks, mask_layout, unpack_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

DIGEST = "0123456789abcdef" * 4


@given(st.integers(0, 2**64 - 1), st.integers(0, 300), st.integers(1, 40))
@settings(max_examples=50)
def test_a_sample_is_the_same_however_it_is_chunked(seed, first, count):
    """Sample i depends on seed, model and i alone."""
    layout = _layout()
    together = draw_masks(layout, seed, DIGEST, first, count)
    alone = [draw_masks(layout, seed, DIGEST, first + i, 1)[0] for i in range(count)]
    assert (together == np.stack(alone)).all()


def test_bits_never_change_between_releases():
    """Golden bits: a record must replay years later, on any machine and NumPy."""
    packed = draw_masks(_layout(), 7, DIGEST, 3, 2)
    assert packed.dtype == np.uint8
    assert packed.tobytes().hex() == GOLDEN


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


def test_units_are_dropped_with_their_own_probability(segmentation):
    """Per site an exact binomial test of the number dropped; the tail is so small that only a bug reaches it."""
    layout = mask_layout(segmentation, (32, 32))
    for site, bits in zip(layout.sites, unpack_masks(layout, draw_masks(layout, 1, DIGEST, 0, 2000)), strict=True):
        test = stats.binomtest(int((~bits).sum()), bits.size, site.p)
        assert test.pvalue > 1e-6, site.name


def test_samples_seeds_models_and_units_are_independent(segmentation):
    """No two samples, seeds or models share masks, and no bit follows from its neighbour."""
    layout = mask_layout(dataclasses.replace(segmentation, sites=segmentation.sites[2:]), (64, 64))
    draws = [
        draw_masks(layout, 1, DIGEST, 0, 400),
        draw_masks(layout, 2, DIGEST, 0, 400),
        draw_masks(layout, 1, DIGEST[::-1], 0, 400),
    ]
    bits = [unpack_masks(layout, packed)[0].reshape(400, -1).astype(float) - 0.5 for packed in draws]
    bound = 6 * 0.25 / np.sqrt(bits[0].size)
    assert abs((bits[0][1:] * bits[0][:-1]).mean()) < bound
    assert abs((bits[0][:, 1:] * bits[0][:, :-1]).mean()) < bound
    assert abs((bits[0] * bits[1]).mean()) < bound
    assert abs((bits[0] * bits[2]).mean()) < bound


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_exceeds_64_bits_is_refused(seed):
    """A seed that does not fit is refused rather than wrapped round."""
    with pytest.raises(ValueError, match="seed"):
        draw_masks(_layout(), seed, DIGEST, 0, 1)


def _layout():
    from equipoise_core.contract import Activation, Contract, Site, SiteKind, Task
    from equipoise_core.preprocessing import Normalisation, Preprocessing

    sites = (Site("a", SiteKind.CHANNEL, (13,), 0.3), Site("b", SiteKind.ELEMENT, (3, 5), 0.5))
    return mask_layout(
        Contract(
            "m",
            Task.CLASSIFICATION,
            Activation.SOFTMAX,
            ("x", "y"),
            1,
            (4,),
            (4,),
            (4,),
            Preprocessing(Normalisation.IDENTITY),
            sites,
        ),
        (4,),
    )


GOLDEN = "c5dfa603e793450c"
