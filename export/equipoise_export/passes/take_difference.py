"""A softmax over two classes depends on the difference of their logits alone: the last convolution computes just that.

softmax(z)₁ = σ(z₁ − z₀),   z₁ − z₀ = (W₁ − W₀) * x + (b₁ − b₀)
"""

from __future__ import annotations

from equipoise_core.contract import Activation, Task

from ..graph.nodes import number_of
from .compilation import Compilation, Layout


def take_difference(c: Compilation) -> None:
    """Requires `layouts`; ensures `difference`, with logits of one channel, where a convolution computes two."""
    contract, logits = c.contract, c.graph.outputs[0]
    if contract.task is not Task.SEGMENTATION or contract.activation is not Activation.SOFTMAX:
        return
    node, layout = logits.producer(), c.layouts.get(logits)
    if node is None or layout is None or layout.shape[1:] != (2, *contract.nominal) or len(contract.classes) != 2:
        return
    if contract.states_moments or logits.uses() or node.op_type != "Conv" or node.domain:
        return
    constants = [number_of(value) for value in node.inputs[1:]]
    if any(array is None for array in constants) or node.attributes.get_int("group", 1) != 1:
        return
    for index, array in enumerate(constants, start=1):
        assert array is not None
        node.replace_input_with(index, c.constant((array[1:] - array[:1]).astype(array.dtype)))
    node.outputs[0].shape = None
    c.layouts[logits] = Layout((layout.shape[0], 1, *contract.nominal), layout.axis, layout.factor, layout.dynamic)
    c.difference = True
