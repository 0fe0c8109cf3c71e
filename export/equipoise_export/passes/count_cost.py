"""Counts multiplications on both sides of the trunk: what T samples will cost, before anything is written.

Let s be the share of multiplications whose result no mask changes. T samples by a loop cost T, the sampler costs
s + T·(1 − s); the predicted gain is the ratio. Counted are convolutions and matrix products, which make up nearly all;
memory traffic is not, so small networks gain less than predicted.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from ..graph.marker import marker_of
from ..graph.nodes import number_of
from .compilation import Compilation
from .cost import Cost


def count_network(c: Compilation) -> None:
    """Requires `layouts` and markers; ensures the plain network's count and each site's depth, for `count_cost`."""
    total = sum(multiplications(c, node) for node in c.graph)
    pictured = _pictured(c)
    for node in c.markers():
        places = [node] if node.inputs[0] in pictured else _meetings(node, pictured) or [node]
        c.depths[marker_of(node).site] = min(
            sum(multiplications(c, part) for part in _before(place)) / max(total, 1) for place in places
        )
    c.network_multiplications = total


def _pictured(c: Compilation) -> set[ir.Value]:
    """What depends on the image's intensities."""
    found = {c.image}
    for node in c.graph:
        if node.op_type not in ("Shape", "Size") and any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _meetings(marker: ir.Node, pictured: set[ir.Value]) -> list[ir.Node]:
    """Where noise that is drawn apart (over ones) first meets activations: that is how deep its site lies."""
    found: list[ir.Node] = []
    pending, seen = [marker], {marker}
    while pending:
        for user in {user for output in pending.pop().outputs for user, _ in output.uses()} - seen:
            seen.add(user)
            (found if any(output in pictured for output in user.outputs) else pending).append(user)
    return found


def _before(node: ir.Node) -> set[ir.Node]:
    """All that a node's inputs are computed from."""
    before: set[ir.Node] = set()
    pending = [node]
    while pending:
        for value in pending.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in before:
                before.add(producer)
                pending.append(producer)
    return before


def count_cost(c: Compilation) -> None:
    """Requires `sampled` and graphs not yet batched; ensures `cost`."""
    counts = {True: 0, False: 0}
    for node in c.graph:
        counts[any(output in c.sampled for output in node.outputs)] += multiplications(c, node)
    sites = c.contract.sites
    sizes = c.contract.sizes(c.contract.nominal)
    bits = sum(prod(site.units(sizes)) for site in sites)
    c.cost = Cost(
        shared=counts[False],
        sampled=counts[True],
        network=c.network_multiplications,
        sites=sites,
        depths=tuple(c.depths[site.name] for site in sites),
        bits=bits,
    )
    if bits > 1_000_000:
        c.notes.append(
            f"{bits / 1e6:.1f} M mask bits a sample cost time to draw and to send; channel dropout, fewer --sites or a "
            "later --min-depth need far fewer"
        )


def multiplications(c: Compilation, node: ir.Node) -> int:
    """Multiply-adds of a node for one image; 0 for what is not a convolution or a matrix product."""
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm") or node.outputs[0] not in c.layouts:
        return 0
    out = prod(c.layouts[node.outputs[0]].shape)
    left, right = node.inputs[0], node.inputs[1]
    weight = number_of(right)
    if node.op_type == "Conv" and weight is not None:
        return out * prod(weight.shape[1:])
    if node.op_type == "ConvTranspose" and weight is not None and left in c.layouts:
        return prod(c.layouts[left].shape) * prod(weight.shape[1:])
    if left is not None and left in c.layouts:
        depth = c.layouts[left].shape
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transA")
        return out * depth[0 if transposed else -1]
    return 0
