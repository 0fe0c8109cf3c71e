# ruff: noqa: E501  # graphs read better unbroken
"""Each case of the docstring: what is computed in half, and what stays single."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from equipoise_core.contract import Precision, Task
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_export.errors import ExportRefused
from equipoise_export.passes.compilation import Compilation
from equipoise_export.proof.rounding import REACHED, rounded

from ...support.graphs import compiled, contract, marked, mask, packed_masks, run

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.standard_normal((2, 1, 1, 1)).astype(np.float32)
ONES = np.ones(2, np.float32)


def half(body: str, result: str, weights: dict[str, np.ndarray], **options: object) -> Compilation:
    draft = replace(contract(**options), precision=Precision.FP16)  # type: ignore[arg-type]
    return compiled(marked(body, result, weights), draft)


def types_of(c: Compilation) -> dict[str, set[str]]:
    """Operator → the types that it computes in: of its first floating-point input."""
    types: dict[str, set[str]] = {}
    for node in c.model.graph:
        values = [value for value in node.inputs if value is not None and value.dtype is not None]
        real = [value for value in values if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)]
        if real:
            types.setdefault(node.op_type, set()).add(str(real[0].dtype))
    return types


CASES = {
    "activations": ("y = LeakyRelu (h)", {}, "LeakyRelu", "FLOAT16"),
    "normalisation": ("y = InstanceNormalization (h, s, b)", {"s": ONES, "b": ONES}, "InstanceNormalization", "FLOAT"),
    "softmax": ("y = Softmax <axis=1> (h)", {}, "Softmax", "FLOAT"),
    "mean": ("r = ReduceMean (h) y = Div (h, r)", {}, "ReduceMean", "FLOAT"),
    "arithmetic with a mean": ("r = ReduceMean (h) y = Sub (h, r)", {}, "Sub", "FLOAT"),
    "square": ("q = Mul (h, h) y = Tanh (q)", {}, "Tanh", "FLOAT"),
    "exponential": ("y = Exp (h)", {}, "Exp", "FLOAT"),
    "too large a constant": ("y = Max (h, e)", {"e": np.float32([-1e9])}, "Max", "FLOAT"),
    "too small a constant": ("y = Max (h, e)", {"e": np.float32([1e-7])}, "Max", "FLOAT"),
    "infinite constant": ("y = Max (h, e)", {"e": np.float32([-np.inf])}, "Max", "FLOAT"),
    "constant that fits": ("y = Max (h, e)", {"e": np.float32([-1e4])}, "Max", "FLOAT16"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_unsafe_in_half_stays_single(case: str) -> None:
    """Between two convolutions, which are half."""
    line, weights, operator, expected = CASES[case]
    body = mask("a", [0, 1], "image", "m") + f"h = Conv (m, k) {line} z = Conv (y, l)"
    weights = {"k": KERNEL, "l": RANDOM.standard_normal((2, 2, 1, 1)).astype(np.float32), **weights}
    c = half(body, "z", weights, classes=2)
    types = types_of(c)
    assert types[operator] == {expected}
    assert types["Conv"] == {"FLOAT16"}
    assert [(value.name, value.dtype) for value in c.model.graph.outputs] == [
        (name, ir.DataType.FLOAT) for name in ("sum_p", "sum_p2", "sum_entropy", "volumes")
    ]
    assert c.image.dtype is ir.DataType.FLOAT


def test_normalisations_hand_on_half() -> None:
    """What they give is of order 1: the activation behind one is half again, and bits become factors in half."""
    body = "h = Conv (image, k) n = InstanceNormalization (h, s, b)" + mask("a", [0, 1], "n", "m") + "z = Relu (m)"
    c = half(body, "z", {"k": KERNEL, "s": ONES, "b": ONES})
    names = c.halves_by_name()
    for node in c.model.graph:
        if node.op_type == "Gather" and node.inputs[0].const_value is not None:  # type: ignore[union-attr]
            assert str(node.inputs[0].dtype) == "FLOAT16"  # type: ignore[union-attr]
    (product,) = [
        node for node in c.model.graph if node.op_type == "Mul" and {v.dtype for v in node.inputs if v} == {ir.DataType.FLOAT16}
    ]  # fmt: skip
    assert product.outputs[0].name in names


def test_the_mark_of_padding_never_becomes_half() -> None:
    """−10⁶ is no half number: voxels outside are filled before the one cast of the image."""
    c = half(mask("a", [0, 1, 2, 3], "image", "m") + "z = Conv (m, k)", "z", {"k": KERNEL})
    (cast,) = [n for n in c.model.graph if n.op_type == "Cast" and n.outputs[0].dtype is ir.DataType.FLOAT16]
    assert cast.inputs[0].producer().op_type == "Where"  # type: ignore[union-attr]
    image = RANDOM.standard_normal((1, 1, 4, 6)).astype(np.float32)
    image[:, :, -1] = PADDING_VALUE
    feeds = {"image": image, "masks": packed_masks(c.contract, 1, 3, (4, 6))}
    got = run(ir.from_proto(rounded(ir.to_proto(c.model), c.halves_by_name())), feeds)
    assert all(np.isfinite(value).all() for value in got.values())
    filled = np.where(image == PADDING_VALUE, 0, image)
    name = next(name for name, layer in c.halves_by_name().items() if layer == "the image")
    assert got[REACHED + name] == np.float32(np.abs(filled).max())


def test_noise_of_stochastic_depth_is_drawn_in_single() -> None:
    """⌊k + u⌋ with u = 1 − 2⁻²⁴ would be k + 1 in half, which rounds u up."""
    nearly = np.full((1, 1, 1, 1), 1 - 2.0**-24, np.float32)
    body = "n = Shape <start=0, end=1> (image) s = Concat <axis=0> (n, ones) e = Expand (u, s)"
    body += mask("a", [0], "e", "d", kind="path") + "f = Add (d, keep) g = Floor (f) h = Conv (image, k) z = Mul (h, g)"
    weights = {"u": nearly, "keep": np.float32(0.9999), "k": KERNEL, "ones": np.array([1, 1, 1])}
    c = half(body, "z", weights)
    assert types_of(c)["Add"] >= {"FLOAT"} and types_of(c)["Floor"] == {"FLOAT"}
    product = next(n for n in c.model.graph if n.op_type == "Mul" and n.outputs[0].dtype is ir.DataType.FLOAT16)
    assert {value.dtype for value in product.inputs if value is not None} == {ir.DataType.FLOAT16}


def test_an_overflow_is_not_finite_in_the_answer() -> None:
    """Whatever overflows in use goes to review: even behind a sigmoid, which would make a plain 1 of it."""
    weights = {"k": np.array([-100, 100], np.float32).reshape(2, 1, 1, 1)}
    c = half(mask("a", [0, 1], "image", "m") + "z = Conv (m, k)", "z", weights)
    feeds = {"image": np.full((1, 1, 4, 6), 900, np.float32), "masks": np.full((1, 1, 1), 255, np.uint8)}
    got = run(ir.from_proto(rounded(ir.to_proto(c.model), c.halves_by_name())), feeds)
    for name in ("sum_p", "sum_p2", "volumes"):
        assert not np.isfinite(got[name]).any()


def test_a_loop_cannot_be_halved() -> None:
    """Its inner graph would have to be rewritten as well; the refusal says what to do."""
    body = "c = Size (image) b = Cast <to=9> (c) h = If (b) <then_branch = t () => (float o) { o = Relu (image) }, else_branch = e () => (float p) { p = Neg (image) }> z = Conv (h, k)"
    body += mask("a", [0, 1], "z", "m")
    with pytest.raises(ExportRefused, match="inner graph cannot be brought to half precision"):
        half(body, "m", {"k": KERNEL})


def test_single_precision_is_untouched() -> None:
    """Without --precision fp16 the pass does nothing."""
    body = mask("a", [0, 1], "image", "m") + "z = Conv (m, k) f = Flatten <axis=1> (z)"
    c = compiled(marked(body, "f", {"k": KERNEL}), contract(task=Task.CLASSIFICATION, classes=48))
    assert not c.halves
    assert not any(value.dtype is ir.DataType.FLOAT16 for node in c.model.graph for value in node.outputs)
