"""Logits → what the contract promises: probabilities or numbers of every sample, or moments over the samples.

Classification: probabilities[N, T, K], softmax or sigmoid of the logits.

Regression: means[N, T, K], and variances[N, T, K] where the network states them: itself, or as e^(log variance).

Segmentation, over voxels v with T full maps never leaving the graph:
    sum_p = Σ_t p_t     sum_p2 = Σ_t p_t²     sum_entropy = Σ_t H[p_t]     volumes[n, t, k] = Σ_{v inside} p_t(v)

Entropies in nats, from logits, so that neither p → 0 nor p → 1 makes a NaN:
Case 1, sigmoid: H = −log max(p, 1 − p) + |z|·min(p, 1 − p) with p = σ(z). Softplus would take four times as long.
Case 2, softmax of two classes: the sigmoid of d = z₁ − z₀; p₀ = 1 − p₁, so that Σp₀ = T − Σp₁ and
        Σp₀² = T − 2Σp₁ + Σp₁². One exponential for each voxel instead of two.
Case 3, softmax: with m = max z, e = exp(z − m), s = Σ e: p = e/s and H = log s − Σ p·(z − m), a sum of terms ≥ 0.

A network that states its moments answers with them instead of logits, channel after channel: they are only summed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.moments import STATED
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_core.targets import Noise

from ..errors import CaptureRefused
from .compilation import Compilation, Layout


def add_head(c: Compilation) -> None:
    """Requires logits [N·T, K(, *S)], or stated moments, as the only output; ensures the outputs of the contract."""
    logits = c.graph.outputs[0]
    layout = c.layouts.get(logits)
    if layout is not None and not c.phases:
        _refuse_wrong_shape(c, layout)
    c.graph.outputs.clear()
    if c.contract.task is Task.CLASSIFICATION:
        _classification(c, logits)
    elif c.contract.task is Task.REGRESSION:
        _regression(c, logits)
    elif c.contract.states_moments:
        _stated(c, logits)
    else:
        _segmentation(c, logits)
    c.graph.sort()


def _refuse_wrong_shape(c: Compilation, layout: Layout) -> None:
    contract = c.contract
    names = contract.answers
    channels = 1 if c.difference else sum(_stated_channels(c)) if contract.states_moments else len(names)
    if contract.states_variance:
        channels *= 2
    expected = (1, channels, *contract.nominal) if contract.per_voxel else (1, channels)
    if layout.shape != expected or layout.axis != 0 or layout.factor != 1:
        stating = " that states its moments" if contract.states_moments else ""
        if contract.states_variance:
            stating = f" and {'their variances' if len(names) > 1 else 'its variance'} (--answers)"
        kind = "--targets" if contract.targets else "classes"
        raise CaptureRefused(
            f"the output for one image has shape {layout.shape}; {contract.task.value} with {len(names)} {kind} "
            f"({', '.join(names)}){stating} needs {expected}",
            "the chosen output",
            _what_to_state(contract, layout),
        )


def _what_to_state(contract: Contract, layout: Layout) -> str:
    if not contract.targets:
        return "State the right --classes and --task, or choose another output (--output)."
    if not contract.states_variance and layout.shape == (1, 2 * len(contract.targets)):
        return (
            "Does it state a variance behind each mean? Say which: --answers mean_variance or mean_log_variance. Else "
            "name all its --targets."
        )
    return (
        "A regression answers [N, K] numbers for K --targets, or [N, 2K] with --answers mean_variance or "
        "mean_log_variance: state the right ones, or choose another output (--output)."
    )


def _output(c: Compilation, value: ir.Value, name: str, shape: list[int | str]) -> None:
    value.name = name
    value.dtype = ir.DataType.FLOAT
    value.shape = ir.Shape(shape)
    c.graph.outputs.append(value)


def _classification(c: Compilation, logits: ir.Value) -> None:
    softmax = c.contract.activation is Activation.SOFTMAX
    flat = c.op("Softmax", logits, axis=-1) if softmax else c.op("Sigmoid", logits)
    classes = len(c.contract.classes)
    samples = "T" if c.contract.stochastic else 1
    _output(c, c.reshape(flat, [-1, c.samples, classes]), "probabilities", ["N", samples, classes])


def _regression(c: Compilation, numbers: ir.Value) -> None:
    targets, noise = len(c.contract.targets), c.contract.noise
    parts = {"means": numbers}
    if noise is not Noise.NONE:
        sizes = c.constant([targets, targets])
        means, stated = c.op("Split", numbers, sizes, outputs=2, axis=1)
        parts = {"means": means, "variances": c.op("Exp", stated) if noise is Noise.LOG_VARIANCE else stated}
    samples = "T" if c.contract.stochastic else 1
    for name, value in parts.items():
        _output(c, c.reshape(value, [-1, c.samples, targets]), name, ["N", samples, targets])


def _stated_channels(c: Compilation) -> list[int]:
    """Of mean, mean square, mean entropy and the network's own ranking."""
    classes = len(c.contract.classes)
    return [classes, classes, c.contract.decisions, 1]


def _stated(c: Compilation, stated: ir.Value) -> None:
    """[N·T, 2K + E + 1, *S] → sums over T, and volumes."""
    channels = _stated_channels(c)
    given = c.reshape(stated, [c.images, c.samples, sum(channels), -1])  # [N, T, channels, V]
    sums = c.op("Split", _over_samples(c, "ReduceSum", given), c.constant(channels), outputs=len(channels), axis=1)
    _maps(c, dict(zip(STATED, zip(sums, channels, strict=True), strict=True)))
    first = [0, len(c.contract.classes)]
    means = c.op("Slice", given, *(c.constant([entry]) for entry in (*first, 2)))
    _volumes(c, c.op("MatMul", means, _inside(c)))


def _segmentation(c: Compilation, logits: ir.Value) -> None:
    classes = len(c.contract.classes)
    z = c.reshape(logits, [c.images, c.samples, 1 if c.difference else classes, -1])  # [N, T, K, V]
    inside = _inside(c)
    if c.contract.activation is Activation.SIGMOID:
        p, entropy = _sigmoid(c, z)
        moments = [_over_samples(c, "ReduceSum", p), _over_samples(c, "ReduceSumSquare", p)]
        volumes = c.op("MatMul", p, inside)
    elif classes == 2:
        if not c.difference:
            z0, z1 = c.op("Split", z, outputs=2, axis=2, num_outputs=2)
            z = c.op("Sub", z1, z0)
        p1, entropy = _sigmoid(c, z)
        sum1, square1 = _over_samples(c, "ReduceSum", p1), _over_samples(c, "ReduceSumSquare", p1)
        count = c.op("Cast", c.samples, to=ir.DataType.FLOAT.value)
        sum0 = c.op("Sub", count, sum1)
        square0 = c.op("Add", c.op("Sub", sum0, sum1), square1)
        moments = [c.op("Concat", sum0, sum1, axis=1), c.op("Concat", square0, square1, axis=1)]
        volume1 = c.op("MatMul", p1, inside)
        whole = c.op("ReduceSum", inside, c.constant([2]))
        volumes = c.op("Concat", c.op("Sub", whole, volume1), volume1, axis=2)
    else:
        shifted = c.op("Sub", z, c.op("ReduceMax", z, c.constant([2])))
        e = c.op("Exp", shifted)
        s = c.op("ReduceSum", e, c.constant([2]))
        p = c.op("Div", e, s)
        entropy = c.op("Sub", c.op("Log", s), c.op("ReduceSum", c.op("Mul", p, shifted), c.constant([2])))
        moments = [_over_samples(c, "ReduceSum", p), _over_samples(c, "ReduceSumSquare", p)]
        # The background is what the others leave: a sum of so many ones would lose the last of them to rounding.
        foreground = c.op("Slice", c.op("MatMul", p, inside), c.constant([1]), c.constant([classes]), c.constant([2]))
        background = c.op(
            "Sub", c.op("ReduceSum", inside, c.constant([2])), c.op("ReduceSum", foreground, c.constant([2]))
        )
        volumes = c.op("Concat", background, foreground, axis=2)
    moments.append(c.op("Relu", _over_samples(c, "ReduceSum", entropy)))  # −1e-7 is rounding, not an entropy

    channels = (classes, classes, c.contract.decisions)
    _maps(c, dict(zip(STATED[:3], zip(moments, channels, strict=True), strict=True)))
    _volumes(c, volumes)


def _maps(c: Compilation, sums: Mapping[str, tuple[ir.Value, int]]) -> None:
    """Name → (value [N, channels, V], channels) become outputs [N, channels, *S]."""
    for name, (value, channels) in sums.items():
        shape: list[int | str] = ["N", channels, *c.contract.spatial]
        _output(c, _in_place(c, value, channels), name, shape)


def _volumes(c: Compilation, volumes: ir.Value) -> None:
    """Of every sample: its probabilities, summed over voxels that are not padding, [N, T, K, 1]."""
    samples = "T" if c.contract.stochastic else 1
    _output(c, c.op("Squeeze", volumes, c.constant([3])), "volumes", ["N", samples, len(c.contract.classes)])


def _sigmoid(c: Compilation, z: ir.Value) -> tuple[ir.Value, ir.Value]:
    """p and H of Case 1."""
    p = c.op("Sigmoid", z)
    other = c.op("Sub", c.constant(1.0), p)
    certain = c.op("Log", c.op("Max", p, other))
    return p, c.op("Sub", c.op("Mul", c.op("Min", p, other), c.op("Abs", z)), certain)


def _over_samples(c: Compilation, reduction: str, value: ir.Value) -> ir.Value:
    """[N, T, …] → [N, …]."""
    return c.op(reduction, value, c.constant([1]), keepdims=0)  # type: ignore[no-any-return]


def _inside(c: Compilation) -> ir.Value:
    """FP32 [N, 1, V, 1]: 1 for voxels of the image, 0 for padding."""
    comparison = c.made_once("inside", lambda: c.op("Greater", c.image, c.constant(np.float32(PADDING_VALUE / 2))))
    inside = c.op("Cast", comparison, to=ir.DataType.FLOAT.value)
    neighbours = 1 if c.volume is None or c.volume.slices is None else c.volume.slices
    if neighbours > 1:
        own = neighbours // 2
        inside = c.op("Slice", inside, c.constant([own]), c.constant([own + 1]), c.constant([1]))
    elif c.contract.channels > 1:
        inside = c.op("ReduceMax", inside, c.constant([1]))
    return c.reshape(_in_phases(c, inside), [0, 1, -1, 1])


# --- voxels in phases: see merge_upsampling ---


def _in_place(c: Compilation, value: ir.Value, channels: int) -> ir.Value:
    """[N, channels, V] → [N, channels, *S]; of phases axis by axis, last first, both phases between each other."""
    if not c.phases:
        spatial = enumerate(c.contract.spatial, start=2)
        return c.reshape(value, [-1, channels, *(s if isinstance(s, int) else (c.image, axis) for axis, s in spatial)])
    blocks = _blocks(c)
    rank = len(blocks)
    twice = [2 * block if isinstance(block, int) else c.op("Mul", block, c.constant([2])) for block in blocks]
    for axis in reversed(range(rank)):
        value = c.reshape(value, [-1, 2, *blocks[: axis + 1], *twice[axis + 1 :]])
        value = c.op("Transpose", value, perm=[0, *range(2, axis + 3), 1, *range(axis + 3, rank + 2)])
    value = c.reshape(value, [-1, channels, *twice])
    starts, ends, axes = [1] * rank, [-1] * rank, list(range(2, 2 + rank))
    return c.op("Slice", value, c.constant(starts), c.constant(ends), c.constant(axes))  # type: ignore[no-any-return]


def _in_phases(c: Compilation, value: ir.Value) -> ir.Value:
    """[N, 1, *S] → the same in phases, 0 outside."""
    if not c.phases:
        return value
    blocks = _blocks(c)
    rank = len(blocks)
    padded = c.op("Pad", value, c.constant([0, 0, *[1] * rank] * 2))
    apart = c.reshape(padded, [-1, *(entry for block in blocks for entry in (block, 2))])
    order = [0, *range(2, 2 * rank + 1, 2), *range(1, 2 * rank, 2)]
    return c.op("Transpose", apart, perm=order)  # type: ignore[no-any-return]


def _blocks(c: Compilation) -> list[int | ir.Value]:
    """How many voxels a phase has along each spatial axis."""

    def block(axis: int, size: int | str) -> int | ir.Value:
        if isinstance(size, int):
            return size // 2 + 1
        half = c.op("Div", c.shape([(c.image, axis)]), c.constant([2]))
        return c.op("Add", half, c.constant([1]))  # type: ignore[no-any-return]

    return [block(axis, size) for axis, size in enumerate(c.contract.spatial, start=2)]
