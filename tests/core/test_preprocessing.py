import numpy as np
import pytest
from equipoise_core.preprocessing import NORMALISED_LIMIT, Normalisation, Preprocessing

KINDS = {
    Normalisation.ZSCORE: (0.0, 0.0),
    Normalisation.PERCENTILE: (1.0, 99.8),
    Normalisation.WINDOW: (-50.0, 250.0),
    Normalisation.IDENTITY: (0.0, 0.0),
}


def defined(kind: Normalisation, channel: np.ndarray) -> np.ndarray:
    """The definition in double precision, in NumPy's own words."""
    wide = channel.astype(np.float64)
    if kind is Normalisation.ZSCORE:
        return (wide - wide.mean()) / wide.std()
    if kind is Normalisation.IDENTITY:
        return wide
    low, high = KINDS[kind] if kind is Normalisation.WINDOW else np.percentile(wide, KINDS[kind])
    return (wide - low) / (high - low)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 130, 90), (1, 17, 33, 40)])
def test_channels_come_out_as_defined(kind, shape):
    """Within single precision's rounding, each by itself, whether grey levels are few or many, near 0 or far off."""
    random = np.random.default_rng(0)
    images = (random.normal(100.0, 40.0, shape), random.poisson(2.0, shape), random.gamma(0.5, 1e-3, shape))
    for image in (each.astype(np.float32) for each in images):
        normalised = Preprocessing(kind, *KINDS[kind]).normalise(image)
        assert normalised.dtype == np.float32 and normalised.shape == shape
        for channel, result in zip(image, normalised, strict=True):
            np.testing.assert_allclose(result, defined(kind, channel), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Normalisation.ZSCORE, Normalisation.PERCENTILE])
def test_brightness_and_contrast_change_nothing(kind):
    """No parameter depends on the scanner."""
    image = np.random.default_rng(0).gamma(2.0, size=(1, 120, 100)).astype(np.float32)
    preprocessing = Preprocessing(kind, *KINDS[kind])
    expected = preprocessing.normalise(image)
    np.testing.assert_allclose(preprocessing.normalise(image * 8.0 + 64.0), expected, atol=1e-4)


def test_a_constant_channel_becomes_zero_and_the_other_does_not():
    """Rounding noise on a constant is not blown up; a far voxel is clipped; the image itself is left alone."""
    image = np.zeros((2, 40, 40), np.float32)
    image[0] = 1e6
    image[0, 0] += 0.0625
    image[1, 3, 3] = 1e9
    before = image.copy()
    for kind in (Normalisation.ZSCORE, Normalisation.PERCENTILE):
        normalised = Preprocessing(kind, 0.0, 99.0).normalise(image)
        assert not normalised[0].any()
        assert np.abs(normalised).max() <= NORMALISED_LIMIT
    assert (image == before).all()
    assert Preprocessing(Normalisation.IDENTITY).normalise(image / 1e4)[1].max() == NORMALISED_LIMIT
