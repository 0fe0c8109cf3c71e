"""Policies of models with a screen: both thresholds are one choice, certified on what the two together accept."""

import dataclasses

import numpy as np
import pytest
from equipoise_core.contract import Screen
from equipoise_core.decision import Route
from equipoise_export.calibration.cases import Screened
from equipoise_export.calibration.choose import choose_policy
from equipoise_export.calibration.figures import figures, judge, judge_across

from .test_choose import GOALS as USUAL
from .test_choose import contract, draw  # noqa: F401  # a fixture

GOALS = dataclasses.replace(USUAL, alpha=0.04)
"""Less than the share of all cases that are wrong: something has to be held back."""


@pytest.fixture(scope="module")
def screened(contract):  # noqa: F811
    return dataclasses.replace(contract, screen=Screen("toy_screen", "11" * 32))


def with_screens(cases, seed, noise=0.3):
    """The screen's score is the samples', on another scale and noisier; its answer is wrong on a few more cases."""
    random = np.random.default_rng(seed)
    found = []
    for case in cases:
        score = 3.0 * case.full.scores["lack_of_confidence"] * np.exp(random.normal(0, noise))
        loss = max(case.full.loss, float(random.random() < 0.02 * score))
        step = dataclasses.replace(
            case.full, samples=1, scores={"lack_of_confidence": score, "predictive_entropy": score}, loss=loss
        )
        found.append(dataclasses.replace(case, screen=Screened(step, case.probabilities)))
    return found


@pytest.fixture(scope="module")
def chosen(screened):
    pilot, cases = with_screens(draw(100, 1, "pilot"), 1), with_screens(draw(300, 2), 2)
    return choose_policy(screened, 20, pilot, cases, GOALS)


def test_both_thresholds_are_one_quantile_of_the_pilot(chosen) -> None:
    pilot = with_screens(draw(100, 1, "pilot"), 1)
    share = [
        np.mean([step.scores[rule.score] <= rule.threshold for step in steps])
        for rule, steps in (
            (chosen.policy.accept, [case.full for case in pilot]),
            (chosen.policy.screen, [case.screen.step for case in pilot]),
        )
    ]
    assert share[0] == pytest.approx(share[1], abs=0.02) and 0.2 < share[0] < 1
    assert chosen.policy.accept.accepted + chosen.policy.screen.accepted == chosen.certificate.accepted
    assert chosen.policy.accept.errors + chosen.policy.screen.errors == round(chosen.certificate.losses)


def test_new_cases_cost_less_and_keep_the_promise(screened, chosen) -> None:
    cases = with_screens(draw(3000, 3), 3)
    served = [chosen.served(case) for case in cases]
    accepted = [each for each in served if each.route is Route.ACCEPT]
    assert np.mean([each.step.loss for each in accepted]) < GOALS.alpha
    assert any(each.screened for each in accepted) and any(not each.screened for each in accepted)
    passes = np.mean([each.step.samples + (not each.screened) for each in served])
    plain = dataclasses.replace(chosen, policy=dataclasses.replace(chosen.policy, screen=None))
    assert passes < 0.8 * np.mean([plain.served(case).step.samples for case in cases])
    report = figures(screened, judge(screened, chosen, cases), GOALS)
    assert report["error_among_accepted"]["share"] < GOALS.alpha


def test_calibration_cases_are_judged_across_patients_with_the_screens_probabilities(screened, chosen) -> None:
    judged = judge_across(screened, chosen, with_screens(draw(300, 2), 2), GOALS)
    assert {each.screened for each in judged} == {True, False}


def test_a_model_that_is_always_wrong_gets_no_screen(screened) -> None:
    bad = [
        dataclasses.replace(
            case,
            steps=tuple(dataclasses.replace(step, loss=1.0) for step in case.steps),
            screen=Screened(dataclasses.replace(case.screen.step, loss=1.0), case.probabilities),
        )
        for case in with_screens(draw(100, 2), 2)
    ]
    chosen = choose_policy(screened, 20, with_screens(draw(50, 1, "pilot"), 1), bad, GOALS)
    assert chosen.policy.screen is None and chosen.policy.accept is None
    assert not any(chosen.served(case).screened for case in bad)


@pytest.mark.slow
def test_the_certificate_holds_over_calibrations(screened) -> None:
    """Of 20 calibrations at δ = .1, more than 6 that promise too much would happen once in 400."""
    pilot, new = with_screens(draw(100, 1, "pilot"), 1), with_screens(draw(4000, 5), 5)
    broken = 0
    for seed in range(20):
        chosen = choose_policy(screened, 20, pilot, with_screens(draw(200, 100 + seed), 100 + seed), GOALS)
        accepted = [each for case in new if (each := chosen.served(case)).route is Route.ACCEPT]
        broken += bool(accepted) and np.mean([each.step.loss for each in accepted]) > GOALS.alpha
    assert broken <= 6
