"""Where nodes run on a GPU: what CUDA or TensorRT has no kernel for is found and named, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from equipoise_core.contract import Contract, Precision, load_contract
from equipoise_core.masks import mask_layout
from equipoise_export.compile import compile_first_pass, compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.proof import gpu_kernels
from equipoise_export.proof.gpu import Placement, place
from equipoise_export.proof.gpu_kernels import Kernel, kernels, main, read_onnxruntime, read_tensorrt
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ...support.exported import noise
from ...support.graphs import contract

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def behind(model: onnx.ModelProto, tensor: str, *nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """The graph with nodes behind an input; the last one's output takes its place."""
    planted = onnx.ModelProto()
    planted.CopyFrom(model)
    graph = planted.graph
    for node in graph.node:
        for place_, name in enumerate(node.input):
            if name == tensor:
                node.input[place_] = nodes[-1].output[0]
    for index, node in enumerate(nodes):
        node.name = f"planted {index}"
        graph.node.insert(index, node)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return planted


def placed(compiled: Compiled, *nodes: onnx.NodeProto, tensor: str = "image", **constants: np.ndarray) -> Placement:
    return place(behind(compiled.model, tensor, *nodes, **constants), compiled.contract)


def half(network: nn.Module, draft: Contract) -> Compiled:
    return compile_sampler(network, replace(draft, precision=Precision.FP16), noise(2, draft.channels, *draft.nominal))


def fine(placement: Placement) -> bool:
    return not placement.strays and not placement.off_tensorrt and not placement.warnings


def test_samplers_run_on_the_gpu_whole(compiled_unet: Compiled, compiled_classifier: Compiled, unet: nn.Module) -> None:
    """CUDA has all of their data nodes, TensorRT all of their nodes; so has the first pass."""
    first = compile_first_pass(unet, compiled_unet, noise(2, 1, 16, 24))
    for compiled in (compiled_unet, compiled_classifier, first):
        placement = compiled.placement
        assert fine(placement)
        assert placement.nodes == placement.cuda + placement.shapes
        assert placement.cuda > placement.shapes


@pytest.mark.slow  # proven twice
def test_a_sampler_in_half_runs_on_the_gpu_whole(unet: nn.Module) -> None:
    """Its halves too, and what is defined by other operators."""
    assert fine(half(unet, contract(spatial=("X", "Y"), nominal=(16, 24), multiple=4)).placement)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Hardswish(), nn.Dropout2d(0.3), nn.Conv2d(4, 2, 1))
    assert fine(half(network, contract(spatial=(8, 8))).placement)


@pytest.mark.parametrize("name", ["pneumonia", "nuclei", "hippocampus"])
def test_the_published_references_run_on_the_gpu_whole(name: str) -> None:
    """Samplers and first passes, as committed."""
    public = load_contract(REPOSITORY / name / "1" / "contract.json")
    assert public.first_pass is not None
    for file, said in ((f"{name}_sampler", public), (public.first_pass.name, public.of_first_pass)):
        assert fine(place(onnx.load(REPOSITORY / file / "1" / "model.onnx"), said)), file


def test_a_bit_operator_falls_off(compiled_unet: Compiled) -> None:
    """With the bytes that it costs: the masks of all samples, back to the GPU; they came in on the CPU."""
    shift = helper.make_node("BitShift", ["masks", "one"], ["shifted"], direction="RIGHT")
    placement = placed(compiled_unet, shift, tensor="masks", one=np.array(0, np.uint8))
    (stray,) = placement.strays
    packed = mask_layout(compiled_unet.contract, (16, 24)).bytes
    assert (stray.operator, stray.types, stray.bytes) == ("BitShift", ("uint8", "uint8"), 20 * packed)
    assert stray.node in placement.warnings[0]
    assert stray.node in {off.node for off in placement.off_tensorrt}
    assert "1 fall back to the CPU" in str(placement)


def test_what_comes_from_the_gpu_and_goes_back_crosses_twice(compiled_unet: Compiled) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["positive"]), helper.make_node("Celu", ["positive"], ["bent"])]
    (stray,) = placed(compiled_unet, *nodes).strays
    assert (stray.operator, stray.bytes) == ("Celu", 2 * 16 * 24 * 4)


def test_a_type_without_a_kernel_falls_off(compiled_unet: Compiled) -> None:
    """CUDA has Where, but not for UINT64. Nor has this machine's provider: the graph is judged as it is."""
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.UINT64),
        helper.make_node("Greater", ["image", "zero"], ["positive"]),
        helper.make_node("Where", ["positive", "wide", "wide"], ["chosen"]),
        helper.make_node("Cast", ["chosen"], ["single"], to=TensorProto.FLOAT),
    ]
    (stray,) = placed(compiled_unet, *nodes, zero=np.array(0, np.float32)).strays
    assert (stray.operator, stray.types) == ("Where", ("bool", "uint64", "uint64"))
    assert stray.bytes is None


def test_an_attribute_that_cuda_refuses_falls_off() -> None:
    """It pads transposed convolutions evenly only."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Dropout2d(0.3), nn.ConvTranspose2d(2, 2, 3, padding=1))
    compiled = compile_sampler(network, contract(spatial=(8, 8)), noise(2, 1, 8, 8))
    assert fine(compiled.placement)
    uneven = onnx.ModelProto()
    uneven.CopyFrom(compiled.model)
    (node,) = (node for node in uneven.graph.node if node.op_type == "ConvTranspose")
    next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = [0, 0, 2, 2]
    assert [stray.operator for stray in place(uneven, compiled.contract).strays] == ["ConvTranspose"]


def test_the_image_among_numbers_of_the_cpu_falls_off(compiled_unet: Compiled) -> None:
    """The provider takes inputs for the CPU's: a size multiplied with the image takes it there, and more behind it."""
    nodes = [
        helper.make_node("Shape", ["image"], ["extents"], start=0, end=1),
        helper.make_node("Cast", ["extents"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["image", "count"], ["scaled"]),
    ]
    strays = placed(compiled_unet, *nodes).strays
    assert strays[0].operator == "Mul"
    assert sum(stray.bytes or 0 for stray in strays) >= 16 * 24 * 4


@pytest.mark.parametrize("kind", ["Mul", "BitwiseAnd"])
def test_shape_arithmetic_belongs_on_the_cpu(compiled_unet: Compiled, kind: str) -> None:
    """With or without a kernel; but a tensor that is made of a shape without a kernel is data."""
    nodes = [
        helper.make_node("Shape", ["image"], ["extents"]),
        helper.make_node(kind, ["extents", "numbers"], ["changed"]),
        helper.make_node("Reshape", ["image", "changed"], ["shaped"]),
    ]
    numbers = np.array([1, 1, 2, -1], np.int64)
    before, after = compiled_unet.placement, placed(compiled_unet, *nodes, numbers=numbers)
    assert not after.strays
    assert after.shapes == before.shapes + 1


def test_a_node_that_splits_tensorrt_is_named(compiled_unet: Compiled) -> None:
    """UINT8 may come in and be cast to real numbers, nothing else; CUDA does not mind."""
    cut = helper.make_node("Slice", ["masks", "start", "end", "axis"], ["cut"])
    numbers = {"start": [0], "end": [99], "axis": [2]}
    arrays = {name: np.array(value, np.int64) for name, value in numbers.items()}
    placement = placed(compiled_unet, cut, tensor="masks", **arrays)
    assert not placement.strays and not placement.warnings
    assert [off.operator for off in placement.off_tensorrt] == ["Slice", "Cast"]
    assert "TensorRT: split by planted 0 (Slice of uint8" in str(placement)


def test_the_cast_of_masks_to_whole_numbers_splits_tensorrt(compiled_classifier: Compiled) -> None:
    """It knows UINT8 beside real numbers only."""
    model = onnx.ModelProto()
    model.CopyFrom(compiled_classifier.model)
    cast = next(node for node in model.graph.node if node.input[0] == "masks")
    cast.attribute[0].i = TensorProto.INT32
    assert [off.operator for off in place(model, compiled_classifier.contract).off_tensorrt] == ["Cast"]


def test_what_cannot_be_typed_is_not_taken_for_fine(compiled_classifier: Compiled) -> None:
    """An operator that the table does not have is named."""
    empty = replace(kernels(), cuda={}, tensorrt={})
    placement = place(compiled_classifier.model, compiled_classifier.contract, table=empty)
    assert placement.cuda == 0
    assert len(placement.off_tensorrt) == placement.nodes


def test_a_kernel_without_an_end_serves_no_later_version() -> None:
    """As ONNX Runtime looks kernels up: an operator of another version may mean something else."""
    assert [Kernel(7, None, {}).implements(version) for version in (6, 7, 22)] == [False, True, False]
    assert [Kernel(7, 12, {}).implements(version) for version in (6, 7, 9, 12, 13)] == [False, True, True, True, False]


CUDA = """
## Operators implemented by CPUExecutionProvider
|**Operator Domain:** *ai.onnx*||||
|BitShift|*in* X:**T**|11+|**T** = tensor(uint8)|
## Operators implemented by CUDAExecutionProvider

| Op Name | Parameters | OpSet Version | Types Supported |
|---------|------------|---------------|-----------------|
|**Operator Domain:** *ai.onnx*||||
|Equal|*in* A:**T**<br> *in* B:**T**<br> *out* C:**T1**|13+|**T** = tensor(bool), tensor(int64)<br/> **T1** = tensor(bool)|
|||[11, 12]|**T** = tensor(int64)|
|||7|**T** = tensor(int64)|
|SequenceAt|*in* input_sequence:**S**|11+|**S** = seq(tensor(float))|
| |
|**Operator Domain:** *com.microsoft*||||
|Gelu|*in* X:**T**|1+|**T** = tensor(float)|

## Operators implemented by DmlExecutionProvider
|**Operator Domain:** *ai.onnx*||||
|Abs|*in* X:**T**|13+|**T** = tensor(float)|
"""  # noqa: E501
TENSORRT = """
| Operator                  | Supported  | Supported Types | Restrictions |
|---------------------------|------------|-----------------|--------------|
| Abs                       | Y          | FP32, FP16, INT32 |
| BitShift                  | N          |
| Resize                    | Y          | FP32, UINT8, | Supported modes: `nearest`. |
"""


def test_the_tables_are_read_from_the_pages_that_state_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's part alone, ONNX's operators alone, every version and type; what is not understood is refused."""
    types = ["bool int64", "bool", "int64", "seq(float)"]
    equal = [[13, None, {"T": 0, "T1": 1}], [11, 12, {"T": 2}], [7, 7, {"T": 2}]]
    assert read_onnxruntime(CUDA) == {
        "types": types, "operators": {"Equal": equal, "SequenceAt": [[11, None, {"S": 3}]]},
    }  # fmt: skip
    assert read_tensorrt(TENSORRT) == {"operators": {"Abs": "float float16 int32", "Resize": "float uint8"}}
    for wrong in ("", "## Operators implemented by CUDAExecutionProvider\n|other|\n"):
        with pytest.raises(ValueError, match="CUDA"):
            read_onnxruntime(wrong)
    with pytest.raises(ValueError, match="unknown types"):
        read_tensorrt("| Abs | Y | FP128 |")
    with pytest.raises(ValueError, match="no supported operator"):
        read_tensorrt("")
    pages = [tmp_path / "a.md", tmp_path / "b.md"]
    for page, text in zip(pages, (CUDA, TENSORRT), strict=True):
        page.write_text(text)
    monkeypatch.setattr(gpu_kernels, "TABLE", tmp_path / "table.json")
    main(["--onnxruntime", "1.27.0", str(pages[0]), "--tensorrt", "10.1", str(pages[1]), "--date", "2026-11-30"])
    table = kernels.__wrapped__()
    assert table.cuda["Equal"][0] == Kernel(13, None, {"T": frozenset({"bool", "int64"}), "T1": frozenset({"bool"})})
    assert (table.onnxruntime_version, table.tensorrt_version) == ("1.27.0", "10.1")


def test_the_table_is_written_as_the_script_writes_it() -> None:
    text = gpu_kernels.TABLE.read_text(encoding="utf-8")
    assert gpu_kernels.written(json.loads(text)) == text
