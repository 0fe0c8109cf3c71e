"""Whether the rates that the monitors compare with are upper bounds, as often as they say."""

import numpy as np
import pytest
from equipoise_core.decision import Route
from equipoise_core.monitoring import DOUBT
from equipoise_export.calibration.expected import expected_rates, most_events, most_outside
from scipy.stats import binom

RUNS = 4000


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_the_bound_of_a_rate_is_too_low_as_seldom_as_stated(rate):
    """Clopper and Pearson over 4000 calibrations; the observed share itself is too low every other time."""
    doubt, cases = 0.05, 60
    events = np.random.default_rng(0).binomial(cases, rate, RUNS)
    too_low = sum(most_events(int(each), cases, doubt) < rate for each in events)
    assert too_low <= binom.ppf(0.999, RUNS, doubt)
    assert (events / cases < rate).sum() > 5 * binom.ppf(0.999, RUNS, doubt)


def test_the_share_beyond_an_order_statistic_is_bounded():
    """Of uniform numbers the share above the place-th smallest is one minus it."""
    doubt, cases, place = 0.05, 40, 36
    smallest = np.sort(np.random.default_rng(1).random((RUNS, cases)), axis=1)[:, place - 1]
    bound = most_outside(cases, place, doubt)
    assert ((1.0 - smallest) > bound).sum() <= binom.ppf(0.999, RUNS, doubt)
    assert ((1.0 - smallest) > 1.0 - place / cases).sum() > 5 * binom.ppf(0.999, RUNS, doubt)


def test_only_what_the_calibration_can_say_is_stated():
    """Without volumes nothing of intervals, without a distance nothing of drift; where nothing is accepted, 1."""
    routes = [Route.ACCEPT] * 30 + [Route.REVIEW] * 10
    assert expected_rates(routes, 100, None, False).keys() == {"referred"}
    every = expected_rates(routes, 100, (2, 30), True)
    assert 0.25 < every["referred"] < 0.6 and 0.1 < every["missed"] < 0.45 and 0.1 < every["unusual"] < 0.35
    assert expected_rates([Route.REVIEW] * 9, 100, (0, 0), False) == {"referred": 1.0}
    assert most_events(0, 10**6, DOUBT) < 1e-4
    assert expected_rates(routes, 101.0**3, None, False)["referred"] > every["referred"]
