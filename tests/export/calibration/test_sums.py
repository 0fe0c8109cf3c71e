"""Sums and weights give what the plain metrics give on the very cases that a resample holds."""

import numpy as np
import pytest
from equipoise_export.calibration import metrics
from equipoise_export.calibration.sums import RESAMPLED, calibration_sums, mean

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
    sums = calibration_sums([(a, np.eye(classes)[b]) for a, b in zip(p, labels, strict=True)], True)
    found = [figure(sums, weights) for figure in RESAMPLED.values()]
    for row, chosen in enumerate(expanded(weights)):
        cases, truth = p[chosen].reshape(-1, classes), labels[chosen].reshape(-1)
        expected = [metrics.METRICS[name](cases, truth) for name in RESAMPLED]
        assert [each[row] for each in found] == pytest.approx(expected, rel=1e-9, abs=2e-5)


def test_each_label_of_several_is_a_question_of_its_own(random):
    """Two labels that may both hold are two answers of yes or no."""
    p, hits = random.random((30, 2)), random.integers(2, size=(30, 2)).astype(float)
    sums = calibration_sums([(a[None], b[None]) for a, b in zip(p, hits, strict=True)], False)
    plain = np.stack([1 - p.ravel(), p.ravel()], axis=1)
    once = np.ones((1, 30))
    assert sums.error(once)[0] == pytest.approx(metrics.expected_calibration_error(plain, hits.ravel().astype(int)))
    each = [
        metrics.class_calibration_errors(np.stack([1 - q, q], axis=1), hit)[1]
        for q, hit in zip(p.T, hits.T.astype(int), strict=True)
    ]
    assert sums.classwise_error(once)[0] == pytest.approx(np.mean(each))
    assert mean(sums.brier, once, sums.answers)[0] == pytest.approx(
        metrics.brier_score(plain, hits.ravel().astype(int))
    )
