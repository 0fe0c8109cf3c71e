"""The published policies on cases that no part of them has seen; more of it in tests/benchmarks/bench_decisions.py."""

import os
from pathlib import Path

import numpy as np
import pytest

from ...benchmarks import bench_decisions as bench

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(os.environ.get("EQUIPOISE_DATA", "")).is_dir(), reason="needs EQUIPOISE_DATA"),
]


def broken(claims):
    return [f"{claim.what}: {claim.figure}, expected {claim.bound}" for claim in claims if not claim.holds]


@pytest.mark.timeout(1800)
def test_no_accepted_hippocampus_is_bad_however_the_image_is_spoilt():
    """Volume intervals inside their band on 45 patients, and no accepted case with a Dice below .60 on 8 of them under
    noise, blur, ghosting, flips and wrong sizes; some are accepted, so that this means something."""
    whole = bench.subject("hippocampus", None, 0)
    assert not broken(bench.volumes(whole))
    few = bench.subject("hippocampus", 8, 0)
    rows = [bench.row(few, what, pairs) for what, pairs in bench.worse_brains(few.pairs)]
    assert sum(row.accepted for row in rows) > 10
    assert np.nanmin([row.lowest_accepted_dice for row in rows]) >= 0.60


@pytest.mark.timeout(900)
def test_pneumonia_is_calibrated():
    """ECE at most half of what it was, or below what perfect probabilities would show at this n."""
    assert not broken(bench.calibration(bench.subject("pneumonia", None, 0)))


@pytest.mark.timeout(900)
def test_pneumonia_is_decided_by_half_of_the_samples():
    """Median samples at most half of T, on 516 cases."""
    claims = list(bench.stages(bench.subject("pneumonia", None, 0)))
    assert len(claims) == 2
    assert not broken(claims)


@pytest.mark.timeout(1800)
def test_other_tissue_is_not_accepted_as_fluorescence():
    """H&E as it is and matched to fluorescence in four ways: AUROC of the distance ≥ .95, at most 5 % accepted."""
    assert not broken(bench.tissue(bench.subject("nuclei", None, 0)))
