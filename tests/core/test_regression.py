"""Regression heads in the core: contract, moments, intervals, the decision and its record."""

import dataclasses
import json

import numpy as np
import pytest
from equipoise_core.case import Case, Model
from equipoise_core.contract import Activation, Contract, ContractError, Sampler, Site, SiteKind, Task, parse_contract
from equipoise_core.decision import Route
from equipoise_core.intervals import RELATIVE_WIDTH, UNCALIBRATED_FACTOR, IntervalRule, TargetRule
from equipoise_core.moments import moments_of_numbers
from equipoise_core.outputs import OUTPUTS
from equipoise_core.policy import Guarantee, Policy, PolicyError, parse_policy
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.sampling import assess
from equipoise_core.scores import default_score
from equipoise_core.stages import Stage
from equipoise_core.steps import ZScore
from equipoise_core.targets import Noise, Target
from equipoise_core.uncertainty import uncertainty_of

AGE, HEIGHT = Target("age", "mo"), Target("height", "cm")


@pytest.fixture
def contract() -> Contract:
    return Contract(
        "bone", Task.REGRESSION, Activation.SIGMOID, (), 1, (8, 8), (8, 8), (8, 8), Preprocessing((ZScore(),)),
        (Site("drop", SiteKind.ELEMENT, (8,), 0.5),), samples=4, samplers=(Sampler("bone_sampler", "00" * 32),),
        targets=(AGE, HEIGHT), noise=Noise.VARIANCE,
    )  # fmt: skip


def sampler(means, variances):
    """Answers `[T, K]` for each image, whatever the masks."""

    def run(images, masks):
        return {
            name: np.broadcast_to(np.asarray(rows, np.float32), (len(images), *np.shape(rows)))
            for name, rows in (("means", means), ("variances", variances))
        }

    return run


MEANS = [[100.0, 150.0], [104.0, 150.0], [96.0, 152.0], [100.0, 148.0]]
VARIANCES = [[1.0, 4.0]] * 4


def policy_of(contract: Contract, tolerance: float, threshold: float | None = 1.0) -> Policy:
    rules = {"age": TargetRule(2.0, 0.5, tolerance), "height": TargetRule(2.0, 0.5, 100.0)}
    guarantee = Guarantee(0.1, 0.1, "further than tolerated", 50, 30, 1, "made up")
    return Policy(
        contract.model_digest, "11" * 32, (Stage(4, RELATIVE_WIDTH, threshold),), guarantee,
        interval=IntervalRule(0.9, 1.5, rules, 50, "made up"),
    )  # fmt: skip


def answer(contract: Contract, policy: Policy | None = None, means=MEANS, variances=VARIANCES):
    image = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    return assess(Model(contract, policy, "none", "c" * 64), Case(image), [sampler(means, variances)])


def test_contract_survives_json_and_its_digest_names_targets(contract):
    assert parse_contract(json.loads(contract.dumps())) == contract
    changed = dataclasses.replace(contract, targets=(AGE, Target("height", "mm")))
    assert len({contract.digest, changed.digest, dataclasses.replace(contract, noise=Noise.NONE).digest}) == 3


def test_contracts_of_classes_say_nothing_of_targets(classification, segmentation):
    for each in (classification, segmentation):
        assert not {"targets", "noise"} & set(each.document())


@pytest.mark.parametrize(
    "changed",
    [
        {"targets": ()},
        {"classes": ("a",)},
        {"activation": Activation.SOFTMAX},
        {"targets": (AGE, AGE)},
        {"task": Task.CLASSIFICATION},
        {"states_moments": True},
    ],
)
def test_contract_refuses_what_does_not_hold_together(contract, changed):
    with pytest.raises(ContractError):
        dataclasses.replace(contract, **changed)


@pytest.mark.parametrize("text", ["age", "age:", ":mo", "a,b:mo", "age:m o", "age=3:mo"])
def test_a_target_without_name_or_unit_is_refused(text):
    with pytest.raises(ValueError, match=r"unit|named"):
        Target.parse(text)


def test_total_variance_is_aleatoric_and_epistemic_and_chunks_merge(contract):
    random = np.random.default_rng(1)
    means, variances = 1e4 + random.normal(0, 3, (12, 2)), random.gamma(2, 2, (12, 2))
    whole = moments_of_numbers(means, variances)
    merged = sum(
        (moments_of_numbers(means[i : i + 3], variances[i : i + 3]) for i in (3, 6, 9)),
        start=moments_of_numbers(means[:3], variances[:3]),
    )
    said = uncertainty_of(contract, merged)
    np.testing.assert_allclose(merged.sum_p2, whole.sum_p2, rtol=1e-12)
    np.testing.assert_allclose(said.epistemic, means.var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(said.aleatoric, variances.mean(axis=0), rtol=1e-12)
    # A mixture of T normal distributions has this variance (law of total variance).
    draws = random.normal(means[:, None], np.sqrt(variances)[:, None], (12, 400_000, 2)).reshape(-1, 2)
    np.testing.assert_allclose(said.total, draws.var(axis=0), rtol=0.02)


def test_no_stated_variance_is_zero_aleatoric(contract):
    silent = dataclasses.replace(contract, noise=Noise.NONE)
    said = uncertainty_of(silent, moments_of_numbers(np.array(MEANS), None))
    assert (said.aleatoric == 0).all() and (said.total == said.epistemic).all()


def test_values_without_a_policy_are_review_with_a_normal_interval(contract):
    found = answer(contract)
    age = found.values["age"]
    sd = np.sqrt(np.var([row[0] for row in MEANS]) + 1.0)
    assert found.decision.route is Route.REVIEW and found.score_name == default_score(contract) == "standard_deviation"
    assert (age.mean, age.sd) == pytest.approx((100.0, sd))
    assert (age.low, age.high) == pytest.approx((100 - UNCALIBRATED_FACTOR * sd, 100 + UNCALIBRATED_FACTOR * sd))
    assert found.case_score == pytest.approx(max(sd, np.sqrt(np.var([150, 150, 152, 148]) + 4)))
    np.testing.assert_allclose(OUTPUTS["values"](found)[0], [age.mean, age.sd, age.low, age.high], rtol=1e-6)


def test_policy_accepts_only_intervals_within_the_tolerance(contract):
    half = 1.5 * 2.0 * (3.0 + 0.5)  # sd of age is √(8 + 1)
    narrow, wide = (answer(contract, policy_of(contract, tolerance)) for tolerance in (half * 1.01, half * 0.99))
    assert narrow.decision.route is Route.ACCEPT and wide.decision.route is Route.REVIEW
    assert narrow.scores[RELATIVE_WIDTH] == pytest.approx(1 / 1.01) and narrow.score_name == RELATIVE_WIDTH
    assert (narrow.values["age"].low, narrow.values["age"].high) == pytest.approx((100 - half, 100 + half))
    record = narrow.record
    assert record["interval_level"] == 0.9 and record["values"]["age"]["unit"] == "mo" and record["volume_ml"] is None


@pytest.mark.parametrize(
    ("means", "variances"), [(MEANS, [[-1.0, 4.0]] * 4), ([[np.nan, 1.0]] * 4, VARIANCES), (MEANS, [[np.inf, 1.0]] * 4)]
)
def test_what_is_no_number_or_no_variance_is_never_accepted(contract, means, variances):
    found = answer(contract, policy_of(contract, 1e6), means, variances)
    assert found.decision.route is Route.REVIEW and found.record["values"]["height"]["unit"] == "cm"


def test_policy_survives_json_and_cannot_accept_beyond_the_tolerance(contract):
    policy = policy_of(contract, 12.0)
    assert parse_policy(json.loads(policy.dumps())) == policy
    with pytest.raises(ValueError, match="narrower than tolerated"):
        policy_of(contract, 12.0, threshold=1.01)
    document = json.loads(policy.dumps())
    del document["interval"]
    with pytest.raises(PolicyError):
        parse_policy(document)
