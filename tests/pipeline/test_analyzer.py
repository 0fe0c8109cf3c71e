"""NVIDIA's perf_analyzer and `equipoise load` measure the same thing on the same closed-loop load."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ..benchmarks.bench_load_generator import ROOT, agreement, fetch_analyzer
from ..support.repositories import SLOW, hold

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module")
def analyzer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perf_analyzer")
    try:
        return fetch_analyzer(folder)
    except subprocess.CalledProcessError:
        pytest.skip("its wheel cannot be fetched from here")


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A model whose latency is its own and not the machine's: for both programs alike, whatever else runs here."""
    folder = tmp_path_factory.mktemp("slow")
    for pair in (ROOT / "model_repository").glob("pneumonia*/config.pbtxt"):
        shutil.copytree(pair.parent, folder / pair.parent.name)
    # The public model and not its sampler, which would gather requests by chance: one batch for some, two for others.
    hold(folder / "pneumonia", SLOW.format(seconds=0.05))
    return folder


@pytest.mark.timeout(400)
def test_both_agree_on_the_median(analyzer, slow):
    """Within 15 %, in turn against the same server; one of three tries will do, for others use this machine too."""

    def agree() -> bool:
        try:
            return agreement(rounds=3, seconds=3.0, analyzer=analyzer, repository=slow)
        except subprocess.CalledProcessError:  # perf_analyzer found no two windows that were alike
            return False

    assert any(agree() for _ in range(3))
