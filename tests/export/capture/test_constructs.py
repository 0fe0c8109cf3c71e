"""Every way to be random becomes the right mask: found, proven, and distributed as PyTorch draws it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from equipoise_core.contract import Task
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.compile import compile_sampler, compile_unproven
from equipoise_export.errors import CaptureRefused
from equipoise_export.graph.marker import marker_of
from equipoise_export.graph.session import session
from equipoise_export.options import Options, Sizes
from torch import Tensor, nn
from torch.nn import functional

from ...support.constructs import LAYERS, Around, DropBlock, DropBlockOfSizes, Written
from ...support.graphs import captured, contract
from ..test_compile import permutation_p

pytestmark = pytest.mark.slow  # forty ways to be random, each exported

DRAFT = contract(task=Task.CLASSIFICATION, classes=3, spatial=(8, 8))


def image(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_construct_is_proven_and_draws_as_pytorch_does(name: str) -> None:
    """One site of the right kind, units and p; 300 samples of it and of plain Monte Carlo dropout are alike."""
    torch.manual_seed(0)
    make, expected = LAYERS[name]
    network = Around(make())
    with torch.no_grad():
        network.head.weight *= 5
    compiled = compile_sampler(network, DRAFT, image())
    (site,) = compiled.contract.sites
    assert (site.kind.value, site.shape) == expected[:2]
    assert 0 < compiled.proof.sites[0].effect < 1
    assert site.p == pytest.approx(expected[2], rel=1e-6)
    masks = draw_masks(mask_layout(compiled.contract, (8, 8)), 3, compiled.contract.digest, 0, 300)[None]
    served = session(compiled.model).run(None, {"image": image()[:1].numpy(), "masks": masks})[0][0]
    network.train()  # there is no BatchNorm in it
    torch.manual_seed(7)
    with torch.no_grad():  # one image a pass: some constructs reckon over the batch
        looped = torch.softmax(torch.cat([network(image()[:1]) for _ in range(300)]), 1).numpy()
    assert permutation_p(served, looped) > 0.002


def test_dropblock_normalises_each_sample_alone_at_dynamic_sizes() -> None:
    """Where the seeds' probability is a number, a share of the plane is normalised at every size."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), DropBlock(0.3), nn.Conv2d(4, 2, 1))
    draft = contract(spatial=("H", "W"), nominal=(8, 10))
    compiled = compile_sampler(network, draft, torch.randn(2, 1, 8, 10))
    assert [site.shape for site in compiled.contract.sites] == [("H", "W")]
    for size in ((8, 10), (12, 9)):
        layout = mask_layout(compiled.contract, size)
        masks = draw_masks(layout, 0, compiled.contract.digest, 0, 4)[None]
        picture = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
        together = session(compiled.model).run(["volumes"], {"image": picture, "masks": masks})[0]
        for t in range(4):
            alone = session(compiled.model).run(["volumes"], {"image": picture, "masks": masks[:, t : t + 1]})[0]
            np.testing.assert_allclose(alone[:, 0], together[:, t], rtol=1e-5)


def test_dropblock_whose_seeds_follow_the_size_is_exported_for_one() -> None:
    """Its p is not a number at dynamic sizes: refused with the remedy, or exported for the nominal size."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), DropBlockOfSizes(), nn.Conv2d(4, 2, 1))
    draft = contract(spatial=("H", "W"), nominal=(8, 10))
    with pytest.raises(CaptureRefused, match="--sizes fixed"):
        compile_unproven(network, draft, torch.randn(2, 1, 8, 10), Options(sizes=Sizes.DYNAMIC))
    compilation, _ = compile_unproven(network, draft, torch.randn(2, 1, 8, 10))
    assert compilation.contract.spatial == (8, 10)
    assert compilation.notes


REFUSED = {
    "Gaussian noise": (lambda x: x + torch.randn_like(x), "`randn_like` draws random numbers"),
    "Gaussian dropout": (lambda x: x * torch.normal(1.0, 0.5, x.shape), "`normal` draws random numbers"),
    "concrete dropout": (lambda x: x * torch.sigmoid(torch.log(torch.rand_like(x)) + 1), "one comparison"),
    "two thresholds": (lambda x: x * (r := torch.rand_like(x)).lt(0.2) + x * r.gt(0.6), "one comparison"),
    "Gumbel": (lambda x: functional.gumbel_softmax(x, dim=1), "draws random numbers"),
    "shuffled channels": (lambda x: x[:, torch.randperm(8)], "`randperm` draws random numbers"),
    "p follows the data": (lambda x: x * torch.bernoulli(torch.sigmoid(x)), "its probability is not a constant"),
    "decides by a draw": (lambda x: x * 2 if torch.rand(1) < 0.5 else x, "decides by the values of a tensor"),
    "normalised by the batch": (lambda x: functional.dropout(x / x.abs().max(), 0.2), "over all images of a batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mask_is_refused_by_name(name: str) -> None:
    """The refusal names the module and says what to do instead."""
    function, reason = REFUSED[name]
    with pytest.raises(CaptureRefused, match=reason) as caught:
        compile_unproven(Around(Written(function)), DRAFT, image())
    assert caught.value.site.startswith("layer") or "decides" in reason
    assert caught.value.remedy.endswith(".")


class Branches(nn.Module):
    """Functional dropout beside a branch of training mode: it answers with a list, and more of it, while active."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        x = functional.dropout2d(self.body(image), 0.2, self.training)
        return [x, x[..., ::2, ::2], torch.randn_like(x).sum()] if self.training else x


def test_an_output_that_differs_in_training_mode_is_found() -> None:
    """The answer is sought in what comes back while dropout acts; noise that does not reach it is no hindrance."""
    compiled = compile_sampler(Branches(), contract(spatial=(8, 8)), image())
    assert [site.name for site in compiled.contract.sites] == ["forward:feature_dropout"]


class Thrice(nn.Module):
    """One dropout in a loop, and a block that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout2d(0.2), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.drop(x))
        return self.block(self.block(x))


def test_loops_and_shared_blocks_are_as_many_sites_as_calls() -> None:
    """Each call draws on its own; what has p = 0 is none."""
    model = captured(Around(Thrice()), image(), (8, 8))
    names = [marker_of(node).site for node in model.graph if node.op_type == "Mask"]
    assert names == ["layer.drop", "layer.drop#2", "layer.drop#3", "layer.block.1", "layer.block.1#2"]
