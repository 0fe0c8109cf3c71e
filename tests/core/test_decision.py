import dataclasses
import json
import string

import numpy as np
import pytest
from equipoise_core.contract import FirstPass
from equipoise_core.decision import Evidence, Route, decide
from equipoise_core.policy import Bounds, Groups, Guarantee, Policy, PolicyError, parse_policy
from equipoise_core.reasons import TEXTS, reason
from equipoise_core.stages import Stage, chunk_of

INPUT, ANSWER = {"noise": 0.3}, {"sample_disagreement": 0.05}
GUARANTEE = Guarantee(0.1, 0.1, "Dice below 0.8", 40, 30, 1, "test")


@pytest.fixture
def policy(segmentation):
    typical, suitable = Bounds({"noise": (0.2, 0.4)}, "test"), Bounds({"noise": (0.1, 0.5)}, "test")
    stages = (Stage(6, "sample_disagreement", 0.1),)
    return Policy(segmentation.model_digest, "cd", stages, GUARANTEE, typical, suitable)


@pytest.fixture
def good():
    """Evidence that nothing speaks against."""
    return Evidence(INPUT, ANSWER, 6, 6, spacing=(1.0, 1.0))


def test_a_good_case_is_accepted(segmentation, policy, good):
    """Accept is reachable: without this every test below would pass for nothing."""
    assert decide(segmentation, policy, "", good).route is Route.ACCEPT


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"answer": {"sample_disagreement": 0.1001}}, "above"),
        ({"answer": {"sample_disagreement": np.nan}}, "finite"),
        ({"answer": {"sample_disagreement": -np.inf}}, "finite"),
        ({"input": {"noise": np.nan}}, "finite"),
        ({"input": {}}, "noise"),
        ({"answer": {}}, "sample_disagreement"),
        ({"samples": 5}, "5 of 6"),
        ({"samples": 20, "planned": 20, "named_samples": True}, "20 samples"),
        ({"named_samples": True}, "6 samples"),
        ({"samples": 4, "planned": 4}, "4 samples"),
        ({"named_seed": True}, "seed"),
        ({"closed": "too many were wrong"}, "accept is closed: too many were wrong"),
        ({"input": {"noise": 0.41}}, "unlike"),
        ({"spacing": None}, "spacing"),
        ({"spacing": (1.0, 1.3)}, "spacing"),
        ({"spacing": (1.0, float("nan"))}, "spacing"),
        ({"problems": (reason("sampler_failed", message="the sampler failed"),)}, "sampler"),
    ],
)
def test_whatever_is_wrong_goes_to_review(segmentation, policy, good, change, word):
    """Each single fault turns accept into review, and the reason names it."""
    decision = decide(segmentation, policy, "", dataclasses.replace(good, **change))
    assert decision.route is Route.REVIEW
    assert word in str(decision.reason)


def test_no_or_foreign_policy_goes_to_review(segmentation, policy, good):
    """A policy decides only for the model that it was made for."""
    assert str(decide(segmentation, None, "there is no policy", good).reason) == "there is no policy"
    foreign = dataclasses.replace(policy, model_digest="ff" * 32)
    decision = decide(segmentation, foreign, "", good)
    assert decision.route is Route.REVIEW and "another model" in str(decision.reason)
    uncertified = dataclasses.replace(policy, stages=(Stage(6, "sample_disagreement"),), guarantee=None)
    assert decide(segmentation, uncertified, "", good).route is Route.REVIEW


def test_unlike_the_calibration_cases_is_rejected(segmentation, policy, good):
    """Out of bounds rejects, however sure the samples are; but what went wrong is reviewed first."""
    noisy = dataclasses.replace(good, input={"noise": 0.51})
    assert decide(segmentation, policy, "", noisy).route is Route.REJECT
    failed = dataclasses.replace(noisy, problems=(reason("sampler_failed", message="the sampler failed"),))
    assert decide(segmentation, policy, "", failed).route is Route.REVIEW


def test_a_policy_that_was_changed_is_not_read(policy):
    """Each number of a written policy is covered by its digest."""
    document = json.loads(policy.dumps())
    assert parse_policy(document) == policy
    document["stages"][0]["accept_up_to"] = 0.9
    with pytest.raises(PolicyError, match="changed"):
        parse_policy(document)
    for broken in (None, {}, {"format": "equipoise-policy/2"}, {**document, "stages": 3}, {**document, "typical": {}}):
        with pytest.raises(PolicyError):
            parse_policy(broken)


@pytest.fixture
def staged(segmentation, policy):
    """A first pass, 2 samples, 6 samples: contract and policy."""
    contract = dataclasses.replace(segmentation, first_pass=FirstPass("toy_first_pass", "11" * 32))
    stages = (
        Stage(0, "lack_of_soft_dice_confidence", 0.02, 0.5),
        Stage(2, "sample_disagreement", 0.05, 0.4),
        Stage(6, "sample_disagreement", 0.1),
    )
    typical = Bounds({"noise": (0.2, 0.4), "share": (0.1, 0.3), "sample_disagreement": (0.0, 0.3)}, "test")
    return contract, dataclasses.replace(policy, model_digest=contract.model_digest, stages=stages, typical=typical)


@pytest.mark.parametrize(
    ("samples", "score", "change", "route"),
    [
        (0, 0.02, {}, "accept"),
        (0, 0.021, {}, None),
        (0, 0.51, {}, "review"),
        (2, 0.05, {}, "accept"),
        (2, 0.051, {}, None),
        (2, 0.29, {}, None),
        (2, 0.01, {"answer": {"share": 0.31}}, None),
        (2, 0.41, {"typical": False}, "review"),
        (6, 0.1, {}, "accept"),
        (6, 0.11, {}, "review"),
        (6, 0.01, {"answer": {"share": 0.31}}, "review"),
        (0, 0.01, {"answer": {"share": 0.31}}, None),
        (0, 0.01, {"input": {"noise": 0.41}}, "review"),
        (0, 0.01, {"input": {"noise": 0.51}}, "reject"),
        (0, 0.01, {"spacing": None}, "review"),
        (0, 0.01, {"windows": True}, "review"),
        (0, 0.01, {"problems": (reason("answer_not_finite", model="first pass"),)}, None),
        (0, np.nan, {}, None),
        (2, 0.01, {"problems": (reason("first_pass_failed", message="gone"),)}, "review"),
        (2, np.nan, {}, "review"),
    ],
)
def test_each_stage_decides_or_leaves_it_to_the_next(staged, good, samples, score, change, route):
    """What no sample can change is decided at once; a doubt about an answer is left to more samples, never accepted."""
    contract, policy = staged
    if not change.pop("typical", True):
        policy = dataclasses.replace(policy, typical=Bounds({}, "test"))
    name = policy.stage(samples).score
    answer = {"share": 0.2, name: score, **change.pop("answer", {})}
    evidence = dataclasses.replace(good, answer=answer, samples=samples, last=samples == 6, **change)
    decision = decide(contract, policy, "", evidence)
    assert (decision and decision.route.value) == route


def test_a_policy_with_a_first_pass_accepts_nothing_of_a_model_without(segmentation, staged, good):
    policy = dataclasses.replace(staged[1], model_digest=segmentation.model_digest)
    sure = dataclasses.replace(good, answer={"share": 0.2, "sample_disagreement": 0.01})
    decision = decide(segmentation, policy, "", sure)
    assert (decision.route, decision.reason.code) == (Route.REVIEW, "no_first_pass")


@pytest.mark.parametrize("samples", [(), (0,), (2, 2), (4, 2), (-1, 3)])
def test_stages_rise_and_end_with_samples(policy, samples):
    with pytest.raises(ValueError, match="stage"):
        dataclasses.replace(policy, stages=tuple(Stage(n, "sample_disagreement") for n in samples))


def test_nothing_is_accepted_without_a_guarantee(policy):
    with pytest.raises(ValueError, match="no guarantee"):
        dataclasses.replace(policy, guarantee=None)
    with pytest.raises(ValueError, match="accepts below"):
        Stage(2, "sample_disagreement", 0.2, 0.1)


@pytest.mark.parametrize(("stages", "at_most", "chunk"), [
    ((20,), None, 20), ((5, 10, 20), None, 5), ((4, 6), None, 2), ((20,), 7, 5), ((20,), 100, 20), ((6,), 1, 1)
])  # fmt: skip
def test_every_chunk_has_one_number_of_samples(stages, at_most, chunk):
    """It divides the samples of every stage, so that none is shorter than another."""
    assert chunk_of(stages, at_most) == chunk


def test_reasons_are_rendered_as_they_are_read_again():
    """A number that JSON cannot say is None in a record."""
    said = reason("score_too_high", score="s", value=None, threshold=0.2, samples=0)
    assert str(said) == "s unknown is above 0.2, after the first pass"
    for code, text in TEXTS.items():
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name and name != "after"]
        values = {**dict.fromkeys(names), **({"samples": 5} if "{after}" in text else {})}
        assert str(reason(code, **values))


def test_a_stage_that_looks_at_a_number_of_the_input_reviews(segmentation, policy, good):
    stages = (Stage(6, "noise", 0.5),)
    decision = decide(segmentation, dataclasses.replace(policy, stages=stages), "", good)
    assert (decision.route, decision.reason.code) == (Route.REVIEW, "unknown_number")


OWN = (Stage(6, "sample_disagreement", 0.1),)


@pytest.fixture
def by_scanner(policy):
    """Certified for scanner A alone; B was tested in vain."""
    groups = Groups("scanner", {"A": OWN}, {"A": GUARANTEE}, {"B": 12}, "test")
    return dataclasses.replace(policy, stages=(Stage(6, "sample_disagreement"),), groups=groups)


@pytest.mark.parametrize("group", ["A", None, "", "B", "a", "C"])
def test_only_a_certified_group_is_accepted(segmentation, by_scanner, good, group):
    """No group, one without a certificate, or one that nobody knows: an expert looks."""
    decision = decide(segmentation, by_scanner, "", dataclasses.replace(good, group=group))
    assert decision.route is (Route.ACCEPT if group == "A" else Route.REVIEW)
    if group != "A":
        assert decision.reason.code == "group_not_certified" and "scanner" in str(decision.reason)
        assert not group or group not in decision.reason.values.values()


def test_a_group_has_its_own_threshold(segmentation, by_scanner, good):
    sure = dataclasses.replace(good, group="A", answer={"sample_disagreement": 0.02})
    tight = dataclasses.replace(by_scanner.groups, stages={"A": (Stage(6, "sample_disagreement", 0.03),)})
    policy = dataclasses.replace(by_scanner, groups=tight)
    assert decide(segmentation, policy, "", sure).route is Route.ACCEPT
    assert decide(segmentation, policy, "", dataclasses.replace(good, group="A")).route is Route.REVIEW


def test_a_group_changes_nothing_where_the_policy_has_none(segmentation, policy, good):
    assert decide(segmentation, policy, "", dataclasses.replace(good, group="C")).route is Route.ACCEPT
    assert "groups" not in policy.document()


def test_a_grouped_policy_is_read_back_and_must_hold_together(by_scanner):
    """Its own stages accept nothing, each group has a guarantee, and all have the same samples and scores."""
    assert parse_policy(json.loads(by_scanner.dumps())) == by_scanner
    groups = by_scanner.groups
    with pytest.raises(ValueError, match="not accepted"):
        dataclasses.replace(by_scanner, stages=OWN)
    with pytest.raises(ValueError, match="stages and a guarantee"):
        dataclasses.replace(groups, guarantees={})
    with pytest.raises(ValueError, match="or neither"):
        dataclasses.replace(groups, without={"A": 3})
    other = dataclasses.replace(groups, stages={"A": (Stage(5, "sample_disagreement", 0.1),)})
    with pytest.raises(ValueError, match="samples and scores"):
        dataclasses.replace(by_scanner, groups=other)
    assert groups.named("B") == "B" and groups.named("Mr Smith's scanner") is None
