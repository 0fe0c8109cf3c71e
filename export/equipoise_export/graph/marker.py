"""The marker that stands for one dropout site, in torch graphs and in ONNX graphs alike.

    y = Mask(x):   y = x · keep · scale

`keep` is 1 with probability 1 − p and 0 otherwise, drawn anew for every index along `axes` (the other axes share the
draw) and for every sample. Every stochastic operation is written with this one marker: dropout is `scale = 1/(1−p)`,
noise drawn by `bernoulli` is a mask over ones. Both front ends (torch, ONNX) end in a graph of ordinary ONNX operators
and `equipoise::Mask`, and the passes start from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnx.defs import OpSchema
from torch import Tensor

DOMAIN = "equipoise"
MASK = "Mask"
KEEP = "Keep"
WRAPPED = "equipoise_network"
"""The attribute under which a wrapper of ours holds the network; names of sites do not show it."""
BATCH = "N"
"""Name of the batch dimension in a marker's `shape`."""


@dataclass(frozen=True)
class Marker:
    """What a marker says about its site.

    Attributes:
        site: where it is, in the network's own words.
        kind: a `SiteKind` value.
        p: probability of dropping, 0 < p < 1.
        scale: what is kept is multiplied by this.
        axes: the axes of x along which the draws differ, in order.
        index: which stochastic call of a forward pass this is; the order of the contract's sites.
        inverted: the network draws 1 (or the larger number) where the mask drops: DropBlock's seeds, `rand < keep`.
        shape: x's shape, one expression per axis in terms of `N` and the contract's spatial names; empty where unknown.
    """

    site: str
    kind: str
    p: float
    scale: float
    axes: tuple[int, ...]
    index: int
    shape: tuple[int | str, ...]
    inverted: bool = False


@dataclass(frozen=True)
class Call:
    """Which stochastic call of a forward pass a site is, and whether what it draws is `inverted` (see `Marker`)."""

    index: int
    inverted: bool = False


def own_path(path: str) -> str:
    """The path of a module as its network says it; empty for the network itself."""
    return path.removeprefix(WRAPPED).removeprefix(".")


def matches(patterns: str, *names: str) -> bool:
    """Whether something is chosen by one of its names; commas between patterns, `!` before one that excludes."""
    parts = [part.strip() for part in patterns.split(",") if part.strip()]
    excluding = [part[1:].lstrip("/") for part in parts if part.startswith("!")]
    including = [part.lstrip("/") for part in parts if not part.startswith("!")] or ["*"]
    stripped = [name.lstrip("/") for name in names]
    return _any_match(stripped, including) and not _any_match(stripped, excluding)


def _any_match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def encode_shape(shape: Sequence[int | str]) -> str:
    """A marker's shape as the one string that an operator attribute can carry."""
    return json.dumps(list(shape))


def marker_of(node: ir.Node) -> Marker:
    """What a marker node says."""
    attributes = node.attributes
    return Marker(
        site=attributes["site"].as_string(),
        kind=attributes["kind"].as_string(),
        p=float(attributes["p"].as_string()),
        scale=float(attributes["scale"].as_string()),
        axes=tuple(attributes["axes"].as_ints()),
        index=attributes["index"].as_int(),
        shape=tuple(json.loads(attributes["shape"].as_string())),
        inverted=bool(attributes.get_int("inverted", 0)),
    )


@torch.library.custom_op("equipoise::mask", mutates_args=())
def mask(
    x: Tensor, site: str, kind: str, p: float, scale: float, axes: list[int], index: int, shape: str, inverted: bool
) -> Tensor:
    """The marker in torch. Nothing computes it: it is the identity, so that shapes go through."""
    return x.clone()


@mask.register_fake
def _mask_shape(
    x: Tensor, site: str, kind: str, p: float, scale: float, axes: list[int], index: int, shape: str, inverted: bool
) -> Tensor:
    return torch.empty_like(x)


def _schema() -> OpSchema:
    kinds = OpSchema.AttrType
    attributes = {
        "site": kinds.STRING,
        "kind": kinds.STRING,
        "p": kinds.STRING,  # the exact double, as text: ONNX attributes are single precision
        "scale": kinds.STRING,
        "axes": kinds.INTS,
        "index": kinds.INT,
        "shape": kinds.STRING,
    }
    return OpSchema(
        MASK,
        DOMAIN,
        1,
        doc="y = x * keep * scale",
        inputs=[OpSchema.FormalParameter("x", "T")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
        attributes=[
            *(OpSchema.Attribute(name, kind, required=True) for name, kind in attributes.items()),
            OpSchema.Attribute("inverted", kinds.INT, required=False),
        ],
    )


if not onnx.defs.has(MASK, 1, DOMAIN):  # the registry is the process's, this module may be loaded again
    onnx.defs.register_schema(_schema())
_OPERATORS = onnxscript.values.Opset(DOMAIN, 1)


def translate_mask(  # type: ignore[no-untyped-def]  # onnxscript traces it
    x, site, kind, p, scale, axes, index, shape, inverted
):
    """The marker in torch → the marker in ONNX, for torch.onnx's translation table."""
    return _OPERATORS.Mask(
        x, site=site, kind=kind, p=repr(p), scale=repr(scale), axes=axes, index=index, shape=shape,
        inverted=int(inverted),
    )  # fmt: skip


def drop_markers(model: ir.Model) -> None:
    """Takes the markers of dropout out of a graph, in place: what is left is the network without it."""
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == MASK:
            (kept,) = node.inputs
            assert kept is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], kept, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
