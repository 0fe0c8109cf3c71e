"""The sampler as a whole: dynamic sizes, determinism, statistics against plain Monte Carlo dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation, Task
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.graph.session import session
from equipoise_export.options import Options
from torch import nn

from ..support.graphs import contract
from ..support.networks import Classifier, Hybrid, TwoHeads


def test_the_same_network_gives_the_same_bytes(compiled_classifier: Compiled) -> None:
    """Two exports of equal networks, built apart, are one file."""
    torch.manual_seed(0)
    again = Classifier()
    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16))
    other = compile_sampler(again, draft, torch.randn(2, 1, 16, 16))
    assert other.model.SerializeToString() == compiled_classifier.model.SerializeToString()
    text = str(other.model).lower()
    assert "/work" not in text and ".py" not in text and "stack" not in text


@pytest.mark.slow
def test_the_image_is_never_copied(compiled_unet: Compiled) -> None:
    """Nothing in the graph repeats a tensor; the samples come in by broadcasting with the masks."""
    assert not {"Expand", "Tile"} & {node.op_type for node in compiled_unet.model.graph.node}


@pytest.mark.parametrize("spatial", [(16, 24), (32, 8), (4, 4)])
def test_one_model_serves_several_sizes(compiled_unet: Compiled, spatial: tuple[int, int]) -> None:
    """N, T and the declared multiples of the sizes are free."""
    runner = session(compiled_unet.model)
    layout = mask_layout(compiled_unet.contract, spatial)
    for images, samples in ((1, 1), (3, 5)):
        masks = np.stack([draw_masks(layout, n, compiled_unet.contract.digest, 0, samples) for n in range(images)])
        out = runner.run(
            None,
            {
                "image": np.random.default_rng(0).standard_normal((images, 1, *spatial)).astype(np.float32),
                "masks": masks,
            },
        )
        assert [value.shape for value in out] == [
            (images, 2, *spatial), (images, 2, *spatial), (images, 1, *spatial), (images, samples, 2),
        ]  # fmt: skip
        np.testing.assert_allclose(out[0].sum(1), samples, rtol=1e-5)


@pytest.mark.slow
def test_element_masks_of_a_dynamic_size_follow_the_size() -> None:
    """Offsets and B are computed in the graph where a site's units depend on the image's size."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Dropout(0.2),
        nn.Conv2d(4, 4, 2, 2),
        nn.Dropout(0.4),
        nn.ConvTranspose2d(4, 2, 2, 2),
    )
    compiled = compile_sampler(
        network, contract(spatial=("H", "W"), nominal=(8, 6), multiple=2), torch.randn(2, 1, 8, 6)
    )
    assert [site.shape for site in compiled.contract.sites] == [(4, "2*(H//2)", "2*(W//2)"), (4, "(H//2)", "(W//2)")]
    layout = mask_layout(compiled.contract, (4, 10))
    assert layout.bits == 4 * 40 + 4 * 10
    masks = draw_masks(layout, 0, compiled.contract.digest, 0, 3)[None]
    assert session(compiled.model).run(["sum_p"], {"image": np.zeros((1, 1, 4, 10), np.float32), "masks": masks})[
        0
    ].shape == (1, 2, 4, 10)


def test_a_network_without_dropout_is_exported_only_when_asked() -> None:
    """It gets no `masks` input and one sample."""
    network = nn.Conv2d(1, 1, 3, padding=1)
    draft = contract(classes=1, activation=Activation.SIGMOID, spatial=(8, 8))
    compiled = compile_sampler(network, draft, torch.randn(2, 1, 8, 8), Options(deterministic=True))
    assert [value.name for value in compiled.model.graph.input] == ["image"]
    assert not compiled.contract.stochastic


@pytest.mark.slow
def test_a_hybrid_of_convolutions_and_attention_is_proven() -> None:
    """TransUNet-like: attention over the bottleneck, skips around it."""
    torch.manual_seed(0)
    compiled = compile_sampler(Hybrid(), contract(spatial=(16, 16)), torch.randn(2, 1, 16, 16))
    assert {site.kind.value for site in compiled.contract.sites} == {"element", "attention"}


@pytest.mark.slow
def test_a_heteroscedastic_head_averages_over_its_noise() -> None:
    """p is the mean of softmax(f + σ·ε): against a large plain average for one sample with nothing dropped."""
    torch.manual_seed(0)
    network = TwoHeads(3)
    draft = contract(classes=3, spatial=(16, 16))
    options = Options(output="logits", log_variance="log_variance")
    compiled = compile_sampler(network, draft, torch.randn(2, 1, 16, 16), options)
    image = torch.randn(1, 1, 16, 16)
    keep = np.full((1, 1, -(-mask_layout(compiled.contract, (16, 16)).bits // 8)), 255, np.uint8)
    got = session(compiled.model).run(["sum_p"], {"image": image.numpy(), "masks": keep})[0]
    network.eval()
    with torch.no_grad():
        for name in ("bottleneck_dropout", "decoder_dropout"):  # kept units are scaled by 1/(1 − p) in the sampler
            part = getattr(network.body, name)
            for layer in [part] if isinstance(part, nn.Dropout2d) else [p for p in part if isinstance(p, nn.Dropout2d)]:
                layer.register_forward_hook(lambda module, inputs, output: output / (1 - module.p))
        out = network(image)
        noise = torch.randn(4000, *out["logits"].shape[1:])
        p = torch.softmax(out["logits"] + torch.exp(0.5 * out["log_variance"]) * noise, 1).mean(0)
    assert np.abs(got[0] - p.numpy()).max() < 0.04


def test_samples_are_distributed_as_plain_monte_carlo_dropout(
    compiled_classifier: Compiled, classifier: Classifier
) -> None:
    """400 samples of the sampler and 400 of a PyTorch loop: a permutation test on mean and variance finds nothing."""
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    layout = mask_layout(compiled_classifier.contract, (16, 16))
    masks = draw_masks(layout, 11, compiled_classifier.contract.digest, 0, 400)[None]
    served = session(compiled_classifier.model).run(None, {"image": image.numpy(), "masks": masks})[0][0]
    classifier.eval()
    classifier.channel_dropout.train()
    classifier.head_dropout.train()
    torch.manual_seed(5)
    with torch.no_grad():
        looped = torch.softmax(classifier(image.expand(400, -1, -1, -1)), 1).numpy()
    classifier.eval()
    assert permutation_p(served, looped) > 0.01
    assert permutation_p(served * np.float32(1.0) + (served - served.mean(0)) * 0.25, looped) < 0.01


def permutation_p(one: np.ndarray, other: np.ndarray) -> float:
    """p-value of the largest standardised difference in mean or variance over outputs, 500 permutations."""
    both = np.concatenate([one, other]).astype(np.float64)
    both = (both - both.mean(0)) / (both.std(0) + 1e-12)
    both = np.concatenate([both, both**2], axis=1)
    generator = np.random.default_rng(0)
    half = len(one)

    def statistic(order: np.ndarray) -> float:
        return float(np.abs(both[order[:half]].mean(0) - both[order[half:]].mean(0)).max())

    found = statistic(np.arange(len(both)))
    return float(np.mean([statistic(generator.permutation(len(both))) >= found for _ in range(500)]))
