import math

import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation
from equipoise_lab.methods.segwithu import SegWithU, loss, pairwise, sign_pattern
from equipoise_lab.reference.networks import UNet
from torch.nn import functional

SIGNS = """
++++----
++----++
+---+++-
+--++--+
+-++--+-
+-+--+-+
+-+-+-+-
++++++++
"""


@pytest.fixture(params=[(2, 1, Activation.SIGMOID), (3, 3, Activation.SOFTMAX)], ids=["sigmoid", "softmax"])
def network(request):
    rank, classes, activation = request.param
    torch.manual_seed(0)
    made = SegWithU(UNet(rank, classes, (4, 6, 8), (4, 5), 0.2), rank, activation, width=4)
    with torch.no_grad():
        made.backbone.head.weight *= 10
        made.to_class.weight *= 10
    return made


@pytest.fixture
def image(network):
    rank = network.probe.weight.dim() - 2
    return torch.randn(2, 1, *[8] * rank, generator=torch.Generator().manual_seed(1))


def test_the_sign_pattern_is_frozen() -> None:
    rows = ["".join("+" if sign > 0 else "-" for sign in row) for row in sign_pattern(8)]
    assert rows == SIGNS.split()


@pytest.mark.parametrize("probes", [2, 4, 8, 16])
def test_signs_are_those_of_the_cosine(probes) -> None:
    """All rows but the last, where it is 0."""
    i, r = np.arange(1, probes)[:, None], np.arange(probes)[None]
    assert np.array_equal(sign_pattern(probes)[:-1], np.sign(np.cos(np.pi * i * (r + 0.5) / probes)))
    assert set(sign_pattern(probes)[-1].tolist()) == {1.0}


def test_maps_follow_the_paper(network, image) -> None:
    """Every map again, by its formula, from features that the network computed."""
    with torch.no_grad():
        m = network.maps(image)
        *entered, last = network.backbone.decoded(image)
        z = network.backbone.head(last)
        z = torch.cat([torch.zeros_like(z), z], 1) if z.shape[1] == 1 else z
        taps = [project(x) for project, x in zip(network.project, entered[::-1], strict=False)]
        mode = "bilinear" if image.dim() == 4 else "trilinear"
        f = network.fuse(torch.cat([functional.interpolate(t, size=image.shape[2:], mode=mode) for t in taps], 1))
        v = network.probe(f)
        ones = [1] * (image.dim() - 2)
        sigma = (functional.softplus(network.alpha) + 1e-6).reshape(1, -1, *ones)
        moved = [torch.softmax(z + network.to_class(sigma * s.reshape(1, -1, *ones) * v), 1) for s in sign_pattern(8)]
        epistemic = torch.stack(moved).var(0, unbiased=False).sum(1, keepdim=True)
        residual = (network.to_class(sigma * v) ** 2).mean(1, keepdim=True)
        aleatoric = functional.softplus(network.aleatoric(f))
        p = z.softmax(1)
        top = p.sort(1, descending=True).values
        margin = top[:, :1] - top[:, 1:2]
        weight = torch.exp(-4 * margin)
        seen = torch.cat([torch.log1p(epistemic + residual), torch.log1p(aleatoric), margin], 1)
        calibration = functional.softplus(network.calibration(seen))
        entropy = -(p * p.log()).sum(1, keepdim=True)
        anchor = (
            torch.log1p(epistemic) + torch.log1p(residual) / 2 + torch.log1p(calibration) / 4
            + entropy / max(math.log(z.shape[1]), 1.0) / 4 + weight
        )  # fmt: skip
        ranking = (1 + 0.1 * math.tanh(1.0)) * anchor + math.log(2) * weight
    for found, expected in (
        (m.epistemic, epistemic), (m.residual, residual), (m.calibration, calibration), (m.anchor, anchor),
        (m.ranking, ranking), (m.tempered, z / (1 + calibration).sqrt()),
    ):  # fmt: skip
        assert found == pytest.approx(expected, abs=1e-5)
    assert float(epistemic.max()) > 1e-3  # there is something to compare


def test_probe_scales_start_at_a_tenth(network) -> None:
    assert functional.softplus(network.alpha).tolist() == pytest.approx([0.1] * 8)


def test_without_probes_nothing_is_epistemic(network, image) -> None:
    with torch.no_grad():
        network.to_class.weight.zero_()
        m = network.maps(image)
    assert float(m.epistemic.abs().max()) == 0.0 == float(m.residual.max())


def test_what_is_stated_are_moments(network, image) -> None:
    with torch.no_grad():
        stated = network(image)
        m = network.maps(image)
    k = 1 if network.activation is Activation.SIGMOID else 3
    mean, square, entropy, own = stated.split([k, k, 1, 1], 1)
    assert bool((mean**2 <= square + 1e-7).all() and (square <= mean + 1e-7).all())
    assert bool((entropy >= 0).all() and (own >= 0).all())
    expected = m.tempered.softmax(1)
    assert mean == pytest.approx(expected[:, -k:], abs=1e-6)
    assert (square - mean**2).sum(1, keepdim=True) * (2 if k == 1 else 1) == pytest.approx(m.epistemic, abs=1e-5)


def test_only_the_head_learns(network, image) -> None:
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    target = torch.randint(0, 2, (2, *image.shape[2:]), generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    torch.manual_seed(0)
    first = loss(network, image, target, pairs=500)
    for _ in range(30):
        value = loss(network, image, target, pairs=500)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert value.item() < first.item()
    assert all(torch.equal(value, network.backbone.state_dict()[name]) for name, value in before.items())


def test_pairs_want_errors_above_the_rest() -> None:
    wrong = torch.tensor([True, False, False])
    right_order, wrong_order = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([-3.0, 0.0, 0.0])
    assert float(pairwise(right_order, wrong, 2)) == pytest.approx(math.log1p(math.exp(-3)))
    assert float(pairwise(wrong_order, wrong, 2)) == pytest.approx(math.log1p(math.exp(3)))
    assert float(pairwise(right_order, torch.zeros(3, dtype=torch.bool), 2)) == 0.0
