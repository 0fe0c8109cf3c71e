"""What the exporter makes of a network, before it is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
import onnx_ir as ir
from equipoise_core.contract import Contract

from .graph.storage import Weights
from .passes.cost import Cost
from .proof.gpu import Placement, place
from .proof.parity import Proof
from .proof.references import TorchNetwork


@dataclass(frozen=True)
class Captured:
    """A torch network whose dropout is a matter of layers that do nothing else.

    Attributes:
        graph: marked, as no pass has changed it.
        network: the same in evaluation mode.
    """

    graph: ir.Model
    network: TorchNetwork


@dataclass(frozen=True)
class Compiled:
    """A sampler ready to publish.

    Attributes:
        model: the ONNX sampler.
        contract: with its sites, without the digests of files.
        proof: that model and network are the same function.
        cost: what was predicted for T samples; None of a file that was not compiled here.
        notes: what the user should know.
        halves: tensors in half precision, and the layers they belong to.
        weights: where they lie if not in `model`.
        captured: where the first pass follows from what was captured for the sampler.
    """

    model: onnx.ModelProto
    contract: Contract
    proof: Proof
    cost: Cost | None
    notes: tuple[str, ...] = ()
    halves: Mapping[str, str] = field(default_factory=dict)
    weights: Weights | None = None
    captured: Captured | None = None

    @cached_property
    def placement(self) -> Placement:
        """Where its nodes run on a GPU."""
        return place(self.model, self.contract, self.weights)
