"""Certificates that grow: never wrong more often than δ, however often one looks, over many simulated sites."""

import math

import numpy as np
import pytest
from equipoise_export.calibration.growing import error_bounds, follow, labels_until_open, log_wealth
from equipoise_export.calibration.risk import accepted_cases_needed, binomial_p_value
from scipy.integrate import quad
from scipy.stats import beta

from .test_theory import within

ALPHA = DELTA = 0.1
SITES, CASES = 1000, 200
LIMITS = np.array([0.6, 0.8, 1.0])


def test_the_wealth_is_that_of_the_mixed_bets():
    """The closed form against the product of bets `1 − λ (L − α)`, integrated over the mixture."""
    losses = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    density = beta(0.5, 0.5)

    def product(p):
        bet = (ALPHA - p) / (ALPHA * (1 - ALPHA))
        assert 0.0 <= bet <= 1.0 / (1.0 - ALPHA) + 1e-9
        return np.prod(1.0 - bet * (losses - ALPHA)) * density.pdf(p) / density.cdf(ALPHA)

    expected, _ = quad(lambda root: 2 * root * product(root**2), 0.0, math.sqrt(ALPHA))
    found = log_wealth(np.array(losses.sum()), np.array(len(losses)), ALPHA)
    assert float(found) == pytest.approx(math.log(expected), abs=1e-6)
    assert float(log_wealth(np.array(0), np.array(0), ALPHA)) == pytest.approx(0.0)


@pytest.mark.parametrize("error", [0.1, 0.2, 0.5])
def test_no_bet_gains_on_average_where_the_error_is_no_less_than_alpha(error):
    """One more case multiplies the expected wealth by at most 1, whatever came before: a supermartingale."""
    for cases in (0, 3, 40, 200):
        for errors in sorted({0, cases // 20, cases // 5, cases}):
            before, right, wrong = log_wealth(
                np.array([errors, errors, errors + 1]), np.array([cases, cases + 1, cases + 1]), ALPHA
            )
            assert (1 - error) * math.exp(right - before) + error * math.exp(wrong - before) <= 1.0 + 1e-9


def sites(random, steepness):
    """Accepted and losses `[sites, cases, K]` of nested thresholds at sites of which most are just too bad, and the
    true error `[sites, K]` below each threshold: the same below all of them, or rising past α."""
    scores = random.random((SITES, CASES))
    base = random.choice([0.4, 1.0, 1.05], size=(SITES, 1), p=[0.1, 0.6, 0.3]) * ALPHA
    losses = random.random((SITES, CASES)) < base * (1 + steepness * (scores - LIMITS[1] / 2))
    error = base * (1 + steepness * (LIMITS - LIMITS[1]) / 2)
    accepted = scores[:, :, None] <= LIMITS
    return accepted, np.broadcast_to(losses[:, :, None], accepted.shape).astype(float), error


def ever_wrong(certified, error):
    """Sites at which, at any time, a threshold was certified whose error is α or more; `certified` `[sites, K]`."""
    return int((certified & (error >= ALPHA)).any(axis=1).sum())


@pytest.mark.parametrize("steepness", [0.0, 1.2])
def test_over_a_thousand_sites_the_certificate_is_wrong_at_most_as_often_as_it_says(steepness):
    """Every site's certificate is looked at after every case, for every threshold. A binomial test that is repeated
    with every case breaks the promise."""
    accepted, losses, error = sites(np.random.default_rng(3), steepness)
    grown = follow(accepted, losses, ALPHA, DELTA)
    certified = grown.certified[:, -1]
    assert within(ever_wrong(certified, error), DELTA, SITES)
    good = error < 0.6 * ALPHA
    assert (certified & good).sum() > 0.5 * good.sum()  # it opens where it should
    repeated = binomial_p_value(grown.errors, grown.accepted, ALPHA) <= DELTA
    assert not within(ever_wrong(repeated.any(axis=1), error), DELTA, SITES)


def test_without_the_bar_the_promise_is_broken():
    """At an error of exactly α the wealth exceeds 1/δ at some time in at most δ of sites, and 1/(3δ) in many more."""
    random = np.random.default_rng(5)
    losses = random.random((SITES, 500)) < ALPHA
    wealth = log_wealth(losses.cumsum(axis=1), np.broadcast_to(np.arange(1, 501), losses.shape), ALPHA).max(axis=1)
    assert within(int((wealth >= math.log(1 / DELTA)).sum()), DELTA, SITES)
    assert not within(int((wealth >= math.log(1 / (3 * DELTA))).sum()), DELTA, SITES)


def test_thresholds_are_certified_from_the_strictest_on():
    """Independent thresholds, all of error α: in sequence at most δ of sites are wrong, taken freely many more."""
    random = np.random.default_rng(6)
    losses = (random.random((SITES, CASES, 6)) < ALPHA).astype(float)
    grown = follow(np.ones(losses.shape, bool), losses, ALPHA, DELTA)
    assert within(int(grown.certified[:, -1].any(axis=1).sum()), DELTA, SITES)
    assert not within(int((grown.wealth >= math.log(1 / DELTA)).any(axis=(1, 2)).sum()), DELTA, SITES)


def test_both_bets_hold_at_all_times_at_once():
    """At some time in at most δ of sites on either side the confidence sequence leaves the truth out."""
    losses = np.random.default_rng(7).random((SITES, CASES)) < 0.07
    errors, cases = losses.cumsum(axis=1), np.broadcast_to(np.arange(1, CASES + 1), losses.shape)
    for bet in (log_wealth(errors, cases, 0.07), log_wealth(cases - errors, cases, 0.93)):
        assert within(int((bet >= math.log(1 / DELTA)).any(axis=1).sum()), DELTA, SITES)


def test_bounds_agree_with_the_certificate():
    """The upper bound falls below α exactly when the wealth reaches 1/δ."""
    for errors, cases in ((0, 29), (0, 30), (0, 31), (1, 50), (3, 100), (10, 100)):
        certified = float(log_wealth(np.array(errors), np.array(cases), ALPHA)) >= math.log(1 / DELTA)
        assert (error_bounds(errors, cases, DELTA)[1] <= ALPHA) == certified
    assert error_bounds(0, 0, DELTA) == (0.0, 1.0)
    assert error_bounds(5, 5, DELTA)[1] == 1.0


def test_looking_at_any_time_costs_some_cases():
    """More than a single look takes, but not many: 30 instead of 22 without any error."""
    needed = labels_until_open(ALPHA, DELTA, 0.0)
    assert accepted_cases_needed(ALPHA, DELTA) < needed <= 35
    assert labels_until_open(ALPHA, DELTA, ALPHA) is None


def test_a_forecast_begins_where_the_bet_stands():
    """Errors so far have to be made up for, right cases so far count."""
    needed = labels_until_open(ALPHA, DELTA, 0.0)
    assert labels_until_open(ALPHA, DELTA, 0.0, errors=0, cases=10) == needed - 10
    further = labels_until_open(ALPHA, DELTA, 0.0, errors=5, cases=40)
    assert further > needed
    assert log_wealth(np.array(5), np.array(40 + further), ALPHA) >= math.log(1 / DELTA)


def test_a_site_that_turns_bad_is_closed_again():
    """The certificate was earned, then errors come: the mirrored bet refutes it, and all more permissive ones."""
    accepted = np.ones((200, 2), bool)
    accepted[:, 0] = np.arange(200) < 60
    losses = np.zeros((200, 2))
    losses[60:, 1] = np.arange(140) % 2
    assert follow(accepted[:60], losses[:60], ALPHA, DELTA).open == 1
    assert follow(accepted, losses, ALPHA, DELTA).open == 0
    assert follow(accepted[:0], losses[:0], ALPHA, DELTA).open is None
