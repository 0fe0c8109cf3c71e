"""The sampler of one slice becomes that of a volume: a Scan over the slices, all under the same masks.

    image [N, C, D, H, W] → for each d: the slice and its neighbours [N, C·slices, H, W] → sums [N, K, H, W] and
    volumes [N, T, K] → sums [N, K, D, H, W], volumes Σ_d

A sample is one network, drawn once for the whole volume, so its volumes are those of one network: the masks come from
outside the loop, unpacked once. Beyond the first and the last slice these are repeated. What is worked on at a time is
one slice under T samples, whatever D is; only the volume and the moments grow with it.
"""

from __future__ import annotations

from dataclasses import replace as altered

import numpy as np
import onnx_ir as ir

from ..graph.nodes import IMAGE, replace
from .compilation import Compilation

_AXIS = 2
_MOST = np.iinfo(np.int64).max


def take_slices(c: Compilation) -> None:
    """Requires a tidy sampler of one slice where `volume` is stated; ensures that of the volume, and its contract."""
    if c.volume is None:
        return
    flat, slices = c.contract, c.volume.slices
    assert slices is not None
    c.contract = altered(
        c.volume,
        spatial=(c.volume.spatial[0], *flat.spatial),
        nominal=(c.volume.nominal[0], *flat.nominal),
        maximum=(c.volume.maximum[0], *flat.maximum),
        sites=flat.sites,
    )
    c.forget()
    before, alone = list(c.graph), c.image
    alone.name = "slice"
    volume = ir.val(IMAGE, ir.DataType.FLOAT, ["N", c.volume.channels, *c.contract.spatial])
    c.graph.inputs[c.graph.inputs.index(alone)] = volume
    _measure_outside(c, alone, volume, flat.channels)
    each = _neighbours(c, volume, slices)
    inside = [ir.val(f"slice_{number}", ir.DataType.FLOAT, None) for number in range(slices)]
    body = _reached(before, alone)
    outputs = list(c.graph.outputs)
    c.graph.outputs.clear()
    c.graph.remove(body)
    if slices > 1:
        joined = ir.node("Concat", inside, {"axis": 1}, name="neighbours")
        joined.outputs[0].name = "neighbours"
        body.insert(0, joined)
    replace(alone, joined.outputs[0] if slices > 1 else inside[0])
    weights = _weights(c, body)
    scanned = ir.Graph(inside, outputs, nodes=body, initializers=weights, name="one_slice")
    loop = ir.node(
        "Scan",
        each,
        {
            "body": scanned,
            "num_scan_inputs": slices,
            "scan_input_axes": [_AXIS] * slices,
            "scan_output_axes": [0 if value.name == "volumes" else _AXIS for value in outputs],
        },
        num_outputs=len(outputs),
        name="slices",
    )
    c.graph.append(loop)
    for value, found in zip(outputs, loop.outputs, strict=True):
        name, value.name = str(value.name), f"{value.name}_of_slice"
        found.name, found.dtype = name, ir.DataType.FLOAT
        if name == "volumes":
            found.name = "volumes_of_slices"
            found = c.op("ReduceSum", found, c.constant([0]), keepdims=0)
            found.name, found.dtype, found.shape = name, ir.DataType.FLOAT, value.shape
        else:
            assert value.shape is not None
            sizes = [entry if isinstance(entry, int) else str(entry.value) for entry in value.shape]
            found.shape = ir.Shape([*sizes[:_AXIS], c.contract.spatial[0], *sizes[_AXIS:]])
        value.shape = None
        c.graph.outputs.append(found)
    c.graph.sort()


def _measure_outside(c: Compilation, alone: ir.Value, volume: ir.Value, channels: int) -> None:
    """Sizes of a slice are read from the volume, so that what follows from them alone stays outside the loop."""
    users = [use.node for use in alone.uses() if use.node.op_type == "Shape"]
    if not users:
        return
    sizes = c.shape([(volume, 0), channels, (volume, 3), (volume, 4)])
    for node in users:
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", _MOST)
        part = c.op("Slice", sizes, c.constant([start]), c.constant([end]))
        part.dtype = ir.DataType.INT64
        replace(node.outputs[0], part)
        c.graph.remove(node, safe=True)


def _neighbours(c: Compilation, volume: ir.Value, slices: int) -> list[ir.Value]:
    """For each place beside a slice, the volume moved so that the slice there lies in its place."""
    if slices == 1:
        return [volume]
    around = slices // 2
    padded = c.op("Pad", volume, c.constant([0, 0, around, 0, 0] * 2), mode="edge")
    ends = [place - 2 * around if place < 2 * around else _MOST for place in range(slices)]
    axis = c.constant([_AXIS])
    return [c.op("Slice", padded, c.constant([place]), c.constant([end]), axis) for place, end in enumerate(ends)]


def _reached(nodes: list[ir.Node], alone: ir.Value) -> list[ir.Node]:
    """What is computed from a slice, in order."""
    reached = {alone}
    found = []
    for node in nodes:
        if node.graph is not None and any(value in reached for value in node.inputs):
            found.append(node)
            reached.update(node.outputs)
    return found


def _weights(c: Compilation, body: list[ir.Node]) -> list[ir.Value]:
    """Constants that the loop alone needs go into it, where ONNX Runtime prepares them for its kernels on the CPU.

    Not what has to lie in a file of its own, or is half.
    """
    inner = set(body)
    found = [
        value
        for value in c.graph.initializers.values()
        if value.const_value is not None and value.uses() and all(use.node in inner for use in value.uses())
    ]
    half = any(value.dtype is ir.DataType.FLOAT16 for value in found)
    if half or sum(value.const_value.nbytes for value in found if value.const_value is not None) > c.largest_file:
        return []
    for value in found:
        del c.graph.initializers[str(value.name)]
    return found
