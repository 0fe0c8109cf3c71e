"""The figures of a reference model, on answers worked out by hand."""

import numpy as np
import pytest
from equipoise_lab.reference.data import Dataset
from equipoise_lab.reference.evaluate import measure
from equipoise_lab.reference.specs import HIPPOCAMPUS, NUCLEI, PNEUMONIA


def figures(reference, probabilities, truths) -> dict:
    """Of given answers `[K, …]`, one a case."""
    images = tuple(np.full(1, index, np.float32) for index in range(len(truths)))
    cases = Dataset(tuple(map(str, range(len(truths)))), images, tuple(np.asarray(truth, np.uint8) for truth in truths))
    return measure(reference, cases, lambda image: np.asarray(probabilities[int(image[0])], np.float32))


def one_hot(labels, classes: int):
    return np.moveaxis(np.eye(classes)[np.asarray(labels)], -1, 0)


def test_dice_counts_overlap_per_label() -> None:
    """Label 1 overlaps in one voxel of two and one; label 2 is in neither map."""
    found = figures(HIPPOCAMPUS, [one_hot([1, 1, 0], 3)], [[1, 0, 0]])
    assert found["dice"] == {"anterior": pytest.approx(2 / 3), "posterior": 1.0}
    assert found["dice_worst_case"] == pytest.approx(2 / 3)


def test_calibration_of_a_confident_half_right_answer() -> None:
    """0.9 said, 0.5 right: the gap is 0.4."""
    assert figures(PNEUMONIA, [[0.9, 0.1]] * 2, [0, 1])["ece"] == pytest.approx(0.4)


def test_scores_of_a_coin() -> None:
    """Fifty-fifty costs ln 2 and a Brier score of one half."""
    found = figures(PNEUMONIA, [[0.5, 0.5]] * 4, [0, 1, 1, 0])
    assert found["nll"] == pytest.approx(np.log(2))
    assert found["brier"] == pytest.approx(0.5)


def test_a_sigmoid_gains_its_complement() -> None:
    """One channel becomes two answers that sum to 1."""
    found = figures(NUCLEI, [[[0.2, 0.7]]], [[0, 0]])
    assert found["nll"] == pytest.approx(-(np.log(0.8) + np.log(0.3)) / 2, abs=1e-6)
    assert found["dice"] == {"nucleus": 0.0}


def test_loss_is_low_dice_or_a_wrong_class() -> None:
    """Mean Dice over anterior and posterior decides, the background does not count."""
    truth = [0, 0, 0, 1, 2]
    assert figures(HIPPOCAMPUS, [one_hot(truth, 3)], [truth])["loss_rate"] == 0
    assert figures(HIPPOCAMPUS, [one_hot([0, 0, 0, 1, 1], 3)], [truth])["loss_rate"] == 1
    found = figures(PNEUMONIA, [[0.1, 0.9], [0.1, 0.9], [0.8, 0.2]], [0, 1, 1])
    assert found["loss_rate"] == pytest.approx(2 / 3)
    assert (found["sensitivity"], found["specificity"]) == (0.5, 0.0)


def test_figures_are_what_their_formulas_say() -> None:
    """ECE, NLL and Brier score of 500 answers, summed one by one; the published figures were made so."""
    random = np.random.default_rng(0)
    p, truth = random.dirichlet([0.3, 0.3], 500).astype(np.float32), random.integers(2, size=500)
    found = figures(PNEUMONIA, p, truth)
    wide = p.astype(np.float64)
    gaps = np.zeros(15)
    for row, label in zip(p, truth, strict=True):
        gaps[min(int(row.max() * 15), 14)] += (row.argmax() == label) - float(row.max())
    assert found["ece"] == pytest.approx(np.abs(gaps).sum() / 500, abs=1e-9)
    given = np.maximum(wide[np.arange(500), truth], 1e-7)
    assert found["nll"] == pytest.approx(-np.log(given).mean(), abs=1e-9)
    assert found["brier"] == pytest.approx(((wide - np.eye(2)[truth]) ** 2).sum(axis=1).mean(), abs=1e-9)
