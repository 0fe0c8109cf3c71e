"""Sufficient statistics over samples. They add: the moments of two chunks are the sum of the chunks' moments.

The graph computes them for segmentation (T full maps never leave it); of other tasks they are summed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Activation, Contract, Task

Array = NDArray[np.floating[Any]]

_TINY = np.finfo(np.float32).tiny


def entropy(p: Array, activation: Activation) -> Array:
    """Entropy in nats, ≥ 0, of class probabilities `[K, …]`.

    Softmax: `−Σ_k p_k ln p_k`, shape `[1, …]`, at most ln K. Sigmoid: `−p ln p − (1−p) ln(1−p)` per label, shape
    `[K, …]`, at most ln 2. Shannon 1948; 0 ln 0 = 0.
    """
    if activation is Activation.SOFTMAX:
        total = np.add.reduce(_plogp(p), axis=0, keepdims=True)
    else:
        total = _plogp(p)
        total += _plogp(1.0 - p)
    return np.asarray(np.negative(total, out=total))


def _plogp(p: Array) -> Array:
    # Looking for a zero takes a fifth of the time of the maximum, and hardly any map has one.
    result = np.asarray(np.log(p if p.min(initial=1.0) >= _TINY else np.maximum(p, _TINY)))
    result *= p
    return result


@dataclass(frozen=True)
class Moments:
    """Sums over T samples of one image, `[K, *S]` per voxel (`*S` empty for classification and regression).

    p is a class's probability; of a regression the number itself, in its target's unit.

    Attributes:
        samples: T.
        sum_p: `Σ_t p_t`.
        sum_p2: `Σ_t p_t²`.
        sum_entropy: `Σ_t H[p_t]` in nats, `[E, *S]`; of a regression `Σ_t` of the stated variances, 0 where none are.
        volumes: `[T, K]`, each sample's `Σ_v p_t(v)` in voxels; `[T, 0]` where there are no voxels.
        sum_uncertainty: `[1, *S]`, Σ_t of the uncertainty that a single-pass network states of its voxels, ≥ 0; None
            where it states none. A network that states its moments also has `sum_p2 ≥ Σ_t p_t²`.
    """

    samples: int
    sum_p: Array
    sum_p2: Array
    sum_entropy: Array
    volumes: NDArray[np.float64]
    sum_uncertainty: Array | None = None

    def __add__(self, other: Moments) -> Moments:
        """The moments of both chunks; associative and commutative but for the order of `volumes`."""
        return Moments(
            self.samples + other.samples,
            self.sum_p + other.sum_p,
            self.sum_p2 + other.sum_p2,
            self.sum_entropy + other.sum_entropy,
            np.concatenate([self.volumes, other.volumes]),
            None
            if self.sum_uncertainty is None or other.sum_uncertainty is None
            else self.sum_uncertainty + other.sum_uncertainty,
        )

    @property
    def unknown(self) -> Moments:
        """Of the same shape; NaN, since nothing is known."""
        p, entropy = np.full_like(self.sum_p, np.nan), np.full_like(self.sum_entropy, np.nan)
        return Moments(1, p, p, entropy, np.full_like(self.volumes, np.nan))

    @property
    def finite(self) -> bool:
        """Whether every number is."""
        sums = (self.sum_p, self.sum_p2, self.sum_entropy, self.volumes, self.sum_uncertainty)
        return all(np.isfinite(a).all() for a in sums if a is not None)


def moments_of_probabilities(p: Array, activation: Activation) -> Moments:
    """Classification: probabilities `[T, K]` of one image → their moments, in float64."""
    wide = p.astype(np.float64)
    per_sample = entropy(wide.T, activation)  # [E, T]
    return Moments(
        len(wide), wide.sum(axis=0), (wide * wide).sum(axis=0), per_sample.sum(axis=1), np.zeros((len(wide), 0))
    )


def moments_of_numbers(means: Array, variances: Array | None) -> Moments:
    """Regression: numbers `[T, K]` of one image, and the variances stated of them → their moments, in float64.

    A variance below 0 is none: it becomes NaN, which nothing is accepted with.
    """
    wide = means.astype(np.float64)
    stated = np.zeros_like(wide) if variances is None else variances.astype(np.float64)
    stated[stated < 0.0] = np.nan
    return Moments(len(wide), wide.sum(axis=0), (wide * wide).sum(axis=0), stated.sum(axis=0), np.zeros((len(wide), 0)))


def moments_of_map(p: Array, activation: Activation) -> Moments:
    """Segmentation: one sample's probabilities `[K, *S]` → its moments."""
    volumes = p.sum(axis=tuple(range(1, p.ndim)), dtype=np.float64)
    return Moments(1, p, p * p, entropy(p, activation), volumes[None])


def moments_of_stated(stated: Array, contract: Contract) -> Moments:
    """Segmentation: one pass of a network that states its moments, `[2K + E + 1, *S]` (see `STATED`) → its moments."""
    classes = len(contract.classes)
    p, square, entropy, own = np.split(stated, np.cumsum([classes, classes, contract.decisions]))
    return Moments(1, p, square, entropy, p.sum(axis=tuple(range(1, p.ndim)), dtype=np.float64)[None], own)


STATED = ("sum_p", "sum_p2", "sum_entropy", "sum_uncertainty")
"""Maps that a sampler gives, in the order in which they are stated and stitched; the last only where it is stated."""


PER_SAMPLE = frozenset({"probabilities", "volumes", "means", "variances"})
"""Outputs of a sampler that have a row for each sample, `[N, T, K]`; the others are sums over samples."""

ANSWER = {Task.CLASSIFICATION: "probabilities", Task.SEGMENTATION: "sum_p", Task.REGRESSION: "means"}
"""The output of a sampler that holds what was answered."""


def sampler_outputs(contract: Contract) -> tuple[str, ...]:
    """Names of the sampler's output tensors."""
    if contract.task is Task.CLASSIFICATION:
        return ("probabilities",)
    if contract.task is Task.REGRESSION:
        return ("means", "variances") if contract.states_variance else ("means",)
    return (*(STATED if contract.states_moments else STATED[:3]), "volumes")


def moments_of_outputs(
    contract: Contract, outputs: Mapping[str, Array], number: int, spatial: tuple[int, ...]
) -> Moments:
    """The sampler's output tensors for image `number` of N → its moments, padding cropped off again."""
    its = {name: array[number] for name, array in outputs.items()}
    if contract.task is Task.CLASSIFICATION:
        return moments_of_probabilities(its["probabilities"], contract.activation)
    if contract.task is Task.REGRESSION:
        return moments_of_numbers(its["means"], its.get("variances"))
    inside = (slice(None), *(slice(0, size) for size in spatial))
    # Contiguous: everything after this takes several times as long on a part of an array.
    sum_p, sum_p2, sum_entropy = (np.ascontiguousarray(its[name][inside]) for name in STATED[:3])
    stated = np.ascontiguousarray(its["sum_uncertainty"][inside]) if contract.states_moments else None
    return Moments(len(its["volumes"]), sum_p, sum_p2, sum_entropy, its["volumes"].astype(np.float64), stated)
