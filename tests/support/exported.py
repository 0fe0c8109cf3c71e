"""Small networks and what the exporter makes of them, as fixtures."""

from __future__ import annotations

import pytest
import torch
from equipoise_core.contract import Task
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled

from .graphs import contract
from .networks import Classifier, EveryKind, UNet


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same, whichever ran before it in this process."""
    torch.manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    """For fixtures of a wider scope, which `seeded` comes after."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture(scope="session")
def every_kind() -> EveryKind:
    torch.manual_seed(0)
    return EveryKind()


@pytest.fixture(scope="session")
def unet() -> UNet:
    """2D, two classes, sizes multiples of 4; its head is scaled up so that masks move its answer as training would."""
    torch.manual_seed(0)
    network = UNet(2, 1, 2, (4, 8, 16))
    with torch.no_grad():
        network.head.weight *= 20
    return network


@pytest.fixture(scope="session")
def compiled_classifier(classifier: Classifier) -> Compiled:
    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16))
    return compile_sampler(classifier, draft, noise(2, 1, 16, 16))


@pytest.fixture(scope="session")
def compiled_unet(unet: UNet) -> Compiled:
    draft = contract(spatial=("X", "Y"), nominal=(16, 24), multiple=4)
    return compile_sampler(unet, draft, noise(2, 1, 16, 24))
