"""Marked graphs as ONNX text, compiled, and an oracle that runs the marked graph one image and one sample at a time."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import

from dataclasses import replace
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.masks import draw_masks, mask_layout, unpack_masks
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from equipoise_export.capture.active import active_modules
from equipoise_export.capture.from_torch import capture
from equipoise_export.capture.prepare import Prepared
from equipoise_export.graph.marker import marker_of
from equipoise_export.passes import run_passes
from equipoise_export.passes.compilation import Compilation
from onnx import helper
from torch import Tensor, nn


def contract(
    classes: int = 2,
    spatial: tuple[int | str, ...] = (4, 6),
    nominal: tuple[int, ...] | None = None,
    task: Task = Task.SEGMENTATION,
    activation: Activation = Activation.SOFTMAX,
    channels: int = 1,
    multiple: int = 1,
) -> Contract:
    sizes = nominal or tuple(size for size in spatial if isinstance(size, int))
    names = tuple(f"class {index}" for index in range(classes))
    preprocessing = Preprocessing((ZScore(),), multiple=multiple)
    return Contract("small", task, activation, names, channels, spatial, sizes, sizes, preprocessing, ())


def captured(module: nn.Module, example: Tensor, spatial: tuple[int | str, ...], multiple: int = 1) -> ir.Model:
    """The marked graph of a module that answers with its logits alone."""
    return capture(Prepared(module, module, active_modules(module, example).names, example), spatial, multiple)


def mask(name: str, axes: list[int], source: str, target: str, kind: str = "element", index: int = 0) -> str:
    """One marker with p = 1/4 as a line of ONNX text."""
    return (
        f'{target} = equipoise.Mask <site="{name}", kind="{kind}", p="0.25", scale="1.3333333333333333", '
        f'axes={axes}, index={index}, shape="[]"> ({source})'
    )


def marked(body: str, result: str, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    """A marked graph: input `image`, the lines of `body`, output `result`."""
    text = f"""<ir_version: 10, opset_import: ["" : 18, "equipoise" : 1]>
    small (float image) => ({result}) {{ {body} }}"""
    proto = onnx.parser.parse_model(
        text.replace("(float image)", "(float[N, C, H, W] image)").replace(f"=> ({result})", f"=> (float {result})")
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    return ir.from_proto(proto)


def compiled(model: ir.Model, draft: Contract, passes: Any = None) -> Compilation:
    compilation = Compilation(model, draft)
    return run_passes(compilation, passes) if passes else run_passes(compilation)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def oracle(model: ir.Model, draft: Contract, packed: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Logits `[N, T, …]` of the marked graph: every marker a plain product, every image and sample on its own."""
    layout = mask_layout(draft, image.shape[2:])
    markers = [marker_of(node) for node in model.graph if node.op_type == "Mask"]
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if node.op_type == "Mask":
            site = next(entry.s.decode() for entry in node.attribute if entry.name == "site")
            node.op_type, node.domain = "Mul", ""
            node.input.append(f"mask {site}")
            del node.attribute[:]
            proto.graph.input.append(helper.make_tensor_value_info(f"mask {site}", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = []
    for one, masks in zip(image, packed, strict=True):
        for sample in masks:
            feeds = {"image": one[None]}
            for site, keep in zip(layout.sites, unpack_masks(layout, sample[None]), strict=True):
                marker = next(marker for marker in markers if marker.site == site.name)
                shape = _broadcast_shape(model, site.name, one, marker.axes)
                feeds[f"mask {site.name}"] = (keep.reshape(shape) * marker.scale).astype(np.float32)
            answers.append(session.run(None, feeds)[0])
    stacked = np.stack(answers).reshape(len(image), packed.shape[1], *answers[0].shape)
    return stacked


def _broadcast_shape(model: ir.Model, site: str, one: np.ndarray, axes: tuple[int, ...]) -> list[int]:
    """Shape of a site's mask for one image: the sizes of the masked tensor along `axes`, 1 elsewhere."""
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if node.op_type == "Mask":
            name = next(entry.s.decode() for entry in node.attribute if entry.name == "site")
            if name == site:
                source = node.input[0]
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    if source == "image":
        shape = (1, *one.shape)
    else:
        del proto.graph.output[:]
        proto.graph.output.append(helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        shape = session.run(None, {"image": one[None]})[0].shape
    return [size if axis in axes else 1 for axis, size in enumerate(shape)]


def packed_masks(sampled: Contract, images: int, samples: int, spatial: tuple[int, ...]) -> np.ndarray:
    """`[N, T, B]`, another seed for each image."""
    layout = mask_layout(sampled, spatial)
    return np.stack([draw_masks(layout, seed, sampled.digest, 0, samples) for seed in range(images)])


__all__ = ["captured", "compiled", "contract", "marked", "mask", "oracle", "packed_masks", "replace", "run"]
