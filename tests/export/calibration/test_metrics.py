import numpy as np
import pytest
from equipoise_export.calibration import metrics
from scipy.optimize import brentq
from sklearn.metrics import auc, log_loss, roc_auc_score


@pytest.fixture(params=[0, 1, 2])
def random(request):
    return np.random.default_rng(request.param)


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


def test_classwise_ece_by_hand():
    """Three classes at (.8, .1, .1), ten times, of which 8, 2 and 0 are true: gaps 0, .1, .1. The top class alone is
    right as often as it says, so that ECE sees nothing."""
    p, labels = np.tile([0.8, 0.1, 0.1], (10, 1)), np.repeat([0, 1], [8, 2])
    assert metrics.class_calibration_errors(p, labels) == pytest.approx([0.0, 0.1, 0.1])
    assert metrics.classwise_calibration_error(p, labels) == pytest.approx(0.2 / 3)
    assert metrics.expected_calibration_error(p, labels) == pytest.approx(0.0)


def test_smooth_ece_by_hand():
    """Residuals at one place keep their sum however wide they are smoothed: |½ − .9|. Those of two places cancel where
    the kernel reaches from one to the other, and hardly where they lie far apart."""
    p, labels = np.array([[0.9, 0.1]] * 4), np.array([0, 0, 1, 1])
    assert metrics.smooth_calibration_error(p, labels) == pytest.approx(0.4, abs=2e-5)

    def two(low, high):
        top = np.repeat([low, high], 10)
        right = np.r_[np.arange(10) < 10 * low + 1, np.arange(10) < 10 * high - 1]  # one too many, one too few
        return metrics.smooth_calibration_error(np.stack([top, 1 - top], axis=1), np.where(right, 0, 1))

    assert two(0.6, 0.9) == pytest.approx(0.1, abs=0.01) and two(0.7, 0.71) < 0.05


def test_smooth_ece_is_that_of_the_reflected_gaussian_kernel(random):
    """Its definition, on the points themselves: the width at which `∫ |Σ K(t, p_i)(y_i − p_i)|/n dt` is the width."""
    top = 1.0 - random.beta(1, 4, 400) / 2
    right = random.random(400) < top**1.5
    grid = (np.arange(4000) + 0.5) / 4000

    def smoothed(width):
        images = [grid[:, None] - sign * top - 2.0 * turn for turn in (-1, 0, 1) for sign in (1, -1)]
        kernel = sum(np.exp(-((each / width) ** 2) / 2) for each in images) / (width * np.sqrt(2 * np.pi))
        return np.abs(kernel @ (right - top)).mean() / 400

    expected = brentq(lambda width: smoothed(width) - width, 1e-3, 1.0)
    p = np.stack([top, 1 - top], axis=1)
    assert metrics.smooth_calibration_error(p, np.where(right, 0, 1)) == pytest.approx(expected, abs=5e-4)


def test_smooth_ece_of_calibrated_probabilities_vanishes(random):
    """As the number of cases grows; of ones that are too certain by .1 it stays near that."""
    found = []
    for n in (100, 10_000, 1_000_000):
        top = random.uniform(0.5, 0.9, n)
        draw = random.random(n)
        p = np.stack([top, 1 - top], axis=1)
        found.append(metrics.smooth_calibration_error(p, np.where(draw < top, 0, 1)))
        off = metrics.smooth_calibration_error(p + np.array([0.1, -0.1]), np.where(draw < top, 0, 1))
    assert found[0] > found[1] > found[2] < 0.004
    assert off == pytest.approx(0.1, abs=0.01)


def test_brier_and_nll_by_hand():
    """(0.1² + 0.1²) and −ln 0.9 for a right answer at 0.9; twice 0.81 and −ln 0.1 for a wrong one."""
    p, y = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])
    assert metrics.brier_score(p, y) == pytest.approx((0.02 + 1.62) / 2)
    assert metrics.negative_log_likelihood(p, y) == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2)


def test_nll_is_scikit_learns(honest):
    """Its sum over cases of one at a time, too: a comparison takes it so."""
    p, labels = honest
    expected = log_loss(labels, p, labels=[0, 1, 2])
    assert metrics.negative_log_likelihood(p, labels) == pytest.approx(expected)
    one_by_one = [metrics.negative_log_likelihood(p[[i]], labels[[i]]) for i in range(len(p))]
    assert np.mean(one_by_one) == pytest.approx(expected)
    assert metrics.negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(
        -np.log(1e-7), rel=1e-6
    )


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
    assert metrics.risk_at(score, loss, 0.5) == 0.0
    assert metrics.risk_at(score, loss, 0.75) == pytest.approx(1 / 3)


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
def test_augrc_is_the_area_under_the_generalised_curve(random, weights, ties):
    """Its trapezoids over groups of equal score; and of right and wrong cases what it is by AUROC and accuracy."""
    score = random.integers(6, size=30) / 5.0 if ties else random.random(30)
    for risk in (random.random(30), (random.random(30) < 0.4).astype(float)):
        found = metrics.area_under_generalised_risk_coverage(score, risk, weights)
        for row, chosen in enumerate(expanded(weights)):
            limits = np.unique(score[chosen])
            kept = score[chosen] <= limits[:, None]
            area = auc(np.r_[0, kept.mean(axis=1)], np.r_[0, (kept * risk[chosen]).mean(axis=1)])
            assert found[row] == pytest.approx(area, rel=1e-9)
            if set(risk[chosen]) == {0.0, 1.0}:
                right = 1.0 - risk[chosen].mean()
                auroc = roc_auc_score(risk[chosen], score[chosen])
                assert area == pytest.approx((1 - auroc) * right * (1 - right) + (1 - right) ** 2 / 2)


def test_augrc_by_hand():
    """Two right, then two wrong: 0, 0, ¼, ½ kept and wrong, ((0 + ¼) + (¼ + ½))/2/4; that is (1 − a)²/2, the least.
    The other way round ((0 + ¼) + (¼ + ½) + ½ + ½ + ½ + ½)/2/4. All wrong: ½."""
    score, risk = np.arange(4.0), np.array([0.0, 0, 1, 1])
    assert metrics.area_under_generalised_risk_coverage(score, risk) == pytest.approx(1 / 8)
    assert metrics.area_under_generalised_risk_coverage(-score, risk) == pytest.approx(3 / 8)
    assert metrics.area_under_generalised_risk_coverage(score, np.ones(4)) == pytest.approx(0.5)


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_risk_at_a_coverage_is_that_of_the_cases_drawn(random, weights, ties):
    """The curve's value there."""
    score = random.integers(6, size=30) / 5.0 if ties else random.random(30)
    risk = random.random(30)
    for coverage in (0.1, 0.8, 1.0):
        found = metrics.risk_at(score, risk, coverage, weights)
        for row, chosen in enumerate(expanded(weights)):
            curve = metrics.risk_coverage(score[chosen], risk[chosen])[1]
            assert found[row] == pytest.approx(curve[int(np.ceil(coverage * 30)) - 1], rel=1e-9)


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
