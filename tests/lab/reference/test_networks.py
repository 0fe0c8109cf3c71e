"""The reference networks: sizes, dropout sites and the space they take in the repository."""

import pytest
import torch
from equipoise_lab.reference.evaluate import dropout_layers
from equipoise_lab.reference.specs import REFERENCES, Reference

MODELS = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES.keys())


@MODELS
def test_weights_fit_the_repository(reference: Reference) -> None:
    """The exported ONNX file holds fp32 weights and may take 3 MB."""
    assert 4 * sum(parameter.numel() for parameter in reference.network().parameters()) < 2.9e6


@MODELS
def test_every_size_of_the_padded_multiple_is_taken(reference: Reference) -> None:
    """The smallest size and the nominal one give logits of the declared shape."""
    network = reference.network().eval()
    nominal = reference.input_shape[1:]
    for size in (nominal, tuple(2 * reference.preprocessing.multiple for _ in nominal)):
        spatial = size if reference.task == "segmentation" else ()
        with torch.inference_mode():
            assert network(torch.zeros(2, 1, *size)).shape == (2, len(reference.classes), *spatial)


@MODELS
def test_nominal_shape_needs_no_padding(reference: Reference) -> None:
    """The nominal shape is one that the network takes as it is."""
    assert all(size % reference.preprocessing.multiple == 0 for size in reference.input_shape[1:])


@MODELS
def test_each_dropout_site_alone_moves_the_output(reference: Reference) -> None:
    """A site that changes nothing would be mask bits for nothing; with none active the network is deterministic."""
    network = reference.network().eval()
    image = torch.randn(1, 1, *(2 * reference.preprocessing.multiple for _ in reference.input_shape[1:]))
    layers = dropout_layers(network)
    assert len(layers) >= 2
    with torch.inference_mode():
        still = network(image)
        assert torch.equal(still, network(image))
        for layer in layers:
            layer.train()
            torch.manual_seed(0)
            moved = network(image)
            layer.eval()
            assert not torch.equal(still, moved)
