"""The configurations say what the contract says, in Triton's own words."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest
from equipoise_core.contract import Contract, Precision, Site, SiteKind, parse_contract
from equipoise_export.publish.triton_config import aggregator_config, render, sampler_configs
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton


def _dims(tensors) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in tensors}


@pytest.fixture(params=["tiny_segmentation", "tiny_classifier", "tiny_deterministic"])
def tiny(request):
    return request.getfixturevalue(request.param)


def test_every_configuration_survives_the_round_trip_through_text(tiny):
    """Parsing what was printed gives an equal message, so that Triton reads what was meant."""
    for config in [aggregator_config(tiny.contract), *sampler_configs(tiny.contract).values()]:
        assert text_format.Parse(render(config), triton.ModelConfig()) == config


def test_sampler_configurations_agree_with_the_onnx_file(tiny):
    """Names, types and axes of each sampler configuration are those of the graph, its batch axis apart."""
    types = {onnx.TensorProto.FLOAT: triton.TYPE_FP32, onnx.TensorProto.UINT8: triton.TYPE_UINT8}

    def declared(values) -> dict[str, tuple[int, list[int]]]:
        return {
            value.name: (
                types[value.type.tensor_type.elem_type],
                [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim][1:],
            )
            for value in values
        }

    for config in sampler_configs(tiny.contract).values():
        assert config.max_batch_size == 8
        for tensors, values in ((config.input, tiny.model.graph.input), (config.output, tiny.model.graph.output)):
            given = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}
            # The native backend refuses a model of which one differs, and the server with it.
            assert given == declared(values)


def test_each_configuration_names_its_backend_and_device(tiny_segmentation):
    """The default configuration is the GPU's; cpu is native, embedded the stand-in."""
    configs = sampler_configs(tiny_segmentation.contract)
    kinds = {path: (c.backend, c.instance_group[0].kind, c.instance_group[0].count) for path, c in configs.items()}
    group = triton.ModelInstanceGroup
    assert kinds == {
        "config.pbtxt": ("onnxruntime", group.KIND_GPU, 1),
        "configs/cpu.pbtxt": ("onnxruntime", group.KIND_CPU, 1),
        "configs/embedded.pbtxt": ("python", group.KIND_CPU, 1),
        "configs/embedded_cuda.pbtxt": ("python", group.KIND_MODEL, 1),
    }


def test_the_stand_in_gets_the_providers_own_words(tiny_segmentation):
    """Heuristic search, an arena that does not double, and full single precision; half keeps its tensor cores."""
    common = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    for precision, more in ((Precision.FP32, {"use_tf32": "0"}), (Precision.FP16, {})):
        contract = replace(tiny_segmentation.contract, precision=precision)
        config = sampler_configs(contract)["configs/embedded_cuda.pbtxt"]
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", common | more)


def test_warm_up_uses_the_nominal_size_and_the_usual_number_of_samples(tiny_segmentation):
    """The first patient must not wait for the GPU to choose its algorithms."""
    (warmup,) = sampler_configs(tiny_segmentation.contract)["config.pbtxt"].model_warmup
    assert _dims_of(warmup) == {"image": [1, 4, 4], "masks": [20, 1]}


def _dims_of(warmup) -> dict[str, list[int]]:
    return {name: list(tensor.dims) for name, tensor in warmup.inputs.items()}


def test_the_sampler_has_no_queue_policy(tiny_segmentation):
    """A policy or priorities on its queue would make Triton's batcher lose wake-ups, up to 500 ms each."""
    for config in sampler_configs(tiny_segmentation.contract).values():
        assert config.dynamic_batching.priority_levels == 0
        assert not config.dynamic_batching.HasField("default_queue_policy")


def test_mask_bytes_are_fixed_only_where_no_site_depends_on_the_size(tiny_segmentation):
    """B is a number for channel dropout and open for element dropout on a dynamic axis."""
    contract: Contract = tiny_segmentation.contract
    element = replace(contract, sites=(Site("drop", SiteKind.ELEMENT, (2, "X//2", "Y//2"), 0.5),))
    for given, expected in ((contract, [-1, 1]), (element, [-1, -1])):
        assert _dims(sampler_configs(given)["config.pbtxt"].input)["masks"] == expected


def test_deterministic_model_has_no_masks_input(tiny_deterministic):
    """Nothing is drawn, so nothing is asked for."""
    for config in sampler_configs(tiny_deterministic.contract).values():
        assert list(_dims(config.input)) == ["image"]


def test_public_model_takes_one_request_at_a_time_and_urgent_ones_first(tiny_segmentation):
    """No batch axis, two priorities, routine unless said otherwise, optional inputs optional."""
    config = aggregator_config(tiny_segmentation.contract)
    batching = config.dynamic_batching
    assert config.max_batch_size == 0
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    assert batching.default_queue_policy.allow_timeout_override
    assert {tensor.name for tensor in config.input if tensor.optional} == {"samples", "seed", "spacing"}
    assert _dims(config.input)["image"] == [-1, 1, -1, -1]
    assert _dims(config.output)["variance"] == [-1, 2, -1, -1]
    assert _dims(config.output)["volume"] == [-1, 2, 4]


def test_public_model_carries_its_contract(tiny):
    """A client learns classes, spacing and sizes from the server alone."""
    text = aggregator_config(tiny.contract).parameters["contract"].string_value
    assert parse_contract(json.loads(text)) == tiny.contract
