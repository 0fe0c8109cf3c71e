"""Named corruptions: each does what it is called, and the report says under which of them a recalibration does harm."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from equipoise_core.case import Model
from equipoise_core.contract import Activation, Contract, Sampler, Site, SiteKind, Task
from equipoise_core.policy import Guarantee, Policy
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.recalibration import Temperature
from equipoise_core.stages import Stage
from equipoise_core.steps import ZScore
from equipoise_export.calibration.cases import Labelled, measure
from equipoise_export.calibration.choose import ChosenPolicy
from equipoise_export.calibration.corrupted import AS_THEY_ARE, Corrupted, under_corruptions, verdict
from equipoise_export.calibration.corruptions import (
    CORRUPTIONS,
    bent,
    blurred,
    corruptions_of,
    gaussian,
    ghosted,
    rician,
)
from equipoise_export.calibration.figures import judge
from equipoise_export.calibration.gain import Gain
from equipoise_export.calibration.report.statistics import corrupted as section

CONTRACT = Contract(
    "toy", Task.CLASSIFICATION, Activation.SOFTMAX, ("smooth", "rough"), 1, (16, 16), (16, 16), (16, 16),
    Preprocessing((ZScore(),)), (Site("head", SiteKind.ELEMENT, (8,), 0.5),), samples=4,
    samplers=(Sampler("toy_sampler", "00" * 32),),
)  # fmt: skip
GAIN = Gain("temperature", 0.1, 0.05, 0.01, 0.09, 50)


def sees_roughness(images, masks):
    """85 % for rough where neighbours differ as in a fine pattern, else 85 % for smooth; masks change little."""
    differ = np.abs(np.diff(images[:, 0], axis=2)).mean(axis=(1, 2))
    p = np.where(differ > 0.8, 0.85, 0.15)
    noise = 0.02 * (np.unpackbits(masks, axis=2).mean(axis=2) - 0.5)
    rough = p[:, None] + noise
    return {"probabilities": np.stack([1 - rough, rough], axis=2).astype(np.float32)}


def drawn(n):
    """In turn a fine pattern and a slope, under a little noise."""
    random, (y, x) = np.random.default_rng(0), np.mgrid[:16, :16]
    for index in range(n):
        rough = index % 2
        image = (100.0 * ((x + y) % 2) if rough else 6.0 * x) + random.normal(0, 2, (16, 16))
        yield Labelled(f"case {index}", f"patient {index}", image[None].astype(np.float32), np.uint8(rough))


@pytest.fixture(scope="module")
def world():
    """The model, a policy that accepts everything and sharpens probabilities, and 40 pilot cases as it judges them."""
    guarantee = Guarantee(0.1, 0.1, "wrong label", 40, 40, 0, "made up")
    stages = (Stage(4, "lack_of_confidence", 0.45),)
    policy = Policy(CONTRACT.model_digest, "", stages, guarantee, recalibration=Temperature(0.4))
    chosen = ChosenPolicy(CONTRACT, policy, "lack_of_confidence", None, "", (GAIN,))
    model, cases = Model(CONTRACT, None, "", ""), list(drawn(40))
    judged = judge(CONTRACT, chosen, [measure(model, case, [sees_roughness], 0.8) for case in cases])
    return model, chosen, list(zip(cases, judged, strict=True))


def test_the_corruption_that_turns_a_gain_into_harm_is_named(world):
    """Blur removes the fine pattern: what was rough is now called smooth, and surely so. Nothing else changes it."""
    model, chosen, cases = world
    rows = under_corruptions(model, chosen, cases, [sees_roughness], None, 0.8, measured=600)
    by_name = {row.name: row for row in rows}
    assert rows[0].name == AS_THEY_ARE and list(by_name)[1:] == [name for name, _ in corruptions_of(CONTRACT)]
    assert all(row.cases == row.accepted == 40 for row in rows)
    clean, blur = by_name[AS_THEY_ARE], by_name["blur of 1.5 voxels"]
    assert clean.gain.low > 0.0 and clean.wrong == 0
    assert blur.gain.high < 0.0 and (blur.wrong, blur.error["share"]) == (20, 0.5)
    assert blur.raw["ece"] == pytest.approx(0.35, abs=0.02) and blur.recalibrated["ece"] > blur.raw["ece"] + 0.1
    assert blur.raw["smooth_ece"] == pytest.approx(blur.raw["ece"], abs=0.01)
    p = np.array([0.15, 0.85])  # half of the cases right at .85, half wrong
    assert blur.brier == pytest.approx(np.mean([2 * p[0] ** 2, 2 * p[1] ** 2]), abs=0.02)
    said = verdict(rows)
    assert said.startswith("The recalibrated probability is worse than the mean over samples clearly under ")
    assert "blur of 1.5 voxels" in said and "contrast" not in said and "noise of 0.1" not in said
    assert json.dumps([asdict(row) for row in rows], allow_nan=False)


def test_the_same_images_each_time_and_no_more_than_are_asked_for(world):
    """The number of cases follows from how many were measured, and never passes its bounds; one of each patient."""
    model, chosen, cases = world
    calls = []

    def counted(images, masks):
        calls.append(images.copy())
        return sees_roughness(images, masks)

    once, again = (under_corruptions(model, chosen, cases, [counted], None, 0.8, measured=100) for _ in range(2))
    assert once == again and {row.cases for row in once} == {8}
    assert len(calls) == 2 * 8 * (len(once) - 1)
    twice = cases + [(replace(case, name=f"{case.name} again"), of) for case, of in cases]
    many = under_corruptions(model, chosen, twice, [sees_roughness], None, 0.8, measured=10**6)
    assert {row.cases for row in many} == {40}


def test_without_recalibration_the_mean_alone_is_told(world):
    """And nothing is called worse."""
    model, chosen, cases = world
    plain = replace(chosen, policy=replace(chosen.policy, recalibration=None))
    rows = under_corruptions(model, plain, cases, [sees_roughness], None, 0.8, measured=100)
    assert all(row.gain is None and not row.recalibrated for row in rows)
    assert verdict(rows) == "No recalibration is used: the figures are those of the mean over samples"
    assert verdict(()) == ""


def test_the_section_says_it_in_a_line_and_marks_harm(world):
    """With arrows and intervals where there is a recalibration, with the mean alone where there is none."""
    model, chosen, cases = world
    plain = replace(chosen, policy=replace(chosen.policy, recalibration=None))
    pages = []
    for which in (chosen, plain):
        rows = under_corruptions(model, which, cases, [sees_roughness], None, 0.8, measured=600)
        page = " ".join(section(SimpleNamespace(corrupted=rows, policy=which.policy)).split())
        assert page.startswith(f"<p><strong>{verdict(rows)}.</strong></p>") and "40 pilot cases" in page
        assert '<td>blur of 1.5 voxels</td><td class="n">40</td> <td class="n"><strong>20</strong></td>' in page
        pages.append(page)
    assert "→" in pages[0] and ">gain<" in pages[0] and "<strong>−0." in pages[0]
    assert "→" not in pages[1] and ">gain<" not in pages[1] and "None" not in pages[1]
    assert section(SimpleNamespace(corrupted=(), policy=chosen.policy)) == ""


def row(name, low, mean, high):
    gain = Gain("isotonic", 0.1, mean, low, high, 30)
    return Corrupted(name, 30, 20, 0, {"share": 0.0, "low": 0.0, "high": 0.2}, {}, {}, 0.1, gain)


def test_the_verdict_tells_what_is_clear_from_what_is_not():
    """By the interval; how the cases do as they are is no corruption."""
    here = row(AS_THEY_ARE, -0.2, -0.1, -0.05)
    assert verdict([here, row("blur", 0.0, 0.1, 0.2)]).endswith("under none of the corruptions")
    assert verdict([here, row("blur", -0.2, -0.1, -0.05), row("noise", -0.2, -0.1, 0.05)]).endswith(
        "clearly under blur and perhaps under noise (the interval includes 0)"
    )


def test_mr_images_get_what_occurs_in_mr():
    """Rician noise and ghosts instead of Gaussian noise; each at two strengths."""
    mr, other = ([name for name, _ in corruptions_of(replace(CONTRACT, modalities=of))] for of in (("MR",), ("CR",)))
    assert "ghosting of 0.3" in mr and "Rician noise of 0.1 sd" in mr and "noise of 0.1 sd" not in mr
    assert other == [
        "noise of 0.1 sd", "noise of 0.3 sd", "blur of 0.7 voxels", "blur of 1.5 voxels", "contrast of gamma 0.7",
        "contrast of gamma 1.5",
    ]  # fmt: skip
    assert all(len(each.strengths) == 2 for each in CORRUPTIONS)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 32, 32), (1, 20, 24, 16)])
def test_each_corruption_does_what_its_name_says(shape):
    """In 2D, in colour and in 3D; the image itself stays as it was, and an empty one stays finite."""
    random = np.random.default_rng(1)
    image = (50 + 20 * random.random(shape)).astype(np.float32)
    before = image.copy()
    noisy = gaussian(image, 0.5, random)
    assert (noisy - image).std() == pytest.approx(0.5 * image.std(), rel=0.1)
    power = (rician(image, 0.5, random).astype(float) ** 2).mean() - (image.astype(float) ** 2).mean()
    assert power == pytest.approx(2 * (0.5 * image.std()) ** 2, abs=0.3 * image.std() * 60 / np.sqrt(image.size) * 5)
    assert blurred(image, 1.5).std() < 0.5 * image.std() and blurred(image, 1.5).mean() == pytest.approx(
        image.mean(), rel=0.01
    )
    darker = bent(image, 2.0)
    assert (darker.min(), darker.max()) == pytest.approx((image.min(), image.max()))
    assert (
        np.argsort(darker, axis=None) == np.argsort(image, axis=None)
    ).mean() > 0.99 and darker.mean() < image.mean()
    spot = np.zeros(shape, np.float32)
    spot[:, 4] = 100.0
    ghosts = ghosted(spot, 0.5)
    assert ghosts[0, 4].max() == pytest.approx(75.0) and ghosts[0, 4 + shape[1] // 2].max() == pytest.approx(25.0)
    assert (image == before).all()
    for _, worse in corruptions_of(replace(CONTRACT, modalities=("MR",))):
        changed = worse(np.zeros(shape, np.float32), random)
        assert changed.shape == shape and changed.dtype == np.float32 and np.isfinite(changed).all()
