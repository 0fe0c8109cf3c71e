"""What is served is MC dropout: plain PyTorch, which shares none of our mask code, cannot be told from it.

Every reference model answers one small image 400 times; the permutation test of `permutation` compares that with 400
passes of the trained network with its dropout layers, and only they, in train mode (Gal & Ghahramani 2016). The same
test, through the same machinery, tells every faulty sampler of `mutants` apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Contract
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.reference.specs import REFERENCES
from equipoise_export.runtime import OnnxSampler
from numpy.typing import NDArray
from torch import nn

from .asking import MODELS, ask, picture
from .mutants import with_shared_masks, without_scaling, without_site
from .permutation import PValues, compare

pytestmark = pytest.mark.pipeline

SAMPLES = 400
CHUNK = 20
SIZE = {"hippocampus": (16, 8, 8), "nuclei": (32, 32), "pneumonia": (28, 28)}
# All seeds are fixed, so a result stays what it is; a model that is trained again draws once more, and must not fail by
# chance more than once in a hundred times over all tests of this file. The mutants' differences are beyond doubt.
INDISTINGUISHABLE = 0.001
FOUND = 0.0005

Rows = NDArray[np.float32]
"""`[SAMPLES, D]`: one row per sample."""


def _image(contract: Contract) -> NDArray[np.float32]:
    return picture(contract, SIZE[contract.name], seed=1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small images: more threads would spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pytorch(contract: Contract, live: tuple[str, ...] | None = None) -> Rows:
    """Probabilities `[SAMPLES, K * voxels]` of the loop that people write; `live` dropout layers, by default all."""
    reference = REFERENCES[contract.name]
    network = reference.trained()
    for name, layer in network.named_modules():
        layer.train(isinstance(layer, nn.modules.dropout._DropoutNd) and (live is None or name in live))
    image = torch.from_numpy(contract.preprocessing.normalise(_image(contract)))
    copies = image.expand(CHUNK, *image.shape)  # PyTorch draws anew for each image of a batch
    torch.manual_seed(2)
    with torch.inference_mode(), _one_thread():
        logits = torch.cat([network(copies) for _ in range(SAMPLES // CHUNK)])
    probabilities = logits.sigmoid() if contract.activation.value == "sigmoid" else logits.softmax(1)
    return np.asarray(probabilities.reshape(SAMPLES, -1))


def _totals(contract: Contract, probabilities: Rows) -> Rows:
    """Per sample and class the sum over voxels: what the sampler calls `volumes`."""
    return probabilities.reshape(SAMPLES, len(contract.classes), -1).sum(axis=2)


Run = Callable[[NDArray[np.float32], NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
"""The sampler: `image [N, C, *S]` (normalised), `masks [N, T, B]` → its outputs."""


def _one_sample_each(run: Run, contract: Contract) -> Rows:
    """The maps of samples that have a request's seed of their own: N images with one sample each."""
    image, layout = _prepared(contract)
    rows = []
    for first in range(0, SAMPLES, CHUNK):
        seeds = range(first, first + CHUNK)
        masks = np.stack([draw_masks(layout, seed, contract.model_digest, 0, 1) for seed in seeds])
        outputs = run(np.repeat(image, len(seeds), axis=0), masks)
        rows.append(outputs["probabilities" if "probabilities" in outputs else "sum_p"].reshape(len(seeds), -1))
    return np.concatenate(rows)


def _many_samples(run: Run, contract: Contract, chunk: int) -> Rows:
    """What is known of each sample of one seed, drawn in chunks: class probabilities, or their sums over voxels."""
    image, layout = _prepared(contract)
    rows = []
    for first in range(0, SAMPLES, chunk):
        outputs = run(image, draw_masks(layout, 7, contract.model_digest, first, chunk)[None])
        rows.append(outputs["probabilities" if "probabilities" in outputs else "volumes"][0])
    return np.concatenate(rows)


def _prepared(contract: Contract):
    image = contract.preprocessing.normalise(_image(contract))[None]
    assert contract.preprocessing.pad(image[0]).shape == image[0].shape
    return image, mask_layout(contract, image.shape[2:])


def _in_process(model: onnx.ModelProto) -> Run:
    return OnnxSampler(model.SerializeToString(), threads=1)


def _sampler_file(repository: Path, contract: Contract) -> onnx.ModelProto:
    return onnx.load(repository / f"{contract.name}_sampler" / "1" / "model.onnx")


def _assert_found(*results: PValues) -> None:
    assert min(result.smallest for result in results) <= FOUND, results


def _served_maps(grpc_client, contract: Contract) -> Rows:
    """`mean` of one sample is that sample: 400 seeds, each with one."""
    image = _image(contract)
    rows = []
    for first in range(0, SAMPLES, CHUNK):
        seeds = range(first, first + CHUNK)
        tensors = {
            "image": np.repeat(image[None], len(seeds), axis=0),
            "samples": np.ones((len(seeds), 1), np.int32),
            "seed": np.array(seeds, np.uint64)[:, None],
        }
        rows.append(ask(grpc_client, contract.name, tensors, ("mean",))["mean"].reshape(len(seeds), -1))
    return np.concatenate(rows)


@pytest.mark.parametrize("model", MODELS)
def test_served_samples_are_those_of_pytorch(grpc_client, repository, contracts, model):
    """400 served samples, each with its own seed, and 400 of PyTorch agree in mean and variance of every output."""
    contract = contracts[model]
    served = _served_maps(grpc_client, contract)
    result = compare(served, _pytorch(contract))
    assert result.smallest > INDISTINGUISHABLE, result
    # The mutants below run in this process: here the true sampler does, and is the one that is served.
    local = _one_sample_each(_in_process(_sampler_file(repository, contract)), contract)
    np.testing.assert_allclose(local, served, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_served_samples_of_one_seed_are_those_of_pytorch(grpc_client, contracts, model):
    """400 samples of one seed, drawn by the served sampler in chunks, and 400 of PyTorch agree as well."""
    contract = contracts[model]
    segmentation = contract.task.value == "segmentation"
    outputs = ("volumes",) if segmentation else ("probabilities",)

    def run(image, masks):
        return ask(grpc_client, f"{model}_sampler", {"image": image, "masks": masks}, outputs)

    expected = _pytorch(contract)
    result = compare(_many_samples(run, contract, CHUNK), _totals(contract, expected) if segmentation else expected)
    assert result.smallest > INDISTINGUISHABLE, result


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_wrong_scaling_is_found(repository, contracts, model):
    """Kept units that are not multiplied by 1/(1 − p) are told apart."""
    contract = contracts[model]
    mutant = _in_process(without_scaling(_sampler_file(repository, contract)))
    _assert_found(compare(_one_sample_each(mutant, contract), _pytorch(contract)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_probability_is_found(repository, contracts, model):
    """Masks that drop half as often as the graph was scaled for are told apart."""
    contract = contracts[model]
    halved = replace(contract, sites=tuple(replace(site, p=site.p / 2) for site in contract.sites))
    run = _in_process(_sampler_file(repository, contract))
    _assert_found(compare(_one_sample_each(run, halved), _pytorch(contract)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_masks_shared_over_samples_are_found(repository, contracts, model):
    """A request whose samples all have the first one's masks is told apart."""
    contract = contracts[model]
    mutant = _in_process(with_shared_masks(_sampler_file(repository, contract)))
    shared = _many_samples(mutant, contract, SAMPLES)
    assert np.ptp(shared, axis=0).max() < 1e-3
    expected = _pytorch(contract)
    expected = _totals(contract, expected) if contract.task.value == "segmentation" else expected
    _assert_found(compare(shared, expected))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_one_seed_for_all_is_found(repository, contracts, model):
    """400 requests that all draw the same sample are told apart."""
    contract = contracts[model]
    run = _in_process(_sampler_file(repository, contract))
    _assert_found(compare(np.repeat(_one_sample_each(run, contract)[:1], SAMPLES, axis=0), _pytorch(contract)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_site_left_out_is_found(repository, contracts, model):
    """A sampler that never drops at the site that matters most for this image is told apart."""
    contract, sampler = contracts[model], _sampler_file(repository, contracts[model])
    mutants = [without_site(sampler, index) for index in range(len(contract.sites))]
    _assert_found(*(compare(_one_sample_each(_in_process(m), contract), _pytorch(contract)) for m in mutants))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_each_site_alone_is_pytorchs_layer(repository, contracts, model):
    """With all other sites left out, each acts as that dropout layer alone does: no two are mixed up, none is idle."""
    contract, sampler = contracts[model], _sampler_file(repository, contracts[model])
    for index, site in enumerate(contract.sites):
        alone = sampler
        for other in set(range(len(contract.sites))) - {index}:
            alone = without_site(alone, other)
        result = compare(_one_sample_each(_in_process(alone), contract), _pytorch(contract, (site.name,)))
        assert result.smallest > INDISTINGUISHABLE, (site.name, result)
