"""Members of a deep ensemble: the same network, trained several times, under one contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx
from equipoise_core.contract import Contract
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.moments import ANSWER
from numpy.typing import NDArray

from ..errors import ExportRefused
from ..graph.session import OnnxSampler
from ..graph.storage import Weights


class Member(Protocol):
    """One compiled sampler."""

    @property
    def model(self) -> onnx.ModelProto: ...
    @property
    def weights(self) -> Weights | None: ...
    @property
    def contract(self) -> Contract: ...


class EnsembleRefused(ExportRefused):
    """The members do not make one model."""


def check_members(members: Sequence[Member], image: NDArray[np.float32]) -> None:
    """Refuses members that differ in more than their weights, and members that do not differ at all.

    Args:
        members: in the order of their weights.
        image: `[N, C, *nominal]`, normalised.

    Raises:
        EnsembleRefused: it names the member.
    """
    answers: list[NDArray[np.float32]] = []
    for number, member in enumerate(members, 1):
        if member.contract.digest != members[0].contract.digest:
            raise EnsembleRefused(
                "its sites or sizes differ from the first member's, and all members draw from the same masks",
                f"member {number}",
                "Train it from the same factory and arguments, or publish it as a model of its own.",
            )
        answer = _answer(member, image)
        twin = next((n for n, other in enumerate(answers, 1) if np.array_equal(answer, other)), None)
        if twin is not None:
            raise EnsembleRefused(
                f"it answers exactly as member {twin} does, so they would feign agreement",
                f"member {number}",
                "Give the weights of separate trainings.",
            )
        answers.append(answer)


def _answer(member: Member, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The member's answer to the first image under one fixed sample of masks."""
    contract, masks = member.contract, None
    if contract.stochastic:
        masks = draw_masks(mask_layout(contract, image.shape[2:]), 0, contract.digest, 0, 1)[None]
    outputs = OnnxSampler(member.model, threads=1, weights=member.weights)(image[:1], masks)
    return outputs[ANSWER[contract.task]]
