"""Where a sampler's weights lie: in `model.onnx`, or, beyond what protobuf holds, in `model.onnx.data` beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from ..options import LARGEST_FILE

MODEL, DATA = "model.onnx", "model.onnx.data"
_SMALLEST_OUTSIDE = 1024  # bytes: shapes, which ONNX Runtime reads while it loads, stay in the graph


@dataclass(frozen=True)
class Weights:
    """A file of weights that a graph's tensors point into; it goes with the last reference to this."""

    folder: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="equipoise-weights-"))

    @property
    def path(self) -> Path:
        return Path(self.folder.name) / DATA


def store(model: ir.Model, largest: int = LARGEST_FILE) -> tuple[onnx.ModelProto, Weights | None]:
    """The graph as protobuf, and where its weights went if they are more than `largest` bytes.

    Weights are written one by one, so memory holds no second copy of them.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in tensors if tensor is not None) <= largest:
        return ir.to_proto(model), None
    weights = Weights()
    file = weights.path.with_name(MODEL)
    ir.save(model, file, external_data=DATA, size_threshold_bytes=_SMALLEST_OUTSIDE)
    return onnx.load(file, load_external_data=False), weights
