"""The guarantees, tried on synthetic populations of known risk. Each test also takes the correction away and must fail.

A guarantee "at most δ of the calibrations go wrong" is checked by counting over repetitions: the count may exceed
δ · repetitions only by what chance explains (the 99.9 % point of the binomial).
"""

import numpy as np
import pytest
from equipoise_core.stopping import Look, Stopping
from equipoise_export.calibration.conformal import coverage_band, interval_widening
from equipoise_export.calibration.risk import (
    binomial_p_value,
    conformal_risk_control,
    learn_then_test,
)
from scipy.stats import betabinom, binom

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
    fine = (counts > 0) & ((accepted * losses[:, None]).sum(axis=0) <= ALPHA * counts)
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


FULL, LOOKS = 20, (4, 8, 12)
STOPPING = Stopping(tuple(Look(t, {"s": (-0.3 / t**0.5, 0.3 / t**0.5)}) for t in LOOKS), "test")
DECIDED_BY_CHANCE = Stopping((Look(4, {"s": (0.0, 0.0)}),), "always stops at 4 samples")


def draw_stopped(random, stopping, cases=CASES, limits=GRID[::3]):
    """Cases whose samples scatter around a true score, stopped early against each threshold in turn.

    Returns accepted `[n, L]`, losses `[n]` and the samples used `[n, L]`.
    """
    truth = random.random(cases)
    noise = random.normal(0.0, 0.5, (cases, FULL))
    running = truth[:, None] * np.exp(noise.cumsum(axis=1) / np.arange(1, FULL + 1))
    losses = (random.random(cases) < np.clip(truth, 0, 1) ** 1.5 / 2).astype(float)
    used = np.full((cases, len(limits)), FULL)
    for look in reversed(stopping.looks):
        low, high = look.drift["s"]
        now = running[:, look.samples - 1, None]
        clear = ~((np.sqrt(now) + low <= np.sqrt(limits)) & (np.sqrt(limits) <= np.sqrt(now) + high))
        used = np.where(clear, look.samples, used)
    served = np.take_along_axis(running, used - 1, axis=1)
    return served <= limits, losses, used


@pytest.mark.parametrize("stopping", [STOPPING, DECIDED_BY_CHANCE])
def test_a_stopping_procedure_calibrated_as_a_whole_keeps_its_promise(stopping):
    """Learn-then-Test on what is served covers early stopping too, a careless rule included."""
    population = np.random.default_rng(99)
    accepted, losses, _ = draw_stopped(population, stopping, 100_000)
    risk = (accepted * losses[:, None]).sum(axis=0) / accepted.sum(axis=0)

    def broken(choose, seed):
        random = np.random.default_rng(seed)
        chosen = [choose(*draw_stopped(random, stopping)[:2]) for _ in range(500)]
        return sum(index is not None and risk[index] > ALPHA for index in chosen), sum(i is not None for i in chosen)

    count, certificates = broken(certified, 2)
    assert within(count, DELTA, 500)
    assert certificates > 250
    assert not within(broken(as_often_as_it_looks, 2)[0], DELTA, 500)


def test_the_vectorised_stopping_above_is_the_one_that_is_served():
    """`draw_stopped` leaves out the same cases as `Look.decided`, which the core runs."""
    random = np.random.default_rng(3)
    for look in STOPPING.looks:
        low, high = look.drift["s"]
        for score, limit in random.random((200, 2)):
            assert look.decided("s", score, limit) == (not score**0.5 + low <= limit**0.5 <= score**0.5 + high)


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
