"""A transposed convolution and the convolution after it become one convolution of the smaller image.

A transposed convolution with kernel = stride = 2 doubles the image. A convolution with kernel 3 that follows is linear
as well, so both are one convolution of the small image, with a channel for each of the 2^d *phases*: the voxels of the
large image that a voxel of the small one becomes. On a grid that is shifted by one voxel two taps for each axis do:

    block j = 0 … h holds the large image's voxels 2j − 1 and 2j, of which −1 and 2h lie outside
    y[p, o, j] = Σ_r Σ_c W[p, o, c, r] · x[c, j − 1 + r],   r ∈ {0, 1}
    W[p, o, c, r] = Σ_k Σ_m w[o, m, k] · u[c, m, t mod 2]  over k ∈ {0, 1, 2} with ⌊t/2⌋ + 1 = r, t = p + k − 2

Case 1: only pointwise operations lie between it and the logits. They run on phases, and `add_head` brings the sums over
        the samples into order, once for each image. The shared part of a split concatenation is brought into phases.
Case 2: a ReLU follows, and after it, dropped channels aside, another convolution that pads with zeros. The phases are
        interleaved with the channels last, which moves long runs of memory. The voxels outside stay and are that
        convolution's padding: −2¹⁰⁰ is added to them, and ReLU makes 0 of it. Half precision has no such number.

Merged where that takes no more multiplications. ONNX Runtime's transposed convolution adds up its columns on one core,
and leaves the blocked layout of the convolutions around it; its DepthToSpace moves value by value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from equipoise_core.contract import Precision, Task
from numpy.typing import NDArray

from ..graph.marker import DOMAIN, MASK, marker_of
from ..graph.nodes import number_of
from .compilation import Compilation, Entry, Layout

Array = NDArray[np.float64]
LARGEST = 2**17
"""Weights of a merged convolution at most: it has two to four times as many as the two that it replaces."""
POINTWISE = {"Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "HardSigmoid", "HardSwish", "Identity"}
OUTSIDE = -(2.0**100)  # exact in every format that a GPU may round to


def merge_upsampling(c: Compilation) -> None:
    """Requires `sampled`; ensures `phases` where Case 1 holds."""
    for node in reversed(list(c.graph)):  # Case 2 finds the convolution of the next level merged
        found = _find(c, node)
        if found is None or not found.worthwhile:
            continue
        logits = _pointwise(c, found.result)
        if logits is not None:
            _InPhases(c, found).run(logits)
        elif c.contract.precision is Precision.FP32:
            between = _up_to_padding(c, found.result)
            if between:
                _Interleaved(c, found).run(between)
    c.graph.sort()


# --- finding ---


@dataclass(frozen=True)
class _Found:
    """`first(upsampling(x))`, plus what `shared` computes of the image alone."""

    upsampling: ir.Node
    first: ir.Node
    shared: ir.Node | None
    result: ir.Value

    @property
    def worthwhile(self) -> bool:
        """Whether the multiplications for each voxel of the large image do not grow, nor the file by much."""
        up, first = _weight(self.upsampling), _weight(self.first)
        if up.shape[0] * len(first) * 4 ** (up.ndim - 2) > LARGEST:
            return False
        return up.shape[0] * len(first) * 2 ** (up.ndim - 2) <= up.shape[0] * up.shape[1] + first.size

    @property
    def merged(self) -> Array:
        """W, `[2^d, O, C, 2 …]`."""
        return _merged(_weight(self.first), _weight(self.upsampling))

    @property
    def nodes(self) -> set[ir.Node]:
        found = {self.upsampling, self.first, self.result.producer(), self.shared}
        return {node for node in found if node is not None}


def _find(c: Compilation, node: ir.Node) -> _Found | None:
    if node.op_type != "ConvTranspose" or node.outputs[0] not in c.sampled or not _doubles(node):
        return None
    first = _only_user(c, node.outputs[0])
    if first is None or not _keeps_size(first, 3) or first.inputs[0] is not node.outputs[0]:
        return None
    result, shared = first.outputs[0], None
    added = _only_user(c, result)
    if added is not None and added.op_type == "Add" and not added.domain:
        other = added.inputs[0] if added.inputs[1] is result else added.inputs[1]
        assert other is not None
        shared = other.producer()
        if shared is None or other in c.sampled or not _keeps_size(shared, 3) or _only_user(c, other) is not added:
            return None
        if c.layouts[other].shape != c.layouts[result].shape:
            return None
        result = added.outputs[0]
    values = [node.inputs[0], result, *([shared.inputs[0]] if shared else [])]
    if any(value not in c.layouts or c.layouts[value].axis != 0 for value in values if value is not None):
        return None
    return _Found(node, first, shared, result)


def _only_user(c: Compilation, value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and value not in c.graph.outputs else None


def _pointwise(c: Compilation, value: ir.Value) -> ir.Value | None:
    """Case 1: the logits, where each of their voxels depends on one voxel of `value`."""
    logits, layout = c.graph.outputs[0], c.layouts[value]
    if c.contract.task is not Task.SEGMENTATION or logits not in c.layouts:
        return None
    if c.layouts[logits].factor != 1 or not layout.shape[2:] == c.layouts[logits].shape[2:] == c.contract.nominal:
        return None
    while value is not logits:
        node = _only_user(c, value)
        if node is None:
            return None
        if not (_keeps_size(node, 1) or _drops_channels(node) or (node.op_type in POINTWISE and not node.domain)):
            return None
        value = node.outputs[0]
    return logits


def _up_to_padding(c: Compilation, value: ir.Value) -> list[ir.Node]:
    """Case 2: the ReLU, masks of channels, and the convolution; empty where it does not hold."""
    found: list[ir.Node] = []
    while True:
        node = _only_user(c, value)
        if node is None:
            return []
        found.append(node)
        if len(found) == 1:
            if node.op_type != "Relu" or node.domain:
                return []
        elif node.op_type == "Conv" and not node.domain:
            pads = node.attributes.get_ints("pads", [])
            padded = node.inputs[0] is value and pads and min(pads) > 0
            return found if padded and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" else []
        elif not _drops_channels(node):
            return []
        value = node.outputs[0]


def _drops_channels(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == MASK and set(marker_of(node).axes) <= {0, 1}


def _keeps_size(node: ir.Node, kernel: int) -> bool:
    """A convolution with one kernel of that size for all axes."""
    if node.op_type != "Conv" or node.domain or not _constant(node):
        return False
    weight = _weight(node)
    return all(size == kernel for size in weight.shape[2:]) and _plain(node, weight.ndim - 2, kernel // 2, 1)


def _doubles(node: ir.Node) -> bool:
    """A transposed convolution whose kernel and stride are 2 along every axis."""
    if node.domain or not _constant(node) or "output_shape" in node.attributes:
        return False
    weight = _weight(node)
    padded = any(node.attributes.get_ints("output_padding", []))
    return all(size == 2 for size in weight.shape[2:]) and not padded and _plain(node, weight.ndim - 2, 0, 2)


def _constant(node: ir.Node) -> bool:
    """Weight and bias are."""
    return all(number_of(value) is not None for value in node.inputs[1:] if value is not None)


def _plain(node: ir.Node, rank: int, pad: int, stride: int) -> bool:
    ints = node.attributes.get_ints
    return (
        node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and node.attributes.get_int("group", 1) == 1
        and list(ints("pads", [0] * 2 * rank)) == [pad] * 2 * rank
        and list(ints("strides", [1] * rank)) == [stride] * rank
        and list(ints("dilations", [1] * rank)) == [1] * rank
    )


def _weight(node: ir.Node) -> Array:
    weight = number_of(node.inputs[1])
    assert weight is not None
    return weight.astype(np.float64)


def _bias(node: ir.Node) -> Array | None:
    bias = number_of(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if bias is None else bias.astype(np.float64)


# --- weights: einsums in which every axis of `taps` stands for d axes ---


def _merged(first: Array, up: Array) -> Array:
    """w `[O, M, 3 …]` after u `[C, M, 2 …]` → `[2^d, O, C, 2 …]`."""
    taps = np.zeros((2, 2, 3, 2))  # p, r, k, t mod 2
    for p, k in np.ndindex(2, 3):
        t = p + k - 2
        taps[p, t // 2 + 1, k, t % 2] = 1
    return _spread("PRKA,omK,cmA->PocR", taps, first, up)


def _strided(weight: Array) -> Array:
    """w `[O, C, 3 …]` → `[2^d, O, C, 4 …]`: the same on phases, with stride 2 and padding 2."""
    taps = np.zeros((2, 4, 3))
    for p, k in np.ndindex(2, 3):
        taps[p, p + k, k] = 1
    return _spread("PRK,ocK->PocR", taps, weight)


def _spread(equation: str, taps: Array, *weights: Array) -> Array:
    """Capitals stand for d axes, P's become one."""
    rank = weights[0].ndim - 2
    terms, out = equation.split("->")
    first, *rest = terms.split(",")
    letters = {letter: [chr(ord("A") + rank * i + axis) for axis in range(rank)] for i, letter in enumerate(first)}
    single = ["".join(letters[letter][axis] for letter in first) for axis in range(rank)]
    joined = ["".join("".join(letters.get(letter, letter)) for letter in term) for term in (*rest, out)]
    result = np.einsum(f"{','.join([*single, *joined[:-1]])}->{joined[-1]}", *[taps] * rank, *weights, optimize=True)
    return np.asarray(result).reshape(-1, *result.shape[rank:])


# --- writing ---


class _Writer:
    def __init__(self, c: Compilation, found: _Found) -> None:
        self.c, self.found = c, found
        self.rank = _weight(found.first).ndim - 2
        self.count = 2**self.rank
        small = found.upsampling.inputs[0]
        assert small is not None
        self.small = small

    def merged(self, weight: Array, bias: Array | None) -> ir.Value:
        """The merged convolution."""
        return self.conv(self.found.first, self.small, weight, bias, pad=1)

    def shared(self, weight: Array, bias: Array | None, pad: int) -> ir.Value:
        assert self.found.shared is not None
        source = self.found.shared.inputs[0]
        assert source is not None
        return self.conv(self.found.shared, source, weight, bias, pad)

    def conv(self, like: ir.Node, source: ir.Value, weight: Array, bias: Array | None, pad: int) -> ir.Value:
        c, kernel = self.c, weight.shape[2:]
        inputs = [source, c.constant(weight.astype(np.float32))]
        if bias is not None:
            inputs.append(c.constant(bias.astype(np.float32)))
        result = c.op(
            "Conv",
            *inputs,
            like=like.outputs[0],
            kernel_shape=list(kernel),
            pads=[pad] * 2 * self.rank,
            strides=[1] * self.rank,
        )
        sizes = zip(c.layouts[source].shape[2:], kernel, strict=True)
        shape = (len(weight), *(size + 2 * pad - taps + 1 for size, taps in sizes))
        return self.given(result, like.outputs[0], shape)

    def bias_plane(self, kernel: Array, pad: int, stride: int) -> ir.Value:
        """Of the upsampling's bias, which lies inside the image only: over ones."""
        weight = self.c.constant(kernel.astype(np.float32))
        pads, strides = [pad] * 2 * self.rank, [stride] * self.rank
        return self.c.op("Conv", self.plane(1.0), weight, pads=pads, strides=strides)  # type: ignore[no-any-return]

    def bias_kernel(self) -> Array | None:
        """`[O, 1, 3 …]`."""
        bias = _bias(self.found.upsampling)
        return None if bias is None else np.einsum("om...,m->o...", _weight(self.found.first), bias)[:, None]

    def plane(self, fill: float) -> ir.Value:
        """`[1, 1, …]` of the large image's size."""
        c, shared = self.c, self.found.shared
        source = self.small if shared is None else shared.inputs[0]
        assert source is not None
        sizes = [c.size(source, axis) for axis in range(2, 2 + self.rank)]
        if shared is None:
            sizes = [self.twice(size) for size in sizes]
        value = ir.tensor(np.array([fill], np.float32))
        return c.op("ConstantOfShape", c.shape([1, 1, *sizes]), value=value)  # type: ignore[no-any-return]

    def twice(self, size: Entry) -> Entry:
        return 2 * size if isinstance(size, int) else self.c.op("Mul", self.c.shape([size]), self.c.constant([2]))

    def given(self, value: ir.Value, like: ir.Value, shape: tuple[int, ...] | None = None) -> ir.Value:
        """`value` as sampled as `like`, with its type and its layout but for the `shape` of an image."""
        c, layout = self.c, self.c.layouts[like]
        size = layout.shape if shape is None else (layout.shape[0], *shape)
        c.layouts[value] = Layout(size, layout.axis, layout.factor, layout.dynamic)
        value.type = like.type
        if like in c.sampled:
            c.sampled.add(value)
        return value


class _InPhases(_Writer):
    """Case 1. Values are `[N, O·2^d, h + 1, …]` for what fuses with the convolution, then `[N, O, 2^d·(h + 1), …]`."""

    def run(self, logits: ir.Value) -> None:
        c, found = self.c, self.found
        value = self.merged(_channels_first(found.merged), self.for_each_phase(_bias(found.first)))
        parts = []
        if found.shared is not None:
            plain = self.shared(_weight(found.shared), _bias(found.shared), pad=1)
            parts.append(self.in_phases(plain, value))
        kernel = self.bias_kernel()
        if kernel is not None:
            parts.append(self.bias_plane(_channels_first(_strided(kernel)), pad=2, stride=2))
        if len(parts) == 2:
            parts = [self.given(c.op("Add", *parts, like=parts[0]), parts[0])]
        for part in parts:
            value = self.given(c.op("Add", part, value, like=value), value)
        old = found.nodes
        self.follow(value, logits)
        c.graph.remove(old, safe=True)
        c.phases = True

    def in_phases(self, plain: ir.Value, like: ir.Value) -> ir.Value:
        """`[N, O, 2h, …]` → `[N, O·2^d, h + 1, …]`, 0 outside: a kernel for it would hold 8 or 19 times the weights."""
        c, rank = self.c, self.rank
        ends = [0, 0, *[1] * rank]
        padded = c.op("Pad", plain, c.constant(ends * 2))
        sizes = [c.size(like, axis) for axis in range(2, 2 + rank)]
        apart = c.reshape(padded, [0, 0, *(entry for size in sizes for entry in (size, 2))])
        blocks, phases = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
        mixed = c.op("Transpose", apart, perm=[0, 1, *phases, *blocks])
        channels, *extents = c.layouts[like].shape[1:]
        result = c.op("Reshape", mixed, c.shape([0, channels, *sizes]), like=plain)
        return self.given(result, plain, (channels, *extents))

    def for_each_phase(self, bias: Array | None) -> Array | None:
        return None if bias is None else np.repeat(bias, self.count)

    def follow(self, value: ir.Value, logits: ir.Value) -> None:
        """The nodes down to the logits take phases instead."""
        c, end, stacked = self.c, self.found.result, False
        while end is not logits:
            node = _only_user(c, end)
            assert node is not None
            end = node.outputs[0]
            if not stacked and (node.op_type == "Conv" or node.domain):
                value, stacked = self.stacked(value), True
            node.replace_input_with(0, value)
            shape = c.layouts[value].shape
            value = self.given(end, end, (len(_weight(node)) if node.op_type == "Conv" else shape[1], *shape[2:]))
        if not stacked:
            c.graph.outputs[0] = self.stacked(value)

    def stacked(self, value: ir.Value) -> ir.Value:
        """Phases one above the other: whatever knows a channel, a mask say, finds it."""
        c = self.c
        _, channels, rows, *others = c.layouts[value].shape
        shape = (channels // self.count, rows * self.count, *others)
        result = c.op("Reshape", value, c.constant([0, shape[0], -1, *[0] * len(others)]), like=value)
        return self.given(result, value, shape)


class _Interleaved(_Writer):
    """Case 2. Values are `[N, 2h + 2, …, O]`."""

    def run(self, between: list[ir.Node]) -> None:
        c, found = self.c, self.found
        weight, bias = found.merged, _bias(found.first)
        flat = weight.reshape(-1, *weight.shape[2:])
        value = self.merged(flat, None if bias is None else np.tile(bias, self.count))
        value = self.interleaved(self.channels_last(value), weight.shape[1])
        value = self.given(c.op("Add", self.once(), value, like=value), value)
        *pointwise, following = between
        old = found.nodes
        for node in pointwise:
            node.replace_input_with(0, value)
            value = self.given(node.outputs[0], node.outputs[0], c.layouts[value].shape[1:])
            if node.domain:
                axes = [axis if axis == 0 else self.rank + 1 for axis in marker_of(node).axes]
                node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        following.replace_input_with(0, self.moved(value, [0, self.rank + 1, *range(1, self.rank + 1)]))
        pads = [pad - 1 for pad in following.attributes.get_ints("pads", [])]
        following.attributes["pads"] = ir.AttrInt64s("pads", pads)
        c.graph.remove(old, safe=True)

    def once(self) -> ir.Value:
        """What no mask changes: the shared part where there is one, the upsampling's bias, and −2¹⁰⁰ outside."""
        c, found = self.c, self.found
        ends = [0, 0, *[1] * self.rank]
        plane = c.op("Pad", self.plane(0.0), c.constant(ends * 2), c.constant(OUTSIDE))
        kernel = self.bias_kernel()
        if kernel is not None:
            plane = c.op("Add", plane, self.bias_plane(kernel, pad=2, stride=1))
        if found.shared is None:
            return c.op("Transpose", plane, perm=self.order)  # type: ignore[no-any-return]
        shared = self.shared(_weight(found.shared), _bias(found.shared), pad=2)
        return self.channels_last(self.given(c.op("Add", shared, plane, like=shared), shared))

    @property
    def order(self) -> list[int]:
        return [0, *range(2, self.rank + 2), 1]

    def channels_last(self, value: ir.Value) -> ir.Value:
        return self.moved(value, self.order)

    def moved(self, value: ir.Value, order: list[int]) -> ir.Value:
        c, layout = self.c, self.c.layouts[value]
        result = self.given(c.op("Transpose", value, perm=order, like=value), value)
        shape = tuple(layout.shape[axis] for axis in order)
        c.layouts[result] = Layout(shape, 0, layout.factor, tuple(layout.dynamic[axis] for axis in order))
        return result

    def interleaved(self, value: ir.Value, outputs: int) -> ir.Value:
        """`[N, h, w, …, 2·2·…·O]` → `[N, 2h, 2w, …, O]`. The last phase moves with the channels."""
        c, rank = self.c, self.rank
        sizes = [c.size(value, axis) for axis in range(1, rank + 1)]
        apart = c.reshape(value, [-1, *sizes, *[2] * (rank - 1), 2 * outputs])
        pairs = [axis for first in range(1, rank) for axis in (first, rank + first)]
        mixed = c.op("Transpose", apart, perm=[0, *pairs, rank, 2 * rank])
        result = c.op("Reshape", mixed, c.shape([-1, *(self.twice(size) for size in sizes), outputs]), like=value)
        shape = c.layouts[value].shape[1:-1]
        return self.given(result, value, (*(2 * size for size in shape), outputs))


def _channels_first(weight: Array) -> Array:
    """`[2^d, O, …]` → `[O·2^d, …]`."""
    return weight.swapaxes(0, 1).reshape(-1, *weight.shape[2:])
