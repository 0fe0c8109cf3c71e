"""Figures of scores and probabilities as the report gives them: values, intervals over patients, one scale for all."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from equipoise_core.policy import Groups, Guarantee
from equipoise_core.stages import Stage
from equipoise_export.calibration import metrics
from equipoise_export.calibration.choose import choose_policy
from equipoise_export.calibration.figures import Judged, by_group, selection_figures
from equipoise_export.calibration.report import plots
from equipoise_export.calibration.report.examples import KINDS
from equipoise_export.calibration.scored import SELECTION, probability_statistics, selection_statistics

from .test_choose import GOALS, contract, draw  # noqa: F401  # a fixture


def cases(random, n):
    """Scores that say how likely a case is wrong."""
    scores = random.random(n)
    return scores, (random.random(n) < scores**2).astype(float), [f"{index}" for index in range(n)]


def test_every_figure_is_the_metric_itself_with_an_interval_around_it():
    """By the names of the list, and AUROC; nothing that is not a number reaches the JSON."""
    scores, losses, patients = cases(np.random.default_rng(0), 200)
    found = selection_statistics(scores, losses, patients)
    assert list(found) == [*(each.name for each in SELECTION), "auroc_errors"]
    assert found["augrc"]["value"] == pytest.approx(metrics.area_under_generalised_risk_coverage(scores, losses))
    assert found["risk_at_90"]["value"] == pytest.approx(metrics.risk_at(scores, losses, 0.9))
    assert all(each["low"] < each["value"] < each["high"] for each in found.values())
    right = selection_statistics(scores, np.zeros(200), patients)
    assert right["auroc_errors"] == {"value": None, "low": None, "high": None, "left_out": 1000}
    assert json.dumps(right, allow_nan=False)


def test_patients_are_drawn_and_not_their_cases():
    """Every case four times over is no more evidence: with patients the intervals stay, without they get narrower."""
    scores, losses, patients = cases(np.random.default_rng(1), 100)
    four = [np.repeat(each, 4) for each in (scores, losses, patients)]
    once, told, untold = (
        selection_statistics(*of)["augrc"] for of in ((scores, losses, patients), four, (*four[:2], range(400)))
    )
    assert (told["low"], told["high"]) == pytest.approx((once["low"], once["high"]), rel=1e-9)
    assert untold["high"] - untold["low"] < 0.6 * (once["high"] - once["low"])


def test_intervals_hold_what_they_are_of():
    """AUGRC and selective risk of the population, about as often as 95 of 100 sets of 100 cases say."""
    random = np.random.default_rng(2)
    scores, losses, _ = cases(random, 200_000)
    truth = {
        "augrc": metrics.area_under_generalised_risk_coverage(scores, losses),
        "risk_at_80": metrics.risk_at(scores, losses, 0.8),
    }
    inside = dict.fromkeys(truth, 0)
    for _ in range(100):
        found = selection_statistics(*cases(random, 100))
        for name, value in truth.items():
            inside[name] += found[name]["low"] <= value <= found[name]["high"]
    assert all(count >= 86 for count in inside.values()), inside


@pytest.mark.parametrize("one_of", [True, False])
def test_probabilities_have_intervals_before_and_after(one_of):
    """Too certain before, honest after: the intervals of Brier and NLL keep apart. ACE says that it has none."""
    random = np.random.default_rng(3)
    honest = random.uniform(0.02, 0.98, 600)
    hit = (random.random(600) < honest).astype(float)
    odds = (honest / (1 - honest)) ** 4
    sure = odds / (1 + odds)
    columns = (np.stack([1 - of, of], axis=1) if one_of else of[:, None] for of in (sure, honest, hit))
    before, after, hits = ([row[None] for row in of] for of in columns)
    found = probability_statistics(before, after, hits, [f"{index}" for index in range(600)], one_of)
    assert list(found) == list(metrics.METRICS) == list(metrics.TITLES)
    assert found["ace"]["after_interval"] == {"low": None, "high": None}
    for name in ("ece", "smooth_ece", "classwise_ece", "brier", "nll"):
        assert found[name]["after_interval"]["high"] < found[name]["before"]
        assert found[name]["before_interval"]["low"] < found[name]["before"] < found[name]["before_interval"]["high"]
    for name in ("ece", "smooth_ece", "classwise_ece"):
        assert found[name]["after"] < found[name]["floor"]["p95"] < found[name]["before"]
    assert json.dumps(found, allow_nan=False)


def test_groups_are_ranked_on_one_scale(contract):  # noqa: F811
    """The same scores under thresholds of .05 and .3, and under none: over all cases the curve is that of the scores.
    Over its own group's threshold, or none, a case would stand elsewhere. Each group has figures of its own."""
    chosen = choose_policy(contract, draw(100, 1, "pilot"), draw(300, 2), GOALS, stages=(20,))
    own = Guarantee(0.1, 0.05, "wrong label", 100, 50, 0, "tested")
    closed = (Stage(20, "lack_of_confidence"),)
    limits = {"strict": 0.05, "lax": 0.3}
    stages = {name: (Stage(20, "lack_of_confidence", limit),) for name, limit in limits.items()}
    groups = Groups("scanner", stages, dict.fromkeys(limits, own), {"none": 9}, "each")
    policy = dataclasses.replace(chosen.policy, stages=closed, guarantee=own, groups=groups)
    judged = []
    for index, case in enumerate(draw(300, 4)):
        group = ("strict", "lax", "none")[index % 3]
        step = case.full
        route = "accept" if step.scores["lack_of_confidence"] <= limits.get(group, -1) else "review"
        case = dataclasses.replace(case, group=group)
        judged.append(Judged(case, policy, step, route, route, step.probabilities))
    scores = np.array([each.step.scores["lack_of_confidence"] for each in judged])
    losses = np.array([each.step.loss for each in judged])
    found = selection_figures(judged)
    assert found["aurc"]["value"] == pytest.approx(metrics.area_under_risk_coverage(scores, losses))
    mixed = np.array([each.score if each.over_threshold is None else each.over_threshold for each in judged])
    assert metrics.area_under_risk_coverage(mixed, losses) > 1.3 * found["aurc"]["value"]
    assert all((each.over_threshold or 9) <= 1 for each in judged if each.route == "accept")
    assert {each.case.group for each in judged if each.over_threshold is None} == {"none"}
    page = plots(SimpleNamespace(contract=contract, policy=policy, judged=judged, rates=()))
    assert "100 cases met none." in page
    just = next(kind for kind in KINDS if kind.route == "accept" and not kind.wrong)
    assert just.order(max(judged, key=lambda each: each.score)) <= just.order(judged[0])
    for name, figures in by_group(contract, judged, GOALS).items():
        of = np.array([each.case.group == name for each in judged])
        assert figures["selection"]["aurc"]["value"] == pytest.approx(
            metrics.area_under_risk_coverage(scores[of], losses[of])
        )


def test_without_any_threshold_the_last_stage_ranks(contract):  # noqa: F811
    """Scores of an early stage are on another scale."""
    case = draw(1, 5)[0]
    policy = choose_policy(contract, draw(100, 1, "pilot"), draw(300, 2), GOALS, stages=(5, 20)).policy
    closed = tuple(Stage(samples, "lack_of_confidence") for samples in (5, 20))
    policy = dataclasses.replace(policy, stages=closed, guarantee=None)
    one = Judged(case, policy, case.after(5), "review", "review", case.full.probabilities)
    assert one.ranking == case.full.scores["lack_of_confidence"] != one.score
