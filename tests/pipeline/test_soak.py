"""A short soak: what `tests/benchmarks/bench_soak.py` does for an hour, without its timings."""

from __future__ import annotations

import os

import pytest

from ..support.soak import soak, verdicts

pytestmark = [pytest.mark.triton, pytest.mark.slow]

MINUTES = float(os.environ.get("EQUIPOISE_SOAK_MINUTES", "3"))
SHARE = 0.3
"""Of the capacity: tests that run beside this one may take half of what was measured."""


@pytest.mark.timeout(60 * MINUTES + 240)
def test_processes_memory_and_files_stay_flat_under_load(tmp_path):
    """Under load a server keeps its processes, memory, descriptors, threads and /dev/shm."""
    found = soak(MINUTES, 2.0 * MINUTES, tmp_path / "run", share=SHARE)
    assert found.answered > 20, found.codes
    broken = [each for each in verdicts(found) if not each.timing and not each.kept]
    assert not broken, broken
