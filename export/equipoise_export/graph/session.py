"""A sampler in this process: ONNX Runtime on the CPU, for proofs, calibration and rebuilding, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from equipoise_core.contract import Contract
from equipoise_core.errors import SamplerFailure
from numpy.typing import NDArray

from .storage import MODEL, Weights

OnnxModel = Path | bytes | onnx.ModelProto


def session(model: OnnxModel, threads: int = 0, weights: Weights | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Args:
        model: a file, or a graph in memory.
        threads: of one run; 0: as many as there are cores.
        weights: of a graph in memory, where they do not lie in it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Waiting threads sleep: on a busy machine spinning ones take the cores from those that work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised; trying sizes, much does
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights.folder.name)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def published_samplers(
    repository: Path, contract: Contract, threads: int = 0
) -> tuple[list[OnnxSampler], OnnxSampler | None]:
    """The samplers of a published model, in the contract's order, and its first pass where it has one."""

    def sampler(name: str) -> OnnxSampler:
        return OnnxSampler(repository / name / "1" / MODEL, threads)

    first_pass = sampler(contract.first_pass.name) if contract.first_pass else None
    return [sampler(each.name) for each in contract.samplers], first_pass


class OnnxSampler:
    """`equipoise_core.sampling.RunSampler` over a session.

    Args:
        model, threads, weights: as for `session`.
    """

    def __init__(self, model: OnnxModel, threads: int = 0, weights: Weights | None = None) -> None:
        self._session = session(model, threads, weights)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, image: NDArray[np.float32], masks: NDArray[np.uint8] | None) -> dict[str, NDArray[Any]]:
        """`image [N, C, *S]`, `masks [N, T, B]` → the sampler's outputs by name. Raises SamplerFailure."""
        feeds: dict[str, NDArray[Any]] = {"image": image} if masks is None else {"image": image, "masks": masks}
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise SamplerFailure(f"ONNX Runtime: {str(error).splitlines()[0]}") from error
        return dict(zip(self._outputs, results, strict=True))
