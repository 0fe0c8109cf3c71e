"""A deterministic student that learns what the sampler answers: its mean and its epistemic maps, in one pass.

Teacher and student as in Bulò et al., "Dropout distillation", ICML 2016, and arXiv 2007.15857: not the labels but the
sampler's mean is the target, and besides it how much of variance and of entropy is epistemic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from equipoise_core.contract import Activation
from torch import Tensor, nn
from torch.nn import functional

from ..reference.networks import UNet
from ..reference.training import quickly
from .stated import entropy_of_logits, switched_off, with_shares

Teacher = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""Image `[N, 1, *S]`, and how many images were seen before it, so that masks differ each time → mean `[N, K, *S]`,
unbiased epistemic variance `[N, K, *S]`, epistemic entropy `[N, E, *S]`."""


class Student(nn.Module):
    """A U-Net whose head also gives, per voxel, the epistemic shares of variance and of entropy.

    Args:
        backbone: trained; its head is widened, the rest keeps its weights to start from. Its dropout stays off.
    """

    def __init__(self, backbone: UNet, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.classes = backbone.head.out_channels
        self.entropies = 1 if activation is Activation.SOFTMAX else self.classes
        backbone.widen_head(self.classes + self.entropies, bias=-4.0)  # little is epistemic
        switched_off(backbone)
        self.backbone = backbone
        self.seen: Tensor  # lies in the checkpoint: a training that goes on gets the masks that it would have got
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def raw(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[N, K, *S]`, and logits of the two shares, `[N, K, *S]` and `[N, E, *S]`."""
        logits, variance, entropy = self.backbone(image).split([self.classes, self.classes, self.entropies], 1)
        return logits, variance, entropy

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, *S]` → `stated` moments; its own ranking of voxels is the epistemic entropy."""
        logits, variance, share = self.raw(image)
        p, entropy = entropy_of_logits(logits, self.activation)
        share = torch.sigmoid(share)
        own = (share * entropy).amax(1, keepdim=True)
        return with_shares(p, torch.sigmoid(variance), share, own, entropy)


def loss(teacher: Teacher, network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against the teacher's mean, and of each share against the teacher's where there is any to share.

    All three are proper: each is least where the student answers what the teacher does on average.
    """
    assert isinstance(network, Student)
    mean, variance, epistemic = teacher(image, int(network.seen))
    network.seen += len(image)
    logits, variance_share, entropy_share = (part.float() for part in quickly(network.raw, image))  # type: ignore[arg-type]
    p, entropy = entropy_of_logits(_logits_of(mean, network.activation), network.activation)
    room = p * (1 - p)
    sigmoid = network.activation is Activation.SIGMOID
    against = functional.binary_cross_entropy_with_logits if sigmoid else functional.cross_entropy
    shared = partial(functional.binary_cross_entropy_with_logits, reduction="sum")
    return (
        against(logits, mean)
        + shared(variance_share, (variance / room.clamp_min(1e-6)).clamp(0, 1), weight=room) / room.sum().clamp_min(1.0)
        + shared(entropy_share, (epistemic / entropy.clamp_min(1e-6)).clamp(0, 1), weight=entropy)
        / entropy.sum().clamp_min(1.0)
    )


def _logits_of(p: Tensor, activation: Activation) -> Tensor:
    p = p.clamp(1e-7, 1 - 1e-7)
    return torch.log(p) - torch.log1p(-p) if activation is Activation.SIGMOID else torch.log(p)
