# graphs read better unbroken
"""Masks in the weights against masks on the activations."""

from __future__ import annotations

import numpy as np
import pytest
from equipoise_export.passes import PASSES
from equipoise_export.passes.mask_weights import mask_weights
from equipoise_export.passes.take_difference import take_difference

from ...support.graphs import compiled, contract, marked, mask, packed_masks, run

W = np.random.default_rng(0).standard_normal
WEIGHTS = {
    "k": W((5, 1, 3, 3)).astype(np.float32),
    "w": W((3, 5, 1, 1)).astype(np.float32),
    "b": W(3).astype(np.float32),
}
WITHOUT = tuple(step for step in PASSES if step not in (mask_weights, take_difference))
SAMPLED = (
    mask("a", [0, 1], "image", "i") + "h = Conv <pads=[1, 1, 1, 1]> (i, k) " + mask("b", [0, 1], "h", "m", index=1)
)
SHARED = "h = Conv <pads=[1, 1, 1, 1]> (image, k) " + mask("a", [0, 1], "h", "m")


@pytest.mark.parametrize("body", [SAMPLED, SHARED])
def test_masked_weights_change_no_number(body: str) -> None:
    """Behind sampled activations, and behind shared ones, which then are not copied for the samples."""
    draft = contract(classes=3, spatial=("H", "W"), nominal=(4, 6))
    masked = compiled(marked(body + "z = Conv (m, w, b)", "z", WEIGHTS), draft)
    plain = compiled(marked(body + "z = Conv (m, w, b)", "z", WEIGHTS), draft, WITHOUT)
    images = W((2, 1, 6, 4)).astype(np.float32)
    feeds = {"image": images, "masks": packed_masks(masked.contract, 2, 4, (6, 4))}
    expected = run(plain.model, feeds)
    for name, value in run(masked.model, feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=5e-6)
    kinds = [node.op_type for node in masked.model.graph]
    assert kinds.count("Expand") == 1  # of the weights
    assert kinds.count("Conv") == body.count("Conv") == [node.op_type for node in plain.model.graph].count("Conv") - 1


@pytest.mark.parametrize(
    ("axes", "outputs", "size"), [([0, 1, 2, 3], 3, 1), ([0, 1], 16, 1), ([0, 1], 3, 3)], ids=["voxels", "wide", "3×3"]
)
def test_other_convolutions_stay(axes: list[int], outputs: int, size: int) -> None:
    """Masks of voxels are not the weights'; wide and larger ones are faster as convolutions."""
    body = "h = Conv <pads=[1, 1, 1, 1]> (image, k) " + mask("a", axes, "h", "m")
    body += f"y = Conv <pads={[size // 2] * 4}> (m, v) z = Conv (y, l)"
    weights = {
        "k": WEIGHTS["k"],
        "v": W((outputs, 5, size, size)).astype(np.float32),
        "l": W((3, outputs, 1, 1)).astype(np.float32),
    }
    result = compiled(marked(body, "z", weights), contract(classes=3))
    assert [node.op_type for node in result.model.graph].count("Conv") == 3


@pytest.mark.parametrize("size", [1, 3])
def test_two_classes_need_one_convolution(size: int) -> None:
    """The difference of two logits gives what the two give."""
    weights = {"k": WEIGHTS["k"], "w": W((2, 5, size, size)).astype(np.float32), "b": W(2).astype(np.float32)}
    body = SHARED + f"r = Relu (m) z = Conv <pads={[size // 2] * 4}> (r, w, b)"
    taken, plain = (compiled(marked(body, "z", weights), contract(), passes) for passes in (PASSES, WITHOUT))
    assert taken.difference and not plain.difference
    feeds = {"image": W((2, 1, 4, 6)).astype(np.float32), "masks": packed_masks(taken.contract, 2, 4, (4, 6))}
    expected = run(plain.model, feeds)
    for name, value in run(taken.model, feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=5e-6)
