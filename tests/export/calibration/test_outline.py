"""Whether the true outline lies between the margins as often as promised."""

import math

import numpy as np
import pytest
from equipoise_core.outline import BETWEEN, INSIDE, band
from equipoise_export.calibration.conformal import coverage_band
from equipoise_export.calibration.outline import choose_outline, margins_needed, scales_of

LEVEL = 0.9


def disc(centre, radius, size=24):
    rows, columns = np.indices((size, size))
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


@pytest.fixture(scope="module")
def pairs():
    """Predicted and true discs: the centre moves by up to 2, the radius shrinks more often than it grows."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        centre, radius = random.uniform(9.0, 14.0, 2), random.uniform(4.0, 7.0)
        found.append(
            (disc(centre + random.normal(0.0, 0.7, 2), radius - random.exponential(0.5)), disc(centre, radius))
        )
    return found


@pytest.mark.parametrize("spacing", [None, (1.0, 0.5)])
def test_the_needed_margins_are_the_least_that_hold(pairs, spacing):
    """With them the truth lies in the outer and the inner mask in the truth; with a little less it does not."""
    for predicted, truth in pairs[:40]:
        inner, outer = margins_needed(predicted, truth, spacing)
        found = band(predicted, inner, outer, spacing)
        assert (found[truth] >= BETWEEN).all() and truth[found == INSIDE].all()
        if outer > 0.0:
            assert (band(predicted, inner, outer * 0.999, spacing)[truth] < BETWEEN).any()
        if inner > 0.0:
            assert not truth[band(predicted, inner * 0.999, outer, spacing) == INSIDE].all()


def test_what_no_margin_covers():
    """A missed structure has no outer margin, an invented one an inner margin."""
    nothing, something = np.zeros((9, 9), bool), disc((4, 4), 2, 9)
    assert margins_needed(nothing, something, None) == (0.0, math.inf)
    assert margins_needed(nothing, nothing, None) == (0.0, 0.0)
    inner, outer = margins_needed(something, nothing, None)
    assert 2.0 <= inner < 4.0 and outer == 0.0
    assert margins_needed(np.ones((9, 9), bool), something, None)[0] == math.inf


def test_new_cases_lie_between_the_margins_as_often_as_promised(pairs):
    """2000 calibrations of 9 cases, each with one new case; without the correction for n + 1 it is too seldom."""
    margins = np.array([margins_needed(*each, None) for each in pairs])
    random, runs, cases = np.random.default_rng(1), 2000, 9
    held = plain = 0
    for _ in range(runs):
        *drawn, new = margins[random.choice(len(margins), cases + 11, replace=False)]
        scales = scales_of(drawn[:10], LEVEL, 1.0)
        rule = choose_outline(scales, drawn[10:], LEVEL, "voxels")
        held += new[0] <= rule.inner and new[1] <= rule.outer
        scores = (np.array(drawn[10:]) / scales).max(axis=1)
        plain += (new / scales).max() <= np.sort(scores)[int(LEVEL * cases) - 1]
    slack = 3.1 * (LEVEL * (1 - LEVEL) / runs) ** 0.5
    assert held / runs >= LEVEL - slack
    assert plain / runs < LEVEL - slack
    assert held / runs <= coverage_band(cases, runs, LEVEL)[1]


def test_too_few_or_hopeless_cases_get_no_margins(pairs):
    """One missed structure among ten is more than the level allows for so few."""
    margins = [margins_needed(*each, None) for each in pairs[:10]]
    assert choose_outline((1.0, 1.0), margins, LEVEL, "mm") is not None
    assert choose_outline((1.0, 1.0), margins[:8], LEVEL, "mm") is None
    assert choose_outline((1.0, 1.0), [*margins[:9], (0.0, math.inf)], LEVEL, "mm") is None
    assert scales_of([(0.0, math.inf)], LEVEL, 0.5) == (0.5, 0.5)


def test_the_rule_says_what_it_promises_in_its_unit(pairs):
    rule = choose_outline((1.0, 1.0), [margins_needed(*each, None) for each in pairs[:20]], LEVEL, "mm")
    assert f"{rule.outer:.3g} mm outside" in rule.rule and "at least 0.9" in rule.rule and rule.cases == 20
