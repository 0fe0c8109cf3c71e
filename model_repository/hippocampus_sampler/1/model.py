"""Stand-in for Triton's native ONNX Runtime backend: runs the `model.onnx` beside it on the CPU, or on one GPU.

For workstations, tests and demos; the configurations `embedded.pbtxt` (CPU) and `embedded_cuda.pbtxt` select it. Each
request is a run of its own, and no output is computed that nobody asked for. Unlike the native backend it runs several
requests at a time within one process: on the CPU a run that is alone gets all cores, runs that meet share them out.
"""

from __future__ import annotations

import json
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: a hospital's server must not report to anybody

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils

CUDA = "CUDAExecutionProvider"


class TritonPythonModel:
    """Tensors as the ONNX file declares them; their first axis is the batch.

    Parameters of the configuration, as `equipoise serve` sets them: `runs`, how many requests run at a time (1);
    `intra_op_thread_count`, threads of each of them (0, or nothing said: all cores, as the native backend's); `alone`,
    threads of a run that starts while no other request is there.

    An accelerator `cuda`, with the provider's options: all runs share one session on the GPU. Where the provider does
    not start, the model does not load: nothing falls back to the CPU.
    """

    def initialize(self, args: dict[str, str]) -> None:
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        config = json.loads(args["model_config"])
        parameters, cuda = config.get("parameters", {}), _cuda_options(config)
        runs, threads, alone = (
            int(parameters.get(name, {}).get("string_value", 0)) for name in ("runs", "intra_op_thread_count", "alone")
        )
        self.runs = runs or 1
        if cuda is None:
            self._open_on_cpu(file, threads or len(os.sched_getaffinity(0)), alone)
        else:
            self.shared = self.alone = _cuda_session(file, cuda)
        self.inputs = tuple(node.name for node in self.shared.get_inputs())
        self.outputs = tuple(node.name for node in self.shared.get_outputs())
        self.pool = ThreadPoolExecutor(self.runs)
        self.room = threading.Semaphore(2 * self.runs)
        self.lock, self.present = threading.Lock(), 0

    def _open_on_cpu(self, file: Path, threads: int, alone: int) -> None:
        arena = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(arena, ort.OrtArenaCfg(0, -1, -1, -1))
        # Threads of one run wait for each other: where several runs share the cores, few threads each are faster.
        self.shared = self.alone = _session(file, threads)
        if self.runs > 1 and alone > threads:
            self.alone = _session(file, alone)  # the weights twice, but one arena

    def execute(self, requests: Sequence[Any]) -> None:
        """Takes each request, in order, while there is room: for those that run, and for as many that come next, so
        that no core waits for Triton in between. All others wait there."""
        for request in requests:
            self.room.acquire()
            with self.lock:
                self.present += 1
            self.pool.submit(self._answer, request, request.get_response_sender())

    def finalize(self) -> None:
        self.pool.shutdown()

    def _answer(self, request: Any, sender: Any) -> None:
        try:
            response = self._run(request, self.alone if self.present == 1 else self.shared)
        except Exception as error:  # whatever it is, the next request finds its room
            response = _error(f"{type(error).__name__} in the sampler", pb_utils.TritonError.INTERNAL)
        finally:
            with self.lock:
                self.present -= 1
            self.room.release()
        try:
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # nobody waits for this answer any more; others do for theirs
            pb_utils.Logger.log_error(f"an answer could not be sent: {type(error).__name__}")

    def _run(self, request: Any, session: ort.InferenceSession) -> Any:
        tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in self.inputs]
        if any(tensor is None for tensor in tensors):
            given = [tensor.name() for tensor in request.inputs()]
            return _error(f"expected the inputs {list(self.inputs)}; got {given}", pb_utils.TritonError.INVALID_ARG)
        wanted = set(request.requested_output_names())
        names = [name for name in self.outputs if name in wanted]
        feeds = {name: tensor.as_numpy() for name, tensor in zip(self.inputs, tensors, strict=True)}
        try:
            results = session.run(names, feeds)
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            # The native backend's code and words: it does not know either whether the network or the shape is wrong.
            return _error(f"onnx runtime error: {error}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, r) for n, r in zip(names, results, strict=True)])


def _session(file: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Waiting threads sleep: spinning would take the cores from the aggregators and from the other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")  # what one session frees, the other may use
    options.log_severity_level = 3
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _cuda_options(config: dict[str, Any]) -> dict[str, str] | None:
    """Of the configuration's accelerator; None: it has none. Raises ValueError for one that is not known here."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    if not accelerators:
        return None
    names = [each["name"] for each in accelerators]
    if names != ["cuda"]:
        raise ValueError(f"the accelerators {names}; the stand-in knows cuda alone")
    return dict(accelerators[0].get("parameters", {}))


def _cuda_session(file: Path, provider_options: dict[str, str]) -> ort.InferenceSession:
    """A session on the GPU. Raises RuntimeError where ONNX Runtime would compute on the CPU instead."""
    remedy = (
        "uninstall onnxruntime and install the extra gpu (onnxruntime-gpu, the same module, and its CUDA libraries), "
        "or serve with --device cpu"
    )
    if CUDA not in ort.get_available_providers():
        raise RuntimeError(f"onnxruntime {ort.__version__} has no {CUDA}: {remedy}")
    ort.preload_dlls()  # the wheels with the CUDA libraries lie where no linker looks
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # arithmetic on shapes is all that is left to the CPU
    options.log_severity_level = 2  # among its warnings: convolutions for which it found no engine
    session = ort.InferenceSession(file, options, providers=[(CUDA, provider_options)], enable_fallback=0)
    session.disable_fallback()
    if session.get_providers()[0] != CUDA:  # a provider that cannot start is only logged
        raise RuntimeError(
            f"{CUDA} did not start (ONNX Runtime's log says why: driver, GPU, CUDA libraries), and the samplers would "
            f"run on the CPU: {remedy}"
        )
    return session


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
