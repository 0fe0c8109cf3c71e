"""The permutation test itself: it errs as often as it says, and sees what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from ..support.permutation import compare


def _correlated(generator: np.random.Generator, rows: int, columns: int = 12) -> np.ndarray:
    """Probabilities between 0 and 1 that move together, as voxels of one sample do; skewed, far from normal."""
    shared, own = generator.normal(size=(rows, 1)), generator.normal(size=(rows, columns))
    return 1.0 / (1.0 + np.exp(3.0 - 1.5 * shared - own))


def test_rejects_as_often_as_its_level_says_where_there_is_no_difference():
    """Under one distribution p ≤ 0.1 happens in about a tenth of the repetitions, for mean and for variance."""
    generator = np.random.default_rng(1)
    repetitions = 300
    results = [
        compare(_correlated(generator, 40), _correlated(generator, 40), shuffles=99, seed=i) for i in range(repetitions)
    ]
    for which in ("mean", "variance"):
        rejected = sum(getattr(result, which) <= 0.1 for result in results)
        # 3.5 standard deviations of a binomial on either side.
        assert abs(rejected - 30) <= 3.5 * (repetitions * 0.1 * 0.9) ** 0.5, (which, rejected)


def test_sees_a_shift_of_one_output_among_many():
    """Half a standard deviation in one of 100 outputs is enough at 400 samples."""
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(400, 100)), generator.normal(size=(400, 100))
    second[:, 17] += 0.5
    result = compare(first, second)
    assert result.mean <= 0.001
    assert result.variance > 0.01


def test_sees_a_difference_of_spread_that_leaves_the_mean_alone():
    """A standard deviation that is larger by a quarter is found in the variance and not in the mean."""
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(400, 20)), 1.25 * generator.normal(size=(400, 20))
    result = compare(first, second)
    assert result.variance <= 0.001
    assert result.mean > 0.01


def test_sees_samples_that_are_all_equal():
    """No spread at all on one side shows, wherever the one value lies."""
    first = np.random.default_rng(4).normal(size=(400, 2))
    for value in (0.0, 1.0, 3.0):
        assert compare(first, np.full((400, 2), value)).smallest <= 0.001


def test_a_set_against_itself_is_indistinguishable():
    """No difference gives p = 1: rounding does not turn a tie into evidence."""
    first = np.random.default_rng(5).normal(size=(50, 4))
    assert compare(first, first[::-1]).smallest == 1.0


def test_refuses_what_cannot_be_compared():
    """Different numbers of outputs, or outputs that never vary, are errors and not a p-value."""
    with pytest.raises(ValueError, match=r"\[n, D\] and \[m, D\]"):
        compare(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="no output varies"):
        compare(np.ones((4, 2)), np.ones((4, 2)))
