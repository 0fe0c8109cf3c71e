"""First passes: one deterministic pass before any sample is drawn; and networks that state their own moments."""

import dataclasses
import json

import numpy as np
import pytest
from equipoise_core.case import Case, Model
from equipoise_core.contract import Contract, ContractError, FirstPass, parse_contract
from equipoise_core.decision import Route
from equipoise_core.errors import SamplerFailure
from equipoise_core.moments import sampler_outputs
from equipoise_core.outputs import OF_SAMPLES, OUTPUTS
from equipoise_core.policy import Bounds, Guarantee, Policy, parse_policy
from equipoise_core.sampling import assess, assess_all, probe_first_pass
from equipoise_core.scores import scores_of
from equipoise_core.stages import Stage
from scipy import special


@pytest.fixture
def contract(segmentation) -> Contract:
    return dataclasses.replace(segmentation, first_pass=FirstPass("toy_first_pass", "11" * 32, True))


FAR = Bounds({"noise": (9.0, 9.1)}, "test")
FIRST, THEN = Stage(0, "rim_uncertainty", 10.0), Stage(6, "sample_disagreement", 0.99)
"""Both accept nearly anything."""


@pytest.fixture
def policy(contract) -> Policy:
    """The bound on a score of samples would hold back any single pass."""
    return Policy(
        contract.model_digest, "cd", (FIRST, THEN), Guarantee(0.1, 0.1, "Dice below 0.8", 9, 9, 0, "test"),
        typical=Bounds({"sample_disagreement": (0.0, 0.99), "foreground_share": (0.0, 3.0)}, "test"),
    )  # fmt: skip


@pytest.fixture
def case() -> Case:
    image = np.random.default_rng(0).normal(100, 20, (1, 8, 12)).astype(np.float32)
    return Case(image, spacing=(1.0, 1.1))


class Network:
    """A sampler in NumPy whose answer grows with the image; `stated` makes it give its own moments."""

    def __init__(self, stated: bool, own: float = 1.0, fails: bool = False, spoils: bool = False) -> None:
        self.stated, self.own, self.fails, self.spoils, self.calls = stated, own, fails, spoils, 0

    def __call__(self, image, masks):
        if self.fails:
            raise SamplerFailure("out of memory")
        assert (masks is None) == self.stated
        self.calls += 1
        z = np.stack([np.zeros_like(image[:, 0]), image[:, 0], -image[:, 0]], 1)  # [N, 3, H, W]
        p = special.softmax(z * 2, axis=1)
        h = special.entr(p).sum(1, keepdims=True) + (np.nan if self.spoils else 0.0)
        if self.stated:
            square = p * p + 0.25 * p * (1 - p)
            own = np.full_like(h, self.own)
            return {
                "sum_p": p,
                "sum_p2": square,
                "sum_entropy": 0.5 * h,
                "sum_uncertainty": own,
                "volumes": p.sum((2, 3))[:, None],
            }
        count = masks.shape[1]
        return {
            "sum_p": count * p, "sum_p2": count * p * p, "sum_entropy": count * h,
            "volumes": np.repeat(p.sum((2, 3))[:, None], count, axis=1),
        }  # fmt: skip


def run(contract, policy, case, first_pass, sampler=None, spread=False):
    sampler = sampler or Network(False)
    model = Model(contract, policy, "", "code")
    return assess(model, case, [sampler], first_pass=first_pass, spread=spread), sampler


def test_what_the_first_pass_accepts_draws_no_sample(contract, policy, case) -> None:
    answer, sampler = run(contract, policy, case, Network(True))
    assert answer.decision.route is Route.ACCEPT and sampler.calls == 0
    assert OUTPUTS["samples_used"](answer).tolist() == [0]
    assert answer.record["first_pass"] and answer.record["samples"] == 0
    assert answer.record["score"] == "rim_uncertainty" and answer.record["threshold"] == 10.0
    assert answer.record["reason"]["code"] == "score_accepted" and "the first pass" in answer.record["reason"]["text"]
    assert answer.record["model_digest"] == contract.model_digest


def test_what_the_first_pass_leaves_open_is_sampled(contract, policy, case) -> None:
    answer, sampler = run(contract, policy, case, Network(True, own=11.0))
    assert sampler.calls == 1 and answer.moments.samples == 6
    assert answer.decision.route is Route.ACCEPT and not answer.record["first_pass"]
    assert answer.record["score"] == "sample_disagreement"


class Plain(Network):
    """The network without dropout: it states nothing of its uncertainty."""

    def __call__(self, image, masks):
        outputs = super().__call__(image, masks)
        del outputs["sum_uncertainty"]
        return outputs


@pytest.fixture
def plain(contract, policy) -> tuple[Contract, Policy]:
    """A contract and policy whose first pass is the network without dropout."""
    contract = dataclasses.replace(contract, first_pass=FirstPass("toy_first_pass", "11" * 32))
    first = Stage(0, "lack_of_soft_dice_confidence", 1.0)
    return contract, dataclasses.replace(policy, model_digest=contract.model_digest, stages=(first, THEN))


def test_what_only_samples_can_give_is_drawn_afterwards(plain, case) -> None:
    """Route, mean, score and volume are the first pass's; the maps of samples are those of the policy's T."""
    alone, idle = run(*plain, case, Plain(True))
    assert alone.decision.route is Route.ACCEPT and idle.calls == 0
    for name in OF_SAMPLES:
        assert np.isnan(OUTPUTS[name](alone)).all()
    answer, sampler = run(*plain, case, Plain(True), spread=True)
    assert sampler.calls == 1 and answer.sampled.samples == 6
    assert answer.decision == alone.decision and answer.record == alone.record
    for name in ("mean", "labels", "case_score", "volume", "samples_used"):
        np.testing.assert_array_equal(OUTPUTS[name](answer), OUTPUTS[name](alone))
    sampled, _ = run(plain[0], None, case, None)
    for name in OF_SAMPLES:
        np.testing.assert_array_equal(OUTPUTS[name](answer), OUTPUTS[name](sampled))


@pytest.mark.parametrize("sampler", [Network(False, fails=True), Network(False, own=np.nan, spoils=True)])
def test_samples_that_fail_afterwards_lead_to_review(plain, case, sampler) -> None:
    answer, _ = run(*plain, case, Plain(True), sampler, spread=True)
    assert answer.decision.route is Route.REVIEW
    assert answer.decision.reason.code in ("sampler_failed", "answer_not_finite")
    assert OUTPUTS["samples_used"](answer).tolist() == [0]


def test_where_the_samples_fail_the_first_pass_is_what_there_is(plain, case) -> None:
    """It left the case open, nobody decided it: its answer goes to review."""
    contract, policy = plain
    strict = dataclasses.replace(policy, stages=(Stage(0, "lack_of_soft_dice_confidence", -1.0), THEN))
    answer, _ = run(contract, strict, case, Plain(True), Network(False, fails=True))
    assert answer.first_pass and answer.decision.route is Route.REVIEW
    assert np.isfinite(OUTPUTS["mean"](answer)).all() and np.isnan(OUTPUTS["variance"](answer)).all()
    with pytest.raises(SamplerFailure):
        run(contract, strict, case, None, Network(False, fails=True))


class Picky(Network):
    """A first pass that is sure of images that begin with a bright pixel."""

    def __call__(self, image, masks):
        outputs = super().__call__(image, masks)
        return {
            **outputs,
            "sum_uncertainty": np.where(image[:, :1, :1, :1] > 0, 1.0, 11.0) * np.ones_like(outputs["sum_uncertainty"]),
        }


def test_of_several_cases_each_gets_its_own_way(contract, policy, case) -> None:
    """Some are decided by the first pass, the others are sampled together; each answer stands where its case stood."""
    model, sampler = Model(contract, policy, "", "code"), Network(False)
    images = [np.random.default_rng(i).normal(100, 20, (1, 8, 12)).astype(np.float32) for i in range(6)]
    for i, image in enumerate(images):
        image[0, 0, 0] = 200.0 if i in (1, 4) else 0.0
    cases = [dataclasses.replace(case, image=image) for image in images]
    answers = assess_all(model, cases, [sampler], first_pass=Picky(True))
    assert [a.first_pass for a in answers] == [False, True, False, False, True, False]
    assert sampler.calls == 1  # cases 0, 2, 3 and 5
    for answer, one in zip(answers, cases, strict=True):
        alone = assess(model, one, [Network(False)], first_pass=Picky(True))
        assert answer.record == alone.record


@pytest.mark.parametrize("first_pass", [None, Network(True, fails=True)], ids=["missing", "failing"])
def test_without_its_first_pass_nothing_is_accepted(contract, policy, case, first_pass) -> None:
    answer, sampler = run(contract, policy, case, first_pass)
    assert sampler.calls == 1 and answer.decision.route is Route.REVIEW
    assert answer.decision.reason.code == "first_pass_failed"


@pytest.mark.parametrize("named", [{"samples": 6}, {"seed": 3}])
def test_a_caller_who_names_samples_or_seed_gets_samples(contract, policy, case, named) -> None:
    first_pass = Network(True)
    answer, sampler = run(contract, policy, dataclasses.replace(case, **named), first_pass)
    assert first_pass.calls == 0 and sampler.calls == 1 and not answer.record["first_pass"]
    assert answer.decision.route is Route.REVIEW


@pytest.mark.parametrize("change", [{"stages": (THEN,)}, {"model_digest": "another"}], ids=["no stage", "foreign"])
def test_a_policy_without_a_first_pass_does_not_run_it(contract, policy, case, change) -> None:
    first_pass = Network(True)
    _, sampler = run(contract, dataclasses.replace(policy, **change), case, first_pass)
    assert first_pass.calls == 0 and sampler.calls == 1


@pytest.mark.parametrize(
    "change",
    [
        {"typical": Bounds({"foreground_share": (0.0, 1e-9)}, "test")},
        {"stages": (Stage(0, "rim_uncertainty", 0.5), THEN)},
        {"stages": (Stage(0, "sample_disagreement", 0.9), THEN)},
    ],
    ids=["unlike", "above", "a score that one pass has not"],
)
def test_the_first_pass_accepts_nothing_that_speaks_against_it(contract, policy, case, change) -> None:
    _, sampler = run(contract, dataclasses.replace(policy, **change), case, Network(True))
    assert sampler.calls == 1


def test_a_first_pass_that_answers_nonsense_lets_nothing_be_accepted(contract, policy, case) -> None:
    """Neither by itself nor by the samples after it: its answer is part of what the policy's guarantee rests on."""
    answer, sampler = run(contract, policy, case, Network(True, own=float("nan")))
    assert sampler.calls == 1 and not answer.record["first_pass"]
    assert answer.decision.route is Route.REVIEW and "first pass" in str(answer.decision.reason)


@pytest.mark.parametrize(
    ("change", "route"),
    [({"suitable": FAR}, "reject"), ({"typical": FAR}, "review")],
)
def test_what_the_input_alone_holds_back_draws_no_sample(contract, policy, case, change, route) -> None:
    answer, sampler = run(contract, dataclasses.replace(policy, **change), case, Network(True))
    assert answer.decision.route.value == route and sampler.calls == 0


def test_missing_spacing_is_no_acceptance_by_a_first_pass(contract, policy, case) -> None:
    answer, _ = run(contract, policy, dataclasses.replace(case, spacing=None), Network(True))
    assert answer.decision.route is Route.REVIEW


def test_a_large_image_is_not_accepted_by_a_first_pass(contract, policy) -> None:
    image = np.random.default_rng(0).normal(100, 20, (1, 70, 90)).astype(np.float32)
    answer, _ = run(contract, policy, Case(image, spacing=(1.0, 1.0)), Network(True))
    assert answer.decision.route is Route.REVIEW


@pytest.fixture
def stating(segmentation) -> Contract:
    return dataclasses.replace(segmentation, sites=(), states_moments=True)


def test_stated_moments_are_what_is_answered(stating, case) -> None:
    answer = assess(Model(stating, None, "", "code"), case, [Network(True, own=0.7)])
    u = answer.uncertainty
    assert u.variance == pytest.approx(0.25 * u.mean * (1 - u.mean), abs=1e-6)
    assert u.variance + u.variance_aleatoric == pytest.approx(u.mean * (1 - u.mean), abs=1e-6)
    assert u.epistemic == pytest.approx(0.5 * u.total, abs=1e-5)
    assert OUTPUTS["uncertainty"](answer) == pytest.approx(np.full((1, 8, 12), 0.7))
    assert answer.scores["rim_uncertainty"] == pytest.approx(0.7) and answer.moments.samples == 1


def test_windows_stitch_what_is_stated(stating) -> None:
    """A constant is stitched to itself, and what holds of moments holds after it."""
    image = np.random.default_rng(0).normal(100, 20, (1, 70, 90)).astype(np.float32)
    u = assess(Model(stating, None, "", "code"), Case(image), [Network(True, own=0.7)]).uncertainty
    assert u.stated == pytest.approx(np.full((1, 70, 90), 0.7), abs=1e-6)
    assert u.variance == pytest.approx(0.25 * u.mean * (1 - u.mean), abs=1e-5)
    assert u.moments.sum_p.sum(0) == pytest.approx(np.ones((70, 90)), abs=1e-5)


def test_only_scores_that_mean_something_are_given(segmentation) -> None:
    plain = dataclasses.replace(segmentation, sites=())
    stating = dataclasses.replace(plain, states_moments=True)
    assert set(scores_of(plain)) == {"lack_of_soft_dice_confidence"}
    assert set(scores_of(stating)) == {"lack_of_soft_dice_confidence", "rim_epistemic", "rim_uncertainty"}
    assert "rim_uncertainty" not in scores_of(segmentation) and "sample_disagreement" in scores_of(segmentation)


def test_contract_and_policy_keep_first_passes(contract, segmentation, policy) -> None:
    assert parse_contract(json.loads(contract.dumps())) == contract
    assert contract.digest == segmentation.digest and contract.model_digest != segmentation.model_digest
    assert parse_policy(json.loads(policy.dumps())) == policy
    assert sampler_outputs(contract.of_first_pass)[3] == "sum_uncertainty"
    assert "sum_uncertainty" not in sampler_outputs(contract)


def test_a_classifier_cannot_state_moments(classification) -> None:
    with pytest.raises(ContractError, match="only a segmentation"):
        dataclasses.replace(classification, states_moments=True)


def test_a_health_probe_reaches_the_first_pass(contract, policy, case) -> None:
    """It names T, so that no case is decided by it; a first pass that is dead or answers nonsense is noticed."""
    model, sampler = Model(contract, policy, "", "code"), Network(False)
    probe_first_pass(model, case, [sampler], Network(True))
    for broken in (None, Network(True, fails=True), Network(True, own=float("nan"))):
        with pytest.raises(SamplerFailure):
            probe_first_pass(model, case, [sampler], broken)
    unused = Model(contract, dataclasses.replace(policy, stages=(THEN,)), "", "code")
    probe_first_pass(unused, case, [sampler], None)
    assert sampler.calls == 0


def test_a_first_pass_has_a_file_of_its_own_and_states_no_moments_of_a_classifier(contract, classification) -> None:
    with pytest.raises(ContractError, match="a file of its own"):
        dataclasses.replace(contract, first_pass=FirstPass("toy_sampler", "11" * 32))
    with pytest.raises(ContractError, match="only a segmentation"):
        dataclasses.replace(classification, first_pass=FirstPass("toyc_first_pass", "11" * 32, True))
