"""Regression: tolerances, intervals that cover on simulated cases, and a policy that accepts by their width."""

import dataclasses

import numpy as np
import pytest
from equipoise_core.contract import Activation, Contract, Sampler, Site, SiteKind, Task
from equipoise_core.decision import Route
from equipoise_core.intervals import RELATIVE_WIDTH, IntervalRule, TargetRule
from equipoise_core.policy import Policy
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.stages import Stage
from equipoise_core.steps import ZScore
from equipoise_core.targets import Noise, Target
from equipoise_export.calibration.cases import Measured, Step
from equipoise_export.calibration.choose import Goals, choose_policy
from equipoise_export.calibration.errors import CalibrationError, TooFewCases
from equipoise_export.calibration.figures import Judged, figures, judge, judge_across
from equipoise_export.calibration.regression import (
    check_numbers,
    choose_interval,
    intervals,
    loss_in_words,
    pilot_rule,
    tolerances,
)
from equipoise_export.calibration.report import Findings, guarantees, render_report
from equipoise_export.calibration.report.case_table import row
from scipy.stats import betabinom, binom

REPETITIONS = 600
LEVEL, ALPHA, DELTA = 0.9, 0.1, 0.1
TOLERANCE = {"age": 12.0, "height": 6.0}


def contract_of(*targets: Target) -> Contract:
    return Contract(
        "bone", Task.REGRESSION, Activation.SIGMOID, (), 1, (8, 8), (8, 8), (8, 8), Preprocessing((ZScore(),)),
        (Site("drop", SiteKind.ELEMENT, (8,), 0.5),), samples=20, samplers=(Sampler("bone_sampler", "00" * 32),),
        targets=targets, noise=Noise.LOG_VARIANCE,
    )  # fmt: skip


ONE, TWO = contract_of(Target("age", "mo")), contract_of(Target("age", "mo"), Target("height", "cm"))


def draw(contract, n, random, prefix="case", stages=(20,), honest=1.0):
    """Cases whose standard deviation says how large errors are, off by a factor (`honest`) and with heavy tails."""
    cases, count = [], len(contract.targets)
    statistics = random.normal(size=(n, 3))
    for index in range(n):
        sd = np.exp(random.normal(1.0, 0.7, count))
        truth = random.normal(120, 40, count)
        steps = []
        for samples in stages:
            error = sd * random.standard_t(4, count)
            numbers = np.stack([truth + error, sd * honest], axis=1)
            allowed = [TOLERANCE[name] for name in contract.answers]
            loss = float((np.abs(error) > allowed).any())
            scores = {"standard_deviation": float(sd.max()), "epistemic_deviation": float(sd.max() / 2)}
            steps.append(Step(samples, scores, {}, loss, float("nan"), {}, (), np.zeros((0, count)), numbers))
        cases.append(
            Measured(
                f"{prefix}{index}", f"{prefix}{index}", "xy"[index % 2], f"{prefix}{index}".ljust(64, "0"),
                dict(zip("abc", map(float, statistics[index]), strict=True)), tuple(steps),
                dict(zip(contract.answers, map(float, truth), strict=True)), np.zeros((0, count)),
            )
        )  # fmt: skip
    return cases


def coverages(contract, seed, stages=(20,), corrected=True, cases=60, new=20, repetitions=REPETITIONS):
    """Covered of `new` cases under each of many calibrations; without the correction the factor stays 1, which
    takes the pilot cases' word for it."""
    random = np.random.default_rng(seed)
    covered = []
    for _ in range(repetitions):
        rule = pilot_rule(contract, draw(contract, 20, random, stages=stages), LEVEL, TOLERANCE)
        if corrected:
            rule = choose_interval(contract, rule, draw(contract, cases, random, stages=stages), stages)
        held = 0
        for case in draw(contract, new, random, stages=stages):
            step = case.steps[random.integers(len(stages))]
            ends = intervals(contract, rule, step)
            truth = np.array([case.truths[name] for name in contract.answers])
            held += bool(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).all())
        covered.append(held)
    return np.array(covered)


@pytest.mark.parametrize("contract", [ONE, TWO])
def test_intervals_hold_the_truth_as_often_as_they_say(contract):
    """The number covered is beta-binomial; its mean over calibrations is at least the level, and hardly above."""
    cases, new = 60, 20
    covered = coverages(contract, 0)
    place = int(np.ceil((cases + 1) * LEVEL))
    law = betabinom(new, place, cases + 1 - place)
    error = law.std() / np.sqrt(REPETITIONS)
    assert law.mean() >= LEVEL * new
    assert abs(covered.mean() - law.mean()) < 4 * error


def test_without_the_correction_they_do_not():
    """The pilot's own quantile covers too little, of two targets each on its own still less."""
    for contract in (ONE, TWO):
        covered = coverages(contract, 0, corrected=False)
        assert covered.mean() < LEVEL * 20 - 4 * covered.std() / np.sqrt(REPETITIONS)


@pytest.mark.slow
def test_whichever_stage_decides_they_hold():
    covered = coverages(ONE, 1, stages=(0, 20), repetitions=200)
    assert covered.mean() >= LEVEL * 20 - 4 * covered.std() / np.sqrt(200)


GOALS = Goals("further than 12 mo (age) from the truth", ALPHA, DELTA, level=LEVEL, tolerances=TOLERANCE)


@pytest.fixture(scope="module")
def chosen():
    random = np.random.default_rng(2)
    return choose_policy(ONE, draw(ONE, 60, random, "pilot"), draw(ONE, 200, random), GOALS, stages=(20,))


def test_policy_accepts_by_the_width_and_states_what_is_tolerated(chosen):
    policy = chosen.policy
    (stage,) = policy.stages
    assert stage.score == RELATIVE_WIDTH and 0.0 < stage.accept_up_to <= 1.0
    assert policy.interval.targets["age"].tolerance == 12.0 and policy.interval.cases == 200
    assert "12 mo" in policy.guarantee.rule and policy.volume is policy.sensitive is policy.recalibration is None
    new = chosen.scored(draw(ONE, 500, np.random.default_rng(3), "new"))
    served = [chosen.served(case) for case in new]
    accepted = [each.step for each in served if each.route is Route.ACCEPT]
    ends = np.array([intervals(ONE, policy.interval, step)[0] for step in accepted])
    assert len(accepted) > 100 and (ends[:, 1] - ends[:, 0] <= 24.0 + 1e-9).all()
    assert any(each.route is Route.REVIEW for each in served)


@pytest.mark.slow
def test_the_promise_about_accepted_cases_holds():
    """Of many calibrations at most δ accept more than α wrong ones of new cases, but for chance."""
    random, broken, made = np.random.default_rng(4), 0, 0
    test = draw(ONE, 4000, random, "test")
    width = np.array([case.full.numbers[0, 1] for case in test])
    wrong = np.array([case.full.loss for case in test])
    repetitions = 60
    for _ in range(repetitions):
        policy = choose_policy(ONE, draw(ONE, 30, random, "pilot"), draw(ONE, 60, random), GOALS, stages=(20,)).policy
        limit, rule = policy.stages[0].accept_up_to, policy.interval.targets["age"]
        if limit is None:
            continue
        made += 1
        taken = policy.interval.factor * rule.weight * (width + rule.floor) <= limit * rule.tolerance
        broken += wrong[taken].mean() > ALPHA
    assert made > repetitions / 2
    assert broken <= binom.ppf(0.999, repetitions, DELTA)


def test_the_policy_says_how_often_an_accepted_number_may_lie_outside(chosen):
    """Else its intervals could not be watched in service. An upper bound on what the calibration cases show."""
    rule = chosen.policy.interval
    cases = chosen.scored(draw(ONE, 4000, np.random.default_rng(8), "new"))
    outside = []
    for case in cases:
        served = chosen.served(case)
        if served.route is Route.ACCEPT:
            ends = intervals(ONE, rule, served.step)[0]
            outside.append(not ends[0] <= case.truths["age"] <= ends[1])
    assert 0.0 < np.mean(outside) < chosen.policy.monitoring.expected["missed"] < 0.5


def test_nothing_is_accepted_where_no_interval_is_narrow_enough():
    random = np.random.default_rng(5)
    goals = dataclasses.replace(GOALS, tolerances={"age": 0.01})
    found = choose_policy(ONE, draw(ONE, 30, random, "pilot"), draw(ONE, 60, random), goals, stages=(20,))
    assert found.policy.stages[0].accept_up_to is None and "narrow" in found.why


def test_too_few_cases_are_refused():
    random = np.random.default_rng(6)
    with pytest.raises(TooFewCases):
        choose_policy(ONE, draw(ONE, 10, random, "pilot"), draw(ONE, 15, random), GOALS, stages=(20,))


def test_figures_and_report_speak_of_numbers(chosen):
    cases = chosen.scored(draw(ONE, 200, np.random.default_rng(2)))
    for judged in (judge(ONE, chosen, cases), judge_across(ONE, chosen, cases, GOALS)):
        found = figures(ONE, judged, GOALS)
        age = found["numbers"]["targets"]["age"]
        assert found["probabilities"] == {} and age["unit"] == "mo" and 0.8 < age["coverage"] <= 1.0
        assert found["numbers"]["together"]["coverage"] == age["coverage"]
        assert age["mean_absolute_error_accepted"] < age["mean_absolute_error"]
    html = render_report(Findings(ONE, chosen.policy, chosen.why, GOALS.loss, [("Cases", "note", found)], judged, {}))
    assert "tolerated error" in html and "age: interval against truth, in mo" in html and "Reliability" not in html
    assert any("12 (age)" in words for _, words in guarantees(chosen.policy, chosen.why))


def test_perfect_and_constant_predictions_make_a_policy_too():
    """No standard deviation at all, or no error at all: a width is still finite and above 0."""
    random = np.random.default_rng(7)

    def flat(cases, error):
        return [
            dataclasses.replace(
                case,
                steps=tuple(
                    dataclasses.replace(
                        s, numbers=np.array([[case.truths["age"] + error * random.normal(), 0.0]]), loss=0.0
                    )
                    for s in case.steps
                ),
            )
            for case in cases
        ]

    for error in (0.0, 1.0):
        pilot, cases = (flat(draw(ONE, n, random, name), error) for n, name in ((30, "pilot"), (60, "case")))
        found = choose_policy(ONE, pilot, cases, GOALS, stages=(20,))
        assert found.policy.guarantee is not None and found.policy.stages[0].accept_up_to is not None


@pytest.mark.parametrize(
    ("contract", "stated", "expected"),
    [
        (ONE, 12, {"age": 12.0}),
        (ONE, "12", {"age": 12.0}),
        (ONE, "age=12", {"age": 12.0}),
        (TWO, "age = 12, height=3", {"age": 12.0, "height": 3.0}),
        (TWO, {"age": 12, "height": 3}, {"age": 12.0, "height": 3.0}),
    ],
)
def test_tolerances_as_people_state_them(contract, stated, expected):
    assert tolerances(contract, stated) == expected


@pytest.mark.parametrize(
    ("contract", "stated"),
    [(ONE, None), (TWO, 12), (TWO, "age=12"), (ONE, "weight=3"), (ONE, "0"), (ONE, "-1"), (ONE, "nan"), (ONE, "year")],
)
def test_tolerances_that_cannot_be_are_refused(contract, stated):
    with pytest.raises(CalibrationError, match="--tolerance"):
        tolerances(contract, stated)


def test_loss_names_tolerance_and_unit():
    assert loss_in_words(TWO, TOLERANCE) == "further than 12 mo (age) or 6 cm (height) from the truth"


def test_labels_that_are_all_the_same_are_refused():
    with pytest.raises(CalibrationError, match="all 3 labels of height"):
        check_numbers(TWO, [np.array([float(n), 5.0]) for n in range(3)])


def test_a_target_may_be_called_as_a_column_is():
    """The list of cases keeps both: the case's own score and route, and the targets' numbers."""
    contract = contract_of(*(Target(name, "1") for name in ("score", "right", "low_score")))
    rule = IntervalRule(LEVEL, 1.0, {name: TargetRule(1.0, 0.0, 9.0) for name in contract.answers}, 30, "test")
    policy = Policy(contract.model_digest, "", (Stage(20, "standard_deviation"),), interval=rule)
    numbers = np.array([[5.0, 1.0], [6.0, 2.0], [7.0, 3.0]])
    step = Step(20, {"standard_deviation": 3.0}, {}, 0.0, float("nan"), {}, (), np.zeros((0, 3)), numbers)
    truths = {"score": 5.5, "right": 6.5, "low_score": 7.5}
    case = Measured("a", "a", "", "00", {}, (step,), truths, np.zeros((0, 3)))
    columns = row(contract, Judged(case, policy, step, "review", "review", np.zeros((0, 3))))
    assert (columns["score"], columns["right"], columns["route"]) == ("3", "yes", "review")
    stated = {name: [columns[f"{what}_{name}"] for what in ("value", "low", "high", "truth")] for name in truths}
    assert stated == {
        "score": ["5", "4", "6", "5.5"], "right": ["6", "4", "8", "6.5"], "low_score": ["7", "4", "10", "7.5"]
    }  # fmt: skip
