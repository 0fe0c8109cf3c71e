"""May these cases stand for those to come? Drift over time, differences between groups, the same image twice.

Every guarantee here takes new cases to be exchangeable with the calibration cases. That cannot be proved, but evidence
against it can be found before anybody relies on it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .conformal import Floats

Thumbnail = NDArray[np.float32]

STRONG = 0.01
"""Level of all tests here: below it is evidence that nobody should calibrate over without saying so."""

JUMP = 0.01
"""Share of the martingale's stake that is dealt anew with each case (Vovk et al. 2021)."""

ALIKE = 0.98
"""Correlation of two thumbnails from which on two images are nearly the same."""

PERMUTATIONS = 1999


def conformal_p_values(numbers: Floats, random: np.random.Generator) -> Floats:
    """How large each number is among those up to it, ties broken at random: independent and uniform on 0..1 if the
    order says nothing (Vovk et al. 2005).

    Args:
        numbers: `[…, n]`, in order of time.

    Returns:
        Of that shape: `(#{i ≤ t: s_i > s_t} + u·#{i ≤ t: s_i = s_t})/t`.
    """
    found = np.empty(numbers.shape)
    for t in range(numbers.shape[-1]):
        now, past = numbers[..., t, None], numbers[..., : t + 1]
        larger, equal = (past > now).sum(axis=-1), (past == now).sum(axis=-1)
        found[..., t] = (larger + random.random(larger.shape) * equal) / (t + 1)
    return found


def log_martingale(p_values: Floats) -> Floats:
    """ln of the simple jumper martingale `[…, n]` on conformal p-values (Vovk et al. 2021, arXiv 2102.10439).

    It starts at 1 and, if the cases are exchangeable, reaches 1/δ at any time with probability at most δ.
    """
    bets = np.array([-1.0, 0.0, 1.0])
    stakes = np.full((*p_values.shape[:-1], 3), 1.0 / 3.0)
    total, path = np.zeros(p_values.shape[:-1]), np.empty(p_values.shape)
    for t in range(p_values.shape[-1]):
        stakes = (1.0 - JUMP) * stakes + JUMP / 3.0 * stakes.sum(axis=-1, keepdims=True)
        stakes = stakes * (1.0 + bets * (p_values[..., t, None] - 0.5))
        whole = stakes.sum(axis=-1)
        total, stakes = total + np.log(whole), stakes / whole[..., None]
        path[..., t] = total
    return path


def drift(numbers: Mapping[str, Floats], seed: int = 0) -> float:
    """Evidence that cases drift over time: ≤ δ with probability at most δ if they do not.

    The mean of one martingale for each number is a martingale: 1 over its largest value, at most 1 (Ville 1939).

    Args:
        numbers: name → `[n]`, in order of time.
    """
    random = np.random.default_rng(seed)
    paths = log_martingale(conformal_p_values(np.stack([*numbers.values()]).astype(np.float64), random))
    largest = float(np.max(np.logaddexp.reduce(paths, axis=0) - math.log(len(paths))))
    return min(1.0, math.exp(-largest))


def group_p_value(numbers: Floats, groups: Sequence[str], seed: int = 0, permutations: int = PERMUTATIONS) -> float:
    """Permutation p-value of "a number is distributed alike in all groups": Kruskal & Wallis' statistic (1952) under
    random reassignment of the groups, exact at every n.

    Args:
        numbers, groups: `[n]`.
    """
    ranks = rankdata(numbers) - (len(numbers) + 1) / 2.0
    _, of = np.unique(np.array(groups, dtype=str), return_inverse=True)
    sizes = np.bincount(of)
    random = np.random.default_rng(seed)

    def spread(shuffled: Floats) -> Any:
        sums = np.stack([shuffled[..., of == k].sum(axis=-1) for k in range(len(sizes))], axis=-1)
        return (sums**2 / sizes).sum(axis=-1)

    drawn = spread(random.permuted(np.tile(ranks, (permutations, 1)), axis=1))
    return (1.0 + float((drawn >= spread(ranks) - 1e-9).sum())) / (permutations + 1.0)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values that may be read all together (Holm 1979), of the same names."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def drift_power(cases: int, step: float = 1.0, repetitions: int = 200) -> float:
    """How often `drift` finds, at `STRONG`, one number that rises by `step` standard deviations halfway; simulated, of
    more than 500 cases as of 500."""
    cases, random = min(cases, 500), np.random.default_rng(0)
    numbers = random.normal(size=(repetitions, cases))
    numbers[:, cases // 2 :] += step
    paths = log_martingale(conformal_p_values(numbers, random))
    return float((paths.max(axis=1) >= -math.log(STRONG)).mean())


def same_images(digests: Sequence[str], patients: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of cases of different patients with the very same image: at least one is not whose it is said to be."""
    first: dict[str, int] = {}
    pairs = []
    for index, digest in enumerate(digests):
        other = first.setdefault(digest, index)
        if patients[other] != patients[index]:
            pairs.append((other, index))
    return pairs


def thumbnail(image: NDArray[Any]) -> Thumbnail:
    """`[C, *S]` → a small standardised picture as a vector: means over 16 × 16 (8 × 8 × 8) blocks of the mean over
    channels. It hardly changes under compression, noise, brightness, contrast and small changes of size."""
    small = np.asarray(image, np.float64).mean(axis=0)
    blocks = 16 if small.ndim == 2 else 8
    for axis, size in enumerate(small.shape):
        edges = np.unique(np.linspace(0, size, min(blocks, size) + 1).astype(int))
        small = np.add.reduceat(small, edges[:-1], axis=axis) / np.diff(edges).reshape(
            [-1 if axis == each else 1 for each in range(small.ndim)]
        )
    small -= small.mean()
    norm = float(np.linalg.norm(small))
    return (small / norm if norm > 0.0 else small).astype(np.float32).ravel()


def near_pairs(
    thumbnails: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]
) -> list[tuple[int, int]]:
    """(index, index of the other) of thumbnails whose correlation is at least `ALIKE`; of one size only."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, each in enumerate(others):
        by_size[each.size].append(index)
    pairs = []
    tables = {size: np.stack([others[index] for index in indices]) for size, indices in by_size.items()}
    for index, each in enumerate(thumbnails):
        if each.size in tables:
            found = np.flatnonzero(tables[each.size] @ each >= ALIKE)
            pairs += [(index, by_size[each.size][other]) for other in found]
    return pairs
