"""Where Triton's ONNX Runtime backend reads each option of a model's configuration.

Read in `src/onnxruntime.cc` of triton-inference-server/onnxruntime_backend, main at commit 00fd3e87a091 (2026-06-29):
`ModelState` (session options), `LoadModel` (both accelerators, then the top-level parameters that overwrite the CUDA
ones) and `ModelInstanceState` (run options).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType

from tritonclient.grpc.model_config_pb2 import ModelConfig


class Place(str, Enum):
    """Of an option in a configuration."""

    PARAMETER = "top-level parameters"
    CUDA = "gpu_execution_accelerator cuda"
    TENSORRT = "gpu_execution_accelerator tensorrt"


READ_AT: Mapping[str, Place] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "execution_mode",
                "intra_op_thread_count",
                "inter_op_thread_count",
                "enable_mem_arena",
                "enable_mem_pattern",
                "session.use_device_allocator_for_initializers",
                "memory.enable_memory_arena_shrinkage",
                # Inside the accelerator these are overwritten: by the parameter, or where there is none by a default.
                "cudnn_conv_algo_search",
                "gpu_mem_limit",
                "arena_extend_strategy",
                "do_copy_in_default_stream",
            ),
            Place.PARAMETER,
        ),
        # Whatever stands there is handed to ONNX Runtime's CUDA provider, which refuses a name that it does not know.
        **dict.fromkeys(
            (
                "use_tf32",
                "prefer_nhwc",
                "fuse_conv_bias",
                "cudnn_conv_use_max_workspace",
                "use_ep_level_unified_stream",
            ),
            Place.CUDA,
        ),
        # Any other name is refused.
        **dict.fromkeys(
            (
                "precision_mode",
                "max_workspace_size_bytes",
                "trt_max_partition_iterations",
                "trt_min_subgraph_size",
                "trt_engine_cache_enable",
                "trt_engine_cache_path",
                "trt_engine_cache_prefix",
                "trt_timing_cache_enable",
                "trt_timing_cache_path",
                "trt_force_timing_cache",
                "trt_layer_norm_fp32_fallback",
                "trt_builder_optimization_level",
                "trt_context_memory_sharing_enable",
                "trt_profile_min_shapes",
                "trt_profile_opt_shapes",
                "trt_profile_max_shapes",
            ),
            Place.TENSORRT,
        ),
    }
)
"""Of the options that a sampler may have. `enable_cuda_graph` and `trt_cuda_graph_enable` are left out on purpose: a
replayed graph reads the first request's inputs."""

MEASURED = ("prefer_nhwc", "fuse_conv_bias")
"""Options of the CUDA provider that may be faster and change no promise; to be set where they were measured."""


def stated_options(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Each option that a configuration of the native backend states, and where: a `Place`'s value, if it is one."""
    for name in config.parameters:
        yield name, Place.PARAMETER.value
    accelerators = config.optimization.execution_accelerators
    for kind, those in (
        ("gpu_execution_accelerator", accelerators.gpu_execution_accelerator),
        ("cpu_execution_accelerator", accelerators.cpu_execution_accelerator),
    ):
        for accelerator in those:
            for name in accelerator.parameters:
                yield name, f"{kind} {accelerator.name}"


def misplaced(config: ModelConfig) -> list[str]:
    """What the backend would not read where it stands, each with the place where it would."""
    return [
        f"{name} in {place}: {f'read in {READ_AT[name].value}' if name in READ_AT else 'not an option of ours'}"
        for name, place in stated_options(config)
        if name not in READ_AT or READ_AT[name].value != place
    ]
