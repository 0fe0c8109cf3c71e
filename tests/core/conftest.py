"""Small contracts that the core's tests share."""

import pytest
from equipoise_core.contract import Activation, Contract, Sampler, Site, SiteKind, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ScalePercentiles, ZScore


@pytest.fixture
def segmentation() -> Contract:
    """2D, three exclusive classes, dynamic sizes, one site of each shape."""
    return Contract(
        name="toy",
        task=Task.SEGMENTATION,
        activation=Activation.SOFTMAX,
        classes=("background", "left", "right"),
        channels=1,
        spatial=("X", "Y"),
        nominal=(16, 16),
        maximum=(64, 64),
        preprocessing=Preprocessing((ZScore(),), multiple=4),
        sites=(
            Site("encoder.drop", SiteKind.CHANNEL, (5,), 0.2),
            Site("path", SiteKind.PATH, (), 0.1),
            Site("decoder.drop", SiteKind.ELEMENT, (2, "X//4", "Y//4"), 0.5),
        ),
        spacing=((0.8, 1.2), (0.8, 1.2)),
        samples=6,
        samplers=(Sampler("toy_sampler", "00" * 32),),
    )


@pytest.fixture
def classification() -> Contract:
    """Fixed size, two exclusive classes, one site."""
    return Contract(
        name="toyc",
        task=Task.CLASSIFICATION,
        activation=Activation.SOFTMAX,
        classes=("normal", "ill"),
        channels=1,
        spatial=(8, 8),
        nominal=(8, 8),
        maximum=(8, 8),
        preprocessing=Preprocessing((ScalePercentiles(0.5, 99.5),)),
        sites=(Site("head.drop", SiteKind.ELEMENT, (11,), 0.5),),
        samples=6,
        samplers=(Sampler("toyc_sampler", "00" * 32),),
    )
