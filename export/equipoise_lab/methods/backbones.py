"""Two more backbones for Monte Carlo dropout, of the same size and with dropout in the same places as the U-Net's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..reference.networks import CONVOLUTION, DROPOUT, POOLING, TRANSPOSED, UNet, convolution, double_convolution


class UNetPlusPlus(nn.Module):
    """Nested U-Net: node (i, j) sees all nodes before it on its level, and the node below it.

    Zhou et al., "UNet++: a nested U-Net architecture for medical image segmentation", DLMIA 2018 (without deep
    supervision). Channel dropout acts on what comes up from below, as in `UNet`.

    Args:
        rank, classes, encoder, dropout: as for `UNet`.
        nested: channels of the nodes (i, j ≥ 1) of each level, from full resolution on.
    """

    def __init__(self, rank: int, classes: int, encoder: Sequence[int], nested: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.depth = len(nested)
        self.encoder = nn.ModuleList(
            double_convolution(rank, inputs, outputs) for inputs, outputs in pairwise((1, *encoder))
        )
        self.pool = POOLING[rank](2)
        self.up, self.dropout, self.nodes = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                below = encoder[i + 1] if j == 1 else nested[i + 1]
                key = f"{i}_{j}"
                self.dropout[key] = DROPOUT[rank](dropout)
                self.up[key] = TRANSPOSED[rank](below, nested[i], 2, stride=2)
                self.nodes[key] = convolution(rank, encoder[i] + j * nested[i], nested[i])
        self.head = CONVOLUTION[rank](nested[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, *S]`, each S divisible by 2 to the number of halvings → logits `[N, K, *S]`."""
        levels = [[self.encoder[0](image)]]
        for block in self.encoder[1:]:
            levels.append([block(self.pool(levels[-1][0]))])
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                key = f"{i}_{j}"
                risen = self.up[key](self.dropout[key](levels[i + 1][-1]))
                levels[i].append(self.nodes[key](torch.cat([*levels[i], risen], dim=1)))
        logits: Tensor = self.head(levels[0][-1])
        return logits


class TransformerLayer(nn.Module):
    """Self-attention and a small perceptron over the tokens of a feature map, each with a shortcut around it.

    Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021. Positions come from a depthwise convolution (Chu et
    al. 2021, conditional positional encoding), so that every size of image is taken.
    """

    def __init__(self, rank: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.position = CONVOLUTION[rank](width, width, 3, padding=1, groups=width)
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width)))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.ModuleList((nn.Dropout1d(dropout), nn.Dropout1d(dropout)))

    def forward(self, features: Tensor) -> Tensor:
        """`[N, C, *S]` → `[N, C, *S]`."""
        features = features + self.position(features)
        tokens = features.flatten(2).transpose(1, 2)  # [N, L, C]
        tokens = tokens + self._dropped(0, self._attention(self.norms[0](tokens)))
        tokens = tokens + self._dropped(1, self.perceptron(self.norms[1](tokens)))
        return tokens.transpose(1, 2).reshape(features.shape)

    def _attention(self, tokens: Tensor) -> Tensor:
        split = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended

    def _dropped(self, index: int, tokens: Tensor) -> Tensor:
        """Features of all tokens at once: a bit for each of them, whatever the image's size."""
        dropped: Tensor = self.dropout[index](tokens.transpose(1, 2)).transpose(1, 2)
        return dropped


class TransUNet(UNet):
    """A U-Net whose bottleneck is a transformer over the coarsest feature map.

    After Chen et al., "TransUNet: transformers make strong encoders for medical image segmentation", 2021
    (arXiv 2102.04306); two layers instead of twelve, no pretraining.
    """

    def __init__(
        self, rank: int, classes: int, encoder: Sequence[int], decoder: Sequence[int], dropout: float, layers: int = 2
    ) -> None:
        super().__init__(rank, classes, encoder, decoder, dropout)
        transformer = (TransformerLayer(rank, encoder[-1], 4, dropout) for _ in range(layers))
        self.encoder[-1] = nn.Sequential(self.encoder[-1], *transformer)


def unet_plus_plus(rank: int, classes: int) -> UNetPlusPlus:
    """`[N, 1, *S]`, each S divisible by 8 → logits `[N, K, *S]`; about the reference U-Net's multiplications."""
    if rank == 3:
        return UNetPlusPlus(3, classes, encoder=(16, 32, 64, 64), nested=(8, 16, 32), dropout=0.2)
    return UNetPlusPlus(2, classes, encoder=(16, 32, 64, 128), nested=(12, 24, 48), dropout=0.2)


def trans_unet(rank: int, classes: int) -> TransUNet:
    """`[N, 1, *S]`, each S divisible by 8 → logits `[N, K, *S]`; the reference U-Net with two transformer layers."""
    if rank == 3:
        return TransUNet(3, classes, encoder=(16, 32, 64, 64), decoder=(8, 24, 48), dropout=0.2)
    return TransUNet(2, classes, encoder=(16, 32, 64, 128), decoder=(16, 32, 64), dropout=0.2)
