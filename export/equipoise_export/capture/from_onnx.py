"""Front end for ONNX files: what a hospital has from a vendor → a graph in which every dropout is an `equipoise::Mask`.

Case 1: Dropout nodes, in training or inference mode, are the sites.
Case 2: `dropout_at` puts sites behind named tensors of a graph that has none (or more of them behind others).

A final Softmax or Sigmoid is taken off, because the sampler's head computes probabilities and entropies from logits.
Old files fix the batch at one image; it is made dynamic, also where a Reshape repeats it as a number.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from equipoise_core.contract import Activation, Contract, SiteKind
from onnx import numpy_helper, version_converter

from ..errors import CaptureRefused
from ..graph.marker import BATCH, DOMAIN, MASK, encode_shape, matches
from ..graph.nodes import IMAGE, RANDOM, initializer, inner_graphs, number_of, replace
from ..graph.session import session
from ..graph.storage import store
from ..options import Answers, Options
from .batch_axis import make_batch_dynamic, shapes_for, verify
from .from_torch import OPSET
from .outputs import both_outputs

_NEWEST_FORMAT = 10
_FINAL = {"Softmax": Activation.SOFTMAX, "Sigmoid": Activation.SIGMOID}


def capture_onnx(proto: onnx.ModelProto, draft: Contract, options: Options) -> ir.Model:
    """Marks the sites of an ONNX graph with one image input `[N, C, *S]`.

    Raises:
        CaptureRefused: naming the node or tensor.
    """
    model = ir.from_proto(_modern(proto))
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    image = _name_input(model, draft)
    if pair := both_outputs(options, draft):
        _join_outputs(model, image, pair)
    else:
        _choose_output(model, image, options.output)
    if draft.classes:
        _take_off_activation(model, draft, options.answers)
    if not draft.per_voxel:
        _flatten(model)
    _refuse_what_cannot_be(model)
    make_batch_dynamic(model, image, draft)
    verify(model, draft)
    shapes = shapes_for(model, draft, 2)
    marking = _Marking(model, options.p, options.sites, {name: len(shape) for name, shape in shapes.items()})
    activations = [] if options.dropout_at is None else _activations(model, shapes, image)
    for node in list(model.graph):
        if node.op_type == "Dropout" and not node.domain:
            marking.dropout(node)
    if options.dropout_at is not None:
        marking.insert(options.dropout_at, [value for value in activations if value.producer() in set(model.graph)])
    model.opset_imports[DOMAIN] = 1
    common.RemoveUnusedNodesPass()(model)
    return model


def readable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The file in a format that ONNX Runtime reads: newer ones differ in what no graph here holds."""
    if proto.ir_version <= _NEWEST_FORMAT:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = _NEWEST_FORMAT
    return copy


def _modern(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in the opset that the passes write."""
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    proto = _folded(proto)
    if version >= OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise CaptureRefused(
            f"its opset {version} cannot be brought to {OPSET}: {error}",
            "the whole network",
            f"Export the file again with opset {OPSET} or later.",
        ) from error


def _folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose ConstantOfShape weights are initializers (the converter loses them), in today's file format."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {entry.name: entry for entry in copy.graph.initializer}
    kept = []
    for node in copy.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in known:
            shape = numpy_helper.to_array(known[node.input[0]])
            value = numpy_helper.to_array(node.attribute[0].t).reshape(-1)[0] if node.attribute else np.float32(0)
            copy.graph.initializer.append(numpy_helper.from_array(np.full(tuple(shape), value), node.output[0]))
        else:
            kept.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.ir_version = max(copy.ir_version, 8)  # before 4, every weight had to be an input as well
    return copy


def _name_input(model: ir.Model, draft: Contract) -> ir.Value:
    """The one input that is no weight becomes `image`, float32 and of dynamic batch."""
    graph = model.graph
    common.RemoveInitializersFromInputsPass()(model)
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(inputs) != 1:
        rank = 2 + draft.rank
        likely = next((v for v in inputs if v.shape is not None and len(v.shape) == rank), next(iter(inputs), None))
        others = " ".join(f"--bind {value.name}=VALUE" for value in inputs if value is not likely)
        raise CaptureRefused(
            f"the graph takes {'; '.join(map(_spelled, inputs)) or 'nothing'}; a sampler has one image",
            "the inputs",
            f"Bind the others to constants: {others} (a number, a list, a .npy or .safetensors file)."
            if inputs
            else "Export the file with the image as an input.",
        )
    (image,) = inputs
    _refuse_other_images(image, draft)
    rank = len(image.shape) if image.shape is not None else 2 + draft.rank
    if rank != 2 + draft.rank:
        raise CaptureRefused(
            f"its input has shape {image.shape}; the image is [N, {draft.channels}, *{draft.nominal}]",
            str(image.name),
            "State the right --input-shape.",
        )
    if IMAGE in graph.initializers:
        raise CaptureRefused("a weight is called `image`", IMAGE, "Rename it.")
    image.name = IMAGE
    image.shape = ir.Shape([BATCH, draft.channels, *draft.spatial])
    return image


def _refuse_other_images(image: ir.Value, draft: Contract) -> None:
    """Refuses an input of another type than float32, or with its channels behind the sizes."""
    if image.dtype not in (ir.DataType.FLOAT, None):
        raise CaptureRefused(
            f"its input is {str(image.dtype).lower()}; images come as float32",
            str(image.name),
            "Export the file with a float32 input (of a converter to fp16: keep_io_types), or put a Cast behind it; "
            "--preprocess says what becomes of whole numbers before.",
        )
    sizes = [] if image.shape is None else list(image.shape)
    if len(sizes) == 2 + draft.rank and sizes[1] != draft.channels == sizes[-1]:
        raise CaptureRefused(
            f"its channels come last: {_spelled(image)}; the image is [N, {draft.channels}, *{draft.nominal}]",
            str(image.name),
            "Export the file with the channels first (tf2onnx --inputs-as-nchw), or put a Transpose behind its input.",
        )


def _spelled(value: ir.Value) -> str:
    """`timestep int64 [1]`"""
    sizes = [] if value.shape is None else [d if isinstance(d, int) else d.value or "?" for d in value.shape]
    return f"{value.name} {str(value.dtype).lower()} [{', '.join(map(str, sizes))}]"


def _refuse_independent(output: ir.Value, image: ir.Value, outputs: Sequence[ir.Value]) -> None:
    """Refuses an output that no path leads to from the image."""
    if not _depends(output, image):
        others = [str(value.name) for value in outputs if value is not output and _depends(value, image)]
        raise CaptureRefused(
            "it does not depend on the image: it is the same for every image",
            str(output.name),
            f"Choose another output (--output): {', '.join(others)}." if others else "Export the file again.",
        )


def _depends(output: ir.Value, image: ir.Value) -> bool:
    """Whether a value is computed from the image's content; its sizes alone are not that."""
    pending, seen = [output], set[ir.Value]()
    while pending:
        value = pending.pop()
        if value is image:
            return True
        node = value.producer()
        if value in seen or node is None or node.op_type in ("Shape", "Size"):
            continue
        seen.add(value)
        pending += [given for given in node.inputs if given is not None]
        pending += [
            given
            for inner in inner_graphs(node)
            for each in ir.traversal.RecursiveGraphIterator(inner)
            for given in each.inputs
            if given is not None and each.op_type not in ("Shape", "Size")
        ]
    return False


def _choose_output(model: ir.Model, image: ir.Value, output: str | int | None) -> None:
    outputs = list(model.graph.outputs)
    names = [str(value.name) for value in outputs]
    chosen = outputs[0]
    if output is not None:
        found = [v for i, v in enumerate(outputs) if str(output) in (str(i), v.name)]
        if not found:
            raise CaptureRefused(f"there is no output {output}", "the outputs", f"There are: {', '.join(names)}.")
        chosen = found[0]
    elif len(outputs) > 1:
        raise CaptureRefused(
            f"the graph has {len(outputs)} outputs", "the outputs", f"Choose one of {', '.join(names)} with --output."
        )
    _refuse_independent(chosen, image, outputs)
    _refuse_labels(chosen)
    model.graph.outputs.clear()
    model.graph.outputs.append(chosen)


def _refuse_labels(output: ir.Value) -> None:
    floating = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, None)
    node = output.producer()
    while node is not None and node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity"):
        assert node.inputs[0] is not None
        node = node.inputs[0].producer()
    last = "" if node is None else node.op_type
    if output.dtype not in floating or last in ("ArgMax", "TopK"):
        raise CaptureRefused(
            f"it holds labels or decisions ({last or output.dtype}), no logits or probabilities to take a mean of",
            str(output.name),
            "Choose another output (--output), or export the file without its last steps.",
        )


def _take_off_activation(model: ir.Model, draft: Contract, answers: Answers) -> None:
    """Softmax or Sigmoid at the end goes, with the changes of shape behind it.

    Of other probabilities (`answers`) the logits are computed, to 1e-7.
    """
    final = model.graph.outputs[0]
    node = final.producer()
    while node is not None and node.op_type in ("Reshape", "Flatten", "Squeeze", "Identity"):
        assert node.inputs[0] is not None
        node = node.inputs[0].producer()
    if node is not None and node.op_type in _FINAL:
        if _FINAL[node.op_type] is not draft.activation:
            raise CaptureRefused(
                f"the graph ends in {node.op_type}, the contract says {draft.activation.value}",
                str(final.name),
                f"Export with --activation {_FINAL[node.op_type].value}.",
            )
        assert node.inputs[0] is not None
        model.graph.outputs[0] = node.inputs[0]
    elif answers is Answers.PROBABILITIES:
        model.graph.outputs[0] = _logits_of(model, final, draft.activation)


def _join_outputs(model: ir.Model, image: ir.Value, pair: tuple[str, str]) -> None:
    """Means and variances `[N, K]` of a regression become one output `[N, 2K]`."""
    outputs = list(model.graph.outputs)
    parts = []
    for name in pair:
        model.graph.outputs.clear()
        model.graph.outputs.extend(outputs)
        _choose_output(model, image, name)
        _flatten(model)
        parts.append(model.graph.outputs[0])
    joined = ir.node("Concat", parts, {"axis": 1})
    for number, value in enumerate(parts):
        value.name = f"equipoise part {number}"
    joined.outputs[0].name = "equipoise means and variances"
    joined.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.append(joined)
    model.graph.outputs[0] = joined.outputs[0]


def _flatten(model: ir.Model) -> None:
    """What is answered for the whole image becomes [N, K]."""
    flat = ir.node("Flatten", [model.graph.outputs[0]], {"axis": 1})
    flat.outputs[0].name = "equipoise logits"
    flat.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.append(flat)
    model.graph.outputs[0] = flat.outputs[0]


def _logits_of(model: ir.Model, probabilities: ir.Value, activation: Activation) -> ir.Value:
    """log p, or log p − log(1 − p) for a sigmoid."""
    least, most, one = (
        initializer(model.graph, name, np.array(number, np.float32))
        for name, number in (("least p", 1e-7), ("most p", 1 - 1e-7), ("one", 1.0))
    )
    nodes = [ir.node("Clip", [probabilities, least, most])]
    nodes.append(ir.node("Log", [nodes[0].outputs[0]]))
    if activation is Activation.SIGMOID:
        nodes.append(ir.node("Sub", [one, nodes[0].outputs[0]]))
        nodes.append(ir.node("Log", [nodes[2].outputs[0]]))
        nodes.append(ir.node("Sub", [nodes[1].outputs[0], nodes[3].outputs[0]]))
    for number, node in enumerate(nodes):
        node.outputs[0].name = f"equipoise logits of probabilities {number}"
        node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.extend(nodes)
    return nodes[-1].outputs[0]


def _refuse_what_cannot_be(model: ir.Model) -> None:
    """Before the graph is taken apart, while its nodes have their own names."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Dropout" and node.graph is not model.graph:
            raise CaptureRefused(
                "dropout inside a loop or a branch (Loop, Scan, If): its masks would depend on which way the data goes",
                str(node.name or node.outputs[0].name),
                "Unroll the loop or take the dropout out of the branch, and export the file again.",
            )
        if node.op_type in RANDOM and not node.domain:
            raise CaptureRefused(
                f"{node.op_type} draws random numbers of its own, which no mask stands for",
                str(node.name or node.outputs[0].name),
                "Export the file with Dropout nodes in its place, or without it (in evaluation mode) and with "
                "--dropout-at.",
            )
        if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode"):
            raise CaptureRefused(
                "BatchNorm is in training mode, so an image's answer would depend on its batch-mates",
                str(node.name or node.outputs[0].name),
                "Export the file in evaluation mode; only dropout may be in training mode.",
            )


def _activations(model: ir.Model, shapes: dict[str, tuple[int, ...]], image: ir.Value) -> list[ir.Value]:
    """What dropout can act on: floating-point tensors computed from the image, one row for each of the two images."""
    proto, weights = store(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shapes if name != IMAGE)
    kinds = {output.name: output.type for output in session(proto, weights=weights).get_outputs()}
    reached = {image}
    found = []
    for node in model.graph:
        if node.op_type in ("Shape", "Size") or not any(value in reached for value in node.inputs):
            continue
        reached.update(node.outputs)
        for value in node.outputs:
            shape = shapes.get(str(value.name), ())
            if shape[:1] == (2,) and kinds.get(str(value.name)) in ("tensor(float)", "tensor(float16)"):
                found.append(value)
    return found


def _names(value: ir.Value) -> set[str]:
    """What a pattern may mean: the tensor, the node that makes it, the module that torch.onnx noted for that.

    Of a path (`/model/layer4/conv/Conv_output_0`) also what is left without its first steps.
    """
    node = value.producer()
    names = [str(value.name)]
    if node is not None:
        names.append(str(node.name or ""))
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if scopes:
            names.append("/".join(str(scope) for scope in ast.literal_eval(scopes)[1:]))
    steps = (name.split("/") for name in names)
    return {"/".join(parts[start:]) for parts in steps for start in range(len(parts)) if parts[start]}


def _listing(activations: Sequence[ir.Value]) -> str:
    """Names of activations, the last ones first: dropout is wanted near the end."""
    names = []
    for value in reversed(activations):
        name, longest = str(value.name), max(_names(value), key=len)
        names.append(name if longest in name else f"{name} ({longest})")
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more before them" if len(names) > 12 else "")


class _Marking:
    def __init__(self, model: ir.Model, p: float | None, sites: str | None, ranks: dict[str, int]) -> None:
        self.model = model
        self.p = p
        self.patterns = sites
        self.ranks = ranks
        self.index = 0
        self.taken: Counter[str] = Counter()

    def dropout(self, node: ir.Node) -> None:
        """Case 1."""
        x = node.inputs[0]
        assert x is not None
        name = self.unique(str(node.name or node.outputs[0].name))
        if len(node.outputs) > 1 and node.outputs[1].uses():
            raise CaptureRefused(
                "its mask is used elsewhere in the graph", name, "Use only the Dropout's first output."
            )
        ratio = node.attributes.get_float("ratio", 0.5)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            constant = number_of(node.inputs[1])
            if constant is None:
                raise CaptureRefused("its ratio is not a constant", name, "Make the ratio an initializer.")
            ratio = float(constant.reshape(-1)[0])
        p = self.p if self.p is not None else float(str(np.float32(ratio)))  # 0.4, not 0.4000000059604645
        result = x
        if p > 0 and (self.patterns is None or matches(self.patterns, name)):
            result = self.mask(x, name, SiteKind.ELEMENT, p)
        replace(node.outputs[0], result)
        self.model.graph.remove(node, safe=True)

    def insert(self, patterns: str, activations: Sequence[ir.Value]) -> None:
        """Case 2."""
        if self.p is None:
            raise CaptureRefused("--dropout-at needs a probability", "--dropout-at", "Give --p 0.1.")
        chosen = [v for v in activations if v.uses() and matches(patterns, *_names(v))]
        if not chosen:
            raise CaptureRefused(
                f"no activation is called {patterns}", "--dropout-at", f"There are: {_listing(activations)}."
            )
        for value in chosen:
            feature_map = self.ranks[str(value.name)] > 3
            uses = list(value.uses())
            marked = self.mask(
                value, self.unique(str(value.name)), SiteKind.CHANNEL if feature_map else SiteKind.ELEMENT, self.p
            )
            for user, position in uses:
                user.replace_input_with(position, marked)

    def unique(self, name: str) -> str:
        """Old files name several nodes alike, or a node as a tensor."""
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}#{self.taken[name]}"

    def mask(self, x: ir.Value, name: str, kind: SiteKind, p: float) -> ir.Value:
        if not 0 < p < 1:
            raise CaptureRefused(f"the probability of dropping is {p}", name, "Set p between 0 and 1.")
        rank = self.ranks[str(x.name)]
        attributes = {
            "site": name,
            "kind": kind.value,
            "p": repr(p),
            "scale": repr(1.0 / (1.0 - p)),
            "axes": [0, 1] if kind is SiteKind.CHANNEL else list(range(rank)),
            "index": self.index,
            "shape": encode_shape([]),
        }
        self.index += 1
        node = ir.node(MASK, [x], attributes, domain=DOMAIN)
        node.outputs[0].name = f"equipoise mask {self.index}"
        self.ranks[f"equipoise mask {self.index}"] = rank
        node.outputs[0].dtype = ir.DataType.FLOAT
        producer = x.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], node)
        else:
            self.model.graph.insert_after(producer, node)
        return node.outputs[0]
