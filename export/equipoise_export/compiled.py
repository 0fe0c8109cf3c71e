"""What the exporter makes of a network, before it is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from equipoise_core.contract import Contract

from .graph.storage import Weights
from .passes.cost import Cost
from .proof.gpu import Placement, place
from .proof.parity import Proof


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
    """

    model: onnx.ModelProto
    contract: Contract
    proof: Proof
    cost: Cost | None
    notes: tuple[str, ...] = ()
    halves: Mapping[str, str] = field(default_factory=dict)
    weights: Weights | None = None

    @cached_property
    def placement(self) -> Placement:
        """Where its nodes run on a GPU."""
        return place(self.model, self.contract, self.weights)
