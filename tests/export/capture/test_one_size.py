"""A trace that holds for one size only ends where that shows, not at its end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from equipoise_export.capture.one_size import OneSizeOnly, several_sizes
from torch import Tensor, nn
from torch.export import Dim


class Later(nn.Module):
    """Notes that it was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.traced = False

    def forward(self, x: Tensor) -> Tensor:
        self.traced = True
        return x * 2


class Windows(nn.Module):
    """Counts its windows in Python, as shifted windows do (MONAI's SwinUNETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.later = nn.Identity(), Later()

    def forward(self, image: Tensor) -> Tensor:
        windows = int(np.ceil(image.shape[2] / 7))
        return self.later(self.norm(image)) * windows


class AnySize(nn.Module):
    """Conditions that all sizes meet are none."""

    def __init__(self) -> None:
        super().__init__()
        self.later = Later()

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


@pytest.mark.parametrize(("network", "axis"), [(Windows(), 2), (OneBatch(), 0)], ids=["height", "images"])
def test_it_ends_at_the_first_condition_that_another_size_does_not_meet(network: Windows, axis: int) -> None:
    """Nothing behind it is traced, and the module is left as it was."""
    with pytest.raises(OneSizeOnly) as caught:
        trace(network)
    assert caught.value.axis == axis
    assert not network.later.traced
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_a_network_for_all_sizes_is_traced_to_its_end() -> None:
    network = AnySize()
    trace(network)
    assert network.later.traced
