# ruff: noqa: E501  # graphs read better unbroken
"""Each case of the docstring: the split operation equals the whole one, and its shared part runs without samples."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from equipoise_core.contract import Task
from equipoise_export.passes import PASSES
from equipoise_export.passes.split_concat import split_concat

from ...support.graphs import compiled, contract, marked, mask, packed_masks, run

RANDOM = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


CASES = {
    "Conv": ("y = Conv <pads=[1, 1, 1, 1]> (j, w, b)", {"w": weight(5, 4, 3, 3), "b": weight(5)}, 1),
    "ConvTranspose": ("y = ConvTranspose <strides=[2, 2]> (j, w, b)", {"w": weight(4, 5, 2, 2), "b": weight(5)}, 1),
    "MatMul": ("y = MatMul(j, w)", {"w": weight(12, 5) / 10}, 3),
    "Gemm": ("f = Flatten(h) g = Flatten(m) k = Concat <axis=1> (f, g) y = Gemm(k, w, b)", {"w": weight(96, 5) / 10, "b": weight(5)}, 1),
    "Gemm transposed": (
        "f = Flatten(h) g = Flatten(m) k = Concat <axis=1> (f, g) y = Gemm <transB=1> (k, w, b)", {"w": weight(5, 96) / 10, "b": weight(5)}, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_split_changes_no_number(case: str) -> None:
    """With and without the pass the sampler gives the same; with it, one of two operations is shared."""
    line, weights, axis = CASES[case]
    body = "h = Concat <axis=1> (image, image) " + mask("a", [0, 1], "h", "m")
    body += f"j = Concat <axis={axis}> (m, h) {line} flat = Flatten <axis=1> (y)"
    images = weight(2, 1, 4, 6)
    without = tuple(step for step in PASSES if step is not split_concat)
    whole = marked(body, "flat", weights)
    size = run_shape(whole, images)
    draft = contract(task=Task.CLASSIFICATION, classes=size)
    split, plain = compiled(marked(body, "flat", weights), draft), compiled(whole, draft, without)
    packed = packed_masks(split.contract, 2, 3, (4, 6))
    feeds = {"image": images, "masks": packed}
    np.testing.assert_allclose(
        run(split.model, feeds)["probabilities"], run(plain.model, feeds)["probabilities"], atol=1e-6
    )
    kinds = [node.op_type for node in split.model.graph]
    assert kinds.count(case.split()[0]) == 2
    assert split.cost is not None and plain.cost is not None
    assert split.cost.sampled < plain.cost.sampled
    assert split.cost.shared + split.cost.sampled == split.cost.network == plain.cost.network


def run_shape(model, images: np.ndarray) -> int:  # type: ignore[no-untyped-def]
    from equipoise_export.graph.nodes import runnable
    from equipoise_export.graph.session import session

    return int(session(runnable(ir.to_proto(model))).run(None, {"image": images})[0].shape[1])


def test_grouped_convolutions_stay_whole() -> None:
    """A grouped convolution is not linear in the way the pass assumes, so it is left alone."""
    body = "h = Concat <axis=1> (image, image) " + mask("a", [0, 1], "h", "m")
    body += "j = Concat <axis=1> (m, h) y = Conv <group=2> (j, w) flat = Flatten <axis=1> (y)"
    result = compiled(marked(body, "flat", {"w": weight(2, 2, 1, 1)}), contract(task=Task.CLASSIFICATION, classes=48))
    assert [node.op_type for node in result.model.graph].count("Conv") == 1
