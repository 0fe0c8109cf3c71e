"""Calibration cases weighted for a new site: coverage where equal weights fail, refusal where nothing is known."""

import math

import numpy as np
import pytest
from equipoise_export.calibration.conformal import upper_limit
from equipoise_export.calibration.shift import (
    Shift,
    compare_sites,
    effective_size,
    weighted_error,
    weighted_upper_limit,
)

LEVEL = 0.9
REPETITIONS = 500
TILT = 1.0
"""The site's images lie this many standard deviations further along the first feature."""


def draw(random, n, tilt=0.0, features=3):
    """Features `[n, d]`, and scores whose spread grows along the first of them."""
    x = random.normal(size=(n, features))
    x[:, 0] += tilt
    return x, np.abs(random.normal(size=n)) * np.exp(0.6 * x[:, 0])


def true_ratio(x):
    return np.exp(TILT * x[:, 0] - TILT**2 / 2)


def mean_within(shares, level):
    """(not below, not above) the level, by 3.1 standard errors."""
    error = 3.1 * np.std(shares) / math.sqrt(len(shares))
    return np.mean(shares) >= level - error, np.mean(shares) <= level + error


def test_known_weights_cover_where_equal_weights_and_a_missing_case_do_not():
    """Each new case takes its own weight at infinity; leaving that mass out, or all weights, covers too few."""
    random = np.random.default_rng(1)
    covered = {"weighted": [], "equal": [], "no mass at infinity": []}
    for _ in range(4 * REPETITIONS):
        x, scores = draw(random, 40)
        new, truth = draw(random, 1, TILT)
        weights, own = true_ratio(x), float(true_ratio(new)[0])
        covered["weighted"].append(truth[0] <= weighted_upper_limit(scores, weights, own, LEVEL))
        covered["equal"].append(truth[0] <= upper_limit(scores, LEVEL))
        covered["no mass at infinity"].append(truth[0] <= weighted_upper_limit(scores, weights, 0.0, LEVEL))
    assert mean_within(covered["weighted"], LEVEL)[0]
    assert not mean_within(covered["equal"], LEVEL)[0]
    assert not mean_within(covered["no mass at infinity"], LEVEL)[0]


def test_estimated_weights_cover_within_a_band_where_equal_weights_fail():
    """300 calibration cases and 150 images of the site: approximate, and said so: within .03 of the level or above."""
    random = np.random.default_rng(2)
    weighted, equal, sizes = [], [], []
    for _ in range(REPETITIONS):
        x, scores = draw(random, 300)
        new, _ = draw(random, 150, TILT)
        shift = compare_sites(x, new, penalties=(0.3,), folds=2)
        test, truth = draw(random, 200, TILT)
        assert test.shape[1] == x.shape[1]
        weighted.append((truth <= weighted_upper_limit(scores, shift.weights, shift.largest, LEVEL)).mean())
        equal.append((truth <= upper_limit(scores, LEVEL)).mean())
        sizes.append(shift.effective_size)
    assert LEVEL - 0.03 <= np.mean(weighted) <= 0.97
    assert np.mean(equal) < LEVEL - 0.1
    assert 60 < np.mean(sizes) < 200


def test_equal_weights_are_split_conformal():
    numbers = np.random.default_rng(3).normal(size=57)
    assert weighted_upper_limit(numbers, np.ones(57), 1.0, LEVEL) == upper_limit(numbers, LEVEL)
    assert weighted_upper_limit(numbers[:8], np.ones(8), 1.0, LEVEL) == math.inf
    limits = [weighted_upper_limit(numbers, np.ones(57), own, LEVEL) for own in (0.0, 1.0, 3.0, 6.0)]
    assert limits == sorted(limits)


def test_sites_that_are_alike_keep_nearly_all_of_their_cases():
    random = np.random.default_rng(4)
    shift = compare_sites(draw(random, 100, features=20)[0], draw(random, 80, features=20)[0])
    assert shift.effective_size > 85
    assert 0.3 < shift.separation < 0.7
    assert shift.refusal(LEVEL) is None


@pytest.mark.parametrize("tilt", [4.0, 30.0])
def test_a_site_that_has_nothing_in_common_is_refused(tilt):
    """Far away all calibration cases weigh the same again, next to nothing: their effective size alone would not say
    so."""
    random = np.random.default_rng(5)
    shift = compare_sites(draw(random, 200, features=5)[0], draw(random, 80, tilt, features=5)[0])
    assert shift.separation > 0.95
    assert shift.refusal(LEVEL)


def test_refusals_say_what_was_found():
    few = Shift(np.r_[np.full(3, 30.0), np.full(97, 0.2)], np.ones(5), 30.0, 0.9)
    assert "worth" in few.refusal(LEVEL) and "at least 18" in few.refusal(LEVEL)
    assert "resemble about 20%" in Shift(np.full(100, 0.2), np.ones(5), 30.0, 0.99).refusal(LEVEL)


def test_the_estimated_error_is_that_of_the_site():
    """Errors grow along the shifted feature: weighted calibration cases say how often, unweighted ones too little."""
    random = np.random.default_rng(6)
    x, _ = draw(random, 20_000)
    wrong = (random.random(20_000) < 1 / (1 + np.exp(2 - x[:, 0]))).astype(float)
    new, _ = draw(random, 20_000, TILT)
    truth = (1 / (1 + np.exp(2 - new[:, 0]))).mean()
    error, size = weighted_error(np.ones(20_000, bool), wrong, true_ratio(x))
    assert error == pytest.approx(truth, abs=0.02)
    assert wrong.mean() < truth - 0.08
    assert size == pytest.approx(effective_size(true_ratio(x)))
    assert math.isnan(weighted_error(np.zeros(3, bool), np.ones(3), np.ones(3))[0])
