"""Weights and activations in half precision, statistics in single: `--precision fp16`.

The image comes in single precision, so do the logits leave: one cast at the trunk's input, after voxels outside the
image were filled (their mark, −10⁶, is no half), one before the head, whose sums over samples and voxels stay single.
In between every operation runs in half, but for these, which PyTorch's automatic mixed precision keeps single as well:

Case 1, normalisations and softmax: single inside, and what comes out is of order 1 again, so half goes on from it.
Case 2, statistics and steep functions (means, sums, squares, exp, log, …): single, and so is the arithmetic with what
        comes out (x − mean, its square, …) up to the next convolution or matrix product.
Case 3, what does not come from the image (positions, sizes, noise of stochastic depth): single, it is small. Data that
        is only moved stays what it was: bits become factors in half.
Case 4, a constant that half cannot hold: above 65504, infinite, or all of it below 2⁻¹⁴ (an ε, a mask of −10⁹).
Case 5, an operation (or one input of it) for which ONNX defines no half.

Overflow is never silent: an activation beyond half is infinite, and z + 0·z of the logits makes NaN of that, which the
aggregator sends to review. Only functions that saturate (ReLU, sigmoid) hide it, and there they are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from equipoise_core.contract import Precision

from ..errors import ExportRefused, PassFailed
from ..graph.nodes import inner_graphs, number_of
from .compilation import MADE, Compilation, layer_of

HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}
BOUNDED = {
    "Softmax", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization",
    "MeanVarianceNormalization", "LpNormalization", "LRN",
}  # fmt: skip
STATISTICS = {
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceProd", "GlobalAveragePool", "GlobalLpPool", "LpPool", "CumSum", "Exp", "Log", "LogSoftmax", "Pow", "Sqrt",
    "Reciprocal", "Softplus", "Floor", "Ceil", "Round", "Mod", "Cast", "Sin", "Cos", "Tan",
}  # fmt: skip
MOVES = {
    "Reshape", "Transpose", "Slice", "Gather", "GatherElements", "GatherND", "Concat", "Split", "Squeeze", "Unsqueeze",
    "Expand", "Tile", "Flatten", "Identity", "Pad", "DepthToSpace", "SpaceToDepth", "ScatterND", "ScatterElements",
}  # fmt: skip
LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_normal)
_REAL = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def to_half(c: Compilation) -> None:
    """Requires logits as the only output; ensures they are single, and `halves` where the contract says fp16."""
    if c.contract.precision is Precision.FP16:
        common.ShapeInferencePass(check_type=False, strict_mode=False)(c.model)  # for the types; shapes are not kept
        c.graph.sort()
        _Halving(c).run()
        c.graph.sort()


class _Halving:
    def __init__(self, c: Compilation) -> None:
        self.c = c
        self.pictured = {c.image}
        """Values that the image's content goes into."""
        self.wide: set[ir.Value] = set()
        """Single values of Case 2."""
        self.casts: dict[ir.Value, ir.Value] = {}
        self.layers: dict[ir.Value, str] = {}

    def run(self) -> None:
        c = self.c
        for node in list(c.graph):
            self.node(node)
        logits = c.graph.outputs[0]
        single = self.single(logits)
        checked = c.op("Add", single, c.op("Mul", single, c.constant(0.0)), like=single)
        c.layouts[checked] = c.layouts[logits]
        c.graph.outputs[0] = checked

    def node(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in ("Shape", "Size"):
            return
        if any(value in self.pictured for value in inputs):
            self.pictured.update(node.outputs)
        self._name(node, inputs)
        if inner_graphs(node):
            raise ExportRefused(
                f"it holds a {node.op_type}, whose inner graph cannot be brought to half precision",
                self.layers[node.outputs[0]],
                "Export with --precision fp32, or unroll it.",
            )
        for value in inputs:
            if value.dtype is None:
                raise PassFailed(f"the type of {value.name} at {node.op_type} {node.name} is not known")
        if not any(value.dtype in _REAL for value in [*inputs, *node.outputs]):
            return
        halved = (self.parameters(node) if self.is_half(node) else None) or {}
        for index, given in enumerate(node.inputs):
            if given is not None and given.dtype in _REAL:
                node.replace_input_with(index, self.half(given) if halved.get(index) else self.single(given))
        if halved:
            for result in node.outputs:
                if result.dtype in _REAL:
                    result.type = ir.TensorType(ir.DataType.FLOAT16)  # a new one: values share their types
                    self.c.halves[result] = self.layers[result]
        elif node.op_type not in BOUNDED and node.op_type != "Cast":
            self.wide.update(value for value in node.outputs if value in self.pictured)

    def is_half(self, node: ir.Node) -> bool:
        """Whether none of the cases holds."""
        reals = [value for value in node.inputs if value is not None and value.dtype in _REAL]
        parameters = self.parameters(node)
        square = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
        if node.op_type in BOUNDED | STATISTICS or square or not reals:
            return False
        if parameters is None or any(
            can and not _fits(number_of(node.inputs[index])) for index, can in parameters.items()
        ):
            return False
        if node.op_type in HEAVY:
            return True
        if node.outputs[0] in self.pictured:
            return not any(value in self.wide for value in reals)
        return node.op_type in MOVES and all(value.dtype is ir.DataType.FLOAT16 or value.const_value for value in reals)

    def parameters(self, node: ir.Node) -> dict[int, bool] | None:
        """Index of a floating-point input → whether it can be half; None where ONNX knows the operation in no half."""
        schema = onnx.defs.get_schema(node.op_type, self.c.graph.opset_imports[""], "")
        halves = {e.type_param_str for e in schema.type_constraints if "tensor(float16)" in e.allowed_type_strs}

        def can(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
            return parameters[min(index, len(parameters) - 1)].type_str in halves

        if not all(can(schema.outputs, index) for index, value in enumerate(node.outputs) if value.dtype in _REAL):
            return None
        return {
            index: can(schema.inputs, index)
            for index, value in enumerate(node.inputs)
            if value is not None and value.dtype in _REAL
        }

    def half(self, value: ir.Value) -> ir.Value:
        array = number_of(value)
        if array is not None:
            return self.c.constant(array.astype(np.float16))
        return self._cast(value, ir.DataType.FLOAT16)

    def single(self, value: ir.Value) -> ir.Value:
        return self._cast(value, ir.DataType.FLOAT)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        if value.dtype is to:
            return value
        if value not in self.casts:
            cast = self.c.op("Cast", value, like=value, to=to.value)
            cast.type = ir.TensorType(to)
            self.casts[value] = cast
            if to is ir.DataType.FLOAT16:
                self.c.halves[cast] = self.layers.get(value, "the image" if value is self.c.image else str(value.name))
        return self.casts[value]

    def _name(self, node: ir.Node, inputs: list[ir.Value]) -> None:
        """What an earlier pass wrote without saying for which layer belongs to the layer that it follows."""
        foreign = not node.metadata_props and str(node.outputs[0].name).startswith(MADE)
        before = next((self.layers[value] for value in inputs if value in self.layers), None)
        for value in node.outputs:
            self.layers[value] = before if foreign and before is not None else layer_of(node)


def _fits(array: np.ndarray | None) -> bool:
    """Case 4 does not hold; what is no constant is not known."""
    if array is None or not array.size:
        return True
    largest = float(np.abs(array).max())
    return largest == 0.0 or SMALLEST <= largest <= LARGEST
