"""Moments against their definitions in double precision, for logits that an exponential cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
from equipoise_core.contract import Activation
from equipoise_core.preprocessing import PADDING_VALUE

from ...support.graphs import compiled, contract, marked, mask, packed_masks, run


def moments(activation: Activation, classes: int, scale: float, image: np.ndarray) -> tuple[dict, np.ndarray]:
    """The sampler's outputs, and the logits `[N, T, K, H, W]` that it must have seen."""
    factors = np.linspace(-1, 1, classes + 2)[1:-1].reshape(classes, 1, 1, 1).astype(np.float32) * scale
    body = mask("a", [0, 1, 2, 3], "image", "m") + "logits = Conv (m, k)"
    draft = contract(classes=classes, activation=activation)
    result = compiled(marked(body, "logits", {"k": factors}), draft)
    packed = packed_masks(result.contract, len(image), 5, (4, 6))
    bits = np.unpackbits(packed, axis=-1, bitorder="little")[..., :24].reshape(len(image), 5, 1, 4, 6)
    filled = np.where(image <= PADDING_VALUE / 2, 0, image)[:, None]
    logits = (filled * bits * np.float32(4 / 3)).astype(np.float64) * factors.reshape(1, 1, classes, 1, 1)
    return run(result.model, {"image": image, "masks": packed}), logits


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize(
    ("activation", "classes"),
    [(Activation.SIGMOID, 1), (Activation.SIGMOID, 3), (Activation.SOFTMAX, 2), (Activation.SOFTMAX, 4)],
)
def test_moments_follow_their_definitions(activation: Activation, classes: int, scale: float) -> None:
    """Sums of p, p² and entropy and the volumes equal their definitions, finite up to logits of ± 10⁴."""
    image = np.random.default_rng(1).standard_normal((2, 1, 4, 6)).astype(np.float32)
    image[1, :, -1] = PADDING_VALUE
    got, z = moments(activation, classes, scale, image)
    if activation is Activation.SOFTMAX:
        log_p = z - z.max(2, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(2, keepdims=True))
        p = np.exp(log_p)
        entropy = -(p * np.where(p > 0, log_p, 0)).sum(2, keepdims=True)
    else:
        p = np.exp(-np.logaddexp(0, -z))
        entropy = p * np.logaddexp(0, -z) + np.exp(-np.logaddexp(0, z)) * np.logaddexp(0, z)
    inside = (image > PADDING_VALUE / 2)[:, None]
    assert all(np.isfinite(value).all() for value in got.values())
    np.testing.assert_allclose(got["sum_p"], p.sum(1), atol=2e-5)
    np.testing.assert_allclose(got["sum_p2"], (p**2).sum(1), atol=2e-5)
    np.testing.assert_allclose(got["sum_entropy"], entropy.sum(1), atol=2e-5 if scale == 1 else 5e-2)
    np.testing.assert_allclose(got["volumes"], (p * inside).sum((3, 4)), rtol=1e-5, atol=1e-4)
    assert got["sum_entropy"].min() >= 0
