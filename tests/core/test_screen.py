"""Networks that state their own moments, and screens: one cheap pass before any sample is drawn."""

import dataclasses
import json

import numpy as np
import pytest
from equipoise_core.case import Case, Model
from equipoise_core.contract import Contract, ContractError, Screen, parse_contract
from equipoise_core.decision import Route
from equipoise_core.errors import SamplerFailure
from equipoise_core.moments import sampler_outputs
from equipoise_core.outputs import OUTPUTS
from equipoise_core.policy import AcceptRule, Bounds, Policy, parse_policy
from equipoise_core.sampling import assess, assess_all
from equipoise_core.scores import scores_of
from scipy import special


@pytest.fixture
def contract(segmentation) -> Contract:
    return dataclasses.replace(segmentation, screen=Screen("toy_screen", "11" * 32, True))


def rule(score: str, threshold: float) -> AcceptRule:
    return AcceptRule(score, threshold, "Dice below 0.8", 9, 9, 0, "test")


@pytest.fixture
def policy(contract) -> Policy:
    """Both accept nearly anything; the bound on a score of samples would hold back any single pass."""
    return Policy(
        contract.model_digest, "cd", 6, rule("sample_disagreement", 0.99),
        typical=Bounds({"sample_disagreement": (0.0, 0.99), "foreground_share": (0.0, 3.0)}, "test"),
        screen=rule("rim_uncertainty", 10.0),
    )  # fmt: skip


@pytest.fixture
def case() -> Case:
    image = np.random.default_rng(0).normal(100, 20, (1, 8, 12)).astype(np.float32)
    return Case(image, spacing=(1.0, 1.1))


class Network:
    """A sampler in NumPy whose answer grows with the image; `stated` makes it give its own moments."""

    def __init__(self, stated: bool, own: float = 1.0, fails: bool = False) -> None:
        self.stated, self.own, self.fails, self.calls = stated, own, fails, 0

    def __call__(self, image, masks):
        if self.fails:
            raise SamplerFailure("out of memory")
        assert (masks is None) == self.stated
        self.calls += 1
        z = np.stack([np.zeros_like(image[:, 0]), image[:, 0], -image[:, 0]], 1)  # [N, 3, H, W]
        p = special.softmax(z * 2, axis=1)
        h = special.entr(p).sum(1, keepdims=True)
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


def run(contract, policy, case, screen, sampler=None):
    sampler = sampler or Network(False)
    return assess(Model(contract, policy, "", "code"), case, [sampler], screen=screen), sampler


def test_what_the_screen_accepts_draws_no_sample(contract, policy, case) -> None:
    answer, sampler = run(contract, policy, case, Network(True))
    assert answer.decision.route is Route.ACCEPT and sampler.calls == 0
    assert OUTPUTS["samples_used"](answer).tolist() == [1]
    assert answer.record["screened"] and answer.record["masks_plan"] == "none"
    assert answer.record["score"] == "rim_uncertainty" and answer.record["threshold"] == 10.0
    assert answer.record["model_digest"] == contract.model_digest


def test_what_the_screen_leaves_open_is_sampled(contract, policy, case) -> None:
    answer, sampler = run(contract, policy, case, Network(True, own=11.0))
    assert sampler.calls == 1 and answer.moments.samples == 6
    assert answer.decision.route is Route.ACCEPT and not answer.record["screened"]
    assert answer.record["score"] == "sample_disagreement"


class Picky(Network):
    """A screen that is sure of images that begin with a bright pixel."""

    def __call__(self, image, masks):
        outputs = super().__call__(image, masks)
        return {
            **outputs,
            "sum_uncertainty": np.where(image[:, :1, :1, :1] > 0, 1.0, 11.0) * np.ones_like(outputs["sum_uncertainty"]),
        }


def test_of_several_cases_each_gets_its_own_way(contract, policy, case) -> None:
    """Some are decided by the screen, the others are sampled together; each answer stands where its case stood."""
    model, sampler = Model(contract, policy, "", "code"), Network(False)
    images = [np.random.default_rng(i).normal(100, 20, (1, 8, 12)).astype(np.float32) for i in range(6)]
    for i, image in enumerate(images):
        image[0, 0, 0] = 200.0 if i in (1, 4) else 0.0
    cases = [dataclasses.replace(case, image=image) for image in images]
    answers = assess_all(model, cases, [sampler], screen=Picky(True))
    assert [a.screened for a in answers] == [False, True, False, False, True, False]
    assert sampler.calls == 1
    for answer, one in zip(answers, cases, strict=True):
        alone = assess(model, one, [Network(False)], screen=Picky(True))
        assert answer.record == alone.record


@pytest.mark.parametrize("screen", [None, Network(True, fails=True)], ids=["missing", "failing"])
def test_without_its_screen_nothing_is_accepted(contract, policy, case, screen) -> None:
    answer, sampler = run(contract, policy, case, screen)
    assert sampler.calls == 1 and answer.decision.route is Route.REVIEW
    assert answer.decision.reason.startswith("the screen: ")


@pytest.mark.parametrize("named", [{"samples": 6}, {"seed": 3}])
def test_a_caller_who_names_samples_or_seed_gets_samples(contract, policy, case, named) -> None:
    screen = Network(True)
    answer, sampler = run(contract, policy, dataclasses.replace(case, **named), screen)
    assert screen.calls == 0 and sampler.calls == 1 and not answer.record["screened"]


@pytest.mark.parametrize("change", [{"screen": None}, {"model_digest": "another"}], ids=["no rule", "foreign"])
def test_a_policy_that_says_nothing_of_the_screen_does_not_run_it(contract, policy, case, change) -> None:
    screen = Network(True)
    _, sampler = run(contract, dataclasses.replace(policy, **change), case, screen)
    assert screen.calls == 0 and sampler.calls == 1


@pytest.mark.parametrize(
    "change",
    [
        {"typical": Bounds({"foreground_share": (0.0, 1e-9)}, "test")},
        {"screen": rule("rim_uncertainty", 0.5)},
        {"screen": rule("sample_disagreement", 10.0)},
    ],
    ids=["unlike", "above", "a score that one pass has not"],
)
def test_the_screen_accepts_nothing_that_speaks_against_it(contract, policy, case, change) -> None:
    _, sampler = run(contract, dataclasses.replace(policy, **change), case, Network(True))
    assert sampler.calls == 1


def test_a_screen_that_answers_nonsense_lets_nothing_be_accepted(contract, policy, case) -> None:
    """Neither by itself nor by the samples after it: its answer is part of what the policy's guarantee rests on."""
    answer, sampler = run(contract, policy, case, Network(True, own=float("nan")))
    assert sampler.calls == 1 and not answer.record["screened"]
    assert answer.decision.route is Route.REVIEW and answer.decision.reason.startswith("the screen: ")


def test_what_is_unsuitable_is_rejected_by_the_screen_alone(contract, policy, case) -> None:
    far = dataclasses.replace(policy, suitable=Bounds({"foreground_share": (5.0, 6.0)}, "test"))
    answer, sampler = run(contract, far, case, Network(True))
    assert answer.decision.route is Route.REJECT and sampler.calls == 0


def test_missing_spacing_is_no_acceptance_by_a_screen(contract, policy, case) -> None:
    answer, _ = run(contract, policy, dataclasses.replace(case, spacing=None), Network(True))
    assert answer.decision.route is Route.REVIEW


def test_a_large_image_is_not_accepted_by_a_screen(contract, policy) -> None:
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


def test_contract_and_policy_keep_screens_and_old_digests(contract, segmentation, policy) -> None:
    assert parse_contract(json.loads(contract.dumps())) == contract
    assert contract.digest == segmentation.digest and contract.model_digest != segmentation.model_digest
    assert parse_policy(json.loads(policy.dumps())) == policy
    assert "screen" not in dataclasses.replace(policy, screen=None).document()
    assert "states_moments" not in segmentation.document()
    assert sampler_outputs(contract.screening)[3] == "sum_uncertainty" and "sum_uncertainty" not in sampler_outputs(
        contract
    )


def test_a_classifier_cannot_state_moments(classification) -> None:
    with pytest.raises(ContractError, match="only a segmentation"):
        dataclasses.replace(classification, states_moments=True)
