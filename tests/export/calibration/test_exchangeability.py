"""Evidence against trusting calibration cases: rare where there is none, found where there is, and said."""

import math

import numpy as np
import pytest
from equipoise_export.calibration.cases import Labelled
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.calibration.examine import examine_images, examine_numbers, order_of, refuse
from equipoise_export.calibration.exchangeability import (
    conformal_p_values,
    drift,
    drift_power,
    group_p_value,
    holm,
    log_martingale,
    near_pairs,
    thumbnail,
)
from scipy.ndimage import gaussian_filter

from .test_choose import contract, draw  # noqa: F401  # a fixture
from .test_theory import within

REPETITIONS, CASES, DELTA = 1000, 150, 0.1


def test_the_martingale_alarms_over_all_time_as_seldom_as_it_says():
    """Exchangeable cases with ties, looked at after every one: at most δ alarms. Bets on p-values that are not
    conformal (ranks among all cases, those to come too, without their order's law) break it."""
    random = np.random.default_rng(1)
    numbers = random.integers(0, 5, (REPETITIONS, CASES)).astype(float)
    paths = log_martingale(conformal_p_values(numbers, random))
    assert within(int((paths.max(axis=1) >= math.log(1 / DELTA)).sum()), DELTA, REPETITIONS)
    tied = np.stack([(numbers[:, : t + 1] >= numbers[:, t, None]).mean(axis=1) for t in range(CASES)], axis=1)
    assert not within(int((log_martingale(tied).max(axis=1) >= math.log(1 / DELTA)).sum()), DELTA, REPETITIONS)


def test_several_numbers_are_tested_at_one_level():
    """The mean of martingales holds δ; the largest of six does not."""
    random = np.random.default_rng(2)
    numbers = random.normal(size=(600, 6, 100))
    paths = log_martingale(conformal_p_values(numbers, random))
    bar = math.log(1 / DELTA)
    mean = np.logaddexp.reduce(paths, axis=1) - math.log(6)
    assert within(int((mean.max(axis=1) >= bar).sum()), DELTA, 600)
    assert not within(int((paths.max(axis=(1, 2)) >= bar).sum()), DELTA, 600)


def test_drift_is_found():
    random = np.random.default_rng(3)
    steady = {name: random.normal(size=200) for name in "ab"}
    assert drift(steady) > 0.05
    moved = {**steady, "b": steady["b"] + np.where(np.arange(200) < 100, 0.0, 1.5)}
    assert drift(moved) < 0.001
    assert drift_power(40) < drift_power(80) < drift_power(160)
    assert drift_power(160) > 0.9 > 0.02 > drift_power(160, step=0.0)


def test_groups_that_are_alike_are_told_apart_as_seldom_as_it_says():
    """At any level, whatever the sizes and ties; Holm's correction is what makes several numbers hold together."""
    random = np.random.default_rng(4)
    groups = ["a"] * 12 + ["b"] * 8 + ["c"] * 5
    corrected = uncorrected = 0
    for _ in range(500):
        draws = {name: (random.integers(0, 4, 25), int(random.integers(2**31))) for name in "abcd"}
        p = {name: group_p_value(numbers, groups, seed, 199) for name, (numbers, seed) in draws.items()}
        corrected += min(holm(p).values()) <= DELTA
        uncorrected += min(p.values()) <= DELTA
    assert within(corrected, DELTA, 500)
    assert not within(uncorrected, DELTA, 500)


def test_a_group_that_differs_is_found():
    numbers = np.r_[np.random.default_rng(5).normal(size=40), np.random.default_rng(6).normal(1.5, size=20)]
    assert group_p_value(numbers, ["a"] * 40 + ["b"] * 20) <= 0.001
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def pictures(n, seed, shape=(32, 32)):
    random = np.random.default_rng(seed)
    return [gaussian_filter(random.normal(size=shape), 2)[None].astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("shape", [(32, 32), (20, 24, 16), (3, 40)])
def test_a_thumbnail_knows_an_image_again(shape):
    """After noise, another contrast and a little blur; and no two images are taken for one."""
    images = pictures(20, 1, shape)
    random = np.random.default_rng(2)
    again = [gaussian_filter(0.7 * x + 3 + random.normal(0, 0.002, x.shape), 0.3).astype(np.float32) for x in images]
    found = near_pairs([thumbnail(x) for x in again], [thumbnail(x) for x in images])
    assert found == [(index, index) for index in range(20)]


def cases_of(images, patients=None, **how):
    patients = patients or [f"p{index}" for index in range(len(images))]
    return [
        Labelled(f"case {index}", patient, image, np.uint8(0), **how)
        for index, (image, patient) in enumerate(zip(images, patients, strict=True))
    ]


def test_one_image_of_two_patients_is_serious_and_named():
    """Of one patient it is no finding; nearly the same image is said, and no reason to refuse."""
    images = pictures(6, 3)
    clean = list(examine_images(cases_of([*images, images[2]], ["a", "b", "c", "d", "e", "f", "c"]), None))
    assert not any(found.serious for found in clean) and refuse(clean, "") == ""
    twice = list(examine_images(cases_of([*images, images[2]]), None))
    with pytest.raises(CalibrationError, match=r"case 2 and case 6.*--despite"):
        refuse(twice, "")
    assert refuse(twice, "twins, says Dr A").endswith("(twins, says Dr A)")
    nearly = list(examine_images(cases_of([*images, images[2] * 1.1]), None))
    assert "1 pairs, such as case 2 and case 6" in nearly[1].words and refuse(nearly, "") == ""


def test_an_image_that_was_trained_on_is_serious():
    images = pictures(6, 4)
    found = list(examine_images(cases_of(images), cases_of([images[1], images[3] * 1.2])))
    assert [each.serious for each in found[2:]] == [True, False]
    assert "case 1 and case 0" in found[2].words and "case 3 and case 1" in found[3].words
    assert "not looked for" in list(examine_images(cases_of(images), None))[2].words


def test_drift_over_a_column_is_serious(contract):  # noqa: F811
    """Errors come in the second half: in order it is found, with its power; without order it is said to be untested."""
    measured = sorted(draw(160, 2), key=lambda case: case.full.loss * 10 + case.full.scores["lack_of_confidence"])
    for case in measured:
        case.statistics.update(noise=0.0, kurtosis=1.0)
    images = [np.zeros((1, 8, 8), np.float32)] * 160
    cases = [
        Labelled(f"{n}", f"{n}", image, np.uint8(0), None, "xy"[n % 2], order=f"2026-01-{n // 8 + 1:02}")
        for n, image in enumerate(images)
    ]
    drifted, groups = examine_numbers(contract, cases, measured, "date", "scanner")
    assert drifted.serious and "conformal martingale" in drifted.words and "%" in drifted.words
    assert groups.words.startswith("none seen among 2") and not groups.serious
    untested = next(iter(examine_numbers(contract, cases, measured, "", "scanner")))
    assert "not tested" in untested.words and not untested.serious
    shuffled = [measured[index] for index in np.random.default_rng(0).permutation(160)]
    assert not next(iter(examine_numbers(contract, cases, shuffled, "date", "scanner"))).serious


def test_an_order_is_of_numbers_or_of_iso_dates():
    assert order_of(["10", "9", "8.5"], "day").tolist() == [2, 1, 0]
    assert order_of(["2026-02-01", "2025-12-31", "2026-01-01 10:00"], "day").tolist() == [1, 2, 0]
    for bad in (["1", ""], ["31.12.2025", "01.01.2026"], ["1", "2026-01-01"]):
        with pytest.raises(CalibrationError, match="day"):
            order_of(bad, "day")
