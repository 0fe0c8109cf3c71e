"""Intervals in closed form, resampling by patient, and what a difference takes to be called one."""

from dataclasses import replace

import numpy as np
import pytest
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.policy import Policy
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.stages import Stage
from equipoise_core.steps import ZScore
from equipoise_export.calibration.choose import ChosenPolicy
from equipoise_export.calibration.resample import CELLS, estimate
from equipoise_export.calibration.sums import calibration_sums
from equipoise_export.calibration.sums import mean as weighted_mean
from equipoise_lab.compare import figures as named
from equipoise_lab.compare.bootstrap import bootstrap, differences, resample
from equipoise_lab.compare.figures import Figure, figures
from equipoise_lab.compare.results import Results

CONTRACT = Contract(
    "toy", Task.CLASSIFICATION, Activation.SOFTMAX, ("normal", "ill"), 1, (8, 8), (8, 8), (8, 8),
    Preprocessing((ZScore(),)), (),
)  # fmt: skip
NOTHING = Policy("", "", (Stage(20, "lack_of_confidence"),))


def answers(name="toy", n=200, seed=0, better=0.0, shifted=40):
    """A classifier whose score says how likely it is wrong; `better`: how much less often."""
    random = np.random.default_rng(seed)
    draw, score = random.random(n), random.uniform(0.05, 0.45, n)
    loss = (draw < score - better).astype(float)
    p = np.stack([1 - score, score], axis=1)
    sums = calibration_sums([(a[None], np.eye(2)[[int(b)]]) for a, b in zip(p, loss, strict=True)], True)
    patients = tuple(f"{index}" for index in range(n))
    zeros = np.zeros(n)
    return Results(
        name, ChosenPolicy(CONTRACT, NOTHING, "lack_of_confidence", None, "nothing"), patients,
        tuple(f"s{index}" for index in range(shifted)), 20, 1 - loss, loss, score,
        0.6 + 0.1 * random.random(shifted), random.random(n), random.random(shifted), zeros, zeros + 20.0,
        {"total": 1 - loss}, {"total": score}, sums, sums, np.full(n, np.nan),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found():
    """A model, the same under another name, and a much better one."""
    every = [answers("a"), answers("same"), answers("good", better=0.4)]
    return every, bootstrap(every, figures(every, False), 2000, 0)


def test_the_interval_of_a_mean_is_the_normal_one():
    """±1.96 standard errors, as the central limit theorem has it for 400 cases."""
    one = answers(n=400)
    figure = Figure("mean", "mean", "", "lower", lambda a, w: weighted_mean(a.score, w.test))
    (got,) = bootstrap([one], [figure], 4000, 1)
    of = got.estimate(0)
    reach = 1.96 * one.score.std() / np.sqrt(400)
    assert of.value == pytest.approx(one.score.mean())
    assert [of.low, of.high] == pytest.approx([of.value - reach, of.value + reach], abs=0.1 * reach)


def test_cases_of_one_patient_count_as_one():
    """Every case four times over is no more evidence: the interval stays as wide."""
    one = answers(n=100)
    four = replace(one, **{
        name: np.repeat(getattr(one, name), 4)
        for name in ("quality", "loss", "score", "ood_distance", "accepted", "samples")
    }, patients=tuple(np.repeat(one.patients, 4)))  # fmt: skip
    figure = Figure("mean", "mean", "", None, lambda a, w: weighted_mean(a.score, w.test))
    (single,), (repeated,) = (bootstrap([each], [figure], 2000, 3) for each in (one, four))
    assert repeated.draws[0] == pytest.approx(single.draws[0], rel=1e-12)


def test_whole_patients_are_drawn_and_as_many_as_there_are():
    """Cases of a patient have one weight; shifted images of the same patients go with them, others on their own."""
    patients, same = ["a", "a", "b", "c"], ["a", "b", "c"]
    (weights,) = resample(patients, same, 50, 0)
    assert (weights.test[:, 0] == weights.test[:, 1]).all()
    assert (weights.test[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (weights.shifted == weights.test[:, [0, 2, 3]]).all()
    (weights,) = resample(patients, ["x", "y"], 50, 0)
    assert (weights.shifted.sum(axis=1) == 2).all()
    (weights,) = resample(patients, [], 50, 0)
    assert weights.shifted.shape == (50, 0)


def test_blocks_add_up(monkeypatch):
    """However few fit into memory at once, there are as many resamples as were asked for."""
    monkeypatch.setattr("equipoise_export.calibration.resample.CELLS", 40)
    blocks = list(resample(["a", "b", "c"], ["x"], 25, 0))
    assert len(blocks) == 3 and sum(len(block.test) for block in blocks) == 25
    assert CELLS > 40


def test_a_model_does_not_differ_from_itself(found):
    """Exactly 0 in every figure and every resample, and no sentence claims anything."""
    every, resampled = found
    for each in differences(every, resampled):
        if each.model == "same" and each.of.value is not None:
            assert (each.of.value, each.of.low, each.of.high) == (0.0, 0.0, 0.0)
            assert not each.shown
            assert "no difference shown between same and a" in each.words


def test_a_difference_is_put_in_words_only_where_its_joint_interval_excludes_zero(found):
    """And names the direction; two models are compared with the first, so each has 97.5 %."""
    every, resampled = found
    told = {each.figure: each for each in differences(every, resampled) if each.model == "good"}
    assert told["accuracy"].shown
    assert told["accuracy"].words.startswith("good has a higher accuracy than a: +0.2")
    assert told["aurc"].words.startswith("good has a lower AURC than a: −0.")
    assert told["aurc"].joint.low < told["aurc"].of.low < told["aurc"].of.high < told["aurc"].joint.high
    assert not told["auroc_shifted"].shown
    assert told["auroc_shifted"].words == "AUROC shifted: no difference shown between good and a"
    for each in told.values():
        known = each.joint.low is not None
        assert each.shown == (known and (each.joint.low > 0 or each.joint.high < 0))


def test_only_figures_with_a_better_side_are_ranked(found):
    """Coverage is wanted at its level, neither high nor low; ood_distance knows nothing of the model."""
    every, resampled = found
    ranked = {each.figure for each in differences(every, resampled)}
    assert not ranked & {"coverage_total", "auroc_shifted_ood_distance", "error_among_accepted"}
    assert ranked >= {
        "accuracy", "ece", "smooth_ece", "classwise_ece", "brier", "nll", "aurc", "e_aurc", "augrc", "risk_at_80",
        "auroc_errors", "accepted", "samples",
    }  # fmt: skip


def test_a_figure_that_does_not_exist_is_null_and_its_resamples_are_counted():
    """No wrong case at all, and one that some resamples miss."""
    right = answers(n=50, better=1.0)
    one_wrong = replace(right, loss=np.eye(50)[7])
    of = {}
    for name, each in (("right", right), ("one", one_wrong)):
        (auroc,) = (f for f in figures([each], False) if f.name == "auroc_errors")
        of[name] = bootstrap([each], [auroc], 1000, 0)[0].estimate(0)
    assert (of["right"].value, of["right"].low, of["right"].left_out) == (None, None, 1000)
    assert of["one"].value is not None and of["one"].low is not None
    assert of["one"].left_out / 1000 == pytest.approx((1 - 1 / 50) ** 50, abs=0.06)


def test_separated_shifted_scores_have_an_auroc_of_one(found):
    """Test scores stay below .45, shifted ones start at .6, in every resample."""
    _, resampled = found
    of = next(each for each in resampled if each.figure.name == "auroc_shifted").estimate(0)
    assert (of.value, of.low, of.high) == (1.0, 1.0, 1.0)


def test_models_without_a_volume_rule_have_no_coverage():
    """Null, beside a model that has one."""
    every = [answers("a"), replace(answers("b"), covered={}, width_ml={})]
    resampled = bootstrap(every, figures(every, False), 1000, 0)
    coverage = next(each for each in resampled if each.figure.name == "coverage_total")
    assert coverage.estimate(0).value is not None and coverage.estimate(1).value is None
    width = next(e for e in differences(every, resampled) if e.figure == "width_ml_total")
    assert not width.shown and "no figures to compare" in width.words


def test_the_baseline_stands_beside_the_score_where_samples_can_be_paired():
    """A score that ranks like the baseline differs by exactly nothing; a model without samples has neither figure, and
    where no model has them there is no column."""
    one = answers("a")
    every = [replace(one, pairwise=one.score * 2.0), replace(one, pairwise=1.0 - one.score), one]
    resampled = {each.figure.name: each for each in bootstrap(every, figures(every, True), 1000, 0)}
    less = resampled["aurc_less_pairwise_dice"]
    assert resampled["aurc_pairwise_dice"].values[0] == resampled["aurc"].values[0]
    assert (less.draws[0] == 0.0).all() and less.estimate(1).high < 0.0 and less.estimate(2).value is None
    assert resampled["augrc_pairwise_dice"].estimate(2).value is None
    assert not any("pairwise" in figure.name for figure in figures([one], True))


def test_weights_of_ones_are_the_figure_itself():
    """`ones` draws every case once."""
    one = answers()
    assert named.ones(one).test.shape == (1, 200) and named.ones(one).shifted.shape == (1, 40)


def test_an_interval_holds_its_share_of_the_draws():
    """Percentiles of 1001 draws; those that are not finite are left out."""
    of = estimate(0.5, np.r_[np.linspace(0, 1, 1001), np.nan], 0.9)
    assert (of.low, of.high, of.left_out) == (pytest.approx(0.05), pytest.approx(0.95), 1)
