"""A network that also answers how noisy the data is: aleatoric uncertainty from its head, epistemic from its masks.

Kendall & Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?", NeurIPS 2017, eq. 12;
`capture.heteroscedastic` has the average over the noise, in training as in service.
"""

from __future__ import annotations

from equipoise_core.contract import Activation
from equipoise_export.capture.answer import Place
from equipoise_export.capture.heteroscedastic import Heteroscedastic
from torch import Tensor, nn

from ..reference.networks import UNet
from ..reference.training import loss_of, quickly

LOGITS, LOG_VARIANCE = "logits", "log_variance"


class HeteroscedasticUNet(nn.Module):
    """A U-Net whose head also gives log σ² of every logit.

    Args:
        backbone: trained; its head is widened, the rest keeps its weights to start from.
    """

    def __init__(self, backbone: UNet) -> None:
        super().__init__()
        self.classes = backbone.head.out_channels
        backbone.widen_head(self.classes, bias=-2.0)
        self.backbone = backbone

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """`[N, 1, *S]` → `logits` and `log_variance`, `[N, K, *S]` each; log σ² between −10 and 4."""
        logits, log_variance = self.backbone(image).split(self.classes, 1)
        return {LOGITS: logits, LOG_VARIANCE: log_variance.clamp(-10.0, 4.0)}


class _Outputs(nn.Module):
    """Hands on what was computed, so that the average over the noise is the one that is served."""

    def forward(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return outputs


def loss(activation: Activation, dice_weight: float, network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (and Dice) of the probabilities averaged over the noise."""
    assert isinstance(network, HeteroscedasticUNet)
    outputs = {name: tensor.float() for name, tensor in quickly(network, image).items()}
    averaged = Heteroscedastic(_Outputs(), Place((LOGITS,)), Place((LOG_VARIANCE,)), activation, network.classes)
    return loss_of(averaged(outputs), target, activation.value, dice_weight)
