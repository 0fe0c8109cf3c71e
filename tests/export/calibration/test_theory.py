"""The guarantees, tried on synthetic populations of known risk. Each test also takes the correction away and must fail.

A guarantee "at most δ of the calibrations go wrong" is checked by counting over repetitions: the count may exceed
δ · repetitions only by what chance explains (the 99.9 % point of the binomial).
"""

import dataclasses

import numpy as np
import pytest
from equipoise_core.contract import FirstPass
from equipoise_core.decision import Route
from equipoise_core.policy import Guarantee, Policy
from equipoise_core.stages import Stage
from equipoise_export.calibration.choose import serve
from equipoise_export.calibration.conformal import coverage_band, interval_widening
from equipoise_export.calibration.risk import (
    binomial_p_value,
    conformal_risk_control,
    learn_then_test,
)
from scipy.stats import betabinom, binom

from .test_choose import contract, draw  # noqa: F401  # a fixture

REPETITIONS = 1000
ALPHA = DELTA = 0.1
CASES = 200
GRID = np.linspace(0.02, 1.0, 50)


def within(count: int, probability: float, repetitions: int = REPETITIONS) -> bool:
    """Whether so many events are explained by chance where each has at most this probability."""
    return count <= binom.ppf(0.999, repetitions, probability)


def as_often_as_it_looks(accepted, losses):
    """Learn-then-Test with its correction removed: the most permissive candidate whose observed risk is at most α."""
    counts = accepted.sum(axis=0)
    wide = losses if losses.ndim == 2 else losses[:, None]
    fine = (counts > 0) & ((accepted * wide).sum(axis=0) <= ALPHA * counts)
    return int(np.flatnonzero(fine)[-1]) if fine.any() else None


def certified(accepted, losses):
    certificate = learn_then_test(accepted, losses, ALPHA, DELTA)
    return certificate.index if certificate else None


class Classifier:
    """Scores uniform in 0..1; a case of score s is wrong with probability s^1.5/2: risk below λ is λ^1.5/5."""

    @staticmethod
    def draw(random, cases=CASES):
        scores = random.random(cases)
        return scores[:, None] <= GRID, (random.random(cases) < scores**1.5 / 2).astype(float)

    risk = GRID**1.5 / 5


class Hump:
    """A useless score that is worst in the middle: wrong with probability .02 below .3, .35 up to .5, .05 above."""

    @staticmethod
    def draw(random, cases=CASES):
        scores = random.random(cases)
        wrong = np.select([scores < 0.3, scores < 0.5], [0.02, 0.35], 0.05)
        return scores[:, None] <= GRID, (random.random(cases) < wrong).astype(float)

    risk = (0.02 * np.minimum(GRID, 0.3) + 0.35 * np.clip(GRID - 0.3, 0, 0.2) + 0.05 * np.maximum(GRID - 0.5, 0)) / GRID


def violations(population, choose, seed=0, repetitions=REPETITIONS):
    """How often the chosen candidate's true risk exceeds α, and how often anything was chosen."""
    random = np.random.default_rng(seed)
    chosen = [choose(*population.draw(random)) for _ in range(repetitions)]
    return sum(index is not None and population.risk[index] > ALPHA for index in chosen), sum(
        index is not None for index in chosen
    )


@pytest.mark.parametrize("population", [Classifier, Hump])
def test_learn_then_test_keeps_its_promise(population):
    """In at most a share δ of calibrations is the accepted error above α, for a good score and for a bad one."""
    broken, certificates = violations(population, certified)
    assert within(broken, DELTA)
    assert certificates > 0.5 * REPETITIONS  # a procedure that never certifies would pass for nothing


@pytest.mark.parametrize("population", [Classifier, Hump])
def test_without_the_p_value_the_promise_is_broken(population):
    """Choosing by the observed rate instead of the test exceeds δ: the check above can fail."""
    broken, _ = violations(population, as_often_as_it_looks)
    assert not within(broken, DELTA)


def test_p_values_are_valid_at_the_boundary():
    """At a risk of exactly α, P(p ≤ u) ≤ u for every u."""
    random = np.random.default_rng(1)
    errors = random.binomial(60, ALPHA, size=20_000)
    p = binomial_p_value(errors, np.full_like(errors, 60), ALPHA)
    for u in (0.01, 0.05, 0.1, 0.3):
        assert within(int((p <= u).sum()), u, len(p))


STAGES = (0, 5, 20)
RANKS = np.linspace(0.05, 1.0, 30)
CAREFUL, CARELESS = 0.5, 0.0
"""Share of the ranks above a threshold's that an early stage leaves to the next: half of them, or none."""


def scores_by_stage(random, cases, error=0.01):
    """Scores `[cases, stages]`: a noisy one of another scale, then means of samples around the truth; and losses.

    The first pass errs on a share `error` of its own, too.
    """
    truth = random.random(cases)
    running = truth[:, None] * np.exp(random.normal(0.0, 0.5, (cases, 20)).cumsum(axis=1) / np.arange(1, 21))
    first = 3.0 * truth * np.exp(random.normal(0.0, 0.4, cases))
    losses = (random.random(cases) < truth**1.5 / 2).astype(float)
    wrong = np.maximum(losses, random.random(cases) < error)
    return np.stack([first, running[:, 4], running[:, 19]], 1), np.stack([wrong, losses, losses], 1)


def limits_of(pilot, left):
    """Accept and review thresholds `[stages, L]` at each rank, as `choose_thresholds` takes them from pilot cases."""
    accept = np.quantile(pilot, RANKS, axis=0).T
    review = np.quantile(pilot, RANKS + (1 - RANKS) * left, axis=0).T
    review[:, RANKS >= 1.0] = np.inf
    review[-1] = accept[-1]
    return accept, review


def through_stages(scores, losses, accept, review):
    """Accepted and loss `[cases, L]` of cases that go through the stages under each candidate."""
    open_ = np.ones((len(scores), accept.shape[1]), bool)
    accepted, lost = np.zeros_like(open_), np.zeros(open_.shape)
    for score, loss, low, high in zip(scores.T, losses.T, accept, review, strict=True):
        taken = open_ & (score[:, None] <= low)
        accepted |= taken
        lost += taken * loss[:, None]
        open_ &= ~taken & (score[:, None] <= high)
    return accepted, lost


@pytest.mark.parametrize("left", [CAREFUL, CARELESS])
def test_stages_certified_together_keep_their_promise(left):
    """Learn-then-Test on what is served covers the whole list of stages, and without its test it does not hold."""
    pilot, _ = scores_by_stage(np.random.default_rng(7), 100)
    limits = limits_of(pilot, left)
    accepted, lost = through_stages(*scores_by_stage(np.random.default_rng(99), 200_000), *limits)
    risk = lost.sum(axis=0) / accepted.sum(axis=0)
    assert (risk > ALPHA).any()

    def broken(choose):
        random = np.random.default_rng(2)
        chosen = [choose(*through_stages(*scores_by_stage(random, CASES), *limits)) for _ in range(500)]
        return sum(index is not None and risk[index] > ALPHA for index in chosen), sum(i is not None for i in chosen)

    count, certificates = broken(certified)
    assert within(count, DELTA, 500)
    assert certificates > 150
    assert not within(broken(as_often_as_it_looks)[0], DELTA, 500)


def test_a_certificate_of_the_last_stage_alone_does_not_cover_the_others():
    """Full T is tested, but an earlier stage decides: what was promised is broken."""
    pilot, _ = scores_by_stage(np.random.default_rng(7), 100)
    limits = limits_of(pilot, CAREFUL)
    accepted, lost = through_stages(*scores_by_stage(np.random.default_rng(99), 200_000, error=0.06), *limits)
    risk, broken, random = lost.sum(axis=0) / accepted.sum(axis=0), 0, np.random.default_rng(2)
    for _ in range(500):
        scores, losses = scores_by_stage(random, CASES, error=0.06)
        index = certified(scores[:, -1:] <= limits[0][-1], losses[:, -1])
        broken += index is not None and risk[index] > ALPHA
    assert not within(broken, DELTA, 500)


def test_the_vectorised_stages_above_are_those_that_are_served(contract):  # noqa: F811
    """`through_stages` accepts the same cases as the core's own rule."""
    pilot, _ = scores_by_stage(np.random.default_rng(7), 100)
    accept, review = limits_of(pilot, CAREFUL)
    scores, losses = scores_by_stage(np.random.default_rng(11), 100)
    expected, _ = through_stages(scores, losses, accept, review)
    staged = dataclasses.replace(contract, first_pass=FirstPass("toy_first_pass", "11" * 32))
    guarantee = Guarantee(ALPHA, DELTA, "x", 0, 0, 0, "a candidate")
    for candidate in range(0, len(RANKS), 7):
        stages = tuple(
            Stage(samples, "lack_of_confidence", low[candidate], high[candidate] if samples < 20 else None)
            for samples, low, high in zip(STAGES, accept, review, strict=True)
        )
        policy = Policy(staged.model_digest, "", stages, guarantee)
        for case, row in zip(draw(100, 1), scores, strict=True):
            steps = tuple(
                dataclasses.replace(case.full, samples=samples, scores={"lack_of_confidence": score})
                for samples, score in zip(STAGES, row, strict=True)
            )
            served = serve(staged, policy, dataclasses.replace(case, steps=steps))
            assert (served.route is Route.ACCEPT) == expected[int(case.name[4:]), candidate]


def draw_false_negatives(random, cases):
    """Losses `[n, L]` that fall along the candidates to 0: `max(0, difficulty − l/L)`."""
    return np.maximum(0.0, random.beta(1, 2, (cases, 1)) - np.linspace(0, 1, 201))


def test_conformal_risk_control_keeps_its_promise():
    """Averaged over calibrations and new cases the loss is at most α; without the "+1" it is above."""
    random = np.random.default_rng(4)
    cases, corrected, plain = 20, [], []
    for _ in range(2000):
        losses = draw_false_negatives(random, cases)
        spiky = (losses > 0.0).astype(float)  # any miss at all is a loss of 1: the hardest bounded loss
        fresh = (draw_false_negatives(random, 100) > 0.0).mean(axis=0)
        corrected.append(fresh[conformal_risk_control(spiky, ALPHA)])
        plain.append(fresh[int(np.argmax(spiky.mean(axis=0) <= ALPHA))])
    error = 3.1 / np.sqrt(len(corrected))
    assert np.mean(corrected) <= ALPHA + error * np.std(corrected)
    assert np.mean(plain) > ALPHA + error * np.std(plain)


def test_conformal_intervals_cover_as_often_as_the_beta_binomial_says():
    """Coverage leaves its 99 % band in 1 % of calibrations; without widening always, and without "+1" it is too low."""
    random = np.random.default_rng(5)
    calibration, test, level = 29, 60, 0.9
    low_end, high_end = coverage_band(calibration, test, level)
    outside = {"split conformal": 0, "no widening": 0}
    shares = {"split conformal": [], "plain quantile": []}
    for _ in range(REPETITIONS):
        centre = random.normal(10.0, 2.0, calibration + test)
        truth = centre + random.standard_t(4, calibration + test)
        low, high = centre - 0.5, centre + 0.5
        cal, new = slice(None, calibration), slice(calibration, None)
        widening = interval_widening(low[cal], high[cal], truth[cal], level)
        excess = np.maximum(low - truth, truth - high)
        shares["split conformal"].append(share := float((excess[new] <= widening).mean()))
        plain = np.sort(excess[cal])[int(level * calibration) - 1]
        shares["plain quantile"].append(float((excess[new] <= plain).mean()))
        outside["split conformal"] += not low_end <= share <= high_end
        outside["no widening"] += not low_end <= float((excess[new] <= 0.0).mean()) <= high_end
    assert within(outside["split conformal"], 0.01)
    assert not within(outside["no widening"], 0.01)
    error = 3.1 * np.sqrt(betabinom.var(test, 27, 3)) / test / np.sqrt(REPETITIONS)
    assert np.mean(shares["split conformal"]) >= level - error
    assert np.mean(shares["plain quantile"]) < level - error
