import dataclasses

import numpy as np
import pytest
from equipoise_core.decision import Evidence, Route, decide, settled
from equipoise_core.policy import AcceptRule, Bounds, Policy
from equipoise_core.stopping import Look, Stopping

NUMBERS = {"sample_disagreement": 0.05, "noise": 0.3}


@pytest.fixture
def policy(segmentation):
    accept = AcceptRule("sample_disagreement", 0.1, "Dice below 0.8", 40, 30, 1, "test")
    typical, suitable = Bounds({"noise": (0.2, 0.4)}, "test"), Bounds({"noise": (0.1, 0.5)}, "test")
    return Policy(segmentation.model_digest, "cd", 6, accept, typical, suitable)


@pytest.fixture
def good():
    """Evidence that nothing speaks against."""
    return Evidence(dict(NUMBERS), 6, 6, False, False, (1.0, 1.0))


def test_a_good_case_is_accepted(segmentation, policy, good):
    """Accept is reachable: without this every test below would pass for nothing."""
    assert decide(segmentation, policy, "", good).route is Route.ACCEPT


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"numbers": {**NUMBERS, "sample_disagreement": 0.1001}}, "above"),
        ({"numbers": {**NUMBERS, "sample_disagreement": np.nan}}, "finite"),
        ({"numbers": {**NUMBERS, "sample_disagreement": -np.inf}}, "finite"),
        ({"numbers": {**NUMBERS, "noise": np.nan}}, "finite"),
        ({"numbers": {"sample_disagreement": 0.05}}, "noise"),
        ({"numbers": {"noise": 0.3}}, "sample_disagreement"),
        ({"samples": 5}, "5 of 6"),
        ({"samples": 20, "asked": 20, "own_samples": True}, "20 samples"),
        ({"samples": 4, "asked": 4}, "4 samples"),
        ({"own_seed": True}, "seed"),
        ({"numbers": {**NUMBERS, "noise": 0.41}}, "unlike"),
        ({"spacing": None}, "spacing"),
        ({"spacing": (1.0, 1.3)}, "spacing"),
        ({"spacing": (1.0, float("nan"))}, "spacing"),
        ({"problems": ("the sampler failed",)}, "sampler"),
    ],
)
def test_whatever_is_wrong_goes_to_review(segmentation, policy, good, change, word):
    """Each single fault turns accept into review, and the reason names it."""
    decision = decide(segmentation, policy, "", dataclasses.replace(good, **change))
    assert decision.route is Route.REVIEW
    assert word in decision.reason


def test_no_or_foreign_policy_goes_to_review(segmentation, policy, good):
    """A policy decides only for the model that it was made for."""
    assert decide(segmentation, None, "there is no policy", good).reason == "there is no policy"
    foreign = dataclasses.replace(policy, model_digest="ff" * 32)
    decision = decide(segmentation, foreign, "", good)
    assert decision.route is Route.REVIEW and "another model" in decision.reason
    assert decide(segmentation, dataclasses.replace(policy, accept=None), "", good).route is Route.REVIEW


def test_unlike_the_calibration_cases_is_rejected(segmentation, policy, good):
    """Out of bounds rejects, however sure the samples are; but what went wrong is reviewed first."""
    noisy = dataclasses.replace(good, numbers={**NUMBERS, "noise": 0.51})
    assert decide(segmentation, policy, "", noisy).route is Route.REJECT
    failed = dataclasses.replace(noisy, problems=("the sampler failed",))
    assert decide(segmentation, policy, "", failed).route is Route.REVIEW


def test_a_policy_that_was_changed_is_not_read(policy):
    """Each number of a written policy is covered by its digest."""
    import json

    from equipoise_core.policy import PolicyError, parse_policy

    document = json.loads(policy.dumps())
    assert parse_policy(document) == policy
    document["accept"]["threshold"] = 0.9
    with pytest.raises(PolicyError, match="changed"):
        parse_policy(document)
    for broken in (None, {}, {"format": "equipoise-policy/1"}, {**document, "accept": 3}, {**document, "typical": {}}):
        with pytest.raises(PolicyError):
            parse_policy(broken)


@pytest.mark.parametrize(
    ("numbers", "samples", "content"),
    [
        ({}, 2, True),
        ({}, 3, False),
        ({"sample_disagreement": 0.099}, 2, False),
        ({"share": 0.41}, 2, False),
        ({"share": 0.6}, 2, True),
        ({"share": 0.6, "sample_disagreement": 0.099}, 2, False),
        ({"noise": 0.6, "sample_disagreement": 0.099}, 2, True),
        ({"sample_disagreement": np.nan}, 2, False),
    ],
    ids=["clear", "no look here", "near the threshold", "share near its bound", "share beyond its bound",
         "every limit must be clear", "the input alone decides", "not a number"],
)  # fmt: skip
def test_stops_only_where_no_moving_number_is_near_a_limit(policy, numbers, samples, content):
    """Threshold .1 on the score, .1 to .4 on the share of foreground, .2 to .4 on the noise of the input."""
    drift = {"sample_disagreement": (-0.01, 0.01), "share": (-0.02, 0.02)}
    policy = dataclasses.replace(
        policy,
        typical=Bounds({"noise": (0.2, 0.4), "share": (0.1, 0.4)}, "test"),
        stopping=Stopping((Look(2, drift),), "test"),
    )
    known = {**NUMBERS, "share": 0.2, **numbers}
    assert settled(policy, known, {"sample_disagreement", "share"}, samples) is content
    assert not settled(dataclasses.replace(policy, stopping=None), known, {"sample_disagreement", "share"}, samples)
