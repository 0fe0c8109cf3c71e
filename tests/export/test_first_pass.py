"""The first pass: the network without dropout, under the sampler's own contract."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from equipoise_export import Options, export
from equipoise_export.compile import compile_first_pass, compile_sampler
from equipoise_export.errors import ExportError
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.graph.undrop import undrop
from equipoise_export.passes.compilation import Compilation
from equipoise_export.passes.simplify import simplify
from onnx import numpy_helper
from scipy import special
from torch import nn

from ..support.exported import noise
from ..support.graphs import contract
from .capture.test_from_onnx import IMAGE, draft, file


def test_it_answers_as_the_network_in_evaluation_mode(unet, compiled_unet):
    """Sites, masks and their scale are gone; sizes, classes and statistics are the sampler's."""
    first = compile_first_pass(unet, compiled_unet, noise(2, 1, 16, 24))
    assert not first.contract.sites and first.contract.spatial == compiled_unet.contract.spatial
    image = np.random.default_rng(3).normal(size=(2, 1, 20, 28)).astype(np.float32)
    answer = OnnxSampler(first.model)(image, None)
    with torch.no_grad():
        expected = torch.softmax(unet.eval()(torch.from_numpy(image)), 1).numpy()
    np.testing.assert_allclose(answer["sum_p"], expected, atol=1e-5)
    np.testing.assert_allclose(answer["volumes"][:, 0], expected.sum((2, 3)), rtol=1e-5)


class DropPath(nn.Module):
    """Stochastic depth, as MONAI's and timm's."""

    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.7).div_(0.7)


class Unscaled(nn.Module):
    """Drops without scaling what is kept: with nothing dropped that is not what its expectation is."""

    def forward(self, x):
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.7) if self.training else x


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.3), nn.Dropout2d(0.3), DropPath(), Unscaled()],
    ids=["element", "channel", "path", "unscaled"],
)
def test_of_dropout_layers_the_graph_is_captured_once(layer):
    """What was captured for the sampler, without its markers: the same bytes as of another trace in evaluation mode."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), layer, nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1), layer, nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    sampler = compile_sampler(network, contract(spatial=("X", "Y"), nominal=(16, 24), multiple=2), noise(2, 1, 16, 24))
    assert sampler.captured is not None
    graph = sampler.captured.graph.clone()
    simplify(Compilation(graph, sampler.contract))
    assert undrop(graph) is not isinstance(layer, Unscaled)
    traced = compile_first_pass(network, replace(sampler, captured=None), noise(2, 1, 16, 24))
    kept = compile_first_pass(network, sampler, noise(2, 1, 16, 24))
    assert kept.model.SerializeToString() == traced.model.SerializeToString()
    assert kept.contract == traced.contract
    assert [check.name for check in kept.proof.checks] == [check.name for check in traced.proof.checks]


class Functional(nn.Module):
    """Its own training flag drops."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image):
        return nn.functional.dropout(self.body(image), 0.3, self.training)


def test_dropout_in_code_is_traced_again():
    """The training flag of such a module may do more, so only evaluation mode shows what is left."""
    sampler = compile_sampler(
        Functional(), contract(spatial=("X", "Y"), nominal=(16, 24), multiple=2), noise(2, 1, 16, 24)
    )
    assert sampler.captured is None
    assert not compile_first_pass(Functional(), sampler, noise(2, 1, 16, 24)).contract.sites


def test_of_an_onnx_file_the_dropout_nodes_are_left_out():
    """Also where they were inserted by `--dropout-at`, and the file is compared with its own answer."""
    network = file("f = Flatten <axis = 1> (x) g = Dropout (f) h = Relu (g) y = MatMul (h, w)")
    for options in (Options(), Options(dropout_at="h", p=0.2)):
        sampler = compile_sampler(network, draft(), IMAGE, options)
        first = compile_first_pass(network, sampler, IMAGE, options)
        assert sampler.contract.sites and not first.contract.sites
        weights = numpy_helper.to_array(network.graph.initializer[0])
        logits = np.maximum(IMAGE.numpy().reshape(2, -1), 0.0) @ weights
        answer = OnnxSampler(first.model)(IMAGE.numpy(), None)
        np.testing.assert_allclose(answer["probabilities"][:, 0], special.softmax(logits, 1), atol=1e-5)


class Noisy(nn.Module):
    """Dropout, and noise that no flag switches off."""

    def __init__(self):
        super().__init__()
        self.body, self.drop = nn.Conv2d(1, 2, 3, padding=1), nn.Dropout2d(0.5)

    def forward(self, image):
        z = self.body(image)
        return self.drop(z) + torch.bernoulli(torch.full_like(z, 0.5))


def test_a_network_that_is_random_in_evaluation_mode_has_none(compiled_unet):
    with pytest.raises(ExportError, match="random in evaluation mode"):
        compile_first_pass(Noisy(), compiled_unet, noise(2, 1, 16, 24))


def test_it_can_be_left_out(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 2, 1))
    exported = export(
        network, into=tmp_path, name="tiny", task="segmentation", classes=["background", "x"],
        example=noise(2, 1, 8, 8), options=Options(first_pass=False),
    )  # fmt: skip
    assert list(exported.samplers) == ["tiny_sampler"] and exported.contract.first_pass is None
