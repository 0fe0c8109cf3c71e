"""Last level of a decoder: a transposed convolution and the convolutions after it run on the smaller image.

A transposed convolution with kernel = stride = 2 doubles the image, and a convolution that follows is linear as well,
so both are one convolution of the small image with 2^d as many channels: one for each *phase*, the 2^d voxels of the
large image that a voxel of the small one becomes. No tensor is interleaved: what follows up to the logits acts on each
voxel alone, so it runs on the phases, and `add_head` puts the voxels of its sums in order, once for each image.

With a kernel of 3 the phases lie on a grid that is shifted by one voxel, where two kernel taps suffice for each axis:

    block j = 0 … h holds the large image's voxels 2j − 1 and 2j, of which −1 and 2h lie outside
    y[o, p, j] = Σ_r Σ_c W'[o, p, c, r] · x[c, j − 1 + r],   r ∈ {0, 1}
    W'[o, p, c, r] = Σ_k Σ_m w[o, m, k] · u[c, m, t mod 2] over k with ⌊t/2⌋ + 1 = r, t = p + k − 2, k ∈ {0, 1, 2}

Case 1: only pointwise operations follow. The voxels outside are cut off in the end.
Case 2: a second convolution (kernel 3, padded by zeros) follows a ReLU. It goes back to the grid that is not shifted,
        again by two taps; what lies outside is made 0 by adding −2¹⁰⁰ there before the ReLU. Two taps of two phases
        for three voxels are (4/3)^d as many multiplications, so only narrow layers gain.

The shared part of a split concatenation comes in as phases, too: of its convolution with kernel 4 and stride 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from equipoise_core.contract import Precision, Task
from numpy.typing import NDArray

from ..graph.marker import DOMAIN, MASK, marker_of
from ..graph.nodes import number_of
from .compilation import Compilation, Layout, Phases

POINTWISE = {"Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "HardSigmoid", "HardSwish", "Identity"}
OUTSIDE = 2.0**100  # exact in every format that a GPU may round to
WORTHWHILE = 128
"""Multiplications that may be added for each value of the large image whose way to memory and back is saved."""


def merge_upsampling(c: Compilation) -> None:
    """Requires `sampled`; ensures `phases` where the last upsampling was merged."""
    chain = _chain(c)
    if chain is not None and _worthwhile(c, chain):
        _Merging(c, chain).run()
        c.graph.sort()


@dataclass(frozen=True)
class _Chain:
    """The last upsampling, the convolution after it, what is added to that, and what follows, down to the logits."""

    upsampling: ir.Node
    first: ir.Node
    shared: ir.Node | None
    tail: tuple[ir.Node, ...]

    @property
    def second(self) -> ir.Node | None:
        return next((node for node in self.tail if _is_conv(node, 3)), None)


def _chain(c: Compilation) -> _Chain | None:
    """Read from the logits upwards."""
    contract, logits = c.contract, c.graph.outputs[0]
    layout = c.layouts.get(logits)
    if contract.task is not Task.SEGMENTATION or layout is None or logits not in c.sampled:
        return None
    if layout.axis != 0 or layout.factor != 1 or layout.shape[2:] != contract.nominal:
        return None
    tail: list[ir.Node] = []
    shared = None
    value = logits
    while True:
        node = value.producer()
        if node is None or (value is not logits and len(value.uses()) != 1) or c.layouts.get(value) is None:
            return None
        if node.op_type == "ConvTranspose":
            break
        tail.insert(0, node)
        source = node.inputs[0]
        if node.op_type == "Add" and not node.domain:
            own = [entry for entry in node.inputs if entry in c.sampled]
            other = [entry for entry in node.inputs if entry not in c.sampled]
            if len(own) != 1 or shared is not None:
                return None
            shared, source = other[0].producer() if other[0] is not None else None, own[0]
            if shared is None or not _is_conv(shared, 3) or len(shared.outputs[0].uses()) != 1:
                return None
            if c.layouts[shared.outputs[0]].shape != c.layouts[value].shape:
                return None
        assert source is not None
        value = source
    if not _doubles(node) or not tail or not _is_conv(tail[0], 3):
        return None
    first, *rest = tail
    if shared is not None:
        if rest[0].op_type != "Add":
            return None
        rest = rest[1:]
    chain = _Chain(node, first, shared, tuple(rest))
    return chain if _fits(c, chain.tail) else None


def _fits(c: Compilation, tail: Sequence[ir.Node]) -> bool:
    """Whether the tail is one of the cases."""
    seconds = 0
    positive = False
    for node in tail:
        if _is_conv(node, 3):
            seconds += 1
            if seconds > 1 or not positive or c.contract.precision is not Precision.FP32:
                return False
        elif node.domain == DOMAIN and node.op_type == MASK:
            if not set(marker_of(node).axes) <= {0, 1}:
                return False
        elif node.op_type == "Relu" and not node.domain:
            positive = True
        elif not (_is_conv(node, 1) or (node.op_type in POINTWISE and not node.domain)):
            return False
        else:
            positive = False
    return True


def _is_conv(node: ir.Node, kernel: int) -> bool:
    """A convolution that keeps the size, with one kernel of that size for all axes."""
    weight = number_of(node.inputs[1]) if node.op_type == "Conv" and not node.domain else None
    if weight is None or any(size != kernel for size in weight.shape[2:]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and number_of(node.inputs[2]) is None:
        return False
    spatial = weight.ndim - 2
    return _plain(node, [kernel // 2] * 2 * spatial, [1] * spatial)


def _doubles(node: ir.Node) -> bool:
    """A transposed convolution whose kernel and stride are 2 along every axis."""
    weight = number_of(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.domain or weight is None or any(size != 2 for size in weight.shape[2:]):
        return False
    if (bias is not None and number_of(bias) is None) or any(node.attributes.get_ints("output_padding", [])):
        return False
    spatial = weight.ndim - 2
    return "output_shape" not in node.attributes and _plain(node, [0] * 2 * spatial, [2] * spatial)


def _plain(node: ir.Node, pads: list[int], strides: list[int]) -> bool:
    attributes = node.attributes
    spatial = len(strides)
    return (
        attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and attributes.get_int("group", 1) == 1
        and list(attributes.get_ints("pads", [0] * 2 * spatial)) == pads
        and list(attributes.get_ints("strides", [1] * spatial)) == strides
        and list(attributes.get_ints("dilations", [1] * spatial)) == [1] * spatial
    )


def _weight(node: ir.Node) -> NDArray[np.float64]:
    weight = number_of(node.inputs[1])
    assert weight is not None
    return weight.astype(np.float64)


def _bias(node: ir.Node) -> NDArray[np.float64] | None:
    bias = number_of(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if bias is None else bias.astype(np.float64)


def _worthwhile(c: Compilation, chain: _Chain) -> bool:
    """Per voxel of the large image: multiplications before and after, against the values that are not moved."""
    up, first = _weight(chain.upsampling), _weight(chain.first)
    spatial = up.ndim - 2
    before = up.shape[0] * up.shape[1] + first.size
    after = up.shape[0] * first.shape[0] * 2**spatial
    if chain.second is not None:
        second = _weight(chain.second)
        before += second.size
        after += second.shape[0] * second.shape[1] * 4**spatial
    return after - before <= WORTHWHILE * first.shape[0]


class _Merging:
    """Writes the chain anew, voxel by voxel the same.

    Values are *gathered*, `[N, C·2^d, h, …]`, phases next to each other, for convolutions and for what they fuse with,
    or *spread*, `[N, C, 2^d·h, …]`, one above the other, for whatever has to know a channel.
    """

    def __init__(self, c: Compilation, chain: _Chain) -> None:
        self.c, self.chain = c, chain
        first = _weight(chain.first)
        self.rank = first.ndim - 2
        self.count = 2**self.rank
        self.channels = first.shape[0]
        self.gathered = True
        self.margin = 1

    def run(self) -> None:
        c, chain = self.c, self.chain
        small = chain.upsampling.inputs[0]
        assert small is not None
        merged = _merged(_weight(chain.first), _weight(chain.upsampling))
        value = self.conv(chain.first, small, merged, pad=1, stride=1)
        once = self.planes(small)
        if chain.shared is not None:
            source = chain.shared.inputs[0]
            assert source is not None
            shared = self.conv(chain.shared, source, _strided(_weight(chain.shared)), pad=2, stride=2)
            once = [self.given(c.op("Add", shared, *once, like=shared), shared)] if once else [shared]
        for part in once:
            value = self.given(c.op("Add", part, value, like=value), value)
        old = {chain.upsampling, chain.first, *([chain.shared] if chain.shared else []), *([chain.second] if chain.second else [])}
        if chain.shared is not None:
            old.update(use.node for use in chain.shared.outputs[0].uses())
        for node in chain.tail:
            value = self.follow(node, value)
        c.graph.outputs[0] = self.formed(value, gathered=False)
        c.graph.remove(old, safe=True)
        c.phases = Phases(self.rank, self.margin)

    def planes(self, small: ir.Value) -> list[ir.Value]:
        """What no image changes, of one image: the bias of the upsampling, and −2¹⁰⁰ outside where it is needed."""
        kernels = []
        bias = _bias(self.chain.upsampling)
        first = _weight(self.chain.first)
        if bias is not None:
            up = np.broadcast_to(bias.reshape(1, -1, *[1] * self.rank), (1, len(bias), *[2] * self.rank))
            kernels.append((_merged(first, up), 0.0))
        if self.chain.second is not None:
            inside = np.eye(self.count).reshape(self.count, 1, *[2] * self.rank)
            kernels.append((OUTSIDE * np.broadcast_to(inside, (self.channels, *inside.shape)), -OUTSIDE))
        if not kernels:
            return []
        c = self.c
        sizes = [c.size(small, axis) for axis in range(2, 2 + self.rank)]
        one = ir.tensor(np.ones(1, np.float32))
        ones = c.op("ConstantOfShape", c.shape([1, 1, *sizes]), value=one)
        parts = []
        for weight, offset in kernels:
            flat = weight.reshape(-1, *weight.shape[2:]).astype(np.float32)
            biases = c.constant(np.full(len(flat), offset, np.float32))
            parts.append(c.op("Conv", ones, c.constant(flat), biases, pads=[1] * 2 * self.rank))
        return parts if len(parts) == 1 else [c.op("Add", *parts)]

    def conv(
        self, like: ir.Node, source: ir.Value, weight: NDArray[np.float64], pad: int, stride: int
    ) -> ir.Value:
        """Over `weight` `[O, 2^d, C, …]`, with the bias of `like`; the result is gathered."""
        c, out = self.c, like.outputs[0]
        flat = weight.reshape(-1, *weight.shape[2:])
        bias = _bias(like)
        inputs = [source, c.constant(flat.astype(np.float32))]
        if bias is not None:
            inputs.append(c.constant(np.repeat(bias, self.count).astype(np.float32)))
        kernel = flat.shape[2:]
        attributes = {"kernel_shape": kernel, "pads": [pad] * 2 * self.rank, "strides": [stride] * self.rank}
        result = c.op("Conv", *inputs, like=out, **attributes)
        sizes = zip(c.layouts[source].shape[2:], kernel, strict=True)
        shape = (len(flat), *((size + 2 * pad - taps) // stride + 1 for size, taps in sizes))
        return self.given(result, out, shape)

    def follow(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The same operation as `node`, on phases."""
        c, out = self.c, node.outputs[0]
        if node is self.chain.second:
            value = self.formed(value, gathered=True)
            self.channels, self.margin = _weight(node).shape[0], 0
            return self.conv(node, value, _returned(_weight(node)), pad=0, stride=1)
        if node.op_type == "Conv" or node.domain:
            value = self.formed(value, gathered=False)
        node.replace_input_with(0, value)
        if node.op_type == "Conv":
            self.channels = _weight(node).shape[0]
        return self.given(out, out, (self.channels * (self.count if self.gathered else 1), *c.layouts[value].shape[2:]))

    def formed(self, value: ir.Value, gathered: bool) -> ir.Value:
        if gathered is self.gathered:
            return value
        c, (images, channels, rows, *others) = self.c, self.c.layouts[value].shape
        self.gathered = gathered
        rows = rows // self.count if gathered else rows * self.count
        shape = (self.channels * self.count if gathered else self.channels, rows, *others)
        result = c.op("Reshape", value, c.constant([0, shape[0], -1, *[0] * len(others)]), like=value)
        return self.given(result, value, shape)

    def given(self, value: ir.Value, like: ir.Value, shape: tuple[int, ...] | None = None) -> ir.Value:
        """`value` as sampled as `like`, with its layout but for the shape `[C, …]`."""
        c, layout = self.c, self.c.layouts[like]
        size = layout.shape if shape is None else (layout.shape[0], *shape)
        c.layouts[value] = Layout(size, layout.axis, layout.factor, layout.dynamic)
        if like in c.sampled:
            c.sampled.add(value)
        return value


def _merged(first: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    """w `[O, M, 3…]` after u `[C, M, 2…]` → W' `[O, 2^d, C, 2…]`."""
    taps = np.zeros((2, 2, 3, 2))  # phase, tap, k, a
    for p, k in np.ndindex(2, 3):
        t = p + k - 2
        taps[p, t // 2 + 1, k, t % 2] = 1
    return _composed("prka", taps, [("k", first, "om"), ("a", up, "cm")], "o", "p", "c", "r")


def _strided(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """w `[O, C, 3…]` → `[O, 2^d, C, 4…]` for stride 2 and padding 2."""
    taps = np.zeros((2, 4, 3))  # phase, tap, k
    for p, k in np.ndindex(2, 3):
        taps[p, p + k, k] = 1
    return _composed("prk", taps, [("k", weight, "oc")], "o", "p", "c", "r")


def _returned(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """w `[O, C, 3…]` → `[O, 2^d, C·2^d, 2…]`, from the shifted grid to the other."""
    taps = np.zeros((2, 2, 2, 3))  # phase, phase before, tap, k
    for p, k in np.ndindex(2, 3):
        taps[p, (p + k) % 2, (p + k) // 2, k] = 1
    return _composed("pqrk", taps, [("k", weight, "oc")], "o", "p", "cq", "r")


def _composed(
    names: str, taps: NDArray[np.float64], parts: list[tuple[str, NDArray[np.float64], str]], *groups: str
) -> NDArray[np.float64]:
    """An einsum with one copy of `taps` (axes `names`) for each spatial axis; every group becomes one axis but the
    last, which stays one for each spatial axis. Axes of `taps` are spatial, all others are channels."""
    rank = parts[0][1].ndim - 2
    letters = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    spatial = [{name: next(letters) for name in names} for _ in range(rank)]

    def spelled(group: str) -> str:
        return "".join("".join(axis[n] for axis in spatial) if n in names else n for n in group)

    operands = [*([taps] * rank), *(array for _, array, _ in parts)]
    terms = ["".join(axis[n] for n in names) for axis in spatial]
    terms += [spelled(channels + name) for name, _, channels in parts]
    out = "".join(spelled(group) for group in groups)
    result = np.einsum(f"{','.join(terms)}->{out}", *operands, optimize=True)
    sizes = result.shape
    shape, at = [], 0
    for group in groups[:-1]:
        width = len(spelled(group))
        shape.append(prod(sizes[at : at + width]))
        at += width
    return result.reshape(*shape, *sizes[at:])
