"""Which modules drop, and how often: chosen by name, by depth, by p; found behind wrappers and under several names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equipoise_core.contract import Task
from equipoise_export.compile import compile_unproven
from equipoise_export.errors import CaptureRefused
from equipoise_export.options import Options
from torch import Tensor, nn

from ...support.constructs import LAYERS, Around
from ...support.graphs import contract

pytestmark = pytest.mark.slow  # exports

DRAFT = contract(task=Task.CLASSIFICATION, classes=3, spatial=(8, 8))


def image() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def drops(network: nn.Module, **choice: Any) -> dict[str, float]:
    """Sites and their p."""
    compilation, _ = compile_unproven(network, DRAFT, image(), Options(**choice))
    return {site.name: site.p for site in compilation.contract.sites}


@pytest.mark.parametrize(
    "name", ["Dropout", "AlphaDropout", "DropBlock for each channel", "MultiheadAttention", "LSTM", "always on"]
)
def test_p_is_overridden_in_network_and_sampler(name: str) -> None:
    """--p reaches modules, functions, attention, recurrences and DropBlock."""
    (p,) = drops(Around(LAYERS[name][0]()), p=0.35).values()
    assert p == pytest.approx(0.35 / 9 if "Block" in name else 0.35)


def test_p_that_cannot_be_found_is_refused() -> None:
    """A number inside a function cannot be changed from outside."""
    with pytest.raises(CaptureRefused, match="cannot be found, so --p cannot change it") as caught:
        drops(Around(LAYERS["rand < keep"][0]()), p=0.35)
    assert caught.value.site == "layer"


def test_p_activates_layers_with_p_zero() -> None:
    """Only where nothing drops at all; otherwise what has p = 0 stays off. Without --p the refusal names it."""
    for network in (Around(nn.Dropout(0.0)), nn.DataParallel(Around(nn.Dropout(0.0)))):
        with pytest.raises(CaptureRefused, match=r"its 1 dropout layers that have 0 \(such as layer\) by --p 0\.1"):
            drops(network)
    assert drops(Around(nn.Dropout(0.0)), p=0.1) == {"layer": 0.1}
    both = Around(nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.2)))
    assert drops(both, p=0.1) == {"layer.1": 0.1}


def test_sites_are_chosen_and_left_out_by_pattern() -> None:
    """`!` leaves out; what is random whatever its mode cannot be left out, and is refused."""
    network = Around(nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.3), nn.AlphaDropout(0.1)))
    assert drops(network, sites="!layer.1") == {"layer.0": 0.2, "layer.2": 0.1}
    assert drops(network, sites="layer.*,!*.2") == {"layer.0": 0.2, "layer.1": 0.3}
    stubborn = Around(nn.Sequential(nn.Dropout(0.2), LAYERS["always on"][0]()))
    with pytest.raises(CaptureRefused, match="random in evaluation mode as well") as caught:
        drops(stubborn, sites="layer.0")
    assert caught.value.site.startswith("layer.1")


@pytest.mark.parametrize("name", ["DropBlock", "MultiheadAttention", "GRU", "rand < keep"])
def test_depth_leaves_shallow_sites_out(name: str) -> None:
    """--min-depth applies to every construct: here all of them lie behind the convolution."""
    network = nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Flatten(1, 2), nn.Dropout(0.1), Around(LAYERS[name][0]()))
    (left,) = drops(network, min_depth=0.01)
    assert left.startswith("3.layer")


def test_a_module_with_two_names_is_one() -> None:
    """nnU-Net and MONAI register a layer under several names; whichever its site has, it can be chosen and left out."""
    first, second = nn.Dropout(0.2), nn.Dropout2d(0.2)
    network = Around(nn.Sequential(first, second))
    network.layer.again = nn.ModuleList([second])
    network.layer.forward = lambda x: network.layer.again[0](first(x))  # type: ignore[method-assign]
    assert list(drops(network)) == ["layer.0", "layer.again.0"]
    assert list(drops(network, sites="layer.1")) == ["layer.again.0"]
    assert list(drops(network, min_depth=0.1)) == ["layer.0", "layer.again.0"]


def test_wrappers_of_torch_are_removed() -> None:
    """torch.compile and DataParallel change nothing; a TorchScript module shows no dropout and is refused."""
    network = Around(nn.Dropout(0.2))
    assert drops(nn.DataParallel(torch.compile(network))) == {"layer": 0.2}
    with pytest.raises(CaptureRefused, match="TorchScript"):
        drops(torch.jit.trace(network, image()))
