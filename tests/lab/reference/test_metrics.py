"""The metrics on answers worked out by hand."""

import numpy as np
import pytest
from equipoise_lab.reference import metrics
from equipoise_lab.reference.specs import HIPPOCAMPUS, PNEUMONIA


def test_dice_counts_overlap_per_label() -> None:
    """Label 1 overlaps in one voxel of two and one; label 2 is in neither map."""
    np.testing.assert_allclose(metrics.dice_per_label(np.array([1, 1, 0]), np.array([1, 0, 0]), 2), [2 / 3, 1.0])


def test_calibration_of_a_confident_half_right_answer() -> None:
    """0.9 said, 0.5 right: the gap is 0.4."""
    probabilities = np.array([[0.9, 0.9], [0.1, 0.1]])
    assert metrics.expected_calibration_error(probabilities, np.array([0, 1])) == pytest.approx(0.4)


def test_scores_of_a_coin() -> None:
    """Fifty-fifty costs ln 2 and a Brier score of one half."""
    coin, truth = np.full((2, 4), 0.5), np.array([0, 1, 1, 0])
    assert metrics.negative_log_likelihood(coin, truth) == pytest.approx(np.log(2))
    assert metrics.brier_score(coin, truth) == pytest.approx(0.5)


def test_a_sigmoid_gains_its_complement() -> None:
    """One channel becomes two answers that sum to 1."""
    np.testing.assert_allclose(metrics.categorical(np.array([[0.2, 0.7]]), "sigmoid"), [[0.8, 0.3], [0.2, 0.7]])


def test_loss_is_low_dice_or_a_wrong_class() -> None:
    """Mean Dice over anterior and posterior decides, the background does not count."""
    truth = np.array([0, 0, 0, 1, 2])
    assert not metrics.is_loss(HIPPOCAMPUS, truth, truth)
    assert metrics.is_loss(HIPPOCAMPUS, np.array([0, 0, 0, 1, 1]), truth)
    assert metrics.is_loss(PNEUMONIA, np.array(1), np.array(0))
