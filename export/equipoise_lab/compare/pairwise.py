"""The strong baseline of failure detection in segmentation: how alike the samples' label maps are, two by two.

Zenk et al. 2024 (arXiv 2406.03323) found that no published score beats it reliably. It takes every sample's whole map,
which a served model never sends: `sample_disagreement` is what follows from the moments instead. Whether that, or
whatever score a policy routes by, ranks cases as well can only be said beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from equipoise_core.case import Case, Model
from equipoise_core.contract import Activation, Contract
from equipoise_core.moments import Array
from equipoise_core.sampling import Run, RunSampler, get_ready
from equipoise_export.calibration.cases import Labelled
from numpy.typing import NDArray

MOST = 10
"""Samples of a case that are paired: 45 pairs. One by one each costs a whole pass."""

AT_ONCE = 1_000_000
"""Voxels that are multiplied at once."""


def lack_of_pairwise_dice(model: Model, case: Labelled, samplers: Sequence[RunSampler]) -> float:
    """1 − the mean Dice of all pairs of the case's first samples, T or `MOST` of them; 0..1, higher is less certain.

    NaN where samples cannot differ, and where there are no voxels. They are the samples that are answered with, run one
    by one: a sampler gives sums over the samples of a request, never maps.
    """
    contract, samples = model.contract, min(model.samples, MOST)
    if not (contract.per_voxel and contract.varies) or samples < 2:
        return float("nan")
    one_by_one = tuple(range(1, samples + 1))
    ready = get_ready(model, Case(case.image, spacing=case.spacing), one_by_one)
    before: Array | None = None
    regions = []
    for (answer,) in Run(replace(model, at_most=1), [ready], samplers).assessments(until_decided=False):
        total = answer.moments.sum_p
        regions.append(_regions(contract, total if before is None else total - before))
        before = total
    return 1.0 - mean_pairwise_dice(np.stack(regions))


def mean_pairwise_dice(regions: NDArray[np.bool_]) -> float:
    """Mean over structures of the mean Dice of all pairs, 0..1; of two empty ones 1.

    Args:
        regions: `[T, F, V]`: T ≥ 2 samples' masks of F structures.
    """
    upper = np.triu_indices(len(regions), 1)
    means = []
    for masks in regions.transpose(1, 0, 2):
        both = np.zeros((len(masks), len(masks)))
        for start in range(0, masks.shape[1], AT_ONCE):
            some = masks[:, start : start + AT_ONCE].astype(np.float32)
            both += some @ some.T
        sizes = both.diagonal()
        sums = sizes[:, None] + sizes
        means.append(np.where(sums > 0, 2.0 * both / np.maximum(sums, 1.0), 1.0)[upper].mean())
    return float(np.mean(means))


def _regions(contract: Contract, p: Array) -> NDArray[np.bool_]:
    """`[F, V]`: where one sample's probabilities `[K, *S]` speak for each structure."""
    flat = p.reshape(len(p), -1)
    if contract.activation is Activation.SIGMOID:
        return np.asarray(flat >= 0.5)
    return np.asarray(flat.argmax(axis=0) == np.array(contract.foreground)[:, None])
