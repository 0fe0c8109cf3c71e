"""The configurations say what the contract says, in Triton's own words."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from equipoise_core.contract import Contract, Precision, Site, SiteKind, load_contract, parse_contract
from equipoise_core.masks import mask_layout
from equipoise_export.publish import repository
from equipoise_export.publish.backend_options import MEASURED, misplaced, stated_options
from equipoise_export.publish.repository import publish_pair
from equipoise_export.publish.triton_config import GpuShare, aggregator_config, differences, render, sampler_configs
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

GPU = ("config.pbtxt", "configs/tensorrt.pbtxt")


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
    """Names, types and axes of each are those of the graph, its batch axis apart. Publishing holds every kind to it."""
    for config in sampler_configs(tiny.contract).values():
        assert config.max_batch_size == 8
        assert not differences(config, tiny.model)


def _open(axes: list[int], at: int) -> None:
    axes[at] = -1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda config: _open(config.output[-1].dims, 0),
            r"output probabilities: \(11, \[-1, 2\]\) and \(11, \[1, 2\]\)",
        ),
        (lambda config: _open(config.input[0].dims, 0), "input image"),
        (
            lambda config: config.input.add(name="masks", data_type=triton.TYPE_UINT8, dims=[-1, 1]),
            "input masks.* None",
        ),
        (lambda config: config.output.pop(), "output probabilities: None"),
        (lambda config: setattr(config.output[0], "data_type", triton.TYPE_FP16), "output probabilities: .10,"),
    ],
)
def test_a_configuration_that_differs_from_the_onnx_file_is_not_published(
    tiny_deterministic, tmp_path, monkeypatch, spoil, said
):
    """By a backend that reads the file; the stand-in and the other configurations would not show it."""
    configs = sampler_configs(tiny_deterministic.contract)
    spoil(configs["configs/cpu.pbtxt"])
    monkeypatch.setattr(repository, "sampler_configs", lambda contract, name: configs)
    with pytest.raises(repository.PublishError, match=f"cpu.pbtxt and the ONNX file differ in {said}"):
        repository.publish_pair(tiny_deterministic, tmp_path)
    assert not list(tmp_path.rglob("*.pbtxt"))


def test_each_configuration_names_its_backend_and_device(tiny_segmentation):
    """The default configuration is the GPU's; cpu is native, embedded the stand-in."""
    configs = sampler_configs(tiny_segmentation.contract)
    kinds = {path: (c.backend, c.instance_group[0].kind, c.instance_group[0].count) for path, c in configs.items()}
    group = triton.ModelInstanceGroup
    assert kinds == {
        "config.pbtxt": ("onnxruntime", group.KIND_GPU, 1),
        "configs/tensorrt.pbtxt": ("onnxruntime", group.KIND_GPU, 1),
        "configs/cpu.pbtxt": ("onnxruntime", group.KIND_CPU, 1),
        "configs/embedded.pbtxt": ("python", group.KIND_CPU, 1),
        "configs/embedded_cuda.pbtxt": ("python", group.KIND_MODEL, 1),
    }


def test_warm_up_has_the_largest_run_and_then_the_first_requests_shape(tiny_segmentation):
    """What does not fit shows before the first patient, who does not wait for the GPU to choose its algorithms."""
    share = GpuShare(5, images=3)
    for path in GPU:
        config = sampler_configs(tiny_segmentation.contract, share=share)[path]
        found = [(each.name, each.batch_size, _dims_of(each)) for each in config.model_warmup]
        assert found == [
            ("largest", 3, {"image": [1, 64, 64], "masks": [5, 1]}),
            ("nominal", 1, {"image": [1, 4, 4], "masks": [5, 1]}),
        ]


def test_the_stand_in_gets_the_providers_own_words(tiny_segmentation):
    """Heuristic search, an arena that does not double, and full single precision; half keeps its tensor cores."""
    common = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": "9"}
    for precision, more in ((Precision.FP32, {"use_tf32": "0"}), (Precision.FP16, {})):
        contract = replace(tiny_segmentation.contract, precision=precision)
        config = sampler_configs(contract, share=GpuShare(20, 3, 9))["configs/embedded_cuda.pbtxt"]
        assert config.max_batch_size == 3
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", common | more)


def _dims_of(warmup) -> dict[str, list[int]]:
    return {name: list(tensor.dims) for name, tensor in warmup.inputs.items()}


def _half(contract: Contract) -> Contract:
    return replace(contract, precision=Precision.FP16)


def _native(contract: Contract) -> dict[str, triton.ModelConfig]:
    """All configurations of the native backend, in both precisions, with everything that may be measured."""
    share = GpuShare(5, measured=dict.fromkeys(MEASURED, "1"))
    return {
        f"{each.precision.value} {path}": config
        for each in (contract, _half(contract))
        for path, config in sampler_configs(each, share=share).items()
        if config.backend == "onnxruntime"
    }


def test_every_option_stands_where_the_backend_reads_it(tiny):
    """Elsewhere it is overwritten with a default, silently, or refused."""
    configs = _native(tiny.contract)
    assert len(configs) == 6
    for name, config in configs.items():
        assert list(stated_options(config)), name
        assert misplaced(config) == [], name


@pytest.mark.parametrize("option", ["cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy"])
def test_an_option_in_the_wrong_place_is_found(tiny_segmentation, option):
    """In the accelerator, in the other accelerator, or of a name that nobody knows."""
    config = sampler_configs(tiny_segmentation.contract)["configs/tensorrt.pbtxt"]
    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    cuda.parameters[option] = config.parameters.pop(option).string_value
    assert misplaced(config) == [f"{option} in gpu_execution_accelerator cuda: read in top-level parameters"]
    tensorrt.parameters["use_tf32"] = cuda.parameters["use_tf32"]
    config.parameters["gpu_memory_limit"].string_value = "1"
    assert len(misplaced(config)) == 3


def test_single_precision_shuts_out_tf32_and_half_does_not(tiny):
    """In half precision the option would shut out every tensor core."""
    for path in GPU:
        for contract, expected in ((tiny.contract, "0"), (_half(tiny.contract), None)):
            config = sampler_configs(contract)[path]
            stated = [
                each.parameters.get("use_tf32")
                for each in config.optimization.execution_accelerators.gpu_execution_accelerator
                if each.name == "cuda"
            ]
            assert stated == ([expected] if expected else [])


def test_memory_is_bounded_on_one_device_and_nothing_waits_for_batch_mates(tiny):
    """ONNX Runtime refuses every run on a device that the shrinkage does not name."""
    for path in GPU:
        config = sampler_configs(tiny.contract, share=GpuShare(5, images=2, bytes=7_000_000))[path]
        stated = {name: parameter.string_value for name, parameter in config.parameters.items()}
        assert stated == {
            "cudnn_conv_algo_search": "1",
            "arena_extend_strategy": "1",
            "gpu_mem_limit": "7000000",
            "memory.enable_memory_arena_shrinkage": "gpu:0",
        }
        assert list(config.instance_group[0].gpus) == [0]
        assert config.max_batch_size == 2
        assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_no_configuration_has_cuda_graphs(tiny):
    """A replayed graph reads the first request's inputs: another patient's image."""
    for config in _native(tiny.contract).values():
        assert not [name for name, _ in stated_options(config) if "cuda_graph" in name]
        assert not config.optimization.HasField("cuda")
    with pytest.raises(ValueError, match=r"enable_cuda_graph: not an option to be measured"):
        GpuShare(5, measured={"enable_cuda_graph": "1"})


def test_tensorrt_has_one_profile_of_all_that_is_served(tiny_segmentation):
    """From one sample (of windows) of one image of the smallest size to the largest run; masks follow the size."""
    contract = replace(
        tiny_segmentation.contract, sites=(Site("drop", SiteKind.ELEMENT, ("X//2", "Y//2"), 0.5),), nominal=(16, 8)
    )
    config = sampler_configs(contract, share=GpuShare(5, images=3, digest="abc"))["configs/tensorrt.pbtxt"]
    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (tensorrt.name, cuda.name) == ("tensorrt", "cuda")
    stated = dict(tensorrt.parameters)
    smallest = contract.preprocessing.multiple
    least = mask_layout(contract, (smallest, smallest)).bytes
    assert stated["trt_profile_min_shapes"] == f"image:1x1x{smallest}x{smallest},masks:1x1x{least}"
    assert stated["trt_profile_opt_shapes"] == "image:3x1x16x8,masks:3x5x4"
    assert stated["trt_profile_max_shapes"] == "image:3x1x64x64,masks:3x5x128"
    assert stated["precision_mode"] == "FP32"
    half = sampler_configs(_half(contract))["configs/tensorrt.pbtxt"].optimization.execution_accelerators
    assert half.gpu_execution_accelerator[0].parameters["precision_mode"] == "FP16"


def test_no_two_files_share_a_tensorrt_engine(tiny_segmentation, tmp_path):
    """ONNX Runtime names an engine by the graph's tensors: with another member's weights it would answer wrongly."""
    other = copy.deepcopy(tiny_segmentation.model)
    other.doc_string = "other weights"
    publish_pair(tiny_segmentation, tmp_path, further=[replace(tiny_segmentation, model=other)])
    paths = set()
    for file in load_contract(tmp_path / "tinyseg/1/contract.json").files:
        config = text_format.Parse((tmp_path / file.name / "configs/tensorrt.pbtxt").read_text(), triton.ModelConfig())
        tensorrt = config.optimization.execution_accelerators.gpu_execution_accelerator[0]
        assert tensorrt.parameters["trt_engine_cache_enable"] == "1"
        assert tensorrt.parameters["trt_engine_cache_path"].endswith(file.digest)
        assert config.model_warmup[0].inputs["masks"].dims[0] == 10  # each member draws half of the samples
        paths.add(tensorrt.parameters["trt_engine_cache_path"])
    assert len(paths) == 2


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
