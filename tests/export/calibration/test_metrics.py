import numpy as np
import pytest
from equipoise_export.calibration import metrics


@pytest.fixture
def honest():
    """Probabilities of 3 classes with labels drawn from them: perfectly calibrated."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([1.0, 1.0, 1.0], 2000)
    labels = (random.random((2000, 1)) >= probabilities.cumsum(axis=1)).sum(axis=1)
    return probabilities, labels


def test_ece_by_hand():
    """Four cases at 0.9, two of them right, and none elsewhere: |0.5 − 0.9|."""
    p = np.array([[0.9, 0.1]] * 4)
    assert metrics.expected_calibration_error(p, np.array([0, 0, 1, 1])) == pytest.approx(0.4)
    assert metrics.class_calibration_errors(p, np.array([0, 0, 1, 1])) == pytest.approx([0.4, 0.4])
    assert metrics.adaptive_calibration_error(p, np.array([0, 0, 1, 1])) == pytest.approx(0.4)


def test_brier_and_nll_by_hand():
    """(0.1² + 0.1²) and −ln 0.9 for a right answer at 0.9; twice 0.81 and −ln 0.1 for a wrong one."""
    p, y = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])
    assert metrics.brier_score(p, y) == pytest.approx((0.02 + 1.62) / 2)
    assert metrics.class_brier_scores(p, y).sum() == pytest.approx(metrics.brier_score(p, y))
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_honest_probabilities_stay_under_the_floor_and_overconfident_ones_do_not(honest, name):
    """The floor's 95th percentile separates what n explains from what it does not."""
    probabilities, labels = honest
    metric = metrics.METRICS[name]
    mean, high = metrics.floor(probabilities, metric, seed=3, repetitions=100)
    assert mean < high
    assert metric(probabilities, labels) <= high * 1.05
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert metric(sharp, labels) > metrics.floor(sharp, metric, repetitions=50)[1]


def test_floor_is_reproducible(honest):
    """Randomness is an argument."""
    p = honest[0][:200]
    metric = metrics.expected_calibration_error
    assert metrics.floor(p, metric, 1, 20) == metrics.floor(p, metric, 1, 20) != metrics.floor(p, metric, 2, 20)


def test_risk_coverage_by_hand():
    """Errors last: risk 0, 0, 1/3, 2/4; the oracle is that very order, so its excess is 0."""
    score, loss = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 0, 1, 1])
    coverage, risk = metrics.risk_coverage(score, loss)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert metrics.area_under_risk_coverage(score, loss) == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert metrics.excess_area_under_risk_coverage(score, loss) == pytest.approx(0.0)
    assert metrics.excess_area_under_risk_coverage(-score, loss) > 0.3
    assert metrics.accuracy_at(score, loss, 0.5) == 1.0
    assert metrics.accuracy_at(score, loss, 0.75) == pytest.approx(2 / 3)


def test_equal_scores_do_not_depend_on_order():
    """A constant score has the mean loss as its risk everywhere."""
    risk = metrics.risk_coverage(np.ones(4), np.array([1, 0, 0, 0]))[1]
    assert risk == pytest.approx([0.25] * 4)


def test_separation_by_hand():
    """Three of four pairs in order; a tie counts half; nothing to compare is NaN."""
    assert metrics.separation(np.array([1.0, 3.0]), np.array([2.0, 4.0])) == 0.75
    assert metrics.separation(np.array([1.0]), np.array([1.0])) == 0.5
    assert np.isnan(metrics.separation(np.array([]), np.array([1.0])))
