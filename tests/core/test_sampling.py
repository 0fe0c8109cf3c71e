import dataclasses
import json

import numpy as np
import pytest
from equipoise_core.assessment import Assessment
from equipoise_core.budget import MOST_AT_ONCE as TOGETHER
from equipoise_core.canonical import canonical_json
from equipoise_core.case import Case, Input, Model
from equipoise_core.contract import Activation
from equipoise_core.contract import Sampler as NamedSampler
from equipoise_core.decision import Route
from equipoise_core.errors import InvalidRequest, SamplerFailure
from equipoise_core.masks import draw_masks, mask_layout, unpack_masks
from equipoise_core.moments import Moments
from equipoise_core.monitoring import Monitoring
from equipoise_core.ood_distance import OodDistance
from equipoise_core.outputs import OUTPUTS
from equipoise_core.policy import Bounds, Guarantee, Policy, SensitiveRule, VolumeRule
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_core.recalibration import Isotonic, Temperature
from equipoise_core.sampling import assess, assess_all
from equipoise_core.stages import Stage, chunk_of
from equipoise_core.tiling import Tiling
from equipoise_core.validation import validate_answer
from scipy import special


@pytest.fixture
def model(segmentation):
    guarantee = Guarantee(0.1, 0.1, "Dice below 0.8", 9, 9, 0, "test")
    policy = Policy(segmentation.model_digest, "cd", (Stage(6, "sample_disagreement", 0.9),), guarantee)
    return Model(segmentation, policy, "", "code")


@pytest.fixture
def case():
    image = np.random.default_rng(0).normal(100, 20, (1, 7, 10)).astype(np.float32)
    return Case(image, spacing=(1.0, 1.1))


def said(answer):
    """Route and reason, in as many digits as people read."""
    return answer.decision.route, str(answer.decision.reason)


class Sampler:
    """A network in NumPy with the sampler's outputs: its channel mask shifts logits that grow with the image."""

    def __init__(self, contract, fail_at=None, spoil=False, background=0.0):
        self.contract, self.fail_at, self.spoil, self.background = contract, fail_at, spoil, background
        self.chunks, self.requests = [], []  # samples by image, images by request

    def __call__(self, image, masks):
        self.requests.append(len(image))
        each = [self.one(image[i : i + 1], masks[i : i + 1]) for i in range(len(image))]
        return {name: np.concatenate([outputs[name] for outputs in each]) for name in each[0]}

    def one(self, image, masks):
        if self.fail_at == len(self.chunks):
            raise SamplerFailure("out of memory")
        self.chunks.append(masks.shape[1])
        layout = mask_layout(self.contract, image.shape[2:])
        channel = unpack_masks(layout, masks[0])[0]  # [T, 5]
        outside = image[0, 0] < -1e5
        logits = np.stack([np.full_like(image[0, 0], self.background), image[0, 0], -image[0, 0]])[None] * 2.0
        p = special.softmax(logits + channel[:, :3, None, None] * 0.7, axis=1)
        if self.spoil:
            p[0, 0, 0, 0] = np.nan
        h = special.entr(p).sum(1, keepdims=True)
        volumes = np.where(outside, 0, p).sum((2, 3))
        return {
            "sum_p": p.sum(0)[None],
            "sum_p2": (p**2).sum(0)[None],
            "sum_entropy": h.sum(0)[None],
            "volumes": volumes[None],
        }


def test_the_whole_path_accepts_a_good_case(model, case):
    """Shapes, ranges and a route, in the image's own size though the network saw padding."""
    a = assess(model, case, [Sampler(model.contract)])
    assert a.decision.route is Route.ACCEPT
    shapes = {name: make(a).shape for name, make in OUTPUTS.items()}
    assert shapes["mean"] == shapes["variance"] == (3, 7, 10)
    assert shapes["labels"] == shapes["epistemic"] == shapes["aleatoric"] == (1, 7, 10)
    assert shapes["volume"] == (3, 4) and shapes["volume_total"] == (4,)
    for name in ("case_score", "samples_used", "route", "reason", "record"):
        assert shapes[name] == (1,)


class Shifted(Sampler):
    """A member of an ensemble: the same network with another bias."""

    def __init__(self, contract, shift):
        super().__init__(contract)
        self.shift, self.masks = shift, []

    def one(self, image, masks):
        self.masks.append(masks[0])
        return super().one(image + np.float32(self.shift), masks)


def ensemble(model, members):
    """The model with so many samplers, and the samplers."""
    contract = dataclasses.replace(
        model.contract, samplers=tuple(NamedSampler(f"toy_sampler_{i}", f"{i:02}" * 32) for i in range(members))
    )
    return dataclasses.replace(model, contract=contract), [Shifted(contract, 0.2 * i) for i in range(members)]


@pytest.mark.parametrize("chunk", [None, 1, 2, 4, 5])
def test_members_of_an_ensemble_share_the_samples_whatever_the_chunk(model, case, chunk):
    """Sample i comes from member i modulo their number, under the masks of sample i; all count alike."""
    model, members = ensemble(model, 4)
    a = assess(dataclasses.replace(model, at_most=chunk), case, members)
    assert a.moments.samples == 6
    masks = draw_masks(mask_layout(model.contract, (8, 12)), a.seed, model.contract.model_digest, 0, 6)
    for i, member in enumerate(members):
        assert np.array_equal(np.concatenate(member.masks), masks[i::4])
    alone = dataclasses.replace(
        model, contract=dataclasses.replace(model.contract, samplers=model.contract.samplers[:1])
    )
    by_hand = [
        Shifted(alone.contract, 0.2 * (i % 4))(padded(model, case), masks[None, i : i + 1])["sum_p"][0]
        for i in range(6)
    ]
    assert a.moments.sum_p == pytest.approx(np.sum(by_hand, axis=0)[:, :7, :10], abs=1e-5)


def padded(model, case):
    preprocessing = model.contract.preprocessing
    return preprocessing.pad(preprocessing.normalise(case.image))[None]


def test_samples_fewer_than_members_come_from_the_first_ones(model, case):
    """A caller's T of 2 with 4 members: two networks speak."""
    model, members = ensemble(model, 4)
    assert assess(model, dataclasses.replace(case, samples=2), members).moments.samples == 2
    assert [len(member.masks) for member in members] == [1, 1, 0, 0]


def test_a_member_that_fails_leads_to_review_or_to_an_error(model, case):
    """What one member could not draw is missing, whoever else answered."""
    model, members = ensemble(model, 2)
    members[1].fail_at = 1
    a = assess(dataclasses.replace(model, at_most=2), case, members)
    assert a.decision.route is Route.REVIEW and "out of memory" in str(a.decision.reason)
    model, members = ensemble(model, 2)
    members[0].fail_at = 0
    with pytest.raises(SamplerFailure):
        assess(model, case, members)


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 6, 100])
def test_chunks_change_nothing(model, case, chunk):
    """Invariant 1: same numbers and same decision, whatever the chunk."""
    whole = assess(model, case, [Sampler(model.contract)])
    sampler = Sampler(model.contract)
    parts = assess(dataclasses.replace(model, at_most=chunk), case, [sampler])
    assert sampler.chunks == [chunk_of((6,), chunk)] * (6 // chunk_of((6,), chunk))
    for name in ("mean", "variance", "epistemic", "volume"):
        np.testing.assert_allclose(OUTPUTS[name](parts), OUTPUTS[name](whole), atol=1e-6)
    assert said(parts) == said(whole)


def test_the_same_image_always_gets_the_same_answer(model, case):
    """The default seed is a hash of image and model; another image, model or seed draws other masks."""
    record = assess(model, case, [Sampler(model.contract)]).record
    assert record == assess(model, case, [Sampler(model.contract)]).record
    seeds = {
        record["seed"],
        assess(model, dataclasses.replace(case, image=case.image + 1), [Sampler(model.contract)]).record["seed"],
        assess(model, dataclasses.replace(case, seed=5), [Sampler(model.contract)]).record["seed"],
    }
    assert len(seeds) == 3


def test_volumes_ignore_padding_and_carry_the_unit(model, case):
    """Σ of probabilities over all classes is one per voxel inside: 70 voxels of 1.1 mm² are 0.077 'mL'."""
    a = assess(model, case, [Sampler(model.contract)])
    assert sum(a.volumes[name].mean for name in model.contract.classes) == pytest.approx(70 * 1.1 / 1000, rel=1e-6)
    total = a.volumes["total"]
    assert total.low <= total.mean <= total.high and total.sd > 0
    without = assess(model, dataclasses.replace(case, spacing=None), [Sampler(model.contract)])
    assert np.isnan(without.volumes["total"].mean) and without.decision.route is Route.REVIEW


@pytest.mark.parametrize(
    ("sampler", "words"),
    [({"fail_at": 1}, "out of memory"), ({"spoil": True}, "not finite")],
)
def test_what_went_wrong_while_sampling_is_reviewed(model, case, sampler, words):
    """A later chunk that fails, or a NaN, keeps the numbers there are and never accepts."""
    a = assess(dataclasses.replace(model, at_most=4), case, [Sampler(model.contract, **sampler)])
    assert a.decision.route is Route.REVIEW and words in str(a.decision.reason)
    json.loads(canonical_json(a.record))


def test_without_any_chunk_there_is_no_answer(model, case):
    """Nothing drawn, nothing said: an error, not numbers."""
    with pytest.raises(SamplerFailure):
        assess(model, case, [Sampler(model.contract, fail_at=0)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.zeros((7, 10), np.float32)}, "shape"),
        ({"image": np.zeros((2, 7, 10), np.float32)}, "channels"),
        ({"image": np.zeros((1, 0, 10), np.float32)}, "empty"),
        ({"image": np.broadcast_to(np.float32(0), (1, 2**14, 2**14))}, "at most"),
        ({"image": np.full((1, 7, 10), np.nan, np.float32)}, "NaN"),
        ({"image": np.full((1, 7, 10), -np.inf, np.float32)}, "infinite"),
        ({"samples": 0}, "between 1 and"),
        ({"samples": -3}, "between 1 and"),
        ({"samples": 10**6}, "between 1 and"),
        ({"spacing": (0.0, 1.0)}, "above 0"),
        ({"spacing": (float("nan"), 1.0)}, "above 0"),
    ],
)
def test_bad_input_says_what_to_do(model, case, change, words):
    """Every fault of the request is the caller's to mend, and is told so before anything is computed."""
    with pytest.raises(InvalidRequest, match=words):
        assess(model, dataclasses.replace(case, **change), [Sampler(model.contract)])


def test_the_record_names_everything_a_replay_needs(model, case):
    """Digests, seed, samples, scores, thresholds, route; and JSON can say all of it."""
    record = json.loads(canonical_json(assess(model, case, [Sampler(model.contract)]).record))
    assert record["model_digest"] == model.contract.model_digest
    assert record["policy_digest"] == model.policy.digest
    assert record["route"] == "accept" and record["samples"] == 6 and int(record["seed"]) >= 0
    assert record["scores"]["sample_disagreement"] == record["case_score"]


def test_a_constant_image_is_answered(model, case):
    """Nothing to normalise by is no reason to fail."""
    flat = dataclasses.replace(case, image=np.full((1, 7, 10), 3.0, np.float32))
    assert np.isfinite(assess(model, flat, [Sampler(model.contract)]).case_score)


def test_segmentation_only_outputs_are_known():
    """The names of the configuration's conditional outputs exist."""
    assert {"volume", "volume_total", "labels_sensitive"} <= set(OUTPUTS)


def staged(model, *stages):
    """The same model with these stages."""
    return dataclasses.replace(model, policy=dataclasses.replace(model.policy, stages=stages))


@pytest.fixture
def stopping(model):
    """The same model with a policy that can decide after 2 of 6 samples."""
    return staged(model, Stage(2, "sample_disagreement", 0.9), Stage(6, "sample_disagreement", 0.9))


def test_stops_at_the_stage_that_decides(stopping, case):
    """Two samples suffice far below the threshold, all six are drawn above it."""
    sampler = Sampler(stopping.contract)
    early = assess(stopping, case, [sampler])
    assert (early.moments.samples, sampler.chunks) == (2, [2])
    assert early.decision.route is Route.ACCEPT
    assert early.record["samples"] == 2 and early.record["samples_planned"] == 6
    near = Stage(2, "sample_disagreement", early.case_score - 1e-4)
    full = assess(staged(stopping, near, stopping.policy.stages[1]), case, [Sampler(stopping.contract)])
    assert (full.moments.samples, full.decision.route) == (6, Route.ACCEPT)
    hopeless = Stage(2, "sample_disagreement", early.case_score - 2e-4, early.case_score - 1e-4)
    reviewed = assess(staged(stopping, hopeless, stopping.policy.stages[1]), case, [Sampler(stopping.contract)])
    assert (reviewed.moments.samples, reviewed.decision.route) == (2, Route.REVIEW)


def test_the_first_samples_are_the_same_whether_it_stops_or_not(stopping, model, case):
    """Stopping only leaves samples out: what was drawn is what full T begins with."""
    early = assess(stopping, case, [Sampler(stopping.contract)])
    full = assess(dataclasses.replace(model, at_most=2), case, [Sampler(model.contract)])
    np.testing.assert_array_equal(early.moments.volumes, full.moments.volumes[:2])


def test_never_stops_early_where_the_caller_names_samples(stopping, case):
    """Whoever asks for six gets six, in chunks of the usual size, and no acceptance."""
    sampler = Sampler(stopping.contract)
    asked = assess(stopping, dataclasses.replace(case, samples=6), [sampler])
    assert (asked.moments.samples, asked.decision.route, sampler.chunks) == (6, Route.REVIEW, [2, 2, 2])


def test_never_stops_on_numbers_that_are_not_finite(stopping, case):
    """NaN is no reason to be content."""
    spoilt = assess(stopping, case, [Sampler(stopping.contract, spoil=True)])
    assert spoilt.decision.route is Route.REVIEW


def test_no_number_of_a_foreign_policy_is_used(stopping, case):
    """Neither its stages, nor its widening, nor its recalibration: it is for another model."""
    foreign = dataclasses.replace(
        stopping.policy,
        model_digest="ff" * 32,
        stages=(Stage(3, "sample_disagreement", 0.9),),
        recalibration=Temperature(5.0),
        volume=VolumeRule(0.9, {"left": 1000.0}, 9, "test"),
    )
    a = assess(dataclasses.replace(stopping, policy=foreign), case, [Sampler(stopping.contract)])
    assert (a.moments.samples, a.decision.route) == (6, Route.REVIEW)
    np.testing.assert_array_equal(a.calibrated, a.uncertainty.mean)
    assert a.volumes["left"].high < 100.0


def test_calibrated_and_sensitive_outputs_follow_the_policy(model, case):
    """A high temperature flattens without moving labels; a low threshold only adds foreground."""
    rule = SensitiveRule(0.05, 0.1, 9, "test")
    policy = dataclasses.replace(model.policy, recalibration=Temperature(3.0), sensitive=rule)
    a = assess(dataclasses.replace(model, policy=policy), case, [Sampler(model.contract, background=0.5)])
    assert a.calibrated.max() < a.uncertainty.mean.max()
    np.testing.assert_allclose(a.calibrated.sum(axis=0), 1.0)
    more, labels = OUTPUTS["labels_sensitive"](a), a.uncertainty.labels
    assert (more > 0).sum() > (labels > 0).sum()
    assert ((labels == 0) | (more == labels)).all()
    plain = assess(model, case, [Sampler(model.contract, background=0.5)])
    np.testing.assert_array_equal(OUTPUTS["labels_sensitive"](plain), labels)


@pytest.mark.parametrize(("activation", "expected"), [(Activation.SOFTMAX, 0.22 / 0.86), (Activation.SIGMOID, 0.28)])
def test_the_recorded_confidence_is_that_of_the_label_that_was_given(classification, case, activation, expected):
    """Isotonic tables may make another class the largest: the label stays, and its probability is what is recorded."""
    tables = (((0.45, 0.22), (0.5, 0.3)), ((0.40, 0.5), (0.6, 0.6)), ((0.15, 0.14), (0.9, 0.28)))
    three = dataclasses.replace(classification, classes=("a", "b", "c"), activation=activation)
    policy = Policy(three.model_digest, "cd", (Stage(6, "lack_of_confidence"),), recalibration=Isotonic(tables))
    p = np.array([0.45, 0.40, 0.9]) if activation is Activation.SIGMOID else np.array([0.45, 0.40, 0.15])
    moments = Moments(6, 6 * p, 6 * p**2, 6 * np.array([0.1]), np.empty((6, 0)))
    answer = Assessment(Model(three, policy, "", "code"), case, 0, None, moments, 6, last=True)
    assert answer.calibrated.argmax() == 1
    assert answer.confidence == pytest.approx(expected)


def test_an_image_that_looks_strange_is_rejected_without_more_samples(stopping, case):
    """What no sample can change needs no more of them."""
    names = tuple(sorted(assess(stopping, case, [Sampler(stopping.contract)]).input.statistics))
    n = len(names)
    identity = tuple(tuple(float(i == j) for j in range(n)) for i in range(n))
    strange = OodDistance(names, (100.0,) * n, (1.0,) * n, (0.0,) * n, identity)
    policy = dataclasses.replace(
        stopping.policy, ood_distance=strange, suitable=Bounds({"ood_distance": (0.0, 2.0)}, "test")
    )
    a = assess(dataclasses.replace(stopping, policy=policy), case, [Sampler(stopping.contract)])
    assert (a.decision.route, a.moments.samples) == (Route.REJECT, 2)
    assert "ood_distance" in str(a.decision.reason)
    unknown = dataclasses.replace(strange, names=("nobody knows", *names[1:]))
    a = assess(
        dataclasses.replace(stopping, policy=dataclasses.replace(policy, ood_distance=unknown)),
        case,
        [Sampler(stopping.contract)],
    )
    assert a.decision.route is Route.REVIEW


def test_a_large_image_equals_all_its_samples_stitched_one_by_one(model):
    """Windows share the masks of their sample; the moments are those of the stitched samples, not of the windows."""
    small = dataclasses.replace(model.contract, maximum=(16, 18))
    model = dataclasses.replace(model, contract=small)
    case = Case(np.random.default_rng(3).normal(100, 20, (1, 30, 41)).astype(np.float32), samples=3, spacing=(1.0, 1.1))
    sampler = Sampler(small)
    a = assess(model, case, [sampler])

    tiling = Tiling((32, 44), (16, 16))
    whole = small.preprocessing.pad(small.preprocessing.normalise(case.image))
    masks = draw_masks(mask_layout(small, (16, 16)), a.seed, small.model_digest, 0, 3)
    samples = []
    for mask in masks:
        total, weight = np.zeros((3, 32, 44)), np.zeros((32, 44))
        for x, y in tiling.starts:
            window = (slice(None), slice(x, x + 16), slice(y, y + 16))
            total[window] += Sampler(small)(whole[window][None], mask[None, None])["sum_p"][0] * tiling.weights
            weight[window[1:]] += tiling.weights
        samples.append((total / weight)[:, :30, :41])
    p = np.array(samples)
    assert a.moments.samples == 3 and len(tiling.starts) > 4
    assert a.moments.sum_p == pytest.approx(p.sum(0), abs=1e-5)
    assert a.moments.sum_p2 == pytest.approx((p**2).sum(0), abs=1e-5)
    assert a.moments.sum_entropy[0] == pytest.approx(special.entr(p).sum(1).sum(0), abs=1e-4)
    assert a.moments.volumes == pytest.approx(p.sum((2, 3)), rel=1e-5)


def test_an_image_beyond_what_the_network_is_given_is_never_accepted(model, case):
    """Of 16-bit values as they are 30000 and 65535 would become the same; padding is no intensity."""
    as_it_is = dataclasses.replace(
        model.contract, preprocessing=dataclasses.replace(model.contract.preprocessing, steps=())
    )
    policy = dataclasses.replace(model.policy, model_digest=as_it_is.model_digest, suitable=Bounds({}, "test"),
                                 typical=Bounds({}, "test"))  # fmt: skip
    model = dataclasses.replace(model, contract=as_it_is, policy=policy)
    image = case.image.copy()
    for value, code in ((9_000.0, None), (30_000.0, "clipped"), (-65_535.0, "clipped")):
        image[0, 0, 0] = value
        decision = assess(model, dataclasses.replace(case, image=image), [Sampler(as_it_is)]).decision
        assert (decision.reason.code == "clipped") == (code == "clipped"), decision
        if code:
            assert decision.route is Route.REVIEW
    padded = Input("0", np.full((1, 2, 2), PADDING_VALUE, np.float32))
    assert padded.problems == ()


def test_an_answer_put_together_of_windows_is_never_accepted(model, case):
    """Policies are made on images that the network sees whole; one voxel more is another procedure."""
    large = dataclasses.replace(case, image=np.tile(case.image, (1, 3, 2)))
    assert assess(model, large, [Sampler(model.contract)]).decision.route is Route.ACCEPT
    contract = dataclasses.replace(model.contract, maximum=(20, 64))
    policy = dataclasses.replace(model.policy, model_digest=contract.model_digest)
    a = assess(dataclasses.replace(model, contract=contract, policy=policy), large, [Sampler(contract)])
    assert a.decision.route is Route.REVIEW and "windows" in str(a.decision.reason)


def test_what_does_not_fit_into_one_answer_is_refused_before_anything_is_drawn(segmentation):
    """The message says how large it would be, and what to ask for instead."""
    large = Case(np.broadcast_to(np.float32(1.0), (1, 10000, 10000)))
    validate_answer(segmentation, [large], ["labels", "case_score"])
    with pytest.raises(InvalidRequest, match=r"2\.2 GiB.*labels have 0\.19 GiB"):
        validate_answer(segmentation, [large, large], ["mean"])


def test_a_classifier_never_takes_windows(classification):
    model = Model(classification, None, "", "code")
    with pytest.raises(InvalidRequest, match="expects exactly"):
        assess(model, Case(np.zeros((1, 16, 8), np.float32)), [None])


def test_an_audit_marks_accepted_cases_only_and_stands_in_the_record(model, case):
    """With a share of 1 every accepted case is marked; one that goes to review has its expert anyway."""
    watched = Monitoring(1.0, {"sample_disagreement": tuple(np.linspace(0.0, 0.5, 11))})
    watching = dataclasses.replace(model, policy=dataclasses.replace(model.policy, monitoring=watched))
    a = assess(watching, case, [Sampler(model.contract)])
    assert (a.decision.route, a.audited, a.record["audit"]) == (Route.ACCEPT, True, True)
    assert set(a.ranks) == {"sample_disagreement"}
    reviewed = assess(watching, dataclasses.replace(case, spacing=None), [Sampler(model.contract)])
    assert (reviewed.decision.route, reviewed.record["audit"]) == (Route.REVIEW, False)
    assert assess(model, case, [Sampler(model.contract)]).record["audit"] is False


def some_cases(case, count):
    """Images that differ, and so their seeds."""
    images = (np.random.default_rng(i).normal(100, 20, case.image.shape).astype(np.float32) for i in range(count))
    return [dataclasses.replace(case, image=image) for image in images]


def assert_equal(found, expected):
    """To the letter, but for the last bits of sums."""
    assert [a.record["input_digest"] for a in found] == [a.record["input_digest"] for a in expected]
    for one, other in zip(found, expected, strict=True):
        assert said(one) == said(other)
        assert one.moments.samples == other.moments.samples
        for name in ("mean", "variance", "epistemic", "volume"):
            np.testing.assert_allclose(OUTPUTS[name](one), OUTPUTS[name](other), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, TOGETHER, TOGETHER + 1, 2 * TOGETHER + 1])
def test_cases_that_share_sampler_requests_are_answered_as_alone(model, case, count):
    """Each under its own masks, in its own place; there are as few requests as can be."""
    cases, sampler = some_cases(case, count), Sampler(model.contract)
    together = assess_all(model, cases, [sampler])
    assert_equal(together, [assess(model, each, [Sampler(model.contract)]) for each in cases])
    assert len({a.seed for a in together}) == count
    assert len(sampler.chunks) == count
    whole, rest = divmod(count, TOGETHER)
    assert sampler.requests == [TOGETHER] * whole + [rest] * bool(rest)


def test_only_cases_of_the_same_size_and_number_of_samples_share_requests(model, case):
    """The rest of a mix is sampled apart, and every answer stands where its case stood."""
    kinds = [{"samples": 2}, {}, {"samples": 2}, {"samples": 6}, {"image": case.image[:, :4, :4]}, {}]
    cases = [dataclasses.replace(one, **kind) for one, kind in zip(some_cases(case, len(kinds)), kinds, strict=True)]
    together = assess_all(model, cases, [Sampler(model.contract)])
    assert [a.moments.samples for a in together] == [2, 6, 2, 6, 6, 6]
    assert_equal(together, [assess(model, each, [Sampler(model.contract)]) for each in cases])


def undecided_above(model, cases, place):
    """Stages of 2 and 6 samples; after 2 the cases of the highest scores, from `place` on, are left open."""
    scores = sorted(assess(model, each, [Sampler(model.contract)]).case_score for each in cases)
    first = Stage(2, "sample_disagreement", (scores[place - 1] + scores[place]) / 2)
    return staged(model, first, Stage(6, "sample_disagreement", 0.9))


def test_each_case_stops_by_itself(stopping, case):
    """One that needs all its samples gets them; those that suffice with two cost no more."""
    cases = some_cases(case, 3)
    model = undecided_above(stopping, cases, 2)
    sampler = Sampler(model.contract)
    together = assess_all(model, cases, [sampler])
    assert sorted(a.moments.samples for a in together) == [2, 2, 6]
    assert sum(sampler.chunks) == 10
    assert_equal(together, [assess(model, each, [Sampler(model.contract)]) for each in cases])


@pytest.mark.parametrize("fail_at", [0, 3])
def test_what_fails_for_cases_together_is_no_answer_or_review(model, case, fail_at):
    """Nothing drawn: an error. Some drawn: all that shared the request are for review."""
    cases, sampler = some_cases(case, 3), Sampler(model.contract, fail_at=fail_at)
    model = dataclasses.replace(model, at_most=2)
    if fail_at == 0:
        with pytest.raises(SamplerFailure):
            assess_all(model, cases, [sampler])
    else:
        answers = assess_all(model, cases, [sampler])
        assert {a.decision.route for a in answers} == {Route.REVIEW}
        assert all("out of memory" in str(a.decision.reason) for a in answers)


def test_members_of_an_ensemble_share_the_samples_of_each_case(model, case):
    """Four members, three cases: as one after the other."""
    model, members = ensemble(model, 4)
    cases = some_cases(case, 3)
    together = assess_all(dataclasses.replace(model, at_most=4), cases, members)
    assert_equal(together, [assess(model, each, ensemble(model, 4)[1]) for each in cases])


def test_large_images_of_one_request_are_sampled_one_after_the_other(model):
    """Their windows fill the requests by themselves."""
    large = dataclasses.replace(model, contract=dataclasses.replace(model.contract, maximum=(16, 18)))
    images = np.random.default_rng(3).normal(100, 20, (2, 1, 40, 60)).astype(np.float32)
    cases, sampler = [Case(image, samples=2) for image in images], Sampler(large.contract)
    together = assess_all(large, cases, [sampler])
    alone = [assess(large, each, [Sampler(large.contract)]) for each in cases]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.uncertainty.mean, other.uncertainty.mean)
    assert max(sampler.requests) == TOGETHER


class Spoiling(Sampler):
    """NaN for one image of several, by its place in the first request."""

    def __init__(self, contract, place):
        super().__init__(contract)
        self.place = place

    def __call__(self, image, masks):
        outputs = super().__call__(image, masks)
        outputs["sum_p"][self.place, 0, 0, 0] = np.nan
        return outputs


def test_what_is_not_finite_spoils_its_own_image_alone(model, case):
    """The others of its request are answered as if it had not been there."""
    cases = some_cases(case, 3)
    spoilt = assess_all(model, cases, [Spoiling(model.contract, 1)])
    sound = [assess(model, each, [Sampler(model.contract)]) for each in cases]
    assert [a.decision.route for a in spoilt] == [Route.ACCEPT, Route.REVIEW, Route.ACCEPT]
    assert "not finite" in str(spoilt[1].decision.reason)
    assert_equal(spoilt[::2], sound[::2])


def test_a_chunk_that_fails_does_not_touch_who_had_enough(stopping, case):
    """Two samples sufficed for some; what fails later is for those alone that it was for."""
    cases = some_cases(case, 3)
    model = undecided_above(stopping, cases, 2)
    whole = assess_all(model, cases, [Sampler(model.contract)])
    failing = assess_all(model, cases, [Sampler(model.contract, fail_at=3)])
    assert sorted(a.moments.samples for a in failing) == [2, 2, 2]
    for before, after in zip(whole, failing, strict=True):
        if before.moments.samples == 2:
            assert after.decision == before.decision
        else:
            assert after.decision.route is Route.REVIEW and "out of memory" in str(after.decision.reason)
