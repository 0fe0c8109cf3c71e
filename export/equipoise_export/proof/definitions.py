"""What a sampler is to answer by definition, from the network's logits or numbers, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.moments import STATED
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_core.targets import Noise
from numpy.typing import NDArray

from .references import Network

Array = NDArray[Any]


def probabilities(network: Network, contract: Contract, image: Array, packed: Array) -> Array:
    """Of the network, float64 `[K, *S]`, for an image `[1, C, *S]` and a packed mask `[B]`.

    Of one that states its moments: those, `[2K + E + 1, *S]`. Of a regression: its numbers `[K]`, and behind them the
    variances that it states.
    """
    filled = np.where(image <= PADDING_VALUE / 2, np.float32(contract.preprocessing.fill), image)
    wide = network(contract, filled, packed).astype(np.float64)
    if contract.states_moments:
        return wide
    if contract.targets:
        split = len(contract.targets)
        if contract.noise is Noise.LOG_VARIANCE:
            wide[split:] = np.exp(wide[split:])
        return wide
    return activated(wide, contract.activation)


def activated(logits: Array, activation: Activation, axis: int = 0) -> Array:
    """Probabilities of logits, of the same shape; the classes lie along `axis`."""
    if activation is Activation.SIGMOID:
        return np.exp(-np.logaddexp(0.0, -logits))  # type: ignore[no-any-return]
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)  # type: ignore[no-any-return]


def outputs(contract: Contract, images: Array, p: Array) -> dict[str, Array]:
    """The sampler's outputs for images `[N, C, *S]`, from p `[N, T, K, *S]` as `probabilities` gives it."""
    if contract.task is Task.CLASSIFICATION:
        return {"probabilities": p}
    if contract.task is Task.REGRESSION:
        split = len(contract.targets)
        return {"means": p[..., :split], **({"variances": p[..., split:]} if contract.states_variance else {})}
    inside = (images > PADDING_VALUE / 2).any(axis=1)[:, None, None]
    axes = tuple(range(3, p.ndim))
    if contract.states_moments:
        classes = len(contract.classes)
        parts = np.split(p, np.cumsum([classes, classes, contract.decisions]), axis=2)
        sums = {name: part.sum(axis=1) for name, part in zip(STATED, parts, strict=True)}
        return {**sums, "volumes": (parts[0] * inside).sum(axis=axes)}
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.where(p > 0, -p * np.log(p), 0.0)
        if contract.activation is Activation.SOFTMAX:
            entropy = surprise.sum(axis=2, keepdims=True)
        else:
            q = 1.0 - p
            entropy = surprise + np.where(q > 0, -q * np.log(q), 0.0)
    return {
        "sum_p": p.sum(axis=1),
        "sum_p2": (p**2).sum(axis=1),
        "sum_entropy": entropy.sum(axis=1),
        "volumes": (p * inside).sum(axis=axes),
    }
