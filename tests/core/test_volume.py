import numpy as np
import pytest
from equipoise_core.volume import volume_of_samples, widened


def test_an_interval_is_the_samples_own_widened():
    """Against NumPy's words for it; never below 0."""
    volumes = np.random.default_rng(0).gamma(2.0, size=20)
    low, high = np.quantile(volumes, [0.05, 0.95])
    found = volume_of_samples(volumes, 0.9, 0.1)
    assert (found.mean, found.sd) == pytest.approx((volumes.mean(), volumes.std(ddof=1)))
    assert (found.low, found.high) == pytest.approx((low - 0.1, high + 0.1))
    assert volume_of_samples(volumes, 0.9, 1e3).low == 0.0


@pytest.mark.parametrize("mean", [0.9, 1.02, 1.3])
@pytest.mark.parametrize("widening", [-0.2, -5.0, -0.01, 0.3])
def test_an_interval_is_never_upside_down(mean, widening):
    """A negative widening may leave nothing of it: then one number, which the empty interval would not have lost."""
    low, high = widened(mean, 1.0, 1.05, widening)
    assert 0.0 <= low <= high
    if widening > -0.025:
        assert (low, high) == (1.0 - widening, 1.05 + widening)
    else:
        assert low == high == min(max(mean, 1.05 + widening, 0.0), 1.0 - widening)
    found = volume_of_samples(np.array([1.0, 1.02, 1.05]), 0.9, widening)
    assert found.low <= found.high


def test_what_is_not_known_is_not_zero():
    """One sample has no spread; a volume that is not a number leaves nothing known."""
    one = volume_of_samples(np.array([2.0]), 0.9, 0.0)
    assert (one.mean, one.low, one.high) == (2.0, 2.0, 2.0) and np.isnan(one.sd)
    for bad in (np.nan, np.inf):
        assert np.isnan(list(vars(volume_of_samples(np.array([1.0, bad, 3.0]), 0.9, 0.5)).values())).all()
