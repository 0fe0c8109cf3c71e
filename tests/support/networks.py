"""Small networks of the kinds that people train with dropout: what the exporter's tests export."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLING = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


def double(rank: int, inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [CONVOLUTION[rank](channels, outputs, 3, padding=1, bias=False), NORM[rank](outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net with channel dropout at the bottleneck and, with `levels`, in that many decoder levels above it."""

    def __init__(
        self, rank: int, channels: int, classes: int, widths: tuple[int, ...], dropout: float = 0.2, where: str = "deep"
    ) -> None:
        super().__init__()
        shallower, deeper = widths[:-1], widths[1:]
        self.encoder = nn.ModuleList(double(rank, i, o) for i, o in zip((channels, *shallower), widths, strict=True))
        self.pool = POOLING[rank](2)
        self.bottleneck_dropout = DROPOUT[rank](dropout) if where == "deep" else nn.Identity()
        self.up = nn.ModuleList(
            TRANSPOSED[rank](below, width, 2, stride=2) for width, below in zip(shallower, deeper, strict=True)
        )
        self.decoder = nn.ModuleList(double(rank, 2 * width, width) for width in shallower)
        self.decoder_dropout = nn.ModuleList(
            DROPOUT[rank](dropout) if (level > 0 if where == "deep" else level < 2) else nn.Identity()
            for level in range(len(shallower))
        )
        self.head = CONVOLUTION[rank](widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder[0](image)
        skips = []
        for block in self.encoder[1:]:
            skips.append(features)
            features = block(self.pool(features))
        features = self.bottleneck_dropout(features)
        for level in reversed(range(len(self.up))):
            joined = torch.cat([skips[level], self.up[level](features)], dim=1)
            features = self.decoder_dropout[level](self.decoder[level](joined))
        return self.head(features)


class Classifier(nn.Module):
    """Channel dropout after the last block, ordinary dropout in the head."""

    def __init__(self, channels: int = 1, classes: int = 3, dropout: float = 0.3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(double(2, channels, 8), nn.MaxPool2d(2), double(2, 8, 16))
        self.channel_dropout = nn.Dropout2d(dropout)
        self.mix = nn.Conv2d(16, 16, 1)
        self.head_dropout = nn.Dropout(dropout, inplace=True)
        self.head = nn.Linear(16, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.mix(self.channel_dropout(self.trunk(image))))
        return self.head(self.head_dropout(features.mean((2, 3))))


class Tiny(nn.Module):
    """Dropout on the mean of the image: as little as a network can do."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(functional.adaptive_avg_pool2d(image, 4).flatten(1)))


class EveryKind(nn.Module):
    """One of each stochastic construct: in-place, alpha, functional, bernoulli, rand, attention in both layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.in_place = nn.Dropout(0.1, inplace=True)
        self.alpha = nn.AlphaDropout(0.2)
        self.feature_alpha = nn.FeatureAlphaDropout(0.2)
        self.batch_second = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=False)
        self.batch_first = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.feature_alpha(self.first(image)))
        x = self.alpha(self.in_place(features.mean((2, 3))))
        x = functional.dropout(x, 0.3, self.training)
        if self.training:
            x = x * x.new_empty((x.shape[0], 1)).bernoulli_(0.8).div_(0.8)
            x = x / 0.9 * (0.9 + torch.rand((x.shape[0], 1))).floor_()
        steps = torch.stack([x, 2 * x, 3 * x])
        steps = self.batch_second(steps)
        return self.head(self.batch_first(steps.transpose(0, 1))[:, 0])


class TwoHeads(nn.Module):
    """Heteroscedastic U-Net: logits and log σ² of the logits."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = UNet(2, 1, 2 * classes, (4, 8, 16))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits, noise = self.body(image).chunk(2, 1)
        return {"logits": logits, "log_variance": noise}


class Hybrid(nn.Module):
    """TransUNet-like: convolutions down, a transformer over the bottleneck's tokens, a decoder with skips up."""

    def __init__(self, classes: int = 2, size: int = 4) -> None:
        super().__init__()
        self.first, self.second = double(2, 1, 8), double(2, 8, 16)
        self.pool = nn.MaxPool2d(2)
        self.position = nn.Parameter(torch.randn(1, size * size, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.drop = nn.Dropout(0.1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.decoder = nn.ModuleList([double(2, 32, 16), double(2, 16, 8)])
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        one = self.first(image)
        two = self.second(self.pool(one))
        deep = self.pool(two)
        tokens = self.drop(deep.flatten(2).transpose(1, 2) + self.position)
        tokens = self.transformer(tokens)
        deep = tokens.transpose(1, 2).reshape(deep.shape)
        deep = self.decoder[0](torch.cat([two, self.up[0](deep)], 1))
        return self.head(self.decoder[1](torch.cat([one, self.up[1](deep)], 1)))
