"""Where a sampler's nodes run on a GPU, told without one: what CUDA has no kernel for goes to the CPU.

ONNX Runtime optimises a graph once without regard to where it will run (its level «basic»), then shares the nodes out
among the providers, and what it does later (fusions, layouts) it does for the provider that a node has by then. So the
graph of level «basic» is judged here; the higher levels of a session on the CPU would show layouts and fusions that no
GPU sees. A sampler in half precision is judged as it is published, because a session on the CPU puts casts around
every node that it has no half kernel for.

What brings a node to the CPU:

1. CUDA has no kernel for the operator, its version or its types (`gpu_kernels.py`), or not with these attributes.
2. All that goes into it lies in the CPU's memory anyhow, because Shape and Size answer there, and its kernel does not
   want it there (as Reshape wants its shape). This is shape arithmetic, where it belongs.
3. The same holds, but the image or the masks go into it: the provider takes what the graph is given for the CPU's.

Nodes of 1 and 3 that work on data make the GPU wait for copies: `Placement.strays`. TensorRT compiles connected parts
of the graph that it knows; every node that it does not know splits them: `Placement.off_tensorrt`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime
from equipoise_core.contract import Contract
from equipoise_core.masks import mask_layout
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, shape_inference

from ..graph.nodes import IMAGE, MASKS
from ..graph.session import session
from ..graph.storage import DATA, MODEL, Weights
from ..progress import LOGGER
from .gpu_kernels import Kernels, kernels

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_SECOND = ("Reshape", "Expand", "Tile", "Split", "Squeeze", "Unsqueeze", "Pad", "TopK", "CumSum", "Trilu")
WANTED_ON_CPU: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys((*_SECOND, *(f"Reduce{kind}" for kind in _REDUCTIONS)), (1,)),
    "Slice": (1, 2, 3, 4), "Resize": (1, 2, 3), "Range": (0, 1, 2), "ConstantOfShape": (0,), "OneHot": (1, 2),
    "If": (0,), "Loop": (0, 1), "Dropout": (1, 2),
}  # fmt: skip
"""Inputs that CUDA's kernels read in the CPU's memory; found by trying the provider of ONNX Runtime 1.27."""
ANSWERS_ON_CPU = {"Shape", "Size"}
MAKERS = {"ConstantOfShape", "EyeLike", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile"}
"""What makes large tensors of shapes: without a kernel they are data that has to cross."""
SMALL = 100
"""Elements of the largest constant that the provider counts as the CPU's."""
_RECURRENT = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_LISTED = 5


@dataclass(frozen=True)
class Stray:
    """A node that works on data and leaves the GPU, or TensorRT's engine.

    Attributes:
        node, operator: its name in the graph, and what it does.
        types: element types of its inputs.
        bytes: copied for it between CPU and GPU, both directions, for one image of nominal size and the contract's
            number of samples; None for TensorRT, and where the sampler could not be run.
    """

    node: str
    operator: str
    types: tuple[str, ...]
    bytes: int | None

    def __str__(self) -> str:
        copied = "" if self.bytes is None else f", {self.bytes / 1e6:.3g} MB an image"
        return f"{self.node} ({self.operator} of {', '.join(self.types)}{copied})"


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one sampler run.

    Attributes:
        nodes: how many there are once ONNX Runtime has optimised the graph; in half precision, as published.
        cuda: how many of them run on the GPU.
        shapes: how many do shape arithmetic on the CPU.
        strays: the others, which fall off the CUDA provider.
        off_tensorrt: those that split TensorRT's engine.
        versions: of ONNX Runtime and TensorRT that this is said of.
    """

    nodes: int
    cuda: int
    shapes: int
    strays: tuple[Stray, ...]
    off_tensorrt: tuple[Stray, ...]
    versions: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """As it is written to `proof.json`."""
        return asdict(self)

    def __str__(self) -> str:
        fallen = f", {len(self.strays)} fall back to the CPU" if self.strays else ""
        rest = ", the rest is shape arithmetic" if self.shapes else ""
        tensorrt = f"split by {_listed(self.off_tensorrt)}" if self.off_tensorrt else "whole"
        return f"GPU: {self.cuda} of {self.nodes} nodes{fallen}{rest}; TensorRT: {tensorrt}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know: one about all that falls off the CUDA provider, or none."""
        if not self.strays:
            return ()
        return (
            f"on a GPU, CUDA has no place for {_listed(self.strays)}: they run on the CPU, and each request waits for "
            "the copies. The answers stay right; for speed, write that part of the network with other operators",
        )


def place(
    model: onnx.ModelProto, contract: Contract, weights: Weights | None = None, table: Kernels | None = None
) -> Placement:
    """Where the nodes of a sampler or a first pass run.

    Args:
        weights: of `model`, where they do not lie in it.
        table: which kernels there are; by default the installed one.
    """
    table = table or kernels()
    optimised, weights = _optimised(model, weights)
    graph = _Graph(optimised, table)
    strays, shapes = graph.fallen()
    copied = [graph.copied(node, strays) for node in strays]
    sizes = _bytes(optimised, {name: graph.types[name] for names in copied for name in names}, contract, weights)
    return Placement(
        nodes=len(graph.nodes),
        cuda=len(graph.nodes) - shapes - len(strays),
        shapes=shapes,
        strays=tuple(
            graph.stray(node, None if sizes is None else sum(sizes[name] for name in names))
            for node, names in zip(strays, copied, strict=True)
        ),
        off_tensorrt=tuple(graph.stray(node, None) for node in graph.nodes if not graph.tensorrt_takes(node)),
        versions={"onnxruntime": table.onnxruntime_version, "tensorrt": table.tensorrt_version},
    )


def _optimised(model: onnx.ModelProto, weights: Weights | None) -> tuple[onnx.ModelProto, Weights | None]:
    """The graph as it is shared out among providers, with types, and where its weights lie."""
    if not any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        kept = Weights()
        file = kept.path.with_name(MODEL)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(file)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        if weights is not None:
            place_of = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(place_of, weights.folder.name)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            model, weights = onnx.load(file, load_external_data=False), kept
        except Exception:  # noqa: BLE001  # it has operators that this provider has not; then as it is published
            LOGGER.debug("ONNX Runtime cannot load %s here", model.graph.name, exc_info=True)
    return shape_inference.infer_shapes(model, data_prop=True), weights


class _Graph:
    """A typed graph, seen as the providers see it. Loop bodies and branches count as part of it."""

    def __init__(self, model: onnx.ModelProto, table: Kernels) -> None:
        self.table = table
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.nodes: list[onnx.NodeProto] = []
        self.types: dict[str, str] = {"": ""}
        self.small: set[str] = set()
        self.constants: set[str] = set()
        self._read(model.graph)
        self.given = {value.name for value in model.graph.input} - self.constants
        self.answers = {value.name for value in model.graph.output}

    def _read(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = _type_name(value.type.tensor_type.elem_type)
        for tensor in graph.initializer:
            self.types[tensor.name] = _type_name(tensor.data_type)
            self.constants.add(tensor.name)
            if prod(tensor.dims) <= SMALL:
                self.small.add(tensor.name)
        for node in graph.node:
            for attribute in node.attribute:
                for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                    self._read(inner)
            self.nodes.append(node)

    def stray(self, node: onnx.NodeProto, copied: int | None) -> Stray:
        types = tuple(self.types.get(name, "unknown") for name in node.input if name)
        return Stray(node.name or node.output[0], node.op_type, types, copied)

    # --- CUDA ---

    def fallen(self) -> tuple[list[onnx.NodeProto], int]:
        """The nodes with data that fall off the CUDA provider, and how many do shape arithmetic on the CPU."""
        on_cpu = set[str]()  # tensors
        of_shapes = set[str]()
        strays, shapes = [], 0
        for node in self.nodes:
            reached = any(name in on_cpu for name in node.input)
            kernel = self.cuda_takes(node)
            held = not reached or any(not self._is_on_cpu(node, index, on_cpu) for index in range(len(node.input)))
            answers = node.op_type in ANSWERS_ON_CPU
            varying = {name for name in node.input if name} - self.constants
            arithmetic = varying and varying <= of_shapes and (kernel or node.op_type not in MAKERS)
            stays = kernel and held
            if answers or (reached and not stays):  # unreached, a node without a kernel does not lead the provider on
                on_cpu.update(node.output)
            if answers or (arithmetic and not stays):
                of_shapes.update(node.output)
            if stays:
                continue
            if answers or arithmetic:
                shapes += 1
            else:
                strays.append(node)
        return strays, shapes

    def _is_on_cpu(self, node: onnx.NodeProto, index: int, on_cpu: Collection[str]) -> bool:
        """Whether an input counts as the CPU's, so that it does not hold the node on the GPU."""
        name = node.input[index]
        if self.types.get(name) in ("", "float16", "bfloat16"):
            return False
        if name in self.small or name in self.given:
            return True
        return name in on_cpu and index not in WANTED_ON_CPU.get(node.op_type, ())

    def cuda_takes(self, node: onnx.NodeProto) -> bool:
        """Whether CUDA has a kernel for it."""
        schema = self._schema(node)
        if schema is None or not _cuda_takes_attributes(node):
            return False
        bound = self._bound(node, schema)
        if "float16" in bound.get(schema.inputs[0].type_str if schema.inputs else "", ()) and _is_function(schema):
            return True  # written out in other operators, since the CPU does not have it in half either
        return any(
            kernel.implements(schema.since_version)
            and all(bound.get(name, set()) <= types for name, types in kernel.types.items())
            for kernel in self.table.cuda.get(node.op_type, ())
        )

    def _schema(self, node: onnx.NodeProto) -> defs.OpSchema | None:
        if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type):
            return None
        return defs.get_schema(node.op_type, self.opset, "")

    def _bound(self, node: onnx.NodeProto, schema: defs.OpSchema) -> dict[str, set[str]]:
        """Type parameter, or name of an input or output → the element types that the node has there."""
        bound: dict[str, set[str]] = {}
        for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for index, name in enumerate(names):
                formal = formals[min(index, len(formals) - 1)]
                if name:
                    for parameter in (formal.type_str, formal.name):
                        bound.setdefault(parameter, set()).add(self.types.get(name, "unknown"))
        return bound

    def copied(self, node: onnx.NodeProto, strays: list[onnx.NodeProto]) -> set[str]:
        """Tensors that cross for a stray: what it takes from the GPU, and what the GPU takes from it."""
        away = [id(stray) for stray in strays]
        makers = {name: id(maker) for maker in self.nodes for name in maker.output}
        taken = {name for name in node.input if name in makers and makers[name] not in away}
        users = [user for user in self.nodes if id(user) not in away]
        return taken | {name for name in node.output if name and any(name in user.input for user in users)}

    # --- TensorRT ---

    def tensorrt_takes(self, node: onnx.NodeProto) -> bool:
        """Whether TensorRT has it for the types of its data; indices, axes and shapes are INT64 there as in ONNX."""
        known, schema = self.table.tensorrt.get(node.op_type), self._schema(node)
        if known is None or schema is None:
            return False
        takes, gives = ([self.types.get(name, "unknown") for name in names] for names in (node.input, node.output))
        if "uint8" in (*takes, *gives):  # a type for a network's own inputs and outputs, cast from and to real numbers
            bytes_ = {name for name in (*node.input, *node.output) if self.types.get(name) == "uint8"}
            real = {*takes, *gives} <= {"uint8", "float", "float16"}
            return node.op_type == "Cast" and real and bytes_ <= self.given | self.answers
        data = {formals[0].type_str for formals in (schema.inputs, schema.outputs) if formals}
        formals = [schema.inputs[min(index, len(schema.inputs) - 1)] for index in range(len(takes))]
        used = {kind for kind, formal in zip(takes, formals, strict=True) if kind and formal.type_str in data}
        return used | (set(gives) if node.op_type == "Cast" else set()) <= known


def _type_name(code: int) -> str:
    return str(TensorProto.DataType.Name(code)).lower()


def _is_function(schema: defs.OpSchema) -> bool:
    """Whether ONNX defines the operator by others."""
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _cuda_takes_attributes(node: onnx.NodeProto) -> bool:
    """What the provider leaves to the CPU although it has a kernel."""
    stated = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "ConvTranspose":
        pads = list(stated.get("pads", ()))
        half = len(pads) // 2
        return pads[:half] == pads[half:] and not stated.get("auto_pad", b"NOTSET").startswith(b"SAME")
    if node.op_type in ("ArgMax", "ArgMin"):
        return not stated.get("select_last_index")
    if node.op_type in _RECURRENT:
        activations = [name.lower() for name in stated.get("activations", ())]
        return (
            not {"activation_alpha", "activation_beta", "clip"} & set(stated)
            and activations == (_RECURRENT[node.op_type] * 2)[: len(activations)]
            and not stated.get("input_forget")
            and (node.op_type != "GRU" or bool(stated.get("linear_before_reset")))
            and (node.op_type != "LSTM" or not any(node.input[7:]))  # peepholes
        )
    return True


def _bytes(
    model: onnx.ModelProto, types: Mapping[str, str], contract: Contract, weights: Weights | None
) -> dict[str, int] | None:
    """Tensor's name → bytes for one image of nominal size under all samples; None where the graph cannot be run.

    Args:
        types: tensor's name → its element type.
    """
    if not types:
        return {}
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    del measured.graph.output[:]
    for name in types:
        measured.graph.node.append(helper.make_node("Shape", [name], [f"shape of {name}"]))
        measured.graph.output.append(helper.make_tensor_value_info(f"shape of {name}", TensorProto.INT64, None))
    feeds: dict[str, NDArray[Any]] = {IMAGE: np.zeros((1, contract.channels, *contract.nominal), np.float32)}
    if contract.stochastic:
        feeds[MASKS] = np.full((1, contract.samples, mask_layout(contract, contract.nominal).bytes), 255, np.uint8)
    try:
        shapes = session(measured, weights=weights).run(None, feeds)
    except Exception:  # noqa: BLE001  # what this provider cannot run, another one may
        return None
    codes = [TensorProto.DataType.Value(kind.upper()) for kind in types.values()]
    widths = [helper.tensor_dtype_to_np_dtype(code).itemsize for code in codes]
    return {name: prod(map(int, shape)) * width for name, shape, width in zip(types, shapes, widths, strict=True)}


def _listed(strays: tuple[Stray, ...]) -> str:
    more = f" and {len(strays) - _LISTED} more" if len(strays) > _LISTED else ""
    return ", ".join(map(str, strays[:_LISTED])) + more
