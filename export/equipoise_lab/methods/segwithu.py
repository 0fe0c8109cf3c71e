"""SegWithU: one forward pass, uncertainty from small perturbations of the logits (arXiv 2604.15271).

The backbone is frozen; a head on the inputs of its last decoder blocks learns R probes, whose signed sums perturb the
logits. How much the probabilities move is the epistemic uncertainty; a map `U_cal` tempers the logits, and `U_rnk`
ranks voxels by how likely they are wrong. Formulas and losses as METHODS §7 and the paper's own code state them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from equipoise_core.contract import Activation
from torch import Tensor, nn
from torch.nn import functional

from ..reference.networks import CONVOLUTION, UNet
from .stated import entropy_of_logits, stated, switched_off, two_logits

PROBES = 8
BLOCKS = 2
"""Decoder blocks, the last ones, whose inputs the head sees."""

MARGIN_DECAY = 4.0
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def first_convolution(block: nn.Module) -> nn.Conv2d | nn.Conv3d:
    """Of a decoder block."""
    return next(part for part in block.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d)))


def sign_pattern(probes: int) -> Tensor:
    """`[R, R]` of ±1: `s_{i,r} = sign cos(π i (r + ½)/R)`, i = 1..R down the rows, r = 0..R − 1.

    In whole numbers: the cosine of π·i(2r + 1)/(2R) is negative where i(2r + 1) lies beyond R and before 3R, modulo 4R.
    Row R has cosine 0 everywhere, whose sign is a matter of rounding; it counts as +1 here.
    """
    i, r = torch.arange(1, probes + 1)[:, None], torch.arange(probes)[None]
    angle = (i * (2 * r + 1)) % (4 * probes)
    return torch.where((angle > probes) & (angle < 3 * probes), -1.0, 1.0)


@dataclass(frozen=True)
class Maps:
    """`[N, 1, *S]` each, but for the logits `[N, C, *S]` of C exclusive classes.

    Attributes:
        logits: of the frozen backbone.
        tempered: the same over √(1 + U_cal).
        delta: what all probes together add to the logits.
        square: `[N, C, *S]`: variance over the perturbations of each class's probability.
        epistemic, residual, calibration, ranking, anchor: U_epi, res, U_cal, U_rnk and its anchor.
        weight: e^(−4·margin): 1 where two classes are equally probable.
    """

    logits: Tensor
    tempered: Tensor
    delta: Tensor
    square: Tensor
    epistemic: Tensor
    residual: Tensor
    calibration: Tensor
    ranking: Tensor
    anchor: Tensor
    weight: Tensor


class SegWithU(nn.Module):
    """A trained U-Net with the head.

    Args:
        backbone: frozen here, its dropout off.
        width: channels of the head's features: 32 in the paper; less where the backbone itself is as small as ours, for
            the pass is not to cost much more than the backbone's.
    """

    def __init__(self, backbone: UNet, rank: int, activation: Activation, width: int) -> None:
        super().__init__()
        switched_off(backbone)
        self.backbone = backbone.requires_grad_(False).eval()
        self.activation = activation
        self.mode = INTERPOLATION[rank]
        classes = backbone.head.out_channels + (activation is Activation.SIGMOID)
        widths = [first_convolution(block).in_channels for block in backbone.decoder][:BLOCKS]  # finest first
        self.project = nn.ModuleList(CONVOLUTION[rank](inputs, width, 1, bias=False) for inputs in widths)
        self.fuse = nn.Sequential(
            CONVOLUTION[rank](BLOCKS * width, width, 3, padding=1, bias=False),
            INSTANCE_NORM[rank](width, affine=True),
            nn.GELU(),
            CONVOLUTION[rank](width, width, 3, padding=1, bias=False),
            INSTANCE_NORM[rank](width, affine=True),
            nn.GELU(),
        )
        self.probe = CONVOLUTION[rank](width, PROBES, 1, bias=False)
        self.to_class = CONVOLUTION[rank](PROBES, classes, 1, bias=False)
        self.alpha = nn.Parameter(torch.full((PROBES,), math.log(math.expm1(0.1))))
        self.aleatoric = CONVOLUTION[rank](width, 1, 1)
        self.calibration = CONVOLUTION[rank](3, 1, 1)
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(start)) for start in (1.0, 0.0, 0.0))
        self.signs: Tensor
        self.register_buffer("signs", sign_pattern(PROBES), persistent=False)

    def maps(self, image: Tensor) -> Maps:
        """Image `[N, 1, *S]` → everything that the losses look at."""
        *entered, last = self.backbone.decoded(image)
        z = two_logits(self.backbone.head(last), self.activation)
        features = self.fuse(
            torch.cat([self._resized(p, x, z) for p, x in zip(self.project, entered[::-1], strict=False)], 1)
        )
        sigma = functional.softplus(self.alpha) + 1e-6
        scaled = self.probe(features) * sigma.reshape(1, -1, *[1] * (image.dim() - 2))
        p = torch.softmax(z, 1)
        total, squares = torch.zeros_like(z), torch.zeros_like(z)
        for signs in self.signs:  # one after the other: all at once would hold R maps per class
            moved = torch.softmax(z + self.to_class(scaled * signs.reshape(1, -1, *[1] * (image.dim() - 2))), 1) - p
            total, squares = total + moved, squares + moved * moved
        variance = functional.relu(squares / PROBES - (total / PROBES) ** 2)  # of differences from p: no cancellation
        delta = self.to_class(scaled)
        epistemic, residual = variance.sum(1, keepdim=True), (delta * delta).mean(1, keepdim=True)
        margin = self._margin(p)
        weight = torch.exp(-MARGIN_DECAY * margin.detach())
        seen = [epistemic + residual, functional.softplus(self.aleatoric(features))]
        calibration = functional.softplus(self.calibration(torch.cat([*map(torch.log1p, seen), margin], 1)))
        entropy = -(p * torch.log_softmax(z, 1)).sum(1, keepdim=True)
        anchor = (
            torch.log1p(epistemic)
            + 0.5 * torch.log1p(residual)
            + 0.25 * torch.log1p(calibration)
            + 0.25 * entropy / max(math.log(z.shape[1]), 1.0)
            + weight
        )
        ranking = (1 + 0.1 * torch.tanh(self.a)) * anchor + self.b + functional.softplus(self.c) * weight
        tempered = z / torch.sqrt(1 + calibration)
        return Maps(z, tempered, delta, variance, epistemic, residual, calibration, ranking, anchor, weight)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, *S]` → `stated` moments `[N, 2K + E + 1, *S]`.

        The mean is the tempered probability, its epistemic variance the one over the perturbations; entropy is shared
        out as variance is.
        """
        maps = self.maps(image)
        logits, square = maps.tempered, maps.square
        if self.activation is Activation.SIGMOID:
            logits, square = logits[:, 1:] - logits[:, :1], square[:, 1:]
        p, entropy = entropy_of_logits(logits, self.activation)
        spread = (p * (1 - p)).sum(1, keepdim=True)
        share = (square.sum(1, keepdim=True) / spread.clamp_min(1e-6)).clamp(0, 1)
        return stated(p, p * p + square, (1 - share) * entropy, maps.ranking)

    def _resized(self, project: nn.Module, features: Tensor, like: Tensor) -> Tensor:
        projected: Tensor = project(features)
        if projected.shape[2:] == like.shape[2:]:
            return projected
        return functional.interpolate(projected, size=like.shape[2:], mode=self.mode, align_corners=False)

    @staticmethod
    def _margin(p: Tensor) -> Tensor:
        if p.shape[1] == 2:
            return (p[:, 1:] - p[:, :1]).abs()
        top = p.topk(2, 1).values
        return top[:, :1] - top[:, 1:]


def loss(network: nn.Module, image: Tensor, target: Tensor, pairs: int = 65_536) -> Tensor:
    """The paper's sum: tempered likelihood, ranking against errors (three ways), and three that keep the head small.

    Errors are those of the untempered logits; every ranking loss sees U_rnk with mean 0 and deviation 1.
    """
    assert isinstance(network, SegWithU)
    m = network.maps(image)
    wrong = (m.logits.argmax(1) != target).flatten()
    rank, anchor = _standardised(m.ranking.flatten()), _standardised(m.anchor.detach().flatten())
    p, moved = torch.softmax(m.logits, 1), torch.softmax(m.logits + m.delta, 1)
    trust = (m.delta**2).mean() + 0.25 * ((moved - p) ** 2).mean()
    return (
        0.5 * functional.cross_entropy(m.tempered, target)
        + 0.25 * functional.binary_cross_entropy_with_logits(rank, wrong.float())
        + 0.25 * pairwise(rank, wrong, pairs)
        + 0.25 * (torch.softmax(-m.ranking.flatten() / 0.25, 0) * wrong).sum()
        + 0.05 * trust
        + 0.05 * functional.smooth_l1_loss(rank, anchor)
        + 0.05 * ((1 - m.weight).detach() * m.residual).mean()
    )


def pairwise(rank: Tensor, wrong: Tensor, pairs: int) -> Tensor:
    """Mean softplus of (right − wrong) over random pairs of a wrong and a right voxel; 0 where there is none."""
    bad, good = torch.nonzero(wrong)[:, 0], torch.nonzero(~wrong)[:, 0]
    if not len(bad) or not len(good):
        return rank.new_zeros(())
    count = min(pairs, len(bad) * len(good))
    chosen_bad = bad[torch.randint(len(bad), (count,))]
    chosen_good = good[torch.randint(len(good), (count,))]
    return functional.softplus(rank[chosen_good] - rank[chosen_bad]).mean()


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std(unbiased=False) + 1e-6)
