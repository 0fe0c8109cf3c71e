"""What the passes work on: the graph, the contract as far as it is known, and what was found out.

Words used in the passes: a value is *shared* when no mask can change it and *sampled* otherwise. A shared value with a
batch axis of size N·k carries N images; the sampled one in the same place carries N·T·k, images first, then samples.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from equipoise_core.contract import Contract
from equipoise_core.masks import mask_layout
from numpy.typing import NDArray

from ..graph.marker import DOMAIN, MASK, Call, own_path
from ..graph.nodes import IMAGE, MASKS, initializer
from ..options import LARGEST_FILE
from .cost import Cost

MADE = "equipoise "
"""How the names of values begin that passes made; torch calls comparisons `eq_1`, so that is no name for them."""


@dataclass(frozen=True)
class Layout:
    """Where the batch lies in a tensor.

    Attributes:
        shape: sizes for one image of the nominal size; the batch axis then counts `factor`.
        axis: the batch axis, of size N·factor; None where the tensor does not grow with the batch.
        factor: k, what else is folded into the batch axis (heads of attention, windows).
        dynamic: per axis, whether it changes with the spatial size of the image.
    """

    shape: tuple[int, ...]
    axis: int | None
    factor: int
    dynamic: tuple[bool, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


Entry = int | ir.Value | tuple[ir.Value, int]
"""One entry of a shape: a number, a one-element tensor, or (value, axis) for the size that a value has there."""


@dataclass
class Compilation:
    """One network on its way from marked graph to sampler.

    Attributes:
        model: the graph, changed by every pass.
        contract: from `list_sites` on, with its sites.
        layouts: of the values that existed at `find_layouts`, and of those that passes put in their place.
        calls: from `list_sites` on, per site which stochastic call of a forward pass it is.
        sampled: from `mark_sampled` on, the values that a mask can change.
        difference: from `take_difference` on, whether the logits are the second class's minus the first's.
        phases: from `merge_upsampling` on, whether the logits are `[N, K, 2^d·(h/2 + 1), w/2 + 1, …]`: see there.
        volume: of a network that takes volumes slice by slice, their contract; until `take_slices`, `contract` is that
            of one slice.
        keeps: from `batch_samples` on, site name → placeholder of its unpacked masks.
        halves: from `to_half` on, the values in half precision, and which layer of the network each belongs to.
        single: the same in single precision, where this one is half.
        captured: the marked graph as it was, where it says what the network is in evaluation mode.
        notes: what the user should know.
        largest_file: bytes of weights that an ONNX file may hold; see `storage.py`.
        network_multiplications, depths, cost: see `count_cost`.
    """

    model: ir.Model
    contract: Contract
    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    sampled: set[ir.Value] = field(default_factory=set)
    difference: bool = False
    phases: bool = False
    keeps: dict[str, ir.Value] = field(default_factory=dict)
    halves: dict[ir.Value, str] = field(default_factory=dict)
    single: Compilation | None = None
    volume: Contract | None = None
    captured: ir.Model | None = None
    notes: list[str] = field(default_factory=list)
    largest_file: int = LARGEST_FILE
    network_multiplications: int = 0
    depths: dict[str, float] = field(default_factory=dict)
    cost: Cost | None = None
    _constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    _made: dict[str, ir.Value] = field(default_factory=dict)
    _count: int = 0

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    # --- writing ---

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        outputs: int = 1,
        like: ir.Value | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Appends a node and gives its output (or outputs). `like`: a value whose layout, type and origin it has."""
        node = ir.node(kind, list(inputs), attributes, num_outputs=outputs, domain=domain)
        origin = like.producer() if like is not None else None
        if origin is not None:
            node.metadata_props.update(origin.metadata_props)
        for output in node.outputs:
            self._count += 1
            output.name = f"{MADE}{self._count}"
            if like is not None:
                output.type = like.type
                if like in self.layouts:
                    self.layouts[output] = self.layouts[like]
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def constant(self, array: NDArray[Any] | np.floating[Any] | Sequence[int] | float) -> ir.Value:
        """An initializer, one for all equal ones. Plain sequences are INT64, plain numbers FP32."""
        if isinstance(array, (int, float, np.floating)):
            array = np.array(array, np.float32)
        data = np.ascontiguousarray(array if isinstance(array, np.ndarray) else np.array(array, np.int64))
        data = data.reshape(np.shape(array))  # ascontiguousarray makes a scalar one-dimensional
        key = (data.dtype.str, data.shape, hashlib.sha256(data.tobytes()).digest())  # weights are large
        if key not in self._constants:
            self._constants[key] = initializer(self.graph, f"equipoise constant {len(self._constants)}", data)
        return self._constants[key]

    def shape(self, entries: Sequence[Entry]) -> ir.Value:
        """A shape vector, INT64 `[rank]`: a constant where every entry is known."""
        parts: list[ir.Value] = []
        numbers: list[int] = []

        def flush() -> None:
            if numbers:
                parts.append(self.constant(list(numbers)))
                numbers.clear()

        for entry in entries:
            if isinstance(entry, int):
                numbers.append(entry)
                continue
            flush()
            if isinstance(entry, tuple):
                value, axis = entry
                parts.append(self.op("Shape", value, start=axis, end=axis + 1))
            else:
                parts.append(entry)
        flush()
        if not parts:
            return self.constant(np.zeros(0, np.int64))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def reshape(self, value: ir.Value, entries: Sequence[Entry]) -> ir.Value:
        return self.op("Reshape", value, self.shape(entries))

    def size(self, value: ir.Value, axis: int) -> Entry:
        """The size of an axis other than the batch: a number where it does not depend on the image's size."""
        layout = self.layouts[value]
        return (value, axis) if layout.dynamic[axis] else layout.shape[axis]

    def made_once(self, name: str, make: Any) -> ir.Value:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def forget(self) -> None:
        """What was made before the graph was tidied may be gone: it is made anew where it is asked for."""
        self._constants.clear()
        self._made.clear()

    # --- reading ---

    @property
    def image(self) -> ir.Value:
        return next(value for value in self.graph.inputs if value.name == IMAGE)

    @property
    def masks(self) -> ir.Value:
        """The packed masks, FP32 `[N, T, B]`; the UINT8 input is added to the graph's when first asked for.

        TensorRT takes UINT8 at a network's inputs alone and casts it to real numbers alone: any other operator on it
        would split the engine.
        """

        def make() -> ir.Value:
            dynamic = any(isinstance(entry, str) for site in self.contract.sites for entry in site.shape)
            size = "B" if dynamic else mask_layout(self.contract, self.contract.nominal).bytes
            value = ir.val(MASKS, ir.DataType.UINT8, ["N", "T", size])
            self.graph.inputs.append(value)
            return self.op("Cast", value, to=ir.DataType.FLOAT.value)

        return self.made_once(MASKS, make)

    @property
    def images(self) -> ir.Value:
        """N, INT64 `[1]`."""
        return self.made_once("N", lambda: self.op("Shape", self.image, start=0, end=1))

    @property
    def samples(self) -> ir.Value:
        """T, INT64 `[1]`; 1 for a deterministic network."""
        if not self.contract.stochastic:
            return self.constant([1])
        return self.made_once("T", lambda: self.op("Shape", self.masks, start=1, end=2))

    def halves_by_name(self) -> dict[str, str]:
        """`halves` as the finished graph calls them, in its order: tensor → layer."""
        nodes = ir.traversal.RecursiveGraphIterator(self.graph)
        return {str(value.name): self.halves[value] for node in nodes for value in node.outputs if value in self.halves}

    def markers(self) -> list[ir.Node]:
        """The mask markers in the order of the graph."""
        return [node for node in self.graph if node.domain == DOMAIN and node.op_type == MASK]


def layer_of(node: ir.Node) -> str:
    """Where in the network a node comes from, in its own words; the node's name where the graph is an ONNX file's."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return str(node.name or node.op_type)
    *modules, operation = ast.literal_eval(scopes)
    path = modules[-1] if modules else ""
    return own_path(path) or str(operation)
