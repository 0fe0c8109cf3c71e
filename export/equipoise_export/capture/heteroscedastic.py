"""The average over the noise that a heteroscedastic network states for its logits."""

from __future__ import annotations

import numpy as np
import torch
from equipoise_core.contract import Activation
from torch import Tensor, nn

from .answer import Place


class Heteroscedastic(nn.Module):
    """A network that also answers how noisy its logits are: p = E[activation(f + σ·ε)], ε ~ N(0, 1) per class.

    Kendall & Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?", NeurIPS 2017, eq. 12,
    with fixed nodes for ε instead of random ones, so that nothing is drawn in the graph:
    Case 1, sigmoid, and Case 2, softmax of two classes (in the difference of its logits): Gauss–Hermite, 9 nodes.
    Case 3, softmax of more: 16 scrambled Sobol points and their mirror images.
    The answer is given as logits: log p, or log p − log(1 − p) for a sigmoid.
    """

    def __init__(
        self, network: nn.Module, mean: Place, log_variance: Place, activation: Activation, classes: int
    ) -> None:
        super().__init__()
        self.equipoise_network = network  # `marker.WRAPPED`
        self.mean, self.log_variance = mean, log_variance
        self.softmax = activation is Activation.SOFTMAX
        self.pair = self.softmax and classes == 2
        if self.softmax and not self.pair:
            half = torch.quasirandom.SobolEngine(classes, scramble=True, seed=0).draw(16).clamp(1e-4, 1 - 1e-4)
            half = torch.special.ndtri(half)
            self.nodes = torch.cat([half, -half]).tolist()
            self.weights = [1 / 32] * 32
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(9)
            self.nodes = nodes.tolist()
            self.weights = (weights / weights.sum()).tolist()

    notes: tuple[str, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        """`[N, C, *S]` → logits `[N, K(, *S)]`."""
        outputs = self.equipoise_network(self.mean.seen(image))
        f, sigma = self.mean.of(outputs, image), torch.exp(0.5 * self.log_variance.of(outputs, image))
        if self.pair:
            sigma = torch.sqrt((sigma**2).sum(1, keepdim=True))
            f = f[:, 1:] - f[:, :1]
        p = torch.zeros_like(f)
        for node, weight in zip(self.nodes, self.weights, strict=True):
            if isinstance(node, list):
                shift = f.new_tensor(node).reshape(1, -1, *[1] * (f.dim() - 2))
                p = p + weight * torch.softmax(f + sigma * shift, 1)
            else:
                p = p + weight * torch.sigmoid(f + sigma * node)
        p = p.clamp(1e-7, 1 - 1e-7)
        if self.softmax and not self.pair:
            return torch.log(p)
        z = torch.log(p) - torch.log1p(-p)
        return torch.cat([torch.zeros_like(z), z], 1) if self.pair else z
