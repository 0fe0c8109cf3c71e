"""Calibrated ensembles: hard votes of members that err on purpose, turned into probabilities on out-of-fold votes.

Buddenkotte et al., "Calibrating ensembles for scalable uncertainty quantification in deep learning-based medical image
segmentation", Computers in Biology and Medicine 2023 (`001` among the seeds). Members are fine-tuned from one
checkpoint with a loss that favours missing (w > 0) or inventing (w < 0) foreground. Members with a low w mark more, so
that counting votes orders voxels; how often each count is right is measured by k-fold cross-validation, without any
cases set apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import torch
from equipoise_core.contract import Activation
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..reference.training import quickly
from .stated import stated, switched_off

WEIGHTS = (-3, -2, -1, 0, 1, 2, 3)
"""w of the members, the one that marks most first."""

STEEPNESS = 2.0
"""Votes per unit of logit around a tie."""


def loss(activation: Activation, w: float, network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """`1 − (TP + ε)/(TP + σ(w)·FP + (1 − σ(w))·FN + ε)` per structure, plus cross-entropy with e^(−w) on foreground."""
    logits = quickly(network, image).float()
    lean = torch.sigmoid(torch.tensor(float(w)))
    weight = torch.exp(torch.tensor(-float(w)))
    if activation is Activation.SIGMOID:
        truth = target[:, None].float()
        entropy = functional.binary_cross_entropy_with_logits(logits, truth, weight=torch.where(truth > 0, weight, 1.0))
        p = logits.sigmoid()
    else:
        classes = logits.shape[1]
        entropy = functional.cross_entropy(logits, target, weight=torch.tensor([1.0, *[float(weight)] * (classes - 1)]))
        truth = functional.one_hot(target, classes).movedim(-1, 1)[:, 1:].float()
        p = logits.softmax(1)[:, 1:]
    axes = (0, *range(2, truth.ndim))
    true, false, missed = (p * truth).sum(axes), (p * (1 - truth)).sum(axes), ((1 - p) * truth).sum(axes)
    dice = 1 - ((true + 1) / (true + lean * false + (1 - lean) * missed + 1)).mean()
    return dice + entropy


def votes_of(logits: Tensor, activation: Activation) -> Tensor:
    """What one member marks: 0..1 per structure (foreground class) `[N, F, *S]`.

    A hard vote but for probabilities between .44 and .56 (logits within ¼ of a tie), which count in part: else rounding
    would decide voxels at a tie, differently on every machine and with every batch-mate.
    """
    if activation is Activation.SIGMOID:
        margin = logits
    else:
        best, following = logits.topk(2, dim=1).values.split(1, dim=1)
        margin = (logits - torch.where(logits >= best, following, best))[:, 1:]
    return (STEEPNESS * margin + 0.5).clamp(0, 1)


def vote_table(
    votes: Iterable[NDArray[np.integer]], truths: Iterable[NDArray[np.bool_]], members: int
) -> NDArray[np.float64]:
    """`P_h = #(h votes and true)/#(h votes)`, h = 0..M, `[M + 1]`; `P_0 = 0` as in the paper.

    A count that no voxel has takes the value of the one below it.

    Args:
        votes: of each case, how many members marked each voxel, by members that never saw the case.
        truths: of each case, whether the voxel is of the structure.
    """
    seen, right = np.zeros(members + 1), np.zeros(members + 1)
    for count, truth in zip(votes, truths, strict=True):
        seen += np.bincount(count.ravel(), minlength=members + 1)
        right += np.bincount(count.ravel(), weights=truth.ravel().astype(np.float64), minlength=members + 1)
    table = np.zeros(members + 1)
    for h in range(1, members + 1):
        table[h] = right[h] / seen[h] if seen[h] else table[h - 1]
    return table


class CalibratedEnsemble(nn.Module):
    """All members in one network: `p(v) = Σ_j a_j ŷ_{w_j}(v)`, `a_j = P_j − P_{j−1}`, members in order of w.

    Where members are nested, as they are meant to be, that is P of the number of votes.

    Args:
        members: in the order of `WEIGHTS`.
        tables: per structure its `vote_table`.
    """

    def __init__(
        self, members: Sequence[nn.Module], tables: Sequence[NDArray[np.float64]], activation: Activation
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(switched_off(member) for member in members).eval()
        self.activation = activation
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(np.diff(np.stack(tables), axis=1), dtype=torch.float32))  # [F, M]

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, *S]` → `stated` moments: hard members have no entropy of their own, so all of it is disagreement.

        Background is what the structures leave; where their sum exceeds 1, they share it. The ensemble's own ranking of
        voxels is `2p(1 − p)`, the most over the structures.
        """
        p = self._probabilities(image)
        own = (2 * p * (1 - p)).amax(1, keepdim=True)
        if self.activation is Activation.SOFTMAX:
            total = p.sum(1, keepdim=True)
            p = torch.cat([functional.relu(1 - total), p / total.clamp_min(1.0)], 1)
        nothing = torch.zeros_like(own if self.activation is Activation.SOFTMAX else p)
        return stated(p, p, nothing, own)

    def _probabilities(self, image: Tensor) -> Tensor:
        steps = self.steps.reshape(*self.steps.shape, *[1] * (image.dim() - 2))
        parts = (steps[None, :, i] * votes_of(member(image), self.activation) for i, member in enumerate(self.members))
        return reduce(torch.add, parts).clamp(0, 1)
