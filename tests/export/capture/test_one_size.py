"""A trace that holds for one size only ends where that shows, not at its end."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from equipoise_export.capture.one_size import OneSizeOnly, several_sizes
from torch import Tensor, nn
from torch.export import Dim


class Windows(nn.Module):
    """Counts its windows in Python, as shifted windows do (MONAI's SwinUNETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.later = nn.Identity(), nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        windows = int(np.ceil(image.shape[2] / 7))
        return self.later(self.norm(image)) * windows


class UsedTwice(Windows):
    """torch traces stand-ins of the modules where one lies in two places (MONAI's SwinUNETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(self.norm, self.norm)


class AnySize(nn.Module):
    """Conditions that all sizes meet are none."""

    def __init__(self) -> None:
        super().__init__()
        self.later = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2] > 0:
            image = nn.functional.max_pool2d(image, 2)
        return self.later(image).flatten(1).mean(1)


class OneBatch(Windows):
    def forward(self, image: Tensor) -> Tensor:
        return self.later(self.norm(image.reshape(2, -1)))


def trace(network: nn.Module) -> None:
    sizes = {0: Dim("N", min=1), 2: 4 * Dim("_H", min=1)}
    with torch.no_grad(), several_sizes(network, {0: 1, 2: 4}):
        torch.export.export(network, (torch.randn(2, 1, 16, 16),), dynamic_shapes=(sizes,), strict=False)


@pytest.mark.parametrize(
    ("network", "axis"),
    [(Windows(), 2), (UsedTwice(), 2), (OneBatch(), 0), (AnySize(), None)],
    ids=["height", "used-twice", "images", "any"],
)
def test_it_ends_at_the_first_condition_that_another_size_does_not_meet(network: nn.Module, axis: int | None) -> None:
    """Nothing behind it is traced, and the module is left as it was; a network for all sizes is traced to its end."""
    traced: list[bool] = []
    network.later.register_forward_hook(lambda *_: traced.append(True))
    with pytest.raises(OneSizeOnly) if axis is not None else nullcontext() as caught:
        trace(network)
    assert bool(traced) is (axis is None)
    assert caught is None or caught.value.axis == axis
    assert not any(part._forward_pre_hooks for part in network.modules())
