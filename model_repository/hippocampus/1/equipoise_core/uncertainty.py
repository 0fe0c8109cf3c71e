"""What the samples say: prediction, and how much of its uncertainty is the data's and how much the model's.

Sources: Gal & Ghahramani 2016 (MC dropout); Depeweg et al. 2018 (entropy decomposition); Houlsby et al. 2011 (BALD);
Kendall & Gal 2017 (law of total variance).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .contract import Activation, Contract, Task
from .moments import Array, Moments, entropy


@dataclass(frozen=True)
class Uncertainty:
    """Maps over voxels (or one number per class), each computed when first asked for."""

    moments: Moments
    activation: Activation

    @cached_property
    def mean(self) -> Array:
        """`p̄ = (1/T) Σ_t p_t`, `[K, *S]`, 0..1."""
        return np.asarray(self.moments.sum_p / self.moments.samples)

    @cached_property
    def variance(self) -> Array:
        """Epistemic (between-sample) variance `Var_t(p_t)`, population form, `[K, *S]`, 0..1/4."""
        variance = np.asarray(self.moments.sum_p2 / self.moments.samples)
        variance -= self.mean * self.mean
        # With an array and not a number, of which NumPy's maximum takes four times as long.
        return np.maximum(variance, np.zeros(variance.shape[1:], variance.dtype), out=variance)

    @cached_property
    def variance_corrected(self) -> Array:
        """The same without the bias of finite T: times T/(T−1). NaN for a single sample, which says nothing of it."""
        samples = self.moments.samples
        return np.asarray(self.variance * (samples / (samples - 1) if samples > 1 else np.nan))

    @cached_property
    def variance_aleatoric(self) -> Array:
        """Within-sample variance `E_t[p_t(1−p_t)]`, `[K, *S]`, 0..1/4; with `variance` it sums to `p̄(1−p̄)`."""
        return np.asarray(self.mean - self.moments.sum_p2 / self.moments.samples)

    @cached_property
    def total(self) -> Array:
        """Predictive entropy `H[p̄]` in nats, `[E, *S]`, 0..ln K (softmax) or 0..ln 2 (sigmoid)."""
        return entropy(self.mean, self.activation)

    @cached_property
    def aleatoric(self) -> Array:
        """Expected entropy `(1/T) Σ_t H[p_t]` in nats, `[E, *S]`; at most `total` (concavity), rounding aside."""
        aleatoric = np.asarray(self.moments.sum_entropy / self.moments.samples)
        return np.minimum(aleatoric, self.total, out=aleatoric)

    @cached_property
    def epistemic(self) -> Array:
        """Mutual information (BALD) = total − aleatoric, in nats, `[E, *S]`, ≥ 0. Biased low at small T."""
        return np.asarray(self.total - self.aleatoric)

    @cached_property
    def stated(self) -> Array:
        """The single-pass network's own uncertainty of its voxels, `[1, *S]`, ≥ 0; NaN where it states none."""
        if self.moments.sum_uncertainty is None:
            return np.full((1, *self.moments.sum_p.shape[1:]), np.nan)
        return np.asarray(self.moments.sum_uncertainty / self.moments.samples)

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """`[E, *S]`: the most probable class (softmax), or per label whether p̄ ≥ ½ (sigmoid)."""
        if self.activation is Activation.SIGMOID:
            return (self.mean >= 0.5).view(np.uint8)
        if self.mean.ndim == 1:
            return np.asarray(self.mean.argmax(), dtype=np.uint8)[None]
        # Class by class: `argmax` along the first axis of a map takes several times as long.
        best, labels = self.mean[0], np.zeros(self.mean.shape[1:], np.uint8)
        for index, p in enumerate(self.mean[1:], 1):
            labels = np.maximum(labels, (p > best).view(np.uint8) * np.uint8(index))
            best = np.maximum(best, p)
        return np.asarray(labels)[None]


def label_confidence(activation: Activation, labels: NDArray[np.uint8], p: Array) -> Array:
    """Probability of the labels that were given: labels `[E, *S]`, p `[K, *S]`, 0..1 → `[E, *S]`, 0..1.

    Where p is recalibrated, it need not be that of the largest class.
    """
    if activation is Activation.SIGMOID:
        return np.where(labels > 0, p, 1.0 - p)
    return np.take_along_axis(p, labels.astype(np.int64), axis=0)


@dataclass(frozen=True)
class NumberUncertainty(Uncertainty):
    """Of a regression: numbers `[K]` in their targets' units, variances in the squares of those.

    Law of total variance, total = aleatoric + epistemic: Kendall & Gal 2017, eq. 9; of several networks
    Lakshminarayanan et al. 2017, §2.4.
    """

    @cached_property
    def total(self) -> Array:
        """Variance of a new measurement `[K]`, ≥ 0."""
        return np.asarray(self.aleatoric + self.epistemic)

    @cached_property
    def aleatoric(self) -> Array:
        """Mean over samples of the variance that the network states, `[K]`, ≥ 0; 0 where it states none."""
        return np.asarray(self.moments.sum_entropy / self.moments.samples)

    @cached_property
    def epistemic(self) -> Array:
        """Variance of the samples' numbers, population form, `[K]`, ≥ 0."""
        return self.variance

    @cached_property
    def deviation(self) -> Array:
        """Standard deviation √total, `[K]`, in the targets' units."""
        return np.asarray(np.sqrt(self.total))


def uncertainty_of(contract: Contract, moments: Moments) -> Uncertainty:
    """What the moments of a model's samples say."""
    kind = NumberUncertainty if contract.task is Task.REGRESSION else Uncertainty
    return kind(moments, contract.activation)
