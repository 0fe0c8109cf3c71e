"""A transposed convolution and the convolution after it become one convolution of the smaller image.

A transposed convolution with kernel = stride = 2 doubles the image. A convolution with kernel 3 that follows is linear
as well, so both are one convolution of the small image, with a channel for each of the 2^d *phases*: the voxels of the
large image that a voxel of the small one becomes. On a grid that is shifted by one voxel two taps for each axis do:

    block j = 0 … h holds the large image's voxels 2j − 1 and 2j, of which −1 and 2h lie outside
    y[p, o, j] = Σ_r Σ_c W[p, o, c, r] · x[c, j − 1 + r],   r ∈ {0, 1}
    W[p, o, c, r] = Σ_k Σ_m w[o, m, k] · u[c, m, t mod 2]  over k ∈ {0, 1, 2} with ⌊t/2⌋ + 1 = r, t = p + k − 2

Case 1: only pointwise operations lie between it and the logits. They run on phases, and `add_head` brings the sums over
        the samples into order, once for each image. The shared part of a split concatenation comes in phases as well,
        from a convolution with kernel 4 and stride 2.
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
from .compilation import Compilation, Entry, Layout, Phases

Array = NDArray[np.float64]
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
        """Whether the multiplications for each voxel of the large image do not grow."""
        up, first = _weight(self.upsampling), _weight(self.first)
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
        small = found.upsampling.inputs[0]
        assert small is not None
        self.small = small

    def conv(self, like: ir.Node, source: ir.Value, weight: Array, bias: Array | None, pad: int, stride: int = 1) -> ir.Value:
        c, kernel = self.c, weight.shape[2:]
        inputs = [source, c.constant(weight.astype(np.float32))]
        if bias is not None:
            inputs.append(c.constant(bias.astype(np.float32)))
        attributes = {"kernel_shape": kernel, "pads": [pad] * 2 * self.rank, "strides": [stride] * self.rank}
        result = c.op("Conv", *inputs, like=like.outputs[0], **attributes)
        sizes = zip(c.layouts[source].shape[2:], kernel, strict=True)
        shape = (len(weight), *((size + 2 * pad - taps) // stride + 1 for size, taps in sizes))
        return self.given(result, like.outputs[0], shape)

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

    def from_bias(self) -> Array | None:
        """Of the upsampling's bias, whose plane is 0 outside: the kernel `[O, 1, 3 …]` over ones."""
        bias = _bias(self.found.upsampling)
        return None if bias is None else np.einsum("om...,m->o...", _weight(self.found.first), bias)[:, None]

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
        c, found, count = self.c, self.found, 2**self.rank

        def channels_first(weight: Array) -> Array:
            """[2^d, O, …] → [O·2^d, …]."""
            return weight.swapaxes(0, 1).reshape(-1, *weight.shape[2:])

        def for_each(bias: Array | None) -> Array | None:
            return None if bias is None else np.repeat(bias, count)

        value = self.conv(found.first, self.small, channels_first(found.merged), for_each(_bias(found.first)), pad=1)
        once: ir.Value | None = None
        if found.shared is not None:
            source = found.shared.inputs[0]
            assert source is not None
            weight = channels_first(_strided(_weight(found.shared)))
            once = self.conv(found.shared, source, weight, for_each(_bias(found.shared)), pad=2, stride=2)
        kernel = self.from_bias()
        if kernel is not None:
            weight = c.constant(channels_first(_strided(kernel)).astype(np.float32))
            pads, strides = [2] * 2 * self.rank, [2] * self.rank
            plane = c.op("Conv", self.plane(1.0), weight, pads=pads, strides=strides)
            once = plane if once is None else self.given(c.op("Add", once, plane, like=once), once)
        if once is not None:
            value = self.given(c.op("Add", once, value, like=value), value)
        old = found.nodes
        self.follow(value, logits)
        c.graph.remove(old, safe=True)
        c.phases = Phases(self.rank)

    def follow(self, value: ir.Value, logits: ir.Value) -> None:
        c, gathered = self.c, True
        end = self.found.result
        while end is not logits:
            node = _only_user(c, end)
            assert node is not None
            end = node.outputs[0]
            if gathered and (node.op_type == "Conv" or node.domain):
                value, gathered = self.stacked(value), False
            node.replace_input_with(0, value)
            shape = c.layouts[value].shape
            value = self.given(end, end, (len(_weight(node)) if node.op_type == "Conv" else shape[1], *shape[2:]))
        if gathered:
            c.graph.outputs[0] = self.stacked(value)

    def stacked(self, value: ir.Value) -> ir.Value:
        c, count = self.c, 2**self.rank
        _, channels, rows, *others = c.layouts[value].shape
        shape = (channels // count, rows * count, *others)
        result = c.op("Reshape", value, c.constant([0, shape[0], -1, *[0] * len(others)]), like=value)
        return self.given(result, value, shape)


class _Interleaved(_Writer):
    """Case 2. Values are `[N, 2h + 2, …, O]`."""

    def run(self, between: list[ir.Node]) -> None:
        c, found = self.c, self.found
        merged = found.merged
        outputs = merged.shape[1]
        bias = _bias(found.first)
        weight = merged.reshape(-1, *merged.shape[2:])
        value = self.conv(found.first, self.small, weight, None if bias is None else np.tile(bias, 2**self.rank), pad=1)
        value = self.interleaved(self.last(value), outputs)
        for part in self.once():
            value = self.given(c.op("Add", part, value, like=value), value)
        *pointwise, following = between
        old = found.nodes
        for node in pointwise:
            node.replace_input_with(0, value)
            value = self.given(node.outputs[0], node.outputs[0], c.layouts[value].shape[1:])
            if node.domain:
                axes = [axis if axis == 0 else self.rank + 1 for axis in marker_of(node).axes]
                node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        following.replace_input_with(0, self.first(value))
        pads = [pad - 1 for pad in following.attributes.get_ints("pads")]
        following.attributes["pads"] = ir.AttrInt64s("pads", pads)
        c.graph.remove(old, safe=True)

    def once(self) -> list[ir.Value]:
        """What no mask changes, as one sum or, where no image changes it, as nothing but planes."""
        c, found = self.c, self.found
        ends = [0, 0, *[1] * self.rank]
        plane = c.op("Pad", self.plane(0.0), c.constant(ends * 2), c.constant(OUTSIDE))
        kernel = self.from_bias()
        if kernel is not None:
            weight = c.constant(kernel.astype(np.float32))
            plane = c.op("Add", plane, c.op("Conv", self.plane(1.0), weight, pads=[2] * 2 * self.rank))
        if found.shared is None:
            return [self.transposed(plane)]
        source = found.shared.inputs[0]
        assert source is not None
        shared = self.conv(found.shared, source, _weight(found.shared), _bias(found.shared), pad=2)
        return [self.last(self.given(c.op("Add", shared, plane, like=shared), shared))]

    def transposed(self, value: ir.Value) -> ir.Value:
        return self.c.op("Transpose", value, perm=[0, *range(2, self.rank + 2), 1])  # type: ignore[no-any-return]

    def last(self, value: ir.Value) -> ir.Value:
        """Channels last."""
        layout = self.c.layouts[value]
        order = [0, *range(2, self.rank + 2), 1]
        return self.moved(value, order, layout)

    def first(self, value: ir.Value) -> ir.Value:
        """Channels first."""
        return self.moved(value, [0, self.rank + 1, *range(1, self.rank + 1)], self.c.layouts[value])

    def moved(self, value: ir.Value, order: list[int], layout: Layout) -> ir.Value:
        c = self.c
        result = c.op("Transpose", value, perm=order, like=value)
        shape, dynamic = (tuple(entries[axis] for axis in order) for entries in (layout.shape, layout.dynamic))
        c.layouts[result] = Layout(shape, 0, layout.factor, dynamic)
        if value in c.sampled:
            c.sampled.add(result)
        return result  # type: ignore[no-any-return]

    def interleaved(self, value: ir.Value, outputs: int) -> ir.Value:
        """`[N, h, w, …, 2·2·…·O]` → `[N, 2h, 2w, …, O]`."""
        c, rank = self.c, self.rank
        layout = c.layouts[value]
        sizes = [c.size(value, axis) for axis in range(1, rank + 1)]
        apart = c.reshape(value, [-1, *sizes, *[2] * (rank - 1), 2 * outputs])  # the last phase moves with the channels
        order = [0]
        for axis in range(1, rank):
            order += [axis, rank + axis]
        mixed = c.op("Transpose", apart, perm=[*order, rank, 2 * rank])
        whole = [self.twice(size) for size in sizes]
        result = c.op("Reshape", mixed, c.shape([-1, *whole, outputs]), like=value)
        return self.given(result, value, (*(2 * size for size in layout.shape[1:-1]), outputs))
