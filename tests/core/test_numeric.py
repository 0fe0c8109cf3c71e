import numpy as np
import pytest
from equipoise_core import numeric
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = (1, 2, 3, 20, 1023, 1024, 1025, 5000, 8191, 8192, 50_001)


def arrays(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Continuous, tied, nearly constant and sorted values."""
    random = np.random.default_rng(seed)
    levels = random.poisson(3.0, size)
    return {
        "continuous": random.gamma(0.5, size=size).astype(np.float32),
        "few levels": levels.astype(np.float32),
        "mostly 0": np.where(random.random(size) < 0.8, 0.0, random.normal(size=size)).astype(np.float32),
        "sorted": np.sort(random.normal(size=size)),
    }


@pytest.mark.parametrize("size", SIZES)
def test_medians_and_quantiles_are_numpys(size):
    """To the last bit, whatever the ties: thresholds must not move with the algorithm."""
    for what, values in arrays(size).items():
        assert numeric.median(values) == float(np.median(values.astype(np.float64))), what
        shares = (0.0, 0.01, 0.3, 0.5, 0.95, 0.998, 1.0)
        expected = np.quantile(values.astype(np.float64), shares)
        assert numeric.quantiles(values, shares) == expected.tolist(), what


def test_a_sample_that_misleads_changes_nothing():
    """Values that repeat with the sample's step: it sees one of them alone."""
    for period in (9, 10, 11, 12, 13):
        values = np.tile(np.r_[np.zeros(period - 1), 1.0], 10_000 // period * 10).astype(np.float32)
        for rolled in (np.roll(values, shift) for shift in range(period)):
            assert numeric.quantiles(rolled, (0.5, 0.97)) == np.quantile(rolled, (0.5, 0.97)).tolist()
            assert numeric.median(1.0 - rolled) == np.median(1.0 - rolled)


@given(st.integers(0, 2**32), st.sampled_from(SIZES))
@settings(max_examples=50, deadline=None)
def test_sums_of_single_precision_are_nearly_those_of_double(seed, size):
    """1e-6 of the sum of sizes, also far from 0."""
    a, b = np.random.default_rng(seed).normal(3.0, 1.0, (2, size)).astype(np.float32)
    assert numeric.total(a) == pytest.approx(float(a.sum(dtype=np.float64)), rel=1e-6, abs=1e-6)
    assert numeric.mean(a) == pytest.approx(float(a.mean(dtype=np.float64)), rel=1e-6, abs=1e-6)
    expected = float((a.astype(np.float64) * b).sum())
    assert numeric.dot(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6 * size)
