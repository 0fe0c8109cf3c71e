"""Every way to be random that people write, one small layer each: `[N, 8, 8, 8]` to the same shape.

`SITES` says what each must become: kind, units of one sample, and the probability of dropping.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Written(nn.Module):
    """A layer that calls a function while training."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.training else x


class DropBlock(nn.Module):
    """As its authors wrote it: seeds grow to blocks by max pooling; kept activations are scaled by their share.

    Case `couple`: one pattern for all channels, normalised by `numel / sum`; otherwise one for each, by the mean.
    """

    def __init__(self, p: float = 0.2, size: int = 3, couple: bool = True) -> None:
        super().__init__()
        self.p, self.size, self.couple = p, size, couple

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        seeds = torch.rand(x.shape[0], *x.shape[2:]) if self.couple else torch.rand_like(x)
        seeds = (seeds < self.p / self.size**2).float()
        if self.couple:
            blocks = functional.max_pool2d(seeds[:, None], self.size, 1, self.size // 2)
            keep = 1 - (blocks if self.size % 2 else blocks[:, :, :-1, :-1]).squeeze(1)
            return x * keep[:, None] * keep.numel() / keep.sum()
        keep = 1 - functional.max_pool2d(seeds, self.size, 1, self.size // 2)
        return x * keep / keep.mean()


class DropBlockOfSizes(nn.Module):
    """As torchvision and timm write it: the seeds' probability follows from the sizes, and they are drawn in place."""

    def __init__(self, p: float = 0.2, size: int = 3) -> None:
        super().__init__()
        self.p, self.size = p, size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        n, _, height, width = x.shape
        inside = (height - self.size + 1) * (width - self.size + 1)
        seeds = torch.empty((n, 1, height, width)).bernoulli_(self.p * height * width / self.size**2 / inside)
        keep = 1.0 - functional.max_pool2d(seeds, self.size, 1, self.size // 2)
        keep.mul_((keep.numel() / keep.to(torch.float32).sum().add(1e-7)).to(x.dtype))
        return x * keep


class DropBlockByConvolution(nn.Module):
    """Seeds grow to blocks by a convolution with ones."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        seeds = torch.bernoulli(torch.full_like(x[:, :1], 0.03))
        keep = 1 - (functional.conv2d(seeds, torch.ones(1, 1, 3, 3), padding=1) > 0).float()
        return x * keep * (keep.numel() / (keep.sum() + 1e-6))


class KeepsItsOwnP(nn.Module):
    """The probability is a weight of the network."""

    def __init__(self, drawn: str) -> None:
        super().__init__()
        self.drawn = drawn
        self.register_buffer("p", torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand_like(x) > self.p if self.drawn == "rand" else torch.bernoulli((1 - self.p).expand(x.shape))
        return x * keep / (1 - self.p)


class AlwaysOn(nn.Dropout):
    """Monte Carlo dropout as users write it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, True)


class Attends(nn.Module):
    """Attention over 64 tokens of 8 features, with dropout on its weights."""

    def __init__(self, layer: nn.MultiheadAttention, need_weights: bool) -> None:
        super().__init__()
        self.layer, self.need_weights = layer, need_weights

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if not self.layer.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.layer(tokens, tokens, tokens, need_weights=self.need_weights)[0]
        if not self.layer.batch_first:
            tokens = tokens.transpose(0, 1)
        return x + tokens.transpose(1, 2).reshape(x.shape)


class SharesKeys(nn.Module):
    """Four query heads share two key heads (grouped-query attention)."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.flatten(2).unflatten(1, (4, 2)).transpose(2, 3)
        few = heads[:, :2]
        p = 0.2 if self.training else 0.0
        out = functional.scaled_dot_product_attention(heads, few, few, dropout_p=p, enable_gqa=True)
        return out.transpose(2, 3).reshape(x.shape)


class Recurs(nn.Module):
    """Two recurrent layers over the rows, with dropout between them."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers = kind(8, 8, 2, dropout=0.2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x[:, 0])[0].mean(-1)[:, None, :, None]


class Embeds(nn.Module):
    """Dropout on a position embedding, which is one for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.position)


def filled(x: Tensor) -> Tensor:
    """Assignment by a mask."""
    x = x.clone()
    x[torch.rand_like(x) < 0.2] = 0.0
    return x / 0.8


def floored(x: Tensor) -> Tensor:
    """Stochastic depth of old."""
    return x.div(0.8) * torch.rand(x.shape[0], 1, 1, 1).add(0.8).floor()


Made = Callable[[], nn.Module]
Site = tuple[str, tuple[int, ...], float]
ALL, CHANNELS, PLANE = (8, 8, 8), (8,), (8, 8)


def written(function: Callable[[Tensor], Tensor]) -> Made:
    return lambda: Written(function)


LAYERS: dict[str, tuple[Made, Site]] = {
    "Dropout": (lambda: nn.Dropout(0.2), ("element", ALL, 0.2)),
    "Dropout in place": (lambda: nn.Dropout(0.2, inplace=True), ("element", ALL, 0.2)),
    "Dropout1d": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Dropout1d(0.2), nn.Unflatten(2, (8, 8))),
        ("channel", CHANNELS, 0.2),
    ),
    "Dropout2d": (lambda: nn.Dropout2d(0.2), ("channel", CHANNELS, 0.2)),
    "Dropout3d": (
        lambda: nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Dropout3d(0.2), nn.Flatten(1, 2)),
        ("channel", CHANNELS, 0.2),
    ),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.2), ("element", ALL, 0.2)),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.2), ("channel", CHANNELS, 0.2)),
    "dropout": (written(lambda x: functional.dropout(x, 0.2)), ("element", ALL, 0.2)),
    "dropout1d": (
        written(lambda x: functional.dropout1d(x.flatten(2), 0.2).view_as(x)),
        ("channel", CHANNELS, 0.2),
    ),
    "dropout2d in place": (
        written(lambda x: functional.dropout2d(x.clone(), 0.2, True, True)),
        ("channel", CHANNELS, 0.2),
    ),
    "alpha_dropout": (written(lambda x: functional.alpha_dropout(x, 0.2, True)), ("element", ALL, 0.2)),
    "feature_alpha_dropout": (
        written(lambda x: functional.feature_alpha_dropout(x, 0.2, True)),
        ("channel", CHANNELS, 0.2),
    ),
    "always on": (lambda: AlwaysOn(0.2), ("element", ALL, 0.2)),
    "rand < keep": (written(lambda x: x * (torch.rand_like(x) < 0.8).float() / 0.8), ("element", ALL, 0.2)),
    "keep > rand": (
        written(lambda x: x * torch.gt(torch.tensor(0.8), torch.rand(x.shape)) / 0.8),
        ("element", ALL, 0.2),
    ),
    "rand > p": (
        written(lambda x: torch.where(torch.rand(x.shape) > 0.2, x / 0.8, torch.zeros(()))),
        ("element", ALL, 0.2),
    ),
    "where drop": (
        written(lambda x: torch.where(torch.rand(x.shape) < 0.2, torch.zeros(()), x / 0.8)),
        ("element", ALL, 0.2),
    ),
    "masked_fill": (written(lambda x: x.masked_fill(torch.rand_like(x) < 0.2, 0.0) / 0.8), ("element", ALL, 0.2)),
    "x[mask] = 0": (written(filled), ("element", ALL, 0.2)),
    "1 - (rand < p)": (
        written(lambda x: x * (1 - (torch.rand(x.shape[0], 8, 1, 1) < 0.2).float())),
        ("channel", CHANNELS, 0.2),
    ),
    "uniform_": (
        written(lambda x: x * (x.new_empty(x.shape[0], 8, 1, 1).uniform_(-1, 1) < 0.6) / 0.8),
        ("channel", CHANNELS, 0.2),
    ),
    "ceil": (written(lambda x: x * torch.ceil(torch.rand_like(x) - 0.2) / 0.8), ("element", ALL, 0.2)),
    "add keep, floor": (written(floored), ("path", (), 0.2)),
    "bernoulli": (written(lambda x: x * torch.bernoulli(torch.full_like(x, 0.8)) / 0.8), ("element", ALL, 0.2)),
    "bernoulli, p by name": (written(lambda x: x * torch.bernoulli(x, p=0.8) / 0.8), ("element", ALL, 0.2)),
    "bernoulli to drop": (
        written(lambda x: x * (1 - torch.bernoulli(torch.full_like(x, 0.2))) / 0.8),
        ("element", ALL, 0.2),
    ),
    "bernoulli to drop, half": (
        written(lambda x: x * (1 - torch.bernoulli(torch.full_like(x, 0.5))) * 2),
        ("element", ALL, 0.5),
    ),
    "bernoulli_ of a mask": (
        written(lambda x: x * torch.empty(x.shape, dtype=torch.bool).bernoulli_(0.8)),
        ("element", ALL, 0.2),
    ),
    "Bernoulli distribution": (
        written(lambda x: x * torch.distributions.Bernoulli(0.8).sample(x.shape) / 0.8),
        ("element", ALL, 0.2),
    ),
    "p is a buffer, rand": (lambda: KeepsItsOwnP("rand"), ("element", ALL, 0.2)),
    "p is a buffer, bernoulli": (lambda: KeepsItsOwnP("bernoulli"), ("element", ALL, 0.2)),
    "one draw for the batch": (written(lambda x: x * (torch.rand(1) < 0.8)), ("path", (), 0.2)),
    "stochastic depth of a batch": (
        written(lambda x: x * torch.empty(1, 1, 1, 1).bernoulli_(0.8).div_(0.8)),
        ("path", (), 0.2),
    ),
    "position embedding": (Embeds, ("element", ALL, 0.2)),
    "DropBlock": (DropBlock, ("element", PLANE, 0.2 / 9)),
    "DropBlock of even size": (lambda: DropBlock(0.2, 2), ("element", PLANE, 0.05)),
    "DropBlock for each channel": (lambda: DropBlock(0.2, 3, False), ("element", ALL, 0.2 / 9)),
    "DropBlock of sizes": (DropBlockOfSizes, ("element", PLANE, 0.2 * 64 / 9 / 36)),
    "DropBlock by convolution": (DropBlockByConvolution, ("element", PLANE, 0.03)),
    "MultiheadAttention": (
        lambda: Attends(nn.MultiheadAttention(8, 2, 0.2, batch_first=True), False),
        ("attention", (2, 64, 64), 0.2),
    ),
    "MultiheadAttention with weights": (
        lambda: Attends(nn.MultiheadAttention(8, 2, 0.2), True),
        ("attention", (2, 64, 64), 0.2),
    ),
    "attention that shares keys": (SharesKeys, ("attention", (4, 64, 64), 0.2)),
    "LSTM": (lambda: Recurs(nn.LSTM), ("element", (8, 16), 0.2)),
    "GRU": (lambda: Recurs(nn.GRU), ("element", (8, 16), 0.2)),
    "RNN": (lambda: Recurs(nn.RNN), ("element", (8, 16), 0.2)),
}


class Around(nn.Module):
    """A classifier with one layer in its middle."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.layer = layer
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.first(image))).mean((2, 3)))
