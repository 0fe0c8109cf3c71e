"""Front end for torch: a module → an ONNX graph in which every stochastic operation is an `equipoise::Mask`.

torch.export shows each stochastic site as an ATen operator (dropout, feature dropout, bernoulli, attention with
dropout, …). Here each of them is rewritten by the marker of `sites.py` and ordinary operators; what draws numbers in
any other way is refused by name. The rewriting is in place (`copy_`) where PyTorch's operator was, and PyTorch's own
functionalisation then sorts out the aliases.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from equipoise_core.contract import SiteKind
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, Node
from torch.utils._sympy.functions import FloorDiv

from .errors import CaptureRefused
from .sites import BATCH, encode_shape, mask, translate_mask
from .stochastic import draws, live_modules, sampling

OPSET = 18
Fx = Any
"""A torch.fx.Node, whose arguments PyTorch types as a union of everything that can be one."""

_aten = torch.ops.aten
_DROPOUTS: Mapping[Any, bool] = {  # operator → in place
    _aten.dropout.default: False,
    _aten.dropout_.default: True,
    _aten.feature_dropout.default: False,
    _aten.feature_dropout_.default: True,
    _aten.alpha_dropout.default: False,
    _aten.alpha_dropout_.default: True,
    _aten.feature_alpha_dropout.default: False,
    _aten.feature_alpha_dropout_.default: True,
}
_FEATURE = {"feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"}
_ALPHA = {"alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"}
_SELU_FLOOR = 1.7580993408473766
"""−(the value SELU tends to): what alpha dropout puts where it drops (Klambauer et al. 2017)."""

_VIEWS = {
    _aten.view.default, _aten.reshape.default, _aten.transpose.int, _aten.permute.default, _aten.flatten.using_ints,
    _aten.unsqueeze.default, _aten.squeeze.dim, _aten.contiguous.default, _aten.clone.default, _aten.to.dtype,
    _aten._to_copy.default, _aten.alias.default, _aten.type_as.default,
}  # fmt: skip
_SOFTMAX = {_aten.softmax.int, _aten._softmax.default, _aten._safe_softmax.default}


def capture(
    module: nn.Module,
    example: Tensor,
    spatial: tuple[int | str, ...],
    multiple: int,
    live: tuple[str, ...] | None = None,
) -> ir.Model:
    """Traces the network with only its stochastic parts live.

    Args:
        module: image `[N, C, *S]` → one tensor of logits.
        example: an image with N ≥ 2, of the contract's nominal size.
        spatial: per spatial axis a fixed size or the name of a dynamic dimension.
        multiple: dynamic sizes are multiples of this.
        live: the modules to put in training mode; found by running the network where not given.

    Returns:
        An ONNX graph, opset 18, with input `image` and one output `logits`.
    """
    live = live_modules(module, example) if live is None else live
    with sampling(module, live):
        program = _trace(module, example, spatial, multiple)
    _mark(program, _dimension_names(program, spatial))
    return _to_onnx(program)


def _trace(module: nn.Module, example: Tensor, spatial: tuple[int | str, ...], multiple: int) -> ExportedProgram:
    shapes: dict[int, Any] = {0: Dim(BATCH, min=1)}
    for axis, size in enumerate(spatial, start=2):
        if isinstance(size, str):
            dim = Dim(f"_{size}", min=1)
            shapes[axis] = multiple * dim if multiple > 1 else dim
    failure: Exception | None = None
    for strict in (False, True):
        try:
            with torch.no_grad(), _quiet():
                return torch.export.export(module, (example,), dynamic_shapes=(shapes,), strict=strict)
        except Exception as error:  # noqa: BLE001  # torch.export raises anything; it is translated below
            failure = failure or error
    assert failure is not None
    raise _explained(failure, spatial) from failure


def _explained(error: Exception, spatial: tuple[int | str, ...]) -> CaptureRefused:
    """torch.export's error as a refusal that says what to do."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = _user_code(error, text)
    if "data-dependent" in text.lower() or "DataDependent" in type(error).__name__ or "dynamic control flow" in text:
        return CaptureRefused(
            f"the forward pass decides by the values of a tensor, which no static graph can ({first})",
            where,
            "Replace the `if` by torch.where, or move the decision out of the network.",
        )
    if any(isinstance(size, str) for size in spatial) and ("onstraint" in text or "specializ" in text.lower()):
        return CaptureRefused(
            f"the network does not work at every spatial size ({first})",
            where,
            "Export with fixed sizes (--fixed), or state the right divisor (--multiple).",
        )
    if "onstraint" in text or "specializ" in text.lower():
        return CaptureRefused(
            f"the network fixes the number of images in a batch ({first})",
            where,
            "Use x.shape[0] instead of a number, and start the batch at axis 0.",
        )
    return CaptureRefused(
        f"torch.export cannot trace the network: {type(error).__name__}: {first}",
        where,
        "See the message; the offending Python has to be written with tensor operations.",
    )


def _user_code(error: Exception, text: str) -> str:
    """The last line of the network's own code in a traceback, or what torch.export says about it."""
    trace = error.__traceback__
    where = "the whole network"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{torch.__name__}/" not in file.replace("\\", "/") and "equipoise_export" not in file and "<" not in file:
            where = f"{file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


# --- names ----------------------------------------------------------------------------------------------------------


def _dimension_names(program: ExportedProgram, spatial: tuple[int | str, ...]) -> dict[sympy.Symbol, sympy.Expr]:
    """Symbol → how the contract says it: the batch as N, and x where the height is 8·x as H//8."""
    image = _image(program.graph)
    names: dict[sympy.Symbol, sympy.Expr] = {}
    for size, name in zip(image.meta["val"].shape, (BATCH, None, *spatial), strict=True):
        if isinstance(size, torch.SymInt) and isinstance(name, str):
            expression = sympy.sympify(size.node.expr)
            (symbol,) = expression.free_symbols
            factor = expression / symbol
            spelled = sympy.Symbol(name, integer=True, positive=True)
            names[symbol] = spelled if factor == 1 else FloorDiv(spelled, factor)
    return names


def _image(graph: Graph) -> Fx:
    return [node for node in graph.nodes if node.op == "placeholder"][-1]


def spell(size: int | torch.SymInt, names: Mapping[sympy.Symbol, sympy.Expr]) -> int | str:
    """A size as a number or as an expression of `+ − * //` that the contract can evaluate."""
    if isinstance(size, int):
        return size
    expression = sympy.sympify(size.node.expr).xreplace(names)
    return int(expression) if expression.is_Integer else _spell(expression)


def _spell(expression: sympy.Expr) -> str:
    if isinstance(expression, FloorDiv):
        return f"({_spell(expression.args[0])}//{_spell(expression.args[1])})"
    if expression.is_Symbol or expression.is_Integer:
        return str(expression)
    if expression.is_Add:
        return "(" + " + ".join(_spell(term) for term in expression.args) + ")"
    if expression.is_Mul and all(not factor.is_Rational or factor.is_Integer for factor in expression.args):
        return "*".join(_spell(factor) for factor in expression.args)
    if expression.is_Pow and expression.exp.is_Integer and 0 < int(expression.exp) < 9:
        return "*".join([_spell(expression.base)] * int(expression.exp))
    raise CaptureRefused(
        f"the size of a mask is {expression}, which the contract cannot say with + - * //",
        "the whole network",
        "Export with fixed sizes (--fixed).",
    )


class _Names:
    """Site names: the module's path, `:operation` where the module itself is no dropout, `#2` for a second call."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def name(self, node: Fx, operation: str) -> str:
        path, kind = _module_of(node)
        base = path if "drop" in kind.lower() and path else f"{path or 'forward'}:{operation}"
        self._seen[base] += 1
        return base if self._seen[base] == 1 else f"{base}#{self._seen[base]}"


def _module_of(node: Fx) -> tuple[str, str]:
    """Path and class of the innermost module that a node came from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    steps = [step.split("@")[0] for step in path.split(".")]  # "@1" marks a second call; counted by _Names
    if steps and steps[0] == "equipoise_network":  # the wrapper that chooses the output
        steps = steps[1:]
    return ".".join(steps), str(kind).rsplit(".", 1)[-1]


# --- marking --------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes FX nodes at one place, shapes included, with the origin of the node that they replace."""

    def __init__(self, program: ExportedProgram, at: Fx) -> None:
        self.graph = program.graph
        self.at = at
        fakes = [node.meta["val"] for node in self.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
        self.mode = fakes[0].fake_mode

    def __call__(self, operator: Any, *args: Any, **kwargs: Any) -> Fx:
        with self.graph.inserting_before(self.at):
            node = self.graph.call_function(operator, args, kwargs)

        def value(argument: Any) -> Any:
            return argument.meta["val"] if isinstance(argument, Node) else argument

        with self.mode, torch.no_grad():
            node.meta["val"] = operator(
                *torch.fx.node.map_aggregate(args, value), **torch.fx.node.map_aggregate(kwargs, value)
            )
        for key in ("nn_module_stack", "stack_trace", "torch_fn"):
            if key in self.at.meta:
                node.meta[key] = self.at.meta[key]
        return node


class _Marking:
    def __init__(self, program: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Expr]) -> None:
        self.program = program
        self.graph = program.graph
        self.dimensions = names
        self.names = _Names()
        self.calls = 0

    def mark(
        self,
        write: _Writer,
        x: Fx,
        node: Fx,
        operation: str,
        kind: SiteKind,
        p: float,
        scale: float,
        axes: list[int],
    ) -> Fx:
        """The marker on x, named after `node`."""
        name = self.names.name(node, operation)
        if not 0.0 < p < 1.0:
            raise CaptureRefused(
                f"the probability of dropping is {p}; a mask needs 0 < p < 1", name, "Set p between 0 and 1."
            )
        shape = [spell(size, self.dimensions) for size in x.meta["val"].shape]
        index, self.calls = self.calls, self.calls + 1
        return write(mask._opoverload, x, name, kind.value, p, scale, axes, index, encode_shape(shape))

    def replace(self, node: Fx, value: Fx, write: _Writer, in_place: bool) -> None:
        if in_place:
            value = write(_aten.copy_.default, node.args[0], value)
        node.replace_all_uses_with(value)
        self.graph.erase_node(node)

    # One method for each way to be random.

    def dropout(self, node: Fx, in_place: bool) -> None:
        """dropout, feature_dropout and their alpha forms: `a·((x + f)·keep) + a·f·(p − 1)` covers alpha dropout."""
        x, p, train = node.args
        operation = node.target._schema.name.split("::")[1]
        if not train or p == 0:
            node.replace_all_uses_with(x)
            self.graph.erase_node(node)
            return
        write = _Writer(self.program, node)
        rank = x.meta["val"].dim()
        feature = operation in _FEATURE
        axes = [0, 1] if feature else list(range(rank))
        kind = SiteKind.CHANNEL if feature else SiteKind.ATTENTION if _is_attention(x) else SiteKind.ELEMENT
        name = operation.rstrip("_")
        if operation in _ALPHA:
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
        write = _Writer(self.program, node)
        value = x
        if train is not False and p:
            axes = list(range(x.meta["val"].dim()))
            value = self.mark(write, x, node, "dropout", SiteKind.ELEMENT, p, 1.0 / (1.0 - p), axes)
        for user in list(node.users):
            user.replace_all_uses_with(value)
            self.graph.erase_node(user)
        self.graph.erase_node(node)

    def bernoulli(self, node: Fx) -> None:
        """bernoulli(_): ones, masked. Its argument is the probability to keep; whoever scales does so afterwards."""
        in_place = "bernoulli_" in node.target._schema.name
        if node.target is _aten.bernoulli.default:
            probability = _constant(node.args[0])
        elif node.target in (_aten.bernoulli_.Tensor, _aten.bernoulli.Tensor):
            probability = _constant(node.args[1])
        else:
            probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        if not isinstance(probability, (int, float)):
            raise self.unsupported(node, "its probability is not a constant")
        write = _Writer(self.program, node)
        if probability in (0, 1):
            value = write(_aten.full_like.default, node.args[0], float(probability))
        else:
            ones = write(_aten.ones_like.default, node.args[0])
            value = self.mark_noise(write, ones, node, "bernoulli", round(1.0 - probability, 12))
        self.replace(node, value, write, in_place)

    def uniform(self, node: Fx) -> None:
        """rand that is only compared with a constant c: `u < c` needs one bit, so u ∈ {0, 1 − ε} with P(u = 0) = c."""
        thresholds = set(_thresholds(node))
        if len(thresholds) != 1 or None in thresholds:
            raise self.unsupported(node, "it is used otherwise than in one comparison with a constant")
        p = round(thresholds.pop() or 0.0, 12)  # 1 − 0.9 is meant to be 0.1
        if node.target._schema.name == "aten::uniform_" and tuple(node.args[1:]) not in ((), (0,), (0, 1), (0.0, 1.0)):
            raise self.unsupported(node, "its range is not 0 to 1")
        write = _Writer(self.program, node)
        fake = node.meta["val"]
        if node.target._schema.name in ("aten::rand_like", "aten::uniform_"):
            high = write(_aten.full_like.default, node.args[0], 1.0 - 2.0**-24)
        else:
            high = write(_aten.full.default, node.args[0], 1.0 - 2.0**-24, dtype=fake.dtype)
        value = self.mark_noise(write, high, node, "rand", p)
        self.replace(node, value, write, node.target._schema.name == "aten::uniform_")

    def mark_noise(self, write: _Writer, constant: Fx, node: Fx, operation: str, p: float) -> Fx:
        sizes = list(constant.meta["val"].shape)
        live = [axis for axis, size in enumerate(sizes) if axis == 0 or not (isinstance(size, int) and size == 1)]
        kind = (
            SiteKind.PATH
            if live == [0]
            else SiteKind.CHANNEL
            if live == [0, 1] and len(sizes) > 2
            else SiteKind.ELEMENT
        )
        return self.mark(write, constant, node, operation, kind, p, 1.0, live)

    def attention(self, node: Fx) -> None:
        """softmax(QKᵀ·s + M)·V with the mask on the probabilities."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        p = given.get("dropout_p", 0.0)
        if not p:
            return
        query, key, value = (given[name] for name in names[:3])
        if given.get("enable_gqa"):
            raise self.unsupported(node, "it shares keys between heads (enable_gqa)")
        write = _Writer(self.program, node)
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
        operation = node.target._schema.name.split("::")[1]
        return CaptureRefused(
            f"`{operation}` draws random numbers that cannot become mask bits: {why}",
            self.names.name(node, operation),
            "Use dropout, stochastic depth or bernoulli with a constant probability, or leave it out (--sites).",
        )


def _mark(program: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Expr]) -> None:
    """Every stochastic operator of the graph → markers and ordinary operators."""
    marking = _Marking(program, names)
    for node in list(program.graph.nodes):
        if node.op == "get_attr" and isinstance(
            getattr(program.graph_module, str(node.target), None), torch.fx.GraphModule
        ):
            _refuse_nested(getattr(program.graph_module, str(node.target)), str(node.target))
        if node.op != "call_function":
            continue
        if node.target in _DROPOUTS:
            marking.dropout(node, _DROPOUTS[node.target])
        elif node.target is _aten.native_dropout.default:
            marking.native_dropout(node)
        elif node.target is _aten.scaled_dot_product_attention.default:
            marking.attention(node)
        elif isinstance(node.target, torch._ops.OpOverload) and draws(node.target):
            schema = node.target._schema.name
            if schema in ("aten::bernoulli", "aten::bernoulli_"):
                marking.bernoulli(node)
            elif schema in ("aten::rand", "aten::rand_like", "aten::uniform_"):
                marking.uniform(node)
            else:
                raise marking.unsupported(node, "it is no yes-or-no draw")
        elif _uses_batch_statistics(node):
            raise CaptureRefused(
                "BatchNorm is in training mode, so an image's answer would depend on its batch-mates",
                _module_of(node)[0] or "forward",
                "Leave BatchNorm in evaluation mode; only dropout has to be live.",
            )
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _refuse_nested(inner: torch.fx.GraphModule, name: str) -> None:
    for node in inner.graph.nodes:
        if node.op == "call_function" and (node.target in _DROPOUTS or draws(node.target)):
            raise CaptureRefused(
                "dropout inside control flow (cond, loop): its masks would depend on which way the data goes",
                _Names().name(node, str(node.target)),
                "Take the dropout out of the branch or unroll the loop.",
            )


def _uses_batch_statistics(node: Fx) -> bool:
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    if schema is None or "batch_norm" not in schema.name:
        return False
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    return bool(given.get("training") or given.get("train"))


def _is_attention(node: Fx) -> bool:
    """Whether a value is a softmax, seen through changes of shape."""
    while node.target in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node.target in _SOFTMAX


def _constant(argument: Any) -> float | None:
    """The one number that a tensor is filled with, where the graph says so."""
    if isinstance(argument, (int, float)):
        return argument
    if not isinstance(argument, Node) or argument.op != "call_function":
        return None
    operation = argument.target._schema.name if isinstance(argument.target, torch._ops.OpOverload) else ""
    if operation in ("aten::full", "aten::full_like", "aten::new_full", "aten::fill", "aten::fill_"):
        position = 2 if operation == "aten::new_full" else 1
        return _constant(argument.args[position])
    if operation in ("aten::ones", "aten::ones_like", "aten::new_ones"):
        return 1.0
    if operation in ("aten::zeros", "aten::zeros_like", "aten::new_zeros"):
        return 0.0
    if argument.target in _VIEWS or operation in ("aten::expand", "aten::lift_fresh_copy", "aten::detach_"):
        return _constant(argument.args[0])
    arithmetic = {
        "mul": lambda a, b: a * b,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "div": lambda a, b: a / b,
    }
    short = operation.removeprefix("aten::").rstrip("_")
    if short in arithmetic and len(argument.args) == 2:
        left, right = (_constant(side) for side in argument.args)
        return None if left is None or right is None else arithmetic[short](left, right)
    if short == "rsub":
        left, right = (_constant(side) for side in argument.args)
        return None if left is None or right is None else right - left
    return None


def _thresholds(noise: Fx) -> Iterator[float | None]:
    """The values c at which something downstream of u switches: u + k < c, floor(u + k), …; None for anything else."""
    pending = [(noise, 0.0, 1.0)]  # (node, k, s): the node's value is k + s·u
    in_place_seen: set[Fx] = set()
    while pending:
        node, offset, gain = pending.pop()
        if node in in_place_seen:
            continue
        in_place_seen.add(node)
        for user in node.users:
            operation = (
                user.target._schema.name.removeprefix("aten::")
                if isinstance(user.target, torch._ops.OpOverload)
                else ""
            )
            short = operation.rstrip("_")
            constants = [_constant(argument) for argument in user.args if argument is not node]
            known = constants[0] if len(constants) == 1 else None
            if short == "floor" and gain == 1.0:
                yield 1.0 - offset  # floor(k + u) with 0 < k < 1 is 1 exactly where u ≥ 1 − k
            elif short in ("lt", "le", "gt", "ge") and known is not None:
                yield (known - offset) / gain
            elif short == "add" and known is not None:
                pending.append((user, offset + known, gain))
            elif short == "rsub" and known is not None:
                pending.append((user, known - offset, -gain))
            elif short == "sub" and known is not None and user.args[0] is node:
                pending.append((user, offset - known, gain))
            elif short == "sub" and known is not None:
                pending.append((user, known - offset, -gain))
            elif short == "mul" and known:
                pending.append((user, offset * known, gain * known))
            elif user.target in _VIEWS:
                pending.append((user, offset, gain))
            elif operation.startswith("sym_size") or operation in ("detach",):
                continue
            else:
                yield None


# --- to ONNX --------------------------------------------------------------------------------------------------------


def _to_onnx(program: ExportedProgram) -> ir.Model:
    with torch.no_grad(), _quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                custom_translation_table={mask._opoverload: translate_mask},
                optimize=False,  # `simplify` does what is needed of it, in a tenth of the time
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise CaptureRefused(
                f"an operation has no ONNX counterpart ({str(cause).splitlines()[0]})",
                "the whole network",
                "Write it with operations that torch.onnx knows.",
            ) from error
    assert exported is not None
    return exported.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout, in warnings and in the log; what matters of it comes back as errors."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "torch._dynamo", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
