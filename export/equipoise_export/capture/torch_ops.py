"""Every stochastic operator of a torch.export graph → the marker of `graph/marker.py` and ordinary operators.

One method of `_Marking` for each way to be random; what draws numbers in any other way is refused by name. The
rewriting is in place (`copy_`) where PyTorch's operator was, and PyTorch's own functionalisation sorts out the aliases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from equipoise_core.contract import SiteKind
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from ..errors import CaptureRefused
from ..graph.marker import encode_shape, mask
from ..graph.randomness import draws
from .fx import VIEWS, Fx, SiteNames, Writer, module_of, schema_name
from .noise import Constants, drops_above, switches
from .sizes import image_of, spell

_aten = torch.ops.aten
_DROPOUTS = {
    getattr(_aten, f"{kind}dropout{end}").default
    for kind in ("", "feature_", "alpha_", "feature_alpha_")
    for end in ("", "_")  # in place
}
_SELU_FLOOR = 1.7580993408473766
"""−(the value SELU tends to): what alpha dropout puts where it drops (Klambauer et al. 2017)."""
_SOFTMAX = {_aten.softmax.int, _aten._softmax.default, _aten._safe_softmax.default}
_BELOW_ONE = 1.0 - 2.0**-24
"""The largest single-precision number that uniform noise from 0 to 1 takes."""


def mark_stochastic(program: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Expr]) -> list[Fx]:
    """Rewrites the graph in place.

    Args:
        names: how the contract spells the symbols of sizes.

    Returns:
        Masks `[N]` in places where the network drew one number for the whole batch (see `per_image`).
    """
    marking = _Marking(program, names)
    needed = _needed(program.graph)
    for node in list(program.graph.nodes):
        inner = getattr(program.graph_module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(inner, torch.fx.GraphModule):
            _refuse_nested(inner)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = schema_name(node)
        if _random(node) and node not in needed:  # of an output that was not chosen
            marking.calls += 1
        elif node.target in _DROPOUTS:
            marking.dropout(node)
        elif node.target is _aten.native_dropout.default:
            marking.native_dropout(node)
        elif node.target is _aten.scaled_dot_product_attention.default:
            marking.attention(node)
        elif name in ("bernoulli", "bernoulli_"):
            marking.bernoulli(node)
        elif name in ("rand", "rand_like", "uniform_"):
            marking.uniform(node)
        elif _random(node):
            raise marking.unsupported(node, "it is no yes-or-no draw")
        elif _uses_batch_statistics(node):
            raise CaptureRefused(
                "BatchNorm is in training mode, so an image's answer would depend on its batch-mates",
                module_of(node)[0] or "forward",
                "Leave BatchNorm in evaluation mode; where one module calls batch_norm and dropout as functions, make "
                "them nn.BatchNorm and nn.Dropout.",
            )
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return [node for node in marking.drawn_once if node.graph is program.graph and node.users]


def _random(node: Fx) -> bool:
    if node.target in _DROPOUTS:
        return bool(node.args[2] and node.args[1])
    return draws(node.target, node.args, node.kwargs)


def _needed(graph: Graph) -> set[Fx]:
    """What the output is computed from, through changes in place and views of what they change as well."""
    roots: dict[Fx, Fx] = {}
    changes: dict[Fx, list[Fx]] = {}
    for node in graph.nodes:
        target = node.target
        if node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and node.args:
            mutable, source = target._schema.is_mutable, node.args[0]
            if isinstance(source, Node) and (mutable or target.is_view or target in VIEWS):
                roots[node] = roots.get(source, source)
                if mutable:
                    changes.setdefault(roots[node], []).append(node)
    needed: set[Fx] = set()
    pending = [node for node in graph.nodes if node.op == "output"]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [*node.all_input_nodes, *changes.get(roots.get(node, node), [])]
    return needed


def _refuse_nested(inner: torch.fx.GraphModule) -> None:
    for node in inner.graph.nodes:
        if node.op == "call_function" and (node.target in _DROPOUTS or _random(node)):
            raise CaptureRefused(
                "dropout inside control flow (cond, loop): its masks would depend on which way the data goes",
                SiteNames().name(node, str(node.target)),
                "Take the dropout out of the branch or unroll the loop.",
            )


def _uses_batch_statistics(node: Fx) -> bool:
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    if schema is None or "batch_norm" not in schema.name:
        return False
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    return bool(given.get("training") or given.get("train"))


class _Marking:
    def __init__(self, program: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Expr]) -> None:
        self.program = program
        self.graph = program.graph
        self.dimensions = names
        self.names = SiteNames()
        self.constants = Constants(program)
        self.calls = 0
        self.drawn_once: list[Fx] = []

    def mark(
        self,
        write: Writer,
        x: Fx,
        node: Fx,
        operation: str,
        kind: SiteKind,
        p: float,
        scale: float,
        axes: list[int],
        inverted: bool = False,
    ) -> Fx:
        """The marker on x, named after `node`; `inverted`: PyTorch draws 1 where the mask drops."""
        name = self.names.name(node, operation)
        if not 0.0 < p < 1.0:
            raise CaptureRefused(
                f"the probability of dropping is {p}; a mask needs 0 < p < 1", name, "Set p between 0 and 1."
            )
        shape = [spell(size, self.dimensions) for size in x.meta["val"].shape]
        index, self.calls = self.calls, self.calls + 1
        return write(mask._opoverload, x, name, kind.value, p, scale, axes, index, encode_shape(shape), inverted)

    def replace(self, node: Fx, value: Fx, write: Writer, in_place: bool) -> None:
        if in_place:
            value = write(_aten.copy_.default, node.args[0], value)
        node.replace_all_uses_with(value)
        self.graph.erase_node(node)

    # One method for each way to be random.

    def dropout(self, node: Fx) -> None:
        """dropout, feature_dropout and their alpha forms: `a·((x + f)·keep) + a·f·(p − 1)` covers alpha dropout."""
        x, p, train = node.args
        operation = schema_name(node)
        in_place, name = operation.endswith("_"), operation.rstrip("_")
        if not train or p == 0:
            node.replace_all_uses_with(x)
            self.graph.erase_node(node)
            return
        write = Writer(self.program, node)
        rank = x.meta["val"].dim()
        if rank > 1 and _is_one(x.meta["val"].shape[0]) and not in_place:  # an embedding: one for all images
            x = write(_aten.expand.default, x, [self._images(write), *[-1] * (rank - 1)])
        feature = name.startswith("feature")
        axes = [0, 1] if feature else list(range(rank))
        kind = SiteKind.CHANNEL if feature else SiteKind.ATTENTION if _is_attention(x) else SiteKind.ELEMENT
        if "alpha" in name:
            gain = 1.0 / math.sqrt((_SELU_FLOOR**2 * p + 1.0) * (1.0 - p))
            shifted = write(_aten.add.Tensor, x, _SELU_FLOOR)
            masked = self.mark(write, shifted, node, name, kind, p, 1.0, axes)
            value = write(_aten.mul.Tensor, masked, gain)
            value = write(_aten.add.Tensor, value, _SELU_FLOOR * gain * (p - 1.0))
        else:
            value = self.mark(write, x, node, name, kind, p, 1.0 / (1.0 - p) if p < 1 else 0.0, axes)
        self.replace(node, value, write, in_place)

    def native_dropout(self, node: Fx) -> None:
        x, p, train = node.args
        pair = {user.args[1]: user for user in node.users}
        if 1 in pair:
            raise self.unsupported(node, "its mask is used as well")
        write = Writer(self.program, node)
        value = x
        if train is not False and p:
            axes = list(range(x.meta["val"].dim()))
            value = self.mark(write, x, node, "dropout", SiteKind.ELEMENT, p, 1.0 / (1.0 - p), axes)
        for user in list(node.users):
            user.replace_all_uses_with(value)
            self.graph.erase_node(user)
        self.graph.erase_node(node)

    def bernoulli(self, node: Fx) -> None:
        """bernoulli(_): ones, masked; or one minus that, where 1 means to drop (DropBlock's seeds).

        Its argument is the probability of 1. Whoever scales does so afterwards.
        """
        in_place = schema_name(node) == "bernoulli_"
        if node.target is _aten.bernoulli.default:
            probability = self.constants.of(node.args[0])
        elif node.target in (_aten.bernoulli_.Tensor, _aten.bernoulli.Tensor):
            probability = self.constants.of(node.args[1])
        else:
            probability = self.constants.of(node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5))
        if probability is None:
            raise self.unsupported(
                node, "its probability is not a constant (where it follows from the image's size, use --sizes fixed)"
            )
        write = Writer(self.program, node)
        if probability in (0, 1):
            value = write(_aten.full_like.default, node.args[0], float(probability))
        else:
            inverted = bool(drops_above(node, 0.0, 1.0, self.constants))
            p = probability if inverted else round(1.0 - probability, 12)
            value = self.noise(write, node, "bernoulli", p, 0.0, 1.0, inverted)
        self.replace(node, value, write, in_place and not _fresh(node))

    def uniform(self, node: Fx) -> None:
        """rand that is only compared with a constant c: `u < c` needs one bit, so u ∈ {0, 1 − ε} with P(u = 0) = c."""
        low, high = 0.0, 1.0
        if schema_name(node) == "uniform_":
            low, high = (float(entry) for entry in (*node.args[1:3], *(0.0, 1.0)[len(node.args) - 1 :]))
        found = list(switches(node, low, high, self.constants))
        known = [switch for switch in found if switch is not None]
        thresholds = {round(switch.threshold, 12) for switch in known}
        if len(thresholds) != 1 or len(known) < len(found):
            raise self.unsupported(node, "it is used otherwise than in one comparison with a constant")
        (threshold,) = thresholds  # 1 − 0.9 is meant to be 0.1, hence rounded
        inverted = {drops_above(each.node, each.below, each.above, self.constants) for each in known} == {True}
        write = Writer(self.program, node)
        highest = low + (high - low) * _BELOW_ONE
        p = round(1.0 - threshold, 12) if inverted else threshold
        value = self.noise(write, node, "rand", p, low, highest, inverted)
        self.replace(node, value, write, schema_name(node) == "uniform_" and not _fresh(node))

    def noise(self, write: Writer, node: Fx, operation: str, p: float, low: float, high: float, inverted: bool) -> Fx:
        """What stands for drawn noise of two values: `high` where the mask keeps; where it drops, if `inverted`."""
        fake = node.meta["val"]
        dtype = fake.dtype if fake.is_floating_point() else torch.float32
        sizes: list[Any] = [self._size(write, node, axis, size) for axis, size in enumerate(fake.shape)]
        once = len(sizes) < 2 and fake.numel() == 1
        if once:  # one number for the whole batch
            sizes = [self._images(write)]
        elif isinstance(fake.shape[0], int) and fake.shape[0] == 1:
            sizes[0] = self._images(write)
        constant = write(_aten.full.default, sizes, high - low, dtype=dtype)
        varying = [axis for axis, size in enumerate(constant.meta["val"].shape) if axis == 0 or not _is_one(size)]
        kind = SiteKind.PATH if varying == [0] else SiteKind.ELEMENT
        if varying == [0, 1] and len(sizes) > 2:
            kind = SiteKind.CHANNEL
        value = self.mark(write, constant, node, operation, kind, p, 1.0, varying, inverted)
        if inverted:
            value = write(_aten.rsub.Scalar, value, high)
        elif low:
            value = write(_aten.add.Tensor, value, low)
        if fake.dtype != dtype:
            value = write(_aten.to.dtype, value, fake.dtype)
        if once:
            self.drawn_once.append(value)
        return value

    def _size(self, write: Writer, node: Fx, axis: int, size: Any) -> Any:
        """A size of drawn noise as an argument: a number, or the node that knows it."""
        if isinstance(size, int):
            return size
        if schema_name(node) == "rand":
            return node.args[0][axis]
        return write(_aten.sym_size.int, node.args[0], axis)

    def _images(self, write: Writer) -> Fx:
        """N."""
        return write(_aten.sym_size.int, image_of(self.graph), 0)

    def attention(self, node: Fx) -> None:
        """softmax(QKᵀ·s + M)·V with the mask on the probabilities."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        p = given.get("dropout_p", 0.0)
        if not p:
            return
        query, key, value = (given[name] for name in names[:3])
        write = Writer(self.program, node)
        if given.get("enable_gqa"):  # heads that share keys: each gets its copy
            shared = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
            key, value = (write(_aten.repeat_interleave.self_int, part, shared, -3) for part in (key, value))
        scale = given.get("scale")
        scale = 1.0 / math.sqrt(query.meta["val"].shape[-1]) if scale is None else scale
        scores = write(_aten.matmul.default, query, write(_aten.transpose.int, key, -2, -1))
        scores = write(_aten.mul.Tensor, scores, scale)
        if given.get("is_causal"):
            length, depth = scores.meta["val"].shape[-2:]
            if not isinstance(length, int) or not isinstance(depth, int):
                raise self.unsupported(node, "causal attention of dynamic length")
            ones = write(_aten.ones.default, [length, depth], dtype=torch.bool)
            above = write(_aten.logical_not.default, write(_aten.tril.default, ones))
            scores = write(_aten.masked_fill.Scalar, scores, above, float("-inf"))
        bias = given.get("attn_mask")
        if bias is not None:
            if bias.meta["val"].dtype == torch.bool:
                scores = write(_aten.masked_fill.Scalar, scores, write(_aten.logical_not.default, bias), float("-inf"))
            else:
                scores = write(_aten.add.Tensor, scores, bias)
        weights = write(_aten.softmax.int, scores, -1)
        axes = list(range(weights.meta["val"].dim()))
        masked = self.mark(write, weights, node, "attention", SiteKind.ATTENTION, p, 1.0 / (1.0 - p), axes)
        self.replace(node, write(_aten.matmul.default, masked, value), write, in_place=False)

    def unsupported(self, node: Fx, why: str) -> CaptureRefused:
        operation = schema_name(node)
        return CaptureRefused(
            f"`{operation}` draws random numbers that cannot become mask bits: {why}",
            self.names.name(node, operation),
            "Use dropout, stochastic depth or bernoulli with a constant probability, or leave it out (--sites).",
        )


def _is_attention(node: Fx) -> bool:
    """Whether a value is a softmax, seen through changes of shape."""
    while node.target in VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node.target in _SOFTMAX


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _fresh(node: Fx) -> bool:
    """Whether the tensor that noise is drawn into was made for that alone."""
    return schema_name(node.args[0]).startswith(("empty", "new_empty")) and set(node.args[0].users) == {node}
