import dataclasses
import itertools

import numpy as np
import pytest
from equipoise_core.contract import Activation, Task
from equipoise_core.moments import Moments, moments_of_probabilities
from equipoise_core.scores import (
    SCORES,
    _dilated,
    case_scores,
    lack_of_confidence,
    lack_of_soft_dice_confidence,
    mutual_information,
    rim_epistemic,
    sample_disagreement,
    volume_variation,
)
from equipoise_core.uncertainty import Uncertainty
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special


def maps_of(seed: int, samples: int = 5, sharpness: float = 3.0) -> np.ndarray:
    """Random softmax maps `[T, 3, 6, 5]`."""
    return special.softmax(np.random.default_rng(seed).normal(0, sharpness, (samples, 3, 6, 5)), axis=1)


def uncertainty_of(p: np.ndarray) -> Uncertainty:
    """What the graph would have summed over maps `[T, K, *S]`."""
    h = special.entr(p).sum(axis=1, keepdims=True)
    moments = Moments(len(p), p.sum(0), (p**2).sum(0), h.sum(0), p.reshape(*p.shape[:2], -1).sum(-1))
    return Uncertainty(moments, Activation.SOFTMAX)


@given(st.integers(0, 2**32), st.integers(2, 9))
@settings(max_examples=50)
def test_disagreement_is_the_pooled_dice_over_all_pairs(segmentation_contract, seed, samples):
    """The closed form from the moments equals the sum over every ordered pair of samples."""
    p = maps_of(seed, samples)
    pairs = sum((a[1:] * b[1:]).sum() for a, b in itertools.permutations(p, 2))
    dice = pairs / ((samples - 1) * p[:, 1:].sum())
    assert sample_disagreement(segmentation_contract, uncertainty_of(p)) == pytest.approx(1 - dice, abs=1e-12)


def test_disagreement_does_not_depend_on_chunks(segmentation):
    """What an average of within-chunk Dice gets wrong."""
    p = maps_of(3, 8)
    parts = [uncertainty_of(x).moments for x in (p[:3], p[3:])]
    merged = Uncertainty(parts[0] + parts[1], Activation.SOFTMAX)
    assert sample_disagreement(segmentation, merged) == pytest.approx(
        sample_disagreement(segmentation, uncertainty_of(p)), abs=1e-12
    )


def test_soft_dice_confidence_by_hand(segmentation):
    """Two voxels: 2·0.9 / (0.9 + 0.2 + 1)."""
    p = np.array([[[0.1, 0.8], [0.9, 0.1], [0.0, 0.1]]])
    assert lack_of_soft_dice_confidence(segmentation, uncertainty_of(p)) == pytest.approx(1 - 1.8 / 2.1)


def test_rim_is_one_voxel_wide(segmentation):
    """The mean runs over the predicted voxel and its face neighbours only."""
    p = np.full((2, 3, 5, 5), 0.0)
    p[:, 0] = 1.0
    p[:, :, 2, 2] = [[0.0, 0.9, 0.1], [0.0, 0.6, 0.4]]
    u = uncertainty_of(p)
    assert rim_epistemic(segmentation, u) == pytest.approx(float(u.epistemic[0, 2, 2]) / 5)
    assert u.epistemic[0, 2, 2] > 0.01


def test_volume_variation_is_sd_over_mean(segmentation):
    """Foreground volumes 2 and 4 voxels: sd √2, mean 3."""
    p = np.zeros((2, 3, 1, 4))
    p[0, 1, 0, :2] = 1
    p[1, 2, 0, :4] = 1
    assert volume_variation(segmentation, uncertainty_of(p)) == pytest.approx(np.sqrt(2) / 3)


def test_no_evidence_scores_as_uncertain(segmentation):
    """One sample, or no foreground at all, is no agreement: the score is at its worst."""
    empty = np.zeros((4, 3, 2, 2))
    empty[:, 0] = 1.0
    assert sample_disagreement(segmentation, uncertainty_of(maps_of(0, 1))) == 1.0
    for score in (sample_disagreement, lack_of_soft_dice_confidence, volume_variation):
        assert score(segmentation, uncertainty_of(empty)) == 1.0


def test_identical_confident_samples_score_as_certain(segmentation, classification):
    """Samples that agree on hard labels leave nothing uncertain."""
    hard = np.repeat(np.eye(3)[:, [0, 1, 2, 1]].reshape(1, 3, 2, 2), 5, axis=0)
    assert all(abs(v) < 1e-12 for v in case_scores(segmentation, uncertainty_of(hard)).values())
    sure = Uncertainty(moments_of_probabilities(np.array([[0.0, 1.0]] * 5), Activation.SOFTMAX), Activation.SOFTMAX)
    assert all(abs(v) < 1e-12 for v in case_scores(classification, sure).values())


def test_classification_scores_by_hand(classification):
    """Two samples that contradict each other: p̄ = ½, all uncertainty is epistemic, ln 2 nats."""
    torn = Uncertainty(moments_of_probabilities(np.eye(2), Activation.SOFTMAX), Activation.SOFTMAX)
    assert lack_of_confidence(classification, torn) == pytest.approx(0.5)
    assert mutual_information(classification, torn) == pytest.approx(np.log(2))


@given(st.integers(0, 2**32), st.sampled_from([(1,), (7,), (1, 6), (6, 1), (5, 6), (1, 1, 4), (3, 4, 5)]))
@settings(max_examples=100)
def test_the_rim_is_all_face_neighbours(seed, shape):
    """And none around the corner of a row."""
    region = np.random.default_rng(seed).random(shape) < 0.3
    np.testing.assert_array_equal(_dilated(region), ndimage.binary_dilation(region))


@pytest.mark.parametrize("activation", list(Activation))
def test_single_precision_moves_no_score(segmentation, activation):
    """Sums over a map of single precision, as the sampler gives it, equal those of double within 1e-6."""
    random = np.random.default_rng(1)
    logits = random.normal(0.0, 2.0, (4, 3, 96, 80)) + random.normal(0.0, 4.0, (3, 96, 80))
    p = special.softmax(logits, axis=1) if activation is Activation.SOFTMAX else special.expit(logits)
    h = special.entr(p) if activation is Activation.SOFTMAX else special.entr(p) + special.entr(1.0 - p)
    h = h.sum(axis=1, keepdims=True) if activation is Activation.SOFTMAX else h
    sums, volumes = [a.sum(axis=0) for a in (p, p**2, h)], p.sum(axis=(2, 3))
    contract = dataclasses.replace(segmentation, activation=activation)
    double, single = (
        case_scores(contract, Uncertainty(Moments(4, *(a.astype(kind) for a in sums), volumes), activation))
        for kind in (np.float64, np.float32)
    )
    for name, score in double.items():
        assert single[name] == pytest.approx(score, abs=1e-6), name
    labels = p.mean(0).argmax(0) if activation is Activation.SOFTMAX else p.mean(0) >= 0.5
    chosen = [labels == k for k in (1, 2)] if activation is Activation.SOFTMAX else labels
    mean = p.mean(0)[list(contract.foreground)]
    dice = 2.0 * mean[np.array(chosen)].sum() / (mean.sum() + np.sum(chosen))
    assert double["lack_of_soft_dice_confidence"] == pytest.approx(1.0 - dice)


def test_every_task_has_scores():
    """Routing always has something to look at."""
    assert set(SCORES) == set(Task) and all(SCORES.values())


@pytest.fixture(scope="module")
def segmentation_contract():
    from equipoise_core.contract import Contract
    from equipoise_core.preprocessing import Preprocessing

    return Contract(
        "toy",
        Task.SEGMENTATION,
        Activation.SOFTMAX,
        ("bg", "a", "b"),
        1,
        ("X", "Y"),
        (6, 5),
        (64, 64),
        Preprocessing(),
        (),
    )
