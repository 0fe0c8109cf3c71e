import numpy as np
import pytest
from equipoise_export.calibration import metrics
from sklearn.metrics import roc_auc_score


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
    high = np.array([False, True, False, True])
    assert metrics.separation(np.array([1.0, 2.0, 3.0, 4.0]), ~high, high) == 0.75
    assert metrics.separation(np.ones(4), ~high, high) == 0.5
    assert np.isnan(metrics.separation(np.ones(4), ~high, np.zeros(4)))


@pytest.fixture(params=[0, 1, 2])
def random(request):
    return np.random.default_rng(request.param)


@pytest.fixture
def weights(random):
    """How often each of 30 cases occurs in 12 resamples; some do not at all."""
    return random.multinomial(30, np.full(30, 1 / 30), size=12).astype(float)


def expanded(weights):
    """The cases of each resample, one by one."""
    return [np.repeat(np.arange(len(row)), row.astype(int)) for row in weights]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_weighted_areas_are_those_under_the_curve_of_the_cases_drawn(random, weights, ties, binary):
    """With equal scores too, which every case that is drawn twice has."""
    score = random.integers(6, size=30) / 5.0 if ties else random.random(30)
    risk = random.integers(2, size=30).astype(float) if binary else random.random(30)
    areas = metrics.area_under_risk_coverage(score, risk, weights)
    excess = metrics.excess_area_under_risk_coverage(score, risk, weights)
    for row, chosen in enumerate(expanded(weights)):
        mean, best = (metrics.risk_coverage(by[chosen], risk[chosen])[1].mean() for by in (score, risk))
        assert areas[row] == pytest.approx(mean, rel=1e-9)
        assert excess[row] == pytest.approx(mean - best, rel=1e-9, abs=1e-12)


def test_a_perfect_ranking_has_no_excess(random, weights):
    """The risk itself, or anything that rises with it."""
    risk = random.random(30)
    assert np.abs(metrics.excess_area_under_risk_coverage(np.exp(3 * risk), risk, weights)).max() < 1e-12


def test_a_constant_score_leaves_the_mean_risk(random):
    """All cases are tied: whatever share is kept, its risk is that of all."""
    risk = random.random(30)
    assert metrics.area_under_risk_coverage(np.zeros(30), risk, np.ones((1, 30)))[0] == pytest.approx(risk.mean())


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_separation_is_the_auroc_of_the_cases_drawn(random, weights, ties):
    """Each side with its own weights; without one of the sides there is no figure."""
    values = random.integers(4, size=30) / 3.0 if ties else random.random(30)
    high = random.random(30) < 0.4
    found = metrics.separation(values, weights * ~high, weights * high)
    for row, chosen in enumerate(expanded(weights)):
        assert found[row] == pytest.approx(roc_auc_score(high[chosen], values[chosen]), rel=1e-9)
    assert np.isnan(metrics.separation(values, weights, weights * 0.0)).all()


def test_separated_values_have_an_auroc_of_one():
    """And of 0 the other way round."""
    values, low = np.arange(6.0), np.array([[1.0, 1, 1, 0, 0, 0]])
    assert metrics.separation(values, low, 1 - low)[0] == 1.0
    assert metrics.separation(values, 1 - low, low)[0] == 0.0
