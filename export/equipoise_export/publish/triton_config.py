"""Contract → the `config.pbtxt` files that Triton loads, built from Triton's own protobuf messages.

One public model, one sampler or (deep ensemble) several. A sampler has four configurations; `--model-config-name`
chooses among them:

    config.pbtxt                 ONNX Runtime on the GPU (CUDA): what a hospital runs
    configs/tensorrt.pbtxt       the same with TensorRT for what it can run
    configs/cpu.pbtxt            ONNX Runtime on the CPU, native backend
    configs/embedded.pbtxt       the Python stand-in: the wheel's server has no native ONNX Runtime backend
    configs/embedded_cuda.pbtxt  the stand-in on a GPU: a workstation without containers

Where each option of the native backend's has to stand is in `backend_options`. There are no CUDA graphs: through Triton
they read the first request's inputs again. Nothing of the GPU's was run here: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from equipoise_core.budget import MOST_AT_ONCE, at_a_time
from equipoise_core.canonical import canonical_json
from equipoise_core.contract import Contract, Precision
from equipoise_core.gpu_memory import GPU_MEMORY, gpu_plan
from equipoise_core.masks import mask_layout
from equipoise_core.moments import sampler_outputs
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from .backend_options import MEASURED

SAMPLER_BATCH = MOST_AT_ONCE
"""Images per execution of the sampler at most: the dynamic batcher gathers them over all clients."""

ROUTINE, URGENT = 2, 1
"""Priority levels of the public model's queue; Triton serves the lower number first."""

_LONGEST_WAIT = 3_600_000_000  # µs in the queue: Triton ignores a request's own timeout unless it is below a default
_QUEUE = 256  # requests that wait per priority; more are refused at once (UNAVAILABLE) than served too late
_CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": "1",  # HEURISTIC: nothing is timed for a new shape
    "arena_extend_strategy": "1",  # as requested: doubling takes up to twice of what a run needs
}
# ONNX Runtime refuses every run on another device than the ones named here, so the instance is bound to this one.
_SHRINKAGE, _SHRUNK = "memory.enable_memory_arena_shrinkage", "gpu:0"

TENSORRT_CACHE = "/var/cache/equipoise"
"""Folder of built engines, which must exist and be the service's own. Below it each ONNX file has one by its digest:
ONNX Runtime names an engine by the graph's tensors, not its weights, so that all members of an ensemble, and a model
trained again, would share one."""

IMAGES_PARAMETER = "images"
"""Of a public model: images that its samplers take in one request."""
_FP32, _INT32, _UINT64, _UINT8, _BYTES = (
    triton.DataType.TYPE_FP32,
    triton.DataType.TYPE_INT32,
    triton.DataType.TYPE_UINT64,
    triton.DataType.TYPE_UINT8,
    triton.DataType.TYPE_STRING,
)


def render(config: triton.ModelConfig) -> str:
    """The text of a `config.pbtxt`; Triton parses it back to an equal message."""
    text: str = text_format.MessageToString(config)
    return text


def sampler_names(contract: Contract, count: int = 1) -> tuple[str, ...]:
    """Triton's names of the models that draw samples for `contract.name`: several for a deep ensemble."""
    if count == 1:
        return (f"{contract.name}_sampler",)
    return tuple(f"{contract.name}_sampler_{number}" for number in range(1, count + 1))


def first_pass_name(contract: Contract) -> str:
    """Triton's name of the model that answers before any sample is drawn for `contract.name`."""
    return f"{contract.name}_first_pass"


def aggregator_config(contract: Contract) -> triton.ModelConfig:
    """The public model NAME: the Python backend, every axis spelled out, two priorities.

    `max_batch_size` 0 hands each execution exactly one request, so that an urgent one never waits behind a batch of
    routine ones. Clients read the contract from the parameter of that name.
    """
    # A segmentation takes any size, whatever the network does: padded, or in windows.
    spatial = [-1] * contract.rank if contract.per_voxel else _spatial(contract)
    per_answer, per_decision = len(contract.answers), contract.decisions
    maps = spatial if contract.per_voxel else []
    of_classes = [
        _output("labels", _UINT8, [-1, per_decision, *maps]),
        _output("labels_sensitive", _UINT8, [-1, per_decision, *maps]),
        _output("calibrated", _FP32, [-1, per_answer, *maps]),
    ]
    volumes = [_output("volume", _FP32, [-1, per_answer, 4]), _output("volume_total", _FP32, [-1, 4])]
    return triton.ModelConfig(
        name=contract.name,
        backend="python",
        max_batch_size=0,
        input=[
            _input("image", _FP32, [-1, contract.image_channels, *spatial]),
            _input("samples", _INT32, [-1, 1], optional=True),
            _input("seed", _UINT64, [-1, 1], optional=True),
            _input("spacing", _FP32, [-1, contract.rank], optional=True),
        ],
        output=[
            _output("mean", _FP32, [-1, per_answer, *maps]),
            _output("variance", _FP32, [-1, per_answer, *maps]),
            _output("variance_corrected", _FP32, [-1, per_answer, *maps]),
            _output("aleatoric", _FP32, [-1, per_decision, *maps]),
            _output("epistemic", _FP32, [-1, per_decision, *maps]),
            *([_output("uncertainty", _FP32, [-1, 1, *maps])] if contract.states_moments else []),
            *([] if contract.targets else of_classes),
            _output("case_score", _FP32, [-1, 1]),
            *([_output("values", _FP32, [-1, per_answer, 4])] if contract.targets else volumes),
            _output("samples_used", _INT32, [-1, 1]),
            _output("route", _BYTES, [-1, 1]),
            _output("reason", _BYTES, [-1, 1]),
            _output("record", _BYTES, [-1, 1]),
        ],
        # `equipoise serve` raises the count to the number of cores. Fewer than four stall: see staging.py there.
        instance_group=[triton.ModelInstanceGroup(count=4, kind=triton.ModelInstanceGroup.KIND_CPU)],
        dynamic_batching=triton.ModelDynamicBatching(
            priority_levels=ROUTINE,
            default_priority_level=ROUTINE,
            default_queue_policy=_queue_policy(),
            priority_queue_policy={URGENT: _queue_policy(), ROUTINE: _queue_policy()},
        ),
        parameters={"contract": _parameter(canonical_json(contract.document()))},
    )


@dataclass(frozen=True)
class GpuShare:
    """How one sampler runs on a GPU.

    Attributes:
        samples: T of its requests.
        images: of a run at most.
        bytes: that it may take.
        digest: of its ONNX file.
        measured: options of `backend_options.MEASURED` that are faster for this model on this GPU.
    """

    samples: int
    images: int = SAMPLER_BATCH
    bytes: int = GPU_MEMORY
    digest: str = "unpublished"
    measured: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if odd := sorted(set(self.measured) - set(MEASURED)):
            raise ValueError(f"{', '.join(odd)}: not an option to be measured; those are {', '.join(MEASURED)}")


def model_configs(repository: Path, contract: Contract, chunk: int) -> Mapping[str, triton.ModelConfig]:
    """Path below the repository → configuration, of a public model, its samplers and its first pass.

    Args:
        repository: where the ONNX files and proofs lie.
        contract: as published.
        chunk: samples of an image per sampler request, as the policy's stages have them.
    """
    plan = gpu_plan(repository, contract, chunk)
    public = aggregator_config(contract)
    public.parameters[IMAGES_PARAMETER].CopyFrom(_parameter(str(plan.images)))
    configs = {f"{contract.name}/config.pbtxt": public}
    for file in contract.files:
        own = contract if file in contract.samplers else contract.of_first_pass
        share = GpuShare(plan.needs[file.name].samples, plan.images, plan.limit(file.name), file.digest)
        for path, config in sampler_configs(own, file.name, share).items():
            configs[f"{file.name}/{path}"] = config
    return configs


def sampler_configs(
    contract: Contract, name: str | None = None, share: GpuShare | None = None
) -> Mapping[str, triton.ModelConfig]:
    """Path below the sampler's folder → configuration.

    Args:
        name: of the sampler; None: of the only one.
        share: of a GPU; None: all of `GPU_MEMORY`, and the contract's T.
    """
    name, share = name or sampler_names(contract)[0], share or GpuShare(contract.samples)
    return {
        "config.pbtxt": _gpu_config(contract, name, share),
        "configs/tensorrt.pbtxt": _tensorrt_config(contract, name, share),
        "configs/cpu.pbtxt": _cpu_config(contract, name),
        "configs/embedded.pbtxt": _sampler_config(contract, name, "python", triton.ModelInstanceGroup.KIND_CPU),
        "configs/embedded_cuda.pbtxt": _embedded_cuda_config(contract, name, share),
    }


def differences(config: triton.ModelConfig, model: onnx.ModelProto) -> list[str]:
    """What a sampler's configuration and its ONNX file declare differently: name, type or an axis; none should.

    The native backend refuses such a model, and with it the server does not start. The batch axis is left out, -1 is an
    axis that the file leaves open.
    """
    types = {onnx.TensorProto.FLOAT: _FP32, onnx.TensorProto.UINT8: _UINT8}
    stated = {
        f"{kind} {tensor.name}": (tensor.data_type, list(tensor.dims))
        for kind, tensors in (("input", config.input), ("output", config.output))
        for tensor in tensors
    }
    own = {
        f"{kind} {value.name}": (
            types.get(value.type.tensor_type.elem_type),
            [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim][1:],
        )
        for kind, values in (("input", model.graph.input), ("output", model.graph.output))
        for value in values
    }
    return [
        f"{name}: {stated.get(name)} and {own.get(name)}"
        for name in {**stated, **own}
        if stated.get(name) != own.get(name)
    ]


def _gpu_config(contract: Contract, name: str, share: GpuShare) -> triton.ModelConfig:
    config = _sampler_config(contract, name, "onnxruntime", triton.ModelInstanceGroup.KIND_GPU)
    config.max_batch_size = share.images
    config.instance_group[0].gpus.append(0)
    for option, value in {**_CUDA_PARAMETERS, "gpu_mem_limit": str(share.bytes), _SHRINKAGE: _SHRUNK}.items():
        config.parameters[option].CopyFrom(_parameter(value))
    if options := {**_exact(contract), **share.measured}:
        config.optimization.execution_accelerators.gpu_execution_accelerator.append(_accelerator("cuda", options))
    config.model_warmup.extend(_warmups(contract, share))
    return config


def _tensorrt_config(contract: Contract, name: str, share: GpuShare) -> triton.ModelConfig:
    """One engine for all shapes that are served; what TensorRT cannot run is left to CUDA.

    The profile names the model's inputs only, so all of the graph up to the outputs has to be one engine. TensorRT's
    TensorFloat-32 has no option here: `NVIDIA_TF32_OVERRIDE=0` in the environment shuts it out.
    """
    config = _gpu_config(contract, name, share)
    smallest, largest = contract.window((1,) * contract.rank), contract.window(contract.maximum)
    options = {
        # Half precision has its own proof, so only where the graph itself is in half.
        "precision_mode": "FP16" if contract.precision is Precision.FP16 else "FP32",
        "max_workspace_size_bytes": str(share.bytes),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{TENSORRT_CACHE}/{share.digest}",
        "trt_profile_min_shapes": _profile(contract, 1, 1, smallest),
        "trt_profile_opt_shapes": _profile(contract, share.images, share.samples, contract.nominal),
        "trt_profile_max_shapes": _profile(contract, share.images, share.samples, largest),
    }
    config.optimization.execution_accelerators.gpu_execution_accelerator.insert(0, _accelerator("tensorrt", options))
    return config


def _accelerator(
    name: str, options: Mapping[str, str]
) -> triton.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator:
    return triton.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator(name=name, parameters=options)


def _profile(contract: Contract, images: int, samples: int, size: tuple[int, ...]) -> str:
    """The inputs' shapes, `name:1x2x3,…`."""
    shapes = _input_shapes(contract, samples, size)
    return ",".join(f"{name}:{'x'.join(map(str, (images, *shape)))}" for name, shape in shapes.items())


def _input_shapes(contract: Contract, samples: int, size: tuple[int, ...]) -> dict[str, list[int]]:
    """Of a sampler's inputs, without the batch axis."""
    image = {"image": [contract.channels, *size]}
    return {**image, "masks": [samples, mask_layout(contract, size).bytes]} if contract.stochastic else image


def _embedded_cuda_config(contract: Contract, name: str, share: GpuShare) -> triton.ModelConfig:
    """The stand-in hands these options to ONNX Runtime's CUDA provider as they are; its words differ from Triton's."""
    config = _sampler_config(contract, name, "python", triton.ModelInstanceGroup.KIND_MODEL)  # it chooses its device
    config.max_batch_size = share.images
    options = {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(share.bytes),
        **_exact(contract),
    }
    config.optimization.execution_accelerators.gpu_execution_accelerator.append(_accelerator("cuda", options))
    return config


def _exact(contract: Contract) -> dict[str, str]:
    """TensorFloat-32 keeps 10 bits of the mantissa. In half precision the option would shut out every tensor core."""
    return {"use_tf32": "0"} if contract.precision is Precision.FP32 else {}


def _cpu_config(contract: Contract, name: str) -> triton.ModelConfig:
    config = _sampler_config(contract, name, "onnxruntime", triton.ModelInstanceGroup.KIND_CPU)
    # One run at a time on all cores (0), since nothing is known of the machine here; `equipoise serve` shares them out.
    config.parameters["intra_op_thread_count"].CopyFrom(_parameter("0"))
    config.parameters["inter_op_thread_count"].CopyFrom(_parameter("1"))
    return config


def _sampler_config(
    contract: Contract, name: str, backend: str, kind: triton.ModelInstanceGroup.Kind
) -> triton.ModelConfig:
    """What all have in common: the tensors of the ONNX file without their batch axis, and dynamic batching."""
    spatial = _spatial(contract)
    classes, decisions = len(contract.answers), contract.decisions
    samples = -1 if contract.stochastic else 1  # as the file: the native backend compares them
    inputs = [_input("image", _FP32, [contract.channels, *spatial])]
    if contract.stochastic:
        inputs.append(_input("masks", _UINT8, [-1, _mask_bytes(contract)]))
    if contract.per_voxel:
        outputs = [
            _output("sum_p", _FP32, [classes, *spatial]),
            _output("sum_p2", _FP32, [classes, *spatial]),
            _output("sum_entropy", _FP32, [decisions, *spatial]),
            _output("volumes", _FP32, [samples, classes]),
        ]
        if contract.states_moments:
            outputs.append(_output("sum_uncertainty", _FP32, [1, *spatial]))
    else:
        outputs = [_output(name, _FP32, [samples, classes]) for name in sampler_outputs(contract)]
    return triton.ModelConfig(
        name=name,
        backend=backend,
        default_model_filename="model.onnx" if backend == "onnxruntime" else "",
        max_batch_size=SAMPLER_BATCH,
        input=inputs,
        output=outputs,
        instance_group=[triton.ModelInstanceGroup(count=1, kind=kind)],
        dynamic_batching=triton.ModelDynamicBatching(),
    )


def _warmups(contract: Contract, share: GpuShare) -> list[triton.ModelWarmup]:
    """Runs before the server calls itself ready, in this order.

    The largest first: what does not fit into the GPU's memory must show before the first patient. Then the first
    request's shape, whose plans cuDNN keeps.
    """
    types = {"image": _FP32, "masks": _UINT8}
    largest = at_a_time(contract, contract.window(contract.maximum))
    runs = [("largest", share.images, largest), ("nominal", 1, contract.nominal)]
    return [
        triton.ModelWarmup(
            name=name,
            batch_size=images,
            inputs={
                tensor: triton.ModelWarmup.Input(data_type=types[tensor], dims=shape, random_data=True)
                for tensor, shape in _input_shapes(contract, share.samples, size).items()
            },
        )
        for name, images, size in runs
    ]


def _spatial(contract: Contract) -> list[int]:
    return [-1 if isinstance(extent, str) else extent for extent in contract.spatial]


def _mask_bytes(contract: Contract) -> int:
    """B, or -1 where it depends on the image's size."""
    dynamic = any(isinstance(extent, str) for site in contract.sites for extent in site.shape)
    return -1 if dynamic and _spatial(contract).count(-1) else mask_layout(contract, contract.nominal).bytes


def _queue_policy() -> triton.ModelQueuePolicy:
    """A bounded queue; a request may bring a timeout, after which it is refused, not computed for nobody."""
    return triton.ModelQueuePolicy(
        timeout_action=triton.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=_LONGEST_WAIT,
        allow_timeout_override=True,
        max_queue_size=_QUEUE,
    )


def _input(name: str, data_type: int, dims: list[int], optional: bool = False) -> triton.ModelInput:
    return triton.ModelInput(name=name, data_type=data_type, dims=dims, optional=optional)


def _output(name: str, data_type: int, dims: list[int]) -> triton.ModelOutput:
    return triton.ModelOutput(name=name, data_type=data_type, dims=dims)


def _parameter(value: str) -> triton.ModelParameter:
    return triton.ModelParameter(string_value=value)
