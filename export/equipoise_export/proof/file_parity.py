"""An ONNX file as it came against the graph that was read from it: nothing dropped, before any pass.

The proof of the sampler starts from that graph, so this is what ties it to the file: the change of opset, the output
that was chosen, the activation that was taken off, the batch that was made dynamic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from equipoise_core.contract import Activation, Contract, Precision
from equipoise_core.tolerance import TOLERANCES
from numpy.typing import NDArray
from scipy.special import expit, softmax

from ..errors import ProofRefused
from ..graph.nodes import remove, replace
from ..graph.session import session
from ..graph.storage import store
from .parity import Check
from .references import OnnxNetwork

Array = NDArray[Any]
_TOLERANCE = TOLERANCES[Precision.FP32]


def compare_with_file(
    proto: onnx.ModelProto, network: OnnxNetwork, contract: Contract, example: Array, output: str | int | None = None
) -> Check:
    """The largest difference between the file's answer and the graph's, as logits or as probabilities.

    Args:
        example: a normalised image `[N ≥ 1, C, *nominal]`; the first is taken.
        output: which of several, by index or name, as for `capture_onnx`.

    Raises:
        ProofRefused: they differ, or ONNX Runtime cannot run the file.
    """
    image = example[:1].astype(np.float32)
    logits = network.undropped(image).astype(np.float64)
    expected = _answer(proto, image, output)
    if expected.size != logits.size:
        raise ProofRefused(
            f"the file answers {expected.shape}, what was read from it {logits.shape}", "the chosen output", _REMEDY
        )
    expected = expected.reshape(logits.shape)
    activate = expit if contract.activation is Activation.SIGMOID else softmax
    options = {} if contract.activation is Activation.SIGMOID else {"axis": 1}
    scale = max(1.0, float(np.abs(logits).max()))
    worst = min(
        float(np.abs(expected - logits).max()) / scale,
        float(np.abs(expected - activate(logits, **options)).max()),
    )
    if not worst <= _TOLERANCE:
        raise ProofRefused(
            f"with nothing dropped, what was read from the file differs from the file itself by {worst:.2e} "
            f"(allowed {_TOLERANCE:g})",
            "the chosen output",
            _REMEDY,
        )
    return Check("the file, nothing dropped: same as what was read from it", worst, f"≤ {_TOLERANCE:g}", True)


_REMEDY = (
    "A final Softmax has to be over the classes (axis 1), with no change of order behind it; else export the logits "
    "of the file, in opset 13 or later."
)


def _answer(proto: onnx.ModelProto, image: Array, output: str | int | None) -> Array:
    """What the file says of one image `[1, C, *S]`, its Dropout nodes left out."""
    model = ir.from_proto(proto)
    names = [str(value.name) for value in model.graph.outputs]
    for part in (model.graph, *model.functions.values()):
        for node in list(part):
            if node.op_type == "Dropout" and not node.domain:
                assert node.inputs[0] is not None
                replace(node.outputs[0], node.inputs[0])
                remove([node])
    alone, weights = store(model)
    try:
        runner = session(alone, weights=weights)
        (given,) = runner.get_inputs()
        batch = given.shape[0] if isinstance(given.shape[0], int) else 1
        answers = runner.run(None, {given.name: np.repeat(image, batch, axis=0)})
    except Exception as error:
        raise ProofRefused(
            f"the file cannot be run as it is: {str(error).splitlines()[0]}",
            "the whole network",
            "Check it with onnx.checker, and that --input-shape is what it takes.",
        ) from error
    chosen = next((i for i, name in enumerate(names) if str(output) in (str(i), name)), 0)
    return np.asarray(answers[chosen][:1], np.float64)
