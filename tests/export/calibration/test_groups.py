"""Certificates by group: all of them hold together, and an average hides no scanner."""

import dataclasses
import json

import numpy as np
from equipoise_core.policy import parse_policy
from equipoise_export.calibration.choose import choose_policy
from equipoise_export.calibration.figures import errors_by_truth, exact_share, figures, judge, judge_across
from equipoise_export.calibration.groups import certify_groups, largest_groups
from equipoise_export.calibration.risk import accepted_cases_needed, learn_then_test

from .test_choose import GOALS, STAGES, contract, draw  # noqa: F401  # a fixture
from .test_theory import ALPHA, DELTA, within

REPETITIONS = 500
SCANNERS, EACH = 6, 60
LIMITS = np.linspace(0.5, 1.0, 6)


def draw_groups(random, risks):
    """Accepted `[n, L]`, losses and groups of scanners whose cases err at these rates, whatever their score."""
    groups = np.repeat([f"scanner {k}" for k in range(len(risks))], EACH)
    scores = random.random(len(groups))
    return scores[:, None] <= LIMITS, (random.random(len(groups)) < np.repeat(risks, EACH)).astype(float), groups


def test_all_certificates_hold_together():
    """Six scanners that err just as often as is not allowed: any certificate is wrong. Together at most δ are given;
    each tested at the whole δ, many more."""
    random = np.random.default_rng(1)
    corrected = uncorrected = 0
    for _ in range(REPETITIONS):
        accepted, losses, groups = draw_groups(random, [ALPHA] * SCANNERS)
        corrected += bool(certify_groups(accepted, losses, groups, ALPHA, DELTA).certificates)
        uncorrected += any(
            learn_then_test(accepted[groups == name], losses[groups == name], ALPHA, DELTA) for name in set(groups)
        )
    assert within(corrected, DELTA, REPETITIONS)
    assert not within(uncorrected, DELTA, REPETITIONS)


def test_an_average_hides_a_scanner_and_its_own_certificate_does_not():
    """Five scanners err in 2 %, one in 25 %: together below α, so one certificate for all passes the bad one too."""
    random = np.random.default_rng(2)
    risks = [0.02] * 5 + [0.25]
    together = bad = good = 0
    for _ in range(REPETITIONS):
        accepted, losses, groups = draw_groups(random, risks)
        together += learn_then_test(accepted, losses, ALPHA, DELTA) is not None
        certified = certify_groups(accepted, losses, groups, ALPHA, DELTA).certificates
        bad += "scanner 5" in certified
        good += len(certified)
    assert within(bad, DELTA, REPETITIONS)
    assert together > 0.7 * REPETITIONS
    assert good > 0.35 * 5 * REPETITIONS  # those who deserve a certificate often get one, from 60 cases


def test_how_many_groups_are_tested_depends_on_their_sizes_alone():
    """As many as can pay for each other; small ones and unnamed cases are no group."""
    needed = accepted_cases_needed(ALPHA, DELTA / 2)
    assert largest_groups({"a": 100, "b": needed, "c": 5, "": 500}, ALPHA, DELTA) == ("a", "b")
    assert largest_groups({"a": 100, "b": needed - 1}, ALPHA, DELTA) == ("a",)
    assert largest_groups({"a": 21}, ALPHA, DELTA) == ()
    found = certify_groups(np.ones((130, 1), bool), np.zeros(130), ["a"] * 100 + ["b"] * 10 + [""] * 20, ALPHA, DELTA)
    assert list(found.certificates) == ["a"]
    assert dict(found.without) == {"b": 10}
    assert (found.tested, found.level) == (1, DELTA)


def test_a_policy_certified_by_group_accepts_in_those_groups_alone(contract):  # noqa: F811
    """One scanner is good, one errs in half of its cases, one has few cases; the policy says so and is read back."""
    goals = dataclasses.replace(GOALS, by="scanner")

    def grouped(cases):
        placed = []
        for index, case in enumerate(cases):
            group = "few" if index < 12 else "good" if index % 2 else "bad"
            wrong = float(index % 4 == 0) if group == "bad" else 0.0
            steps = tuple(dataclasses.replace(step, loss=wrong) for step in case.steps)
            placed.append(dataclasses.replace(case, group=group, steps=steps))
        return placed

    chosen = choose_policy(contract, draw(100, 1, "pilot"), grouped(draw(300, 2)), goals, stages=STAGES)
    groups = chosen.policy.groups
    assert set(groups.stages) == {"good"}
    assert dict(groups.without) == {"bad": 144, "few": 12}
    assert chosen.policy.guarantee.delta == DELTA and groups.guarantees["good"].delta == DELTA / 2
    assert "every certified scanner" in chosen.why and "144" in groups.guarantees["good"].rule
    assert parse_policy(json.loads(chosen.policy.dumps())) == chosen.policy
    judged = judge(contract, chosen, grouped(draw(300, 3)))
    accepted = {each.case.group for each in judged if each.route == "accept"}
    assert accepted == {"good"}
    found = figures(contract, judge_across(contract, chosen, grouped(draw(300, 2)), goals), goals)
    assert found["wrong_among_accepted"] == 0


def test_without_any_certificate_nothing_is_accepted(contract):  # noqa: F811
    """Too many scanners with too few cases each."""
    cases = [dataclasses.replace(case, group=f"{index % 30}") for index, case in enumerate(draw(300, 2))]
    goals = dataclasses.replace(GOALS, by="scanner")
    chosen = choose_policy(contract, draw(100, 1, "pilot"), cases, goals, stages=STAGES)
    assert chosen.policy.guarantee is None and len(chosen.policy.groups.without) == 30
    assert "no scanner could be certified" in chosen.why
    assert not any(each.route == "accept" for each in judge(contract, chosen, draw(100, 3)))


def test_errors_by_truth_show_a_rare_class(contract):  # noqa: F811
    """Every class is counted on its own cases, and the intervals hold together: wider than one alone."""
    cases = draw(300, 2)
    chosen = choose_policy(contract, draw(100, 1, "pilot"), cases, GOALS, stages=STAGES)
    judged = judge(contract, chosen, draw(1000, 3))
    found = errors_by_truth(contract, judged)
    accepted = [each for each in judged if each.route == "accept"]
    assert sum(each["cases"] for each in found.values()) == 1000
    assert sum(each["accepted"] for each in found.values()) == len(accepted)
    ill = found["ill"]
    assert ill["wrong"] == ill["accepted"] > 0 == found["normal"]["wrong"]  # only wrong cases are labelled ill here
    alone = exact_share(ill["wrong"], ill["accepted"])
    assert ill["error"]["low"] < alone["low"]
