"""Sums and weights give what the plain metrics give on the very cases that a resample holds."""

import numpy as np
import pytest
from equipoise_export.calibration import metrics
from equipoise_lab.compare import weighted

RANDOM_WEIGHTS = 12


@pytest.fixture(params=[0, 1, 2])
def random(request):
    return np.random.default_rng(request.param)


@pytest.fixture
def weights(random):
    """How often each of 30 cases occurs; some do not at all."""
    return random.multinomial(30, np.full(30, 1 / 30), size=RANDOM_WEIGHTS).astype(float)


def expanded(weights):
    """The cases of each resample, one by one."""
    return [np.repeat(np.arange(len(row)), row.astype(int)) for row in weights]


@pytest.mark.parametrize("answers", [1, 7])
@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_figures_are_those_of_the_metrics(random, weights, answers, classes):
    """ECE, Brier and NLL, over cases of one answer and of several voxels."""
    p = random.dirichlet(np.ones(classes) / 2, size=(30, answers))
    labels = random.integers(classes, size=(30, answers))
    sums = weighted.calibration_sums([(a, np.eye(classes)[b]) for a, b in zip(p, labels, strict=True)], True)
    found = [
        weighted.calibration_error(sums, weights),
        weighted.share_of(sums.brier, sums.answers, weights),
        weighted.share_of(sums.nll, sums.answers, weights),
    ]
    for row, chosen in enumerate(expanded(weights)):
        cases, truth = p[chosen].reshape(-1, classes), labels[chosen].reshape(-1)
        plain = (metrics.expected_calibration_error, metrics.brier_score, metrics.negative_log_likelihood)
        assert [each[row] for each in found] == pytest.approx([metric(cases, truth) for metric in plain], rel=1e-9)


def test_each_label_of_several_is_a_question_of_its_own(random):
    """Two labels that may both hold are two answers of yes or no."""
    p, hits = random.random((30, 2)), random.integers(2, size=(30, 2)).astype(float)
    sums = weighted.calibration_sums([(a[None], b[None]) for a, b in zip(p, hits, strict=True)], False)
    plain = np.stack([1 - p.ravel(), p.ravel()], axis=1)
    once = np.ones((1, 30))
    assert weighted.calibration_error(sums, once)[0] == pytest.approx(
        metrics.expected_calibration_error(plain, hits.ravel().astype(int))
    )
    assert weighted.share_of(sums.brier, sums.answers, once)[0] == pytest.approx(
        metrics.brier_score(plain, hits.ravel().astype(int))
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_risk_coverage_areas_are_those_of_the_metrics(random, weights, ties, binary):
    """With equal scores too, which every case that is drawn twice has."""
    score = random.integers(6, size=30) / 5.0 if ties else random.random(30)
    risk = random.integers(2, size=30).astype(float) if binary else random.random(30)
    areas = weighted.area_under_risk_coverage(score, risk, weights)
    excess = weighted.excess_area_under_risk_coverage(score, risk, weights)
    for row, chosen in enumerate(expanded(weights)):
        assert areas[row] == pytest.approx(metrics.area_under_risk_coverage(score[chosen], risk[chosen]), rel=1e-9)
        plain = metrics.excess_area_under_risk_coverage(score[chosen], risk[chosen])
        assert excess[row] == pytest.approx(plain, rel=1e-9, abs=1e-12)


def test_a_perfect_ranking_has_no_excess(random, weights):
    """The risk itself, or anything that rises with it."""
    risk = random.random(30)
    assert np.abs(weighted.excess_area_under_risk_coverage(np.exp(3 * risk), risk, weights)).max() < 1e-12


def test_a_constant_score_leaves_the_mean_risk(random):
    """All cases are tied: whatever share is kept, its risk is that of all."""
    risk = random.random(30)
    assert weighted.area_under_risk_coverage(np.zeros(30), risk, np.ones((1, 30)))[0] == pytest.approx(risk.mean())


@pytest.mark.parametrize("ties", [False, True])
def test_separation_is_that_of_the_metrics(random, weights, ties):
    """Each side with its own weights; without one of the sides there is no figure."""
    values = random.integers(4, size=30) / 3.0 if ties else random.random(30)
    high = random.random(30) < 0.4
    found = weighted.separation(values, weights * ~high, weights * high)
    for row, chosen in enumerate(expanded(weights)):
        plain = metrics.separation(values[chosen][~high[chosen]], values[chosen][high[chosen]])
        assert found[row] == pytest.approx(plain, rel=1e-9, nan_ok=True)
    assert np.isnan(weighted.separation(values, weights, weights * 0.0)).all()


def test_separated_values_have_an_auroc_of_one():
    """And of 0 the other way round."""
    values, low = np.arange(6.0), np.array([[1.0, 1, 1, 0, 0, 0]])
    assert weighted.separation(values, low, 1 - low)[0] == 1.0
    assert weighted.separation(values, 1 - low, low)[0] == 0.0
