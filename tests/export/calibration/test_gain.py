"""Recalibration that cannot hurt quietly: used only where its gain on other cases is clear."""

import dataclasses

import numpy as np
import pytest
from equipoise_core.contract import Activation
from equipoise_core.recalibration import Isotonic
from equipoise_export.calibration.choose import Method, choose_policy, choose_recalibration
from equipoise_export.calibration.gain import brier_scores, cross_validated_gain, paired_gain
from equipoise_export.calibration.recalibrate import fit_isotonic, fit_temperature, fit_venn_abers
from sklearn.isotonic import IsotonicRegression

from .test_choose import GOALS, STAGES, contract, draw  # noqa: F401  # a fixture
from .test_theory import within

REPETITIONS, CASES = 500, 80


def temperature(p, hits):
    return fit_temperature(p, hits, Activation.SOFTMAX)


def two_classes(random, n, sharper=1.0):
    """Probabilities `[n][1, 2]`, and hits drawn from the honest ones, which these exceed in certainty."""
    honest = random.uniform(0.02, 0.98, n)
    odds = (honest / (1 - honest)) ** sharper
    p = np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)
    hit = random.random(n) < honest
    return list(p[:, None]), list(np.stack([~hit, hit], axis=1).astype(float)[:, None])


def test_honest_probabilities_are_left_alone():
    """Where nothing is to gain, a gain is called clear at most as often as the interval errs on that side; going by the
    sign of the gain alone would change them in many sets, and fitting without a test does harm in the mean."""
    random = np.random.default_rng(1)
    folds = [index % 5 for index in range(CASES)]
    gains = [
        cross_validated_gain("temperature", temperature, *two_classes(random, CASES), folds, Activation.SOFTMAX)
        for _ in range(REPETITIONS)
    ]
    assert within(sum(gain.clear for gain in gains), 0.025, REPETITIONS)
    assert not within(sum(gain.mean > 0 for gain in gains), 0.025, REPETITIONS)
    assert np.mean([gain.mean for gain in gains]) < 0


def test_a_clear_gain_is_found():
    """Probabilities that are far too certain: every method gains, by the interval, and the interval holds the gain."""
    random = np.random.default_rng(2)
    p, hits = two_classes(random, 400, 3.0)
    folds = [index % 5 for index in range(400)]
    for fit in (temperature, fit_isotonic, fit_venn_abers):
        gain = cross_validated_gain("", fit, p, hits, folds, Activation.SOFTMAX)
        assert gain.clear
        new, truth = two_classes(random, 20_000, 3.0)
        after = fit(np.concatenate(p), np.concatenate(hits)).apply(np.concatenate(new).T, Activation.SOFTMAX).T
        true = (brier_scores(new, truth) - brier_scores(list(after[:, None]), truth)).mean()
        assert gain.low - 0.01 <= true <= gain.high + 0.01


def test_a_paired_interval_is_students():
    gain = paired_gain("", np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 1.9, 2.0, 4.0]), 0.95)
    assert gain.mean == pytest.approx(0.4)
    assert gain.high - gain.mean == pytest.approx(3.182446 * np.std([0.5, 0.1, 1.0, 0.0], ddof=1) / 2, rel=1e-5)
    assert not paired_gain("", np.ones(1), np.zeros(1)).clear


def test_venn_abers_is_what_its_paper_says():
    """At places of the table: two isotonic fits with one more case; and it rises, between 0 and 1."""
    random = np.random.default_rng(3)
    p = random.random(300)
    hit = (random.random(300) < p**2).astype(float)
    table = fit_venn_abers(np.stack([1 - p, p], axis=1), np.stack([1 - hit, hit], axis=1)).tables[1]
    for place, value in table[5:60:11]:
        low, high = (
            IsotonicRegression(out_of_bounds="clip").fit(np.r_[p, place], np.r_[hit, label]).predict([place])[0]
            for label in (0.0, 1.0)
        )
        assert low <= value <= high
        assert value == pytest.approx(high / (1 - low + high), abs=1e-9)


def test_a_policy_recalibrates_only_where_it_gains(contract):  # noqa: F811
    """Cases that are wrong as often as they say: left alone, and said; cases that are far too certain: recalibrated by
    the best of three at one level for all."""
    honest, certain = [], []
    random = np.random.default_rng(4)
    for case in draw(300, 2):
        share = random.uniform(0.05, 0.95)
        hit = np.eye(2)[[int(random.random() < share)]]
        for cases, p in ((honest, share), (certain, share**4 / (share**4 + (1 - share) ** 4))):
            steps = tuple(dataclasses.replace(step, probabilities=np.array([[1 - p, p]])) for step in case.steps)
            cases.append(dataclasses.replace(case, steps=steps, hits=hit))
    found, gains = choose_recalibration(contract, honest, [case.full for case in honest], Method.TEMPERATURE)
    assert found is None and not gains[0].clear
    found, gains = choose_recalibration(contract, certain, [case.full for case in certain], Method.BEST)
    assert found is not None and [gain.method for gain in gains] == ["temperature", "isotonic", "venn-abers"]
    chosen = choose_policy(
        contract, draw(100, 1, "pilot"), certain, dataclasses.replace(GOALS, method=Method.VENN_ABERS), stages=STAGES
    )
    assert isinstance(chosen.policy.recalibration, Isotonic) and chosen.recalibrated is Method.VENN_ABERS
    assert choose_recalibration(contract, honest, [case.full for case in honest], Method.NONE) == (None, ())
