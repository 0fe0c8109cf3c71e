"""Contract → the `config.pbtxt` files that Triton loads, built from Triton's own protobuf messages.

One public model, one sampler or (deep ensemble) several. A sampler has three configurations; `--model-config-name`
chooses among them:

    config.pbtxt            ONNX Runtime on the GPU: what a hospital runs
    configs/cpu.pbtxt       ONNX Runtime on the CPU, native backend
    configs/embedded.pbtxt  the Python stand-in: the wheel's server has no native ONNX Runtime backend
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from equipoise_core.canonical import canonical_json
from equipoise_core.contract import Contract, Task
from equipoise_core.masks import mask_layout
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

SAMPLER_BATCH = 8
"""Images per execution of the sampler at most: the dynamic batcher gathers them over all clients."""

ROUTINE, URGENT = 2, 1
"""Priority levels of the public model's queue; Triton serves the lower number first."""

_LONGEST_WAIT = 3_600_000_000  # µs in the queue: Triton ignores a request's own timeout unless it is below a default
_QUEUE = 256  # requests that wait per priority; more are refused at once (UNAVAILABLE) than served too late
# µs that the sampler waits for batch-mates: on a GPU little against one run of the network (not measured here). On the
# CPU a larger batch gains nothing, and of a tiny model's 6.9 ms the wait was .7.
_GPU_BATCHING_DELAY = 500
_GPU_OPTIONS = {
    # EXHAUSTIVE, the default, times every algorithm anew for each new shape: seconds for a first image of its size.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Parity with the exported network is promised in fp32; TensorFloat-32 keeps 10 bits of the mantissa.
    "use_tf32": "0",
}
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
    spatial = [-1] * contract.rank if contract.task is Task.SEGMENTATION else _spatial(contract)
    per_class, per_decision = len(contract.classes), contract.decisions
    maps = spatial if contract.task is Task.SEGMENTATION else []
    return triton.ModelConfig(
        name=contract.name,
        backend="python",
        max_batch_size=0,
        input=[
            _input("image", _FP32, [-1, contract.channels, *spatial]),
            _input("samples", _INT32, [-1, 1], optional=True),
            _input("seed", _UINT64, [-1, 1], optional=True),
            _input("spacing", _FP32, [-1, contract.rank], optional=True),
        ],
        output=[
            _output("mean", _FP32, [-1, per_class, *maps]),
            _output("variance", _FP32, [-1, per_class, *maps]),
            _output("variance_corrected", _FP32, [-1, per_class, *maps]),
            _output("aleatoric", _FP32, [-1, per_decision, *maps]),
            _output("epistemic", _FP32, [-1, per_decision, *maps]),
            *([_output("uncertainty", _FP32, [-1, 1, *maps])] if contract.states_moments else []),
            _output("labels", _UINT8, [-1, per_decision, *maps]),
            _output("labels_sensitive", _UINT8, [-1, per_decision, *maps]),
            _output("calibrated", _FP32, [-1, per_class, *maps]),
            _output("case_score", _FP32, [-1, 1]),
            _output("volume", _FP32, [-1, per_class, 4]),
            _output("volume_total", _FP32, [-1, 4]),
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


def sampler_configs(contract: Contract, name: str | None = None) -> Mapping[str, triton.ModelConfig]:
    """Path below the sampler's folder → configuration. `name`: of the sampler; None: of the only one."""
    name = name or sampler_names(contract)[0]
    return {
        "config.pbtxt": _gpu_config(contract, name),
        "configs/cpu.pbtxt": _cpu_config(contract, name),
        "configs/embedded.pbtxt": _sampler_config(contract, name, "python", triton.ModelInstanceGroup.KIND_CPU),
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


def _gpu_config(contract: Contract, name: str) -> triton.ModelConfig:
    accelerator = triton.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator(name="cuda", parameters=_GPU_OPTIONS)
    config = _sampler_config(contract, name, "onnxruntime", triton.ModelInstanceGroup.KIND_GPU)
    config.dynamic_batching.max_queue_delay_microseconds = _GPU_BATCHING_DELAY
    config.optimization.execution_accelerators.gpu_execution_accelerator.append(accelerator)
    config.model_warmup.append(_warmup(contract))
    return config


def _cpu_config(contract: Contract, name: str) -> triton.ModelConfig:
    config = _sampler_config(contract, name, "onnxruntime", triton.ModelInstanceGroup.KIND_CPU)
    # One run at a time on all cores (0), since nothing is known of the machine here; `equipoise serve` shares them out.
    config.parameters["intra_op_thread_count"].CopyFrom(_parameter("0"))
    config.parameters["inter_op_thread_count"].CopyFrom(_parameter("1"))
    return config


def _sampler_config(
    contract: Contract, name: str, backend: str, kind: triton.ModelInstanceGroup.Kind
) -> triton.ModelConfig:
    """What the three have in common: the tensors of the ONNX file without their batch axis, and dynamic batching."""
    spatial = _spatial(contract)
    classes, decisions = len(contract.classes), contract.decisions
    samples = -1 if contract.stochastic else 1  # as the file: the native backend compares them
    inputs = [_input("image", _FP32, [contract.channels, *spatial])]
    if contract.stochastic:
        inputs.append(_input("masks", _UINT8, [-1, _mask_bytes(contract)]))
    if contract.task is Task.SEGMENTATION:
        outputs = [
            _output("sum_p", _FP32, [classes, *spatial]),
            _output("sum_p2", _FP32, [classes, *spatial]),
            _output("sum_entropy", _FP32, [decisions, *spatial]),
            _output("volumes", _FP32, [samples, classes]),
        ]
        if contract.states_moments:
            outputs.append(_output("sum_uncertainty", _FP32, [1, *spatial]))
    else:
        outputs = [_output("probabilities", _FP32, [samples, classes])]
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


def _warmup(contract: Contract) -> triton.ModelWarmup:
    """One image of the nominal size with the usual number of samples, before the server calls itself ready."""
    inputs = {
        "image": triton.ModelWarmup.Input(
            data_type=_FP32, dims=[contract.channels, *contract.nominal], random_data=True
        )
    }
    if contract.stochastic:
        packed = mask_layout(contract, contract.nominal).bytes
        inputs["masks"] = triton.ModelWarmup.Input(data_type=_UINT8, dims=[contract.samples, packed], random_data=True)
    return triton.ModelWarmup(name="nominal", batch_size=1, inputs=inputs)


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
