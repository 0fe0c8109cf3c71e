"""The three reference networks: ordinary PyTorch modules whose dropout sits where sampling is cheap.

Dropout acts from the bottleneck on (segmentation) or in the last block and the head (classification): everything
before it is the trunk, which the sampler computes once for all samples of an image. Spatial dropout drops whole
channels (Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015), so a sample costs
as many mask bits as there are channels, whatever the image's size. BatchNorm folds into the convolutions at export.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLING = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


def convolution(rank: int, inputs: int, outputs: int) -> nn.Sequential:
    """Convolution (3 voxels wide, size kept), BatchNorm, ReLU: `[N, inputs, *S]` → `[N, outputs, *S]`."""
    return nn.Sequential(CONVOLUTION[rank](inputs, outputs, 3, padding=1, bias=False), NORM[rank](outputs), nn.ReLU())


def double_convolution(rank: int, inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions in a row: `[N, inputs, *S]` → `[N, outputs, *S]`."""
    return nn.Sequential(convolution(rank, inputs, outputs), convolution(rank, outputs, outputs))


class UNet(nn.Module):
    """U-Net in two or three dimensions with channel dropout at its bottleneck and in its decoder.

    Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015; dropout in the
    central layers as in Kendall et al., "Bayesian SegNet", BMVC 2017. The decoder runs once per sample and the encoder
    once per image, so the decoder is the lighter one: one convolution a level and narrower where voxels are many. The
    last level has no dropout of its own: it already sees the masks of the levels below.

    Args:
        rank: spatial dimensions, 2 or 3.
        classes: K, channels of the output.
        encoder: channels of each level from full resolution to the bottleneck; each level halves the size.
        decoder: channels of each level from full resolution to the one above the bottleneck.
        dropout: probability that a channel is dropped, in (0, 1).
    """

    def __init__(self, rank: int, classes: int, encoder: Sequence[int], decoder: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            double_convolution(rank, inputs, outputs) for inputs, outputs in pairwise((1, *encoder))
        )
        self.pool = POOLING[rank](2)
        self.dropout = nn.ModuleList(DROPOUT[rank](dropout) for _ in decoder)
        self.up = nn.ModuleList(
            TRANSPOSED[rank](below, outputs, 2, stride=2) for outputs, below in pairwise((*decoder, encoder[-1]))
        )
        self.decoder = nn.ModuleList(
            convolution(rank, skip + outputs, outputs) for skip, outputs in zip(encoder[:-1], decoder, strict=True)
        )
        self.head = CONVOLUTION[rank](decoder[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, *S]`, each S divisible by 2 to the number of halvings → logits `[N, K, *S]`."""
        logits: Tensor = self.head(self.decoded(image)[-1])
        return logits

    def widen_head(self, channels: int, bias: float) -> None:
        """Gives the head so many more channels, near 0 and with this bias; those that it has stay as they are."""
        old = self.head
        head = CONVOLUTION[len(old.kernel_size)](old.in_channels, old.out_channels + channels, 1)
        with torch.no_grad():
            for before, after in zip(old.parameters(), head.parameters(), strict=True):
                after.mul_(0.1)
                after[: old.out_channels] = before
            head.bias[old.out_channels :] = bias  # type: ignore[index]
        self.head = head

    def decoded(self, image: Tensor) -> list[Tensor]:
        """What enters each block of the decoder, from the coarsest on, and what leaves the last one."""
        features = self.encoder[0](image)
        skips = []
        for block in self.encoder[1:]:
            skips.append(features)
            features = block(self.pool(features))
        entered = []
        for dropout, up, block, skip in zip(
            reversed(self.dropout), reversed(self.up), reversed(self.decoder), reversed(skips), strict=True
        ):
            entered.append(torch.cat([skip, up(dropout(features))], dim=1))
            features = block(entered[-1])
        return [*entered, features]


class RadiographClassifier(nn.Module):
    """Small convolutional classifier with channel dropout in its last block and dropout in its head.

    Args:
        classes: K, the number of logits.
        widths: channels of the three blocks; each of the first two halves the size.
        dropout: probability that a unit is dropped, in (0, 1).
    """

    def __init__(self, classes: int, widths: tuple[int, int, int], dropout: float) -> None:
        super().__init__()
        first, second, third = widths
        self.trunk = nn.Sequential(
            double_convolution(2, 1, first),
            nn.MaxPool2d(2),
            double_convolution(2, first, second),
            nn.MaxPool2d(2),
            double_convolution(2, second, third),
        )
        self.channel_dropout = nn.Dropout2d(dropout)
        self.mix = nn.Sequential(nn.Conv2d(third, third, 1, bias=False), nn.BatchNorm2d(third), nn.ReLU())
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head_dropout = nn.Dropout(dropout)
        self.head = nn.Linear(third, classes)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, H, W]`, H and W divisible by 4 → logits `[N, K]`."""
        features = self.mix(self.channel_dropout(self.trunk(image)))
        logits: Tensor = self.head(self.head_dropout(self.mean(features).flatten(1)))
        return logits


def hippocampus() -> nn.Module:
    """`[N, 1, X, Y, Z]`, each divisible by 8 → logits `[N, 3, X, Y, Z]`: background, anterior, posterior."""
    return UNet(rank=3, classes=3, encoder=(16, 32, 64, 64), decoder=(8, 24, 48), dropout=0.2)


def pneumonia() -> nn.Module:
    """`[N, 1, 28, 28]` → logits `[N, 2]`: normal, pneumonia."""
    return RadiographClassifier(classes=2, widths=(32, 64, 96), dropout=0.3)


def nuclei() -> nn.Module:
    """`[N, 1, H, W]`, each divisible by 8 → logits `[N, 1, H, W]`: nucleus."""
    return UNet(rank=2, classes=1, encoder=(16, 32, 64, 128), decoder=(16, 32, 64), dropout=0.2)
