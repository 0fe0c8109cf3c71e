import doctest

import numpy as np
import pytest
from equipoise_export.calibration import risk
from equipoise_export.calibration.conformal import coverage_band, interval_widening, upper_limit
from equipoise_export.calibration.errors import TooFewCases
from equipoise_export.calibration.risk import (
    accepted_cases_needed,
    binomial_p_value,
    conformal_risk_control,
    learn_then_test,
)


def test_docstring_examples_hold():
    """What the docstrings say is so."""
    assert doctest.testmod(risk).failed == 0


def test_binomial_p_value_against_the_closed_form():
    """No error in n cases has p-value (1 − α)ⁿ; no case at all proves nothing."""
    n = np.array([0, 1, 22, 59])
    assert np.allclose(binomial_p_value(np.zeros(4), n, 0.1), 0.9**n, rtol=1e-12)


def test_refuses_fewer_cases_than_any_certificate_needs():
    """The error says how many were given and how many it takes."""
    with pytest.raises(TooFewCases, match=r"at least 22 labelled .*another patient; 21 were given: label 1 more"):
        learn_then_test(np.ones((21, 3), bool), np.zeros(21), 0.1, 0.1)
    with pytest.raises(TooFewCases, match="at least 9"):
        conformal_risk_control(np.zeros((8, 2)), 0.1)
    with pytest.raises(TooFewCases, match="at least 9 labelled cases, each of another patient; 8"):
        upper_limit(np.arange(8.0), 0.9)


def test_the_fewest_cases_suffice():
    """22 cases without any error certify α = δ = .1, one error among them does not; 9 cases allow risk control."""
    accepted = np.ones((22, 1), bool)
    certificate = learn_then_test(accepted, np.zeros(22), 0.1, 0.1)
    assert certificate is not None
    assert (certificate.index, certificate.accepted, certificate.losses) == (0, 22, 0.0)
    assert learn_then_test(accepted, np.eye(22)[0], 0.1, 0.1) is None
    assert conformal_risk_control(np.zeros((9, 2)), 0.1) == 0
    assert upper_limit(np.arange(9.0), 0.9) == 8.0


def test_the_sequence_ends_at_the_first_failure():
    """A later candidate that would pass by itself is not reached."""
    n = 400
    accepted = np.arange(n)[:, None] < np.array([50, 100, 400])
    losses = np.zeros(n)
    losses[60:90] = 1.0  # candidate 1 accepts 30 errors in 100, candidate 2 only 30 in 400
    assert learn_then_test(accepted, losses, 0.1, 0.1).index == 0


def test_errors_make_more_cases_necessary():
    """The number needed is where the exact tail crosses δ."""
    for errors in range(4):
        n = accepted_cases_needed(0.1, 0.1, errors)
        assert binomial_p_value(np.array(errors), np.array(n), 0.1) <= 0.1
        assert binomial_p_value(np.array(errors), np.array(n - 1), 0.1) > 0.1


def test_risk_control_chooses_the_first_candidate_that_is_low_enough():
    """n = 19, α = .1 leaves a summed loss of 1."""
    losses = np.zeros((19, 4))
    losses[:3, 0], losses[:2, 1], losses[:1, 2] = 1, 1, 1
    assert conformal_risk_control(losses, 0.1) == 2


@pytest.mark.parametrize("losses", [np.array([[0.0, 0.5, 0.0]] * 20), np.array([[0.5, 0.1]] * 20)])
def test_risk_control_refuses_losses_that_rise_or_never_vanish(losses):
    """Its guarantee needs both."""
    with pytest.raises(ValueError, match="must not rise"):
        conformal_risk_control(losses, 0.1)


def test_interval_widening_by_hand():
    """9 cases at 80 %: the 8th smallest excess; intervals that are too wide shrink."""
    truth = np.arange(9.0)
    assert interval_widening(np.zeros(9), np.zeros(9), truth, 0.8) == 7.0
    assert interval_widening(truth - 3, truth + 3, truth, 0.8) == -3.0


def test_the_band_holds_a_correct_coverage():
    """60 calibration and 60 test cases at 90 %: 85 to 97 % holds in about four times of five, as METHODS says."""
    low, high = coverage_band(60, 60, 0.9, 0.8)
    assert 0.82 < low < 0.87
    assert 0.95 < high < 0.985
    wide = coverage_band(60, 60, 0.9)
    assert wide[0] < low
    assert wide[1] >= high
