# ruff: noqa: E501  # graphs read better unbroken
"""Every case of the pass's docstring, against the marked graph run one image and one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
from equipoise_core.contract import Task

from ...support.graphs import compiled, contract, marked, mask, oracle, packed_masks, run

W = np.random.default_rng(0).standard_normal
CASES = {
    "shared_then_masked": (mask("a", [0, 1], "h", "y"), {}),
    "masked_twice": (mask("a", [0, 1], "h", "m") + mask("b", [0, 1, 2, 3], "m", "y", index=1), {}),
    "shared_added_to_sampled": (mask("a", [0, 1], "h", "m") + "y = Add(m, h)", {}),
    "shared_of_lower_rank": (mask("a", [0], "h", "m") + "s = ReduceMean <keepdims=1> (h, axes)  y = Mul(m, s)", {"axes": np.array([1])}),
    "constant_covers_the_batch_axis": (mask("a", [0], "h", "m") + "s = Add(m, h) y = Mul(s, k)", {"k": W((1, 3, 1, 1)).astype(np.float32)}),
    "shared_repeated": (mask("a", [0, 1], "h", "m") + "j = Concat <axis=2> (m, h) y = MaxPool <kernel_shape=[2, 1], strides=[2, 1]> (j)", {}),
    "reshaped_by_the_batch_size": (
        mask("a", [0, 1], "h", "m")
        + "n = Shape <start=0, end=1> (image) t = Concat <axis=0> (n, rest) f = Reshape(m, t) g = Sigmoid(f) s = Shape(h) y = Reshape(g, s)",
        {"rest": np.array([-1])},
    ),
    "batch_in_the_middle": (
        "q = Transpose <perm=[1, 0, 2, 3]> (h)" + mask("a", [0, 1, 2, 3], "q", "m") + mask("b", [0, 1, 2, 3], "m", "w", index=1)
        + "e = Add(w, q) y = Transpose <perm=[1, 0, 2, 3]> (e)",
        {},
    ),
    "folded_into_the_batch": (
        "q = Reshape(h, fold)" + mask("a", [0, 1, 2], "q", "m") + mask("b", [0, 1, 2], "m", "w", index=1) + "e = Add(w, q) y = Reshape(e, back)",
        {"fold": np.array([-1, 4, 6]), "back": np.array([-1, 3, 4, 6])},
    ),
    "folded_in_the_middle": (
        "q0 = Reshape(h, fold) q = Transpose <perm=[1, 0, 2]> (q0)" + mask("a", [0, 1, 2], "q", "m") + mask("b", [0, 1, 2], "m", "w", index=1)
        + "e = Add(w, q) e0 = Transpose <perm=[1, 0, 2]> (e) y = Reshape(e0, back)",
        {"fold": np.array([-1, 4, 6]), "back": np.array([-1, 3, 4, 6])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_samples_equals_samples_one_by_one(case: str) -> None:
    """N·T samples in one run are what the marked graph gives for each image and each mask alone."""
    body, weights = CASES[case]
    weights = (
        {**weights, "w": W((3, 1, 3, 3)).astype(np.float32)} if "w)" not in body and "w =" not in body else {**weights}
    )
    weights["kernel"] = W((3, 1, 3, 3)).astype(np.float32)
    weights.pop("w", None)
    text = "h = Conv <pads=[1, 1, 1, 1]> (image, kernel) " + body
    draft = contract(task=Task.CLASSIFICATION, classes=3 * 24)
    flatten = " flat = Flatten <axis=1> (y)"
    model = marked(text + flatten, "flat", weights)
    result = compiled(marked(text + flatten, "flat", weights), draft)
    images = W((2, 1, 4, 6)).astype(np.float32)
    packed = packed_masks(result.contract, 2, 8, (4, 6))
    expected = oracle(model, result.contract, packed, images)[:, :, 0].astype(np.float64)
    expected = np.exp(expected - expected.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    got = run(result.model, {"image": images, "masks": packed})["probabilities"]
    assert got.shape == (2, 8, 72)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.var(axis=1).max() > 1e-8
