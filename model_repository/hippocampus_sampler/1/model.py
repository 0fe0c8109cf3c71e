"""Stand-in for Triton's native ONNX Runtime backend: runs the `model.onnx` beside it on the CPU.

For machines without a GPU, for tests and demos; the configuration `embedded.pbtxt` selects it. Like the native backend
it executes what the dynamic batcher hands it as one batch, and computes no output that nobody asked for.
"""

from __future__ import annotations

import json
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: a hospital's server must not report to anybody

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Tensors as the ONNX file declares them; their first axis is the batch."""

    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        options = ort.SessionOptions()
        # As the native backend's: 0, or nothing said, is all cores.
        named = json.loads(args["model_config"]).get("parameters", {}).get("intra_op_thread_count", {})
        options.intra_op_num_threads = int(named.get("string_value", 0)) or len(os.sched_getaffinity(0))
        # Waiting threads sleep: spinning would take the cores from the aggregators and from the other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = ort.InferenceSession(version / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(node.name for node in self.session.get_inputs())
        self.outputs = tuple(node.name for node in self.session.get_outputs())

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order; requests whose shapes agree beyond the batch axis share one run."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[int, list[np.ndarray]]]] = {}
        for position, request in enumerate(requests):
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs]
            if any(tensor is None for tensor in tensors):
                given = [tensor.name() for tensor in request.inputs()]
                responses[position] = _error(f"expected the inputs {list(self.inputs)}; got {given}")
                continue
            arrays = [tensor.as_numpy() for tensor in tensors]
            groups.setdefault(tuple(array.shape[1:] for array in arrays), []).append((position, arrays))
        for members in groups.values():
            wanted = [set(requests[position].requested_output_names()) for position, _ in members]
            for (position, _), response in zip(members, self._run([a for _, a in members], wanted), strict=True):
                responses[position] = response
        return responses

    def _run(self, batch: list[list[np.ndarray]], wanted: list[set[str]]) -> list[Any]:
        """One ONNX Runtime run for requests of equal shapes, its outputs split along the batch axis again."""
        names = [name for name in self.outputs if any(name in one for one in wanted)]
        columns = zip(*batch, strict=True)
        feeds = {
            name: column[0] if len(column) == 1 else np.concatenate(column)
            for name, column in zip(self.inputs, columns, strict=True)
        }
        try:
            results = self.session.run(names, feeds)
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            if len(batch) == 1:
                return [_error(f"ONNX Runtime refused the input: {error}")]
            # Whose fault it is shows when each runs alone; the others must not suffer for it.
            return [self._run([arrays], [names])[0] for arrays, names in zip(batch, wanted, strict=True)]
        ends = np.cumsum([0, *(len(arrays[0]) for arrays in batch)])
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(n, r[start:end]) for n, r in zip(names, results, strict=True) if n in one]
            )
            for one, start, end in zip(wanted, ends[:-1], ends[1:], strict=True)
        ]


def _error(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
