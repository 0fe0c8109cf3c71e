"""Whether evidence is worth what it says: false alarms as rare as stated, and changes noticed.

Every theory test also runs the rule without its correction and asserts that this one breaks the promise.
"""

import numpy as np
import pytest
from equipoise_clinic.audit.evidence import ODDS, Exchangeability, no_evidence, ratios_of_event, transform
from equipoise_clinic.audit.status import FALSE_ALARM, LIMIT, Watched
from equipoise_core.monitoring import DOUBT
from scipy.stats import binom, kstest

CASES, RUNS = 10_000, 500


def paths(happened, rate, weight):
    """e-values `[runs, cases]` of `Evidence`, many runs at once.

    Args:
        happened: bool `[runs, cases]`.
        weight: of a restart at case n (from 1 on).
    """
    yes, no = (np.array(ratios_of_event(each, rate)) for each in (True, False))
    sums, found = np.zeros((len(happened), len(ODDS))), []
    for n, column in enumerate(happened.T, start=1):
        sums = (sums + weight(n)) * np.where(column[:, None], yes, no)
        found.append(sums.mean(axis=1))
    return np.stack(found, axis=1)


def prior(n):
    return 1.0 / (n * (n + 1))


def test_the_simulation_is_the_products_own_recursion():
    """Else the tests below would be about something else."""
    happened = np.random.default_rng(0).random((3, 50)) < 0.2
    for row, simulated in zip(happened, paths(happened, 0.1, prior), strict=True):
        evidence = no_evidence(len(ODDS))
        for n, (each, expected) in enumerate(zip(row, simulated, strict=True), start=1):
            evidence = evidence.after(ratios_of_event(bool(each), 0.1))
            assert evidence.e_value == pytest.approx(expected + 1.0 / (n + 1))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.6])
def test_false_alarms_over_ten_thousand_cases_are_as_rare_as_promised(rate):
    """P(ever ≥ limit) ≤ 1/limit at the worst rate that the promise allows. Without the prior on the moment of change
    (each restart counts in full) nearly every run alarms."""
    happened = np.random.default_rng(1).random((RUNS, CASES)) < rate
    allowed = binom.ppf(0.999, RUNS, 1.0 / LIMIT)
    rest = 1.0 / (np.arange(1, CASES + 1) + 1)
    assert ((paths(happened, rate, prior) + rest).max(axis=1) >= LIMIT).sum() <= allowed
    uncorrected = paths(happened[:, :3000], rate, lambda n: 1.0)
    assert (uncorrected.max(axis=1) >= LIMIT).sum() > 10 * allowed


def test_five_monitors_and_three_estimated_rates_spend_what_is_promised():
    """Bonferroni: five e-processes at the limit, and 0.005 for each of three rates."""
    assert len(Watched) / LIMIT + 3 * DOUBT == pytest.approx(FALSE_ALARM)


def test_a_rate_that_doubles_is_noticed_however_late():
    """From 5 % to 10 %, and from 10 % to 20 %, after 1000 good cases."""
    random = np.random.default_rng(2)
    for rate, soon in ((0.05, 900), (0.1, 500)):
        happened = np.c_[random.random((200, 1000)) < rate, random.random((200, 2000)) < 2 * rate]
        values = paths(happened, rate, prior) + 1.0 / (np.arange(1, 3001) + 1)
        first = np.argmax(values >= LIMIT, axis=1)
        assert (values.max(axis=1) >= LIMIT).all()
        assert np.median(first) - 1000 <= soon


def test_the_mean_of_the_e_value_is_one():
    """Over all outcomes of 8 cases at the rate itself: the property that the promise rests on."""
    rate, total = 0.3, 0.0
    for outcome in range(2**8):
        bits = [bool(outcome >> k & 1) for k in range(8)]
        evidence = no_evidence(len(ODDS))
        for bit in bits:
            evidence = evidence.after(ratios_of_event(bit, rate))
        total += rate ** sum(bits) * (1 - rate) ** (8 - sum(bits)) * evidence.e_value
    assert total == pytest.approx(1.0)


def test_a_likelihood_ratio_is_fair_at_the_rate_and_unfavourable_below():
    for rate in (0.01, 0.3, 0.9):
        for yes, no in zip(ratios_of_event(True, rate), ratios_of_event(False, rate), strict=True):
            assert rate * yes + (1 - rate) * no == pytest.approx(1.0)
            assert 0.5 * rate * yes + (1 - 0.5 * rate) * no < 1.0


def exchangeability_run(right, confidence, draws):
    """The e-value after each case."""
    stream, evidence, found = Exchangeability(), no_evidence(1), []
    for each, p, (first, second) in zip(right, confidence, draws, strict=True):
        evidence = evidence.after((stream.ratio(transform(p, bool(each), first), second),))
        found.append(evidence.e_value)
    return np.array(found)


def test_the_integral_transform_is_uniform_where_the_model_is_right_as_often_as_it_says():
    random = np.random.default_rng(3)
    confidence = random.uniform(0.5, 1.0, 5000)
    right = random.random(5000) < confidence
    found = [transform(p, bool(r), u) for p, r, u in zip(confidence, right, random.random(5000), strict=True)]
    assert kstest(found, "uniform").pvalue > 1e-3
    assert (
        kstest([transform(p, True, u) for p, u in zip(confidence, random.random(5000), strict=True)], "uniform").pvalue
        < 1e-6
    )


def test_calibration_that_changes_is_noticed_and_calibration_that_is_merely_bad_is_not():
    """Nothing is assumed of how good it was: only that it stays. 500 runs of 300 cases without a change."""
    random = np.random.default_rng(4)
    allowed = binom.ppf(0.999, RUNS, 1.0 / LIMIT)
    alarms = 0
    for _ in range(RUNS):
        confidence = random.uniform(0.6, 1.0, 300)
        right = random.random(300) < confidence - 0.1
        alarms += exchangeability_run(right, confidence, random.random((300, 2))).max() >= LIMIT
    assert alarms <= allowed
    noticed = 0
    for _ in range(20):
        confidence = random.uniform(0.85, 1.0, 900)
        right = random.random(900) < np.r_[confidence[:300], confidence[300:] - 0.4]
        noticed += exchangeability_run(right, confidence, random.random((900, 2))).max() >= LIMIT
    assert noticed >= 18
