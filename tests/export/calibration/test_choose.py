import dataclasses
import json

import numpy as np
import pytest
from equipoise_core.assessment import Assessment
from equipoise_core.case import Case, Input, Model
from equipoise_core.contract import Activation, Contract, Sampler, Site, SiteKind, Task
from equipoise_core.decision import Route
from equipoise_core.moments import Moments
from equipoise_core.policy import parse_policy
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from equipoise_export.calibration.cases import SENSITIVE_GRID, Measured, Step, missed_foreground
from equipoise_export.calibration.choose import (
    Goals,
    Method,
    choose_policy,
    choose_score,
    choose_sensitive,
    deal_folds,
    deal_pilot,
    one_each,
    typical_range,
)
from equipoise_export.calibration.errors import TooFewCases
from equipoise_export.calibration.figures import figures, judge, judge_across

GOALS = Goals("wrong label", method=Method.ISOTONIC)


@pytest.fixture(scope="module")
def contract():
    return Contract(
        "toy", Task.CLASSIFICATION, Activation.SOFTMAX, ("normal", "ill"), 1, (8, 8), (8, 8), (8, 8),
        Preprocessing((ZScore(),)), (Site("head", SiteKind.ELEMENT, (8,), 0.5),), samples=20,
        samplers=(Sampler("toy_sampler", "00" * 32),),
    )  # fmt: skip


STAGES = (5, 10, 20)


def draw(n, seed, prefix="case", each=1):
    """Cases whose score predicts errors, and moves a little until full T."""
    random = np.random.default_rng(seed)
    cases = []
    for index in range(n):
        score = random.uniform(0.0, 0.4)
        loss = float(random.random() < score**2)
        p = np.array([[1.0 - score, score]])
        steps = tuple(
            Step(t, scores(score * np.exp(random.normal(0, 0.2 / np.sqrt(t)))), {}, loss, float("nan"), {}, (), p)
            for t in STAGES
        )
        label = int(loss)
        statistics = {name: float(random.normal()) for name in "abc"}
        cases.append(
            Measured(
                f"{prefix}{index}",
                f"{prefix}{index // each}",
                "xy"[index % 2],
                f"{index:064x}",
                statistics,
                steps,
                {},
                np.eye(2)[[label]],
            )
        )
    return cases


def scores(score):
    return {"lack_of_confidence": float(score), "predictive_entropy": float(2 * score), "mutual_information": score / 9}


@pytest.fixture(scope="module")
def chosen(contract):
    return choose_policy(contract, draw(100, 1, "pilot"), draw(300, 2), GOALS, stages=STAGES)


def test_the_policy_states_its_guarantee_in_words_and_numbers(chosen):
    """What was accepted, how many were wrong, α, δ, and for whom; and it is read back as it was written."""
    guarantee = chosen.policy.guarantee
    assert (guarantee.alpha, guarantee.delta, guarantee.cases) == (0.1, 0.1, 300)
    for part in (f"accepted {guarantee.accepted} of 300", "at most 0.1 with confidence 0.9", "wrong label"):
        assert part in guarantee.rule
    assert "Learn-then-Test on 5, 10 and 20 samples" in guarantee.rule
    assert "exchangeable" in chosen.policy.population
    assert "at most 5.0%" in chosen.policy.typical.rule and "at most 1.0%" in chosen.policy.suitable.rule
    assert parse_policy(json.loads(chosen.policy.dumps())) == chosen.policy


def test_the_accepted_error_on_new_cases_is_below_alpha(contract, chosen):
    """Of 3000 new cases; about 5 % are held back for what they look like, and most stop early on the same route."""
    report = figures(contract, judge(contract, chosen, draw(3000, 3)), GOALS)
    assert 0.3 < report["routes"]["accept"] / 3000 < 0.95
    assert report["error_among_accepted"]["share"] < 0.1
    assert report["routes"]["reject"] / 3000 < 0.1
    assert report["samples"]["median"] <= 10
    assert report["samples"]["same_route_as_full"]["share"] >= 0.9
    assert sum(report["samples"]["decided_after"].values()) == 3000


def test_figures_of_the_calibration_cases_are_across_patients(contract, chosen):
    """Every case is judged once, under rules fitted on other patients' cases, and all figures can be said in JSON."""
    cases = draw(300, 2)
    judged = judge_across(contract, chosen, cases, GOALS)
    assert sorted(each.case.name for each in judged) == sorted(case.name for case in cases)
    assert len({each.policy.digest for each in judged}) == 5
    json.dumps(figures(contract, judged, GOALS), allow_nan=False)


@pytest.mark.parametrize(("cases", "needed"), [(21, 22), (0, 22)])
def test_too_few_cases_are_refused_with_how_many_it_takes(contract, cases, needed):
    """Before anything is chosen."""
    with pytest.raises(TooFewCases, match=f"at least {needed}") as error:
        choose_policy(contract, draw(30, 1, "pilot"), draw(cases, 2), GOALS)
    assert (error.value.given, error.value.needed) == (cases, needed)


def test_a_patient_counts_once_however_many_images_there_are(contract):
    """Eight images of each of three patients are no 24 cases: all right or all wrong together, they prove little."""
    crowd = draw(24, 2, each=8)
    with pytest.raises(TooFewCases) as error:
        choose_policy(contract, draw(30, 1, "pilot"), crowd, GOALS)
    assert (error.value.given, error.value.needed) == (3, 22)
    twice = draw(100, 2, each=2)
    alone = one_each(twice)
    assert [case.patient for case in alone] == sorted({case.patient for case in twice}, key=lambda p: int(p[4:]))
    assert one_each(twice[::-1]) == alone[::-1] and one_each(alone) == alone
    assert (
        choose_policy(contract, draw(30, 1, "pilot"), twice, GOALS).policy
        == choose_policy(contract, draw(30, 1, "pilot"), alone, GOALS).policy
    )


def test_a_model_that_is_always_wrong_gets_no_threshold(contract):
    """Then nothing is accepted, and the reason says so."""
    bad = [
        dataclasses.replace(case, steps=tuple(dataclasses.replace(step, loss=1.0) for step in case.steps))
        for case in draw(100, 2)
    ]
    chosen = choose_policy(contract, draw(50, 1, "pilot"), bad, GOALS)
    assert chosen.policy.guarantee is None
    assert "no threshold could be certified" in chosen.why
    assert Route.ACCEPT not in {chosen.served(case).route for case in bad}


def test_the_core_decides_as_the_calibration_assumed(contract, chosen):
    """`Assessment.decided` agrees with `serve` at every stage: what is certified is what is served."""
    model = Model(contract, chosen.policy, "", "code")
    routes = set()
    for case in draw(400, 4):
        served = chosen.served(case)
        for step in case.steps:
            known = Input("d", np.zeros((1, 8, 8), np.float32))
            known.__dict__["statistics"] = case.statistics  # as computed for the case
            assessment = Assessment(
                model, Case(np.zeros((1, 8, 8), np.float32)), 1, known,
                Moments(step.samples, np.ones(2), np.ones(2), np.ones(1), np.zeros((step.samples, 0))), 20,
                last=step.samples == 20,
            )  # fmt: skip
            object.__setattr__(assessment, "scores", step.scores)  # the samples behind the scores do not matter here
            if assessment.decided:
                break
        assert step.samples == served.step.samples
        assert assessment.decision.route is served.route
        routes.add(served.route)
    assert routes == set(Route)


def test_a_typical_range_holds_back_no_more_than_it_says():
    """Of new cases at most 5 % lie outside, on average over calibrations, and some do: it is not merely wide."""
    random = np.random.default_rng(7)
    share = np.exp(random.normal(-3.0, 0.5, (500, 60)))

    def at(values):
        return [dataclasses.replace(c, steps=(dataclasses.replace(c.full, prediction={"x": v}),)) for c, v in values]

    base, outside = draw(1, 1)[0], []
    for row in share:
        low, high = typical_range("x", at((base, v) for v in row[:20]), at((base, v) for v in row[20:59]), 0.05)
        outside.append(not low <= row[59] <= high)
    assert np.mean(outside) <= 0.05 + 3.1 * np.sqrt(0.05 * 0.95 / len(outside))
    assert np.mean(outside) > 0.01


def test_the_score_that_ranks_best_is_chosen():
    """A score without information loses to one with; the first wins a tie."""
    cases = draw(200, 5)
    random = np.random.default_rng(6)
    noise = [{"noise": random.random(), **case.full.scores} for case in cases]
    noisy = [
        dataclasses.replace(case, steps=(dataclasses.replace(case.full, scores=each),))
        for case, each in zip(cases, noise, strict=True)
    ]
    assert choose_score([case.full for case in noisy]) == "lack_of_confidence"


def test_patients_are_dealt_whole_and_the_same_way_every_time():
    """Pilot and folds know patients, not cases; another order of the cases changes nothing."""
    patients = [f"p{i // 3}" for i in range(90)]
    dealt = deal_pilot(patients, 0.3)
    assert sum(dealt.values()) == 9
    assert dealt == deal_pilot(patients[::-1], 0.3)
    folds = deal_folds(patients, 5)
    assert sorted(list(folds.values()).count(fold) for fold in range(5)) == [6] * 5


def test_missed_foreground_falls_to_zero_along_the_grid():
    """Foreground of probability .9, .4, .04 and background: at ½ two of three are missed, at 0 none."""
    contract = Contract(
        "s", Task.SEGMENTATION, Activation.SIGMOID, ("x",), 1, ("X",), (4,), (8,),
        Preprocessing(), (),
    )  # fmt: skip
    missed = missed_foreground(contract, np.array([[0.9, 0.4, 0.04, 0.0]]), np.array([[1, 1, 1, 0]], np.uint8))
    assert len(missed) == len(SENSITIVE_GRID)
    assert missed[0] == pytest.approx(2 / 3)
    assert missed[-1] == 0.0
    assert (np.diff(missed) <= 0).all()
    assert missed_foreground(contract, np.zeros((1, 4)), np.zeros((1, 4), np.uint8)) == ()


def sensitive_rule(missed):
    """Of cases that miss so much at each threshold; empty: without foreground."""
    contract = Contract(
        "s", Task.SEGMENTATION, Activation.SIGMOID, ("x",), 1, ("X",), (4,), (8,),
        Preprocessing(), (),
    )  # fmt: skip
    steps = [Step(20, {}, {}, 0.0, float("nan"), {}, each, np.zeros((1, 1))) for each in missed]
    return choose_sensitive(contract, steps, 0.05)


def missing(random, size):
    """Shares missed at each threshold by cases whose foreground has probabilities from 0 to 1."""
    return [
        tuple((np.searchsorted(np.sort(random.uniform(0, 1, 50)), SENSITIVE_GRID) / 50).tolist()) for _ in range(size)
    ]


def test_cases_without_foreground_do_not_make_up_for_what_is_missed_elsewhere():
    """Four of five images show nothing: the promise is kept on those that show something, and says so."""
    random = np.random.default_rng(0)
    shown = missing(random, 80)
    rule, alone = sensitive_rule([*shown, *[()] * 320]), sensitive_rule(shown)
    assert (rule.threshold, rule.cases) == (alone.threshold, 80)
    assert "80 cases with foreground" in rule.rule and "where it has any" in rule.rule
    assert "foreground," not in alone.rule and "where it has any" not in alone.rule
    new = np.array(missing(random, 2000))[:, SENSITIVE_GRID.index(rule.threshold)]
    assert new.mean() <= 0.05


def test_no_rule_where_too_few_cases_have_foreground_or_only_everything_misses_nothing():
    """A threshold of 0 takes every voxel for foreground, which says nothing."""
    assert sensitive_rule([*missing(np.random.default_rng(0), 18), *[()] * 300]) is None
    hopeless = (1.0,) * (len(SENSITIVE_GRID) - 1) + (0.0,)
    assert sensitive_rule([hopeless] * 100) is None
