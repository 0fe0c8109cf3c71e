"""Stages: a first pass and numbers of samples are one choice, certified on what they accept together."""

import dataclasses

import numpy as np
import pytest
from equipoise_core.contract import FirstPass
from equipoise_core.decision import Route
from equipoise_export.calibration.choose import Costs, choose_policy, choose_stages, stage_lists
from equipoise_export.calibration.figures import figures, judge, judge_across

from .test_choose import GOALS as USUAL
from .test_choose import contract, draw  # noqa: F401  # a fixture

GOALS = dataclasses.replace(USUAL, alpha=0.04)
"""Less than the share of all cases that are wrong: something has to be held back."""

STAGES = (0, 5, 20)


@pytest.fixture(scope="module")
def staged(contract):  # noqa: F811
    return dataclasses.replace(contract, first_pass=FirstPass("toy_first_pass", "11" * 32))


def with_first_pass(cases, seed, noise=0.3):
    """Its score is the samples', on another scale and noisier; its answer is wrong on a few more cases."""
    random = np.random.default_rng(seed)
    found = []
    for case in cases:
        score = 3.0 * case.full.scores["lack_of_confidence"] * np.exp(random.normal(0, noise))
        loss = max(case.full.loss, float(random.random() < 0.02 * score))
        step = dataclasses.replace(
            case.full, samples=0, scores={"lack_of_confidence": score, "predictive_entropy": score}, loss=loss
        )
        found.append(dataclasses.replace(case, steps=(step, *case.steps)))
    return found


@pytest.fixture(scope="module")
def chosen(staged):
    pilot, cases = with_first_pass(draw(100, 1, "pilot"), 1), with_first_pass(draw(300, 2), 2)
    return choose_policy(staged, pilot, cases, GOALS, stages=STAGES)


def test_all_thresholds_are_one_quantile_of_the_pilot(chosen) -> None:
    pilot = with_first_pass(draw(100, 1, "pilot"), 1)
    assert tuple(stage.samples for stage in chosen.policy.stages) == STAGES

    def share(stage, limit):
        return np.mean([case.after(stage.samples).scores[stage.score] <= limit for case in pilot])

    accepted = [share(stage, stage.accept_up_to) for stage in chosen.policy.stages]
    assert accepted == pytest.approx([accepted[0]] * 3, abs=0.02) and 0.2 < accepted[0] < 1
    reviewed = [share(stage, stage.review_above) for stage in chosen.policy.stages[:-1]]
    assert reviewed == pytest.approx([(1 + accepted[0]) / 2] * 2, abs=0.02)
    assert chosen.policy.stages[-1].review_above is None


def test_new_cases_cost_less_and_keep_the_promise(staged, chosen) -> None:
    cases = with_first_pass(draw(3000, 3), 3)
    served = [chosen.served(case) for case in cases]
    accepted = [each for each in served if each.route is Route.ACCEPT]
    assert np.mean([each.step.loss for each in accepted]) < GOALS.alpha
    assert {each.step.samples for each in accepted} == set(STAGES)
    assert np.mean([each.step.samples for each in served]) < 0.5 * 20
    report = figures(staged, judge(staged, chosen, cases), GOALS)
    assert report["error_among_accepted"]["share"] < GOALS.alpha


def test_calibration_cases_are_judged_with_the_probabilities_that_are_answered(staged, chosen) -> None:
    cases = [
        dataclasses.replace(case, steps=(dataclasses.replace(case.steps[0], probabilities=np.array([[0.25, 0.75]])),
                                         *case.steps[1:]))
        for case in with_first_pass(draw(300, 2), 2)
    ]  # fmt: skip
    judged = judge_across(staged, chosen, cases, GOALS)
    assert {each.step.samples for each in judged} == set(STAGES)
    for each in judged:
        assert (each.step.probabilities[0, 1] == 0.75) == (each.step.samples == 0)


def test_a_model_that_is_always_wrong_gets_no_threshold(staged) -> None:
    bad = [
        dataclasses.replace(case, steps=tuple(dataclasses.replace(step, loss=1.0) for step in case.steps))
        for case in with_first_pass(draw(100, 2), 2)
    ]
    chosen = choose_policy(staged, with_first_pass(draw(50, 1, "pilot"), 1), bad, GOALS, stages=STAGES)
    assert chosen.policy.guarantee is None and [stage.samples for stage in chosen.policy.stages] == [20]
    assert {chosen.served(case).route for case in bad} <= {Route.REVIEW, Route.REJECT}


def test_the_stages_that_cost_least_are_chosen(staged, chosen) -> None:
    """A dear first pass is left out, a cheap one taken; a chunk that costs as much as all samples is not worth it."""
    pilot = with_first_pass(draw(100, 1, "pilot"), 1)
    assert set(stage_lists((0, 5, 10, 20))) == {(20,), (0, 20), (5, 10, 20), (0, 5, 10, 20)}

    def cheapest(first_pass, five, twenty):
        return choose_stages(staged, chosen.policy, pilot, GOALS, Costs(first_pass, {5: five, 20: twenty}))

    assert cheapest(0.1, 0.5, 2.0)[0] == 0
    assert cheapest(9.0, 0.5, 2.0) == (5, 10, 20)
    assert cheapest(9.0, 2.0, 2.0) == (20,)
    assert cheapest(0.1, 2.0, 2.0) == (0, 20)


@pytest.mark.slow
def test_the_certificate_holds_over_calibrations(staged) -> None:
    """Of 20 calibrations at δ = .1, more than 6 that promise too much would happen once in 400."""
    pilot, new = with_first_pass(draw(100, 1, "pilot"), 1), with_first_pass(draw(4000, 5), 5)
    broken = 0
    for seed in range(20):
        cases = with_first_pass(draw(200, 100 + seed), 100 + seed)
        chosen = choose_policy(staged, pilot, cases, GOALS, stages=STAGES)
        accepted = [each for case in new if (each := chosen.served(case)).route is Route.ACCEPT]
        broken += bool(accepted) and np.mean([each.step.loss for each in accepted]) > GOALS.alpha
    assert broken <= 6
