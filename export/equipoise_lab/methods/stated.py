"""What a network answers that states its own moments: probabilities and how unsure it is of them, from one pass.

The contract's `states_moments` says so; the core and the exporter know no such network by name. Per voxel, with p the
probability of each of K classes and E entries of entropy (1 for softmax, K for sigmoid):

    mean E[p] `[K]`, mean square E[p²] `[K]`, mean entropy E[H[p]] `[E]`, and the network's own ranking of its voxels,
    `own` ≥ 0 `[1]`: higher is less certain, in whatever unit the method has.

They are concatenated along the channels, in that order: `[N, 2K + E + 1, *S]`.
"""

from __future__ import annotations

import torch
from equipoise_core.contract import Activation
from torch import Tensor, nn
from torch.nn import functional


def stated(mean: Tensor, mean_square: Tensor, mean_entropy: Tensor, own: Tensor) -> Tensor:
    """`[N, K, *S]`, `[N, K, *S]`, `[N, E, *S]`, `[N, 1, *S]` → one tensor. Rounding is kept from breaking what holds of
    any moments: `E[p]² ≤ E[p²] ≤ E[p]`, entropy and ranking ≥ 0."""
    mean_square = torch.minimum(torch.maximum(mean_square, mean * mean), mean)
    return torch.cat([mean, mean_square, functional.relu(mean_entropy), functional.relu(own)], dim=1)


def with_shares(
    probabilities: Tensor, variance_share: Tensor, entropy_share: Tensor, own: Tensor, entropy: Tensor
) -> Tensor:
    """Moments from shares in 0..1: of `p(1 − p)` that is epistemic variance, of `H[p]` that is epistemic entropy."""
    p = probabilities
    return stated(p, p * p + variance_share * p * (1 - p), (1 - entropy_share) * entropy, own)


def switched_off(network: nn.Module) -> nn.Module:
    """Sets every dropout probability to 0, in place: the network answers in one pass."""
    for part in network.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return network


def entropy_of_logits(logits: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Probabilities `[N, K, *S]` and entropies in nats `[N, E, *S]`."""
    if activation is Activation.SIGMOID:
        p = torch.sigmoid(logits)
        return p, functional.softplus(logits) - p * logits
    logs = torch.log_softmax(logits, 1)
    p = torch.exp(logs)
    return p, -(p * logs).sum(1, keepdim=True)


def two_logits(logits: Tensor, activation: Activation) -> Tensor:
    """Logits of exclusive classes: of a single sigmoid, those of (not, it)."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if activation is Activation.SIGMOID else logits
