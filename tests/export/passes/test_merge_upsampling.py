"""Both cases of the docstring against the same network without the pass, and where the pass must not act."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from equipoise_core.contract import Precision
from equipoise_export.passes import PASSES
from equipoise_export.passes.merge_upsampling import merge_upsampling
from torch import Tensor, nn

from ...support.graphs import captured, compiled, contract, packed_masks, run
from ...support.networks import CONVOLUTION, DROPOUT, TRANSPOSED

WITHOUT = tuple(step for step in PASSES if step is not merge_upsampling)


class Decoder(nn.Module):
    """One level of a decoder, all of its biases at work; the dropout before it makes it sampled."""

    def __init__(
        self,
        rank: int = 2,
        skip: bool = True,
        second: bool = False,
        between: nn.Module | None = None,
        activation: nn.Module | None = None,
        stride: int = 2,
        narrow: int = 3,
    ) -> None:
        super().__init__()
        convolution = CONVOLUTION[rank]
        self.down = convolution(1, 4, stride, stride)
        self.skip = convolution(1, 3, 1) if skip else None
        self.drop = DROPOUT[rank](0.3)
        self.up = TRANSPOSED[rank](4, narrow, stride, stride)
        self.first = convolution(narrow + 3 * skip, 3, 3, padding=1)
        self.activation = activation or nn.ReLU()
        self.between = between or DROPOUT[rank](0.3)
        self.second = convolution(3, 3, 3, padding=1) if second else nn.Identity()
        self.head = convolution(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.up(self.drop(torch.relu(self.down(image))))
        if self.skip is not None:
            features = torch.cat([self.skip(image), features], 1)
        features = self.between(self.activation(self.first(features)))
        return self.head(torch.relu(self.second(features)))


class Levels(nn.Module):
    """Two levels, one convolution each: the lower one's padding becomes that of the upper one's merged convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 6, 4, 4)
        self.middle = nn.Conv2d(1, 4, 2, 2)
        self.up = nn.ModuleList([nn.ConvTranspose2d(6, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2)])
        self.decoder = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)])
        self.drop = nn.ModuleList([nn.Dropout2d(0.3), nn.Dropout2d(0.3)])
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.up[0](self.drop[0](self.down(image)))
        features = torch.relu(self.decoder[0](torch.cat([self.middle(image), features], 1)))
        features = self.up[1](self.drop[1](features))
        return self.head(torch.relu(self.decoder[1](torch.cat([image, features], 1))))


CASES = {
    "pointwise": (Decoder(), 2),
    "pointwise, of any kind": (Decoder(activation=nn.LeakyReLU(0.1)), 2),
    "pointwise, no skip": (Decoder(skip=False), 2),
    "pointwise, 3-D": (Decoder(rank=3), 3),
    "padded": (Decoder(second=True), 2),
    "padded, nothing dropped between": (Decoder(second=True, between=nn.Identity()), 2),
    "padded, no skip": (Decoder(second=True, skip=False, between=nn.Identity()), 2),
    "padded, 3-D": (Decoder(rank=3, second=True), 3),
    "two levels": (Levels(), 2),
}
KEPT = {
    "masks of single voxels": Decoder(between=nn.Dropout(0.3)),
    "no ReLU before the padding": Decoder(second=True, activation=nn.LeakyReLU(0.1)),
    "another stride": Decoder(stride=4),
    "more multiplications": Decoder(narrow=1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_merged_network_is_the_same(case: str) -> None:
    """At sizes that it was not exported with, for several images; no transposed convolution is left."""
    torch.manual_seed(0)
    module, rank = CASES[case]
    nominal, sizes = (8, 12, 8)[:rank], ((8, 12, 8)[:rank], (12, 8, 4)[:rank])
    example = torch.randn(2, 1, *nominal)
    draft = contract(classes=3, spatial=("X", "Y", "Z")[:rank], nominal=nominal, multiple=4)
    merged = compiled(captured(module, example, draft.spatial, 4), draft)
    plain = compiled(captured(module, example, draft.spatial, 4), draft, WITHOUT)
    assert "ConvTranspose" not in {node.op_type for node in merged.model.graph}
    assert "ConvTranspose" in {node.op_type for node in plain.model.graph}
    for size in sizes:
        images = np.random.default_rng(0).standard_normal((2, 1, *size)).astype(np.float32)
        feeds = {"image": images, "masks": packed_masks(merged.contract, 2, 3, size)}
        expected = run(plain.model, feeds)
        assert len(np.unique(expected["volumes"].round(4))) > 6
        for name, value in run(merged.model, feeds).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("case", KEPT)
def test_what_is_no_case_stays(case: str) -> None:
    """The transposed convolution is left alone."""
    module = KEPT[case]
    draft = contract(classes=3, spatial=(8, 8))
    result = compiled(captured(module, torch.randn(2, 1, 8, 8), (8, 8)), draft)
    assert "ConvTranspose" in {node.op_type for node in result.model.graph}


def test_half_precision_has_no_number_for_outside() -> None:
    """Case 1 needs none."""
    for module, kept in ((Decoder(), False), (Decoder(second=True), True)):
        draft = replace(contract(classes=3, spatial=(8, 8)), precision=Precision.FP16)
        result = compiled(captured(module, torch.randn(2, 1, 8, 8), (8, 8)), draft)
        assert ("ConvTranspose" in {node.op_type for node in result.model.graph}) is kept
