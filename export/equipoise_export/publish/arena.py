"""`memory`'s child process: one sampler, twice with inputs of the same shapes, and the allocator's log on stderr.

python arena.py MODEL '{"image": [1, 1, 64, 64], …}'

It imports little, as it is started for each shape.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, whoever starts it

import numpy as np
import onnxruntime

BEFORE_RUNS = "equipoise: loaded"


def main(model: str, shapes: dict[str, list[int]]) -> None:
    onnxruntime.set_default_logger_severity(0)
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_mem": 0})
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, arena)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # scratch memory of further threads says nothing of a GPU
    options.add_session_config_entry("session.use_env_allocators", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shrink = onnxruntime.RunOptions()
    shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    types = {"image": np.float32, "masks": np.uint8}
    print(BEFORE_RUNS, file=sys.stderr, flush=True)
    for _ in range(2):
        session.run(None, {name: np.ones(dims, types[name]) for name, dims in shapes.items()}, shrink)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
