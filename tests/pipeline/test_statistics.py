"""What is served is MC dropout: plain PyTorch, which shares none of our mask code, cannot be told from it.

Every reference model answers one small image 400 times; the permutation test of `permutation` compares that with 400
passes of the trained network with its dropout layers, and only they, in train mode (Gal & Ghahramani 2016). The same
test, through the same machinery, tells every faulty sampler of `mutants` apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Contract, Task
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_export.graph.session import OnnxSampler
from equipoise_lab.reference.specs import REFERENCES
from numpy.typing import NDArray
from torch import nn

from ..support.asking import MODELS, ask, picture
from ..support.mutants import with_shared_masks, without_scaling, without_site
from ..support.permutation import PValues, compare

pytestmark = pytest.mark.triton

SAMPLES = 400
CHUNK = 20
SIZE = {"hippocampus": (16, 8, 8), "nuclei": (32, 32), "pneumonia": (28, 28)}
LEVEL = 0.005
DRAWS = 2
"""Told apart is what differs at LEVEL in so many independent draws. All seeds are fixed, but masks also depend on the
model's digest: each republished model draws anew. One draw at LEVEL would then fail by chance once in ten times over
this file; two fail once in a thousand, and miss none of the mutants."""

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
def _pytorch(contract: Contract, draw: int, live: tuple[str, ...] | None = None) -> Rows:
    """Probabilities `[SAMPLES, K * voxels]` of the loop that people write; `live` dropout layers, by default all."""
    reference = REFERENCES[contract.name]
    network = reference.trained()
    for name, layer in network.named_modules():
        layer.train(isinstance(layer, nn.modules.dropout._DropoutNd) and (live is None or name in live))
    image = torch.from_numpy(contract.preprocessing.normalise(_image(contract)))
    copies = image.expand(CHUNK, *image.shape)  # PyTorch draws anew for each image of a batch
    torch.manual_seed(draw)
    with torch.inference_mode(), _one_thread():
        logits = torch.cat([network(copies) for _ in range(SAMPLES // CHUNK)])
    probabilities = logits.sigmoid() if contract.activation.value == "sigmoid" else logits.softmax(1)
    return np.asarray(probabilities.reshape(SAMPLES, -1))


def _pytorch_totals(contract: Contract, draw: int) -> Rows:
    """Per sample and class the sum over voxels: what the sampler calls `volumes` (one voxel for classification)."""
    return _pytorch(contract, draw).reshape(SAMPLES, len(contract.classes), -1).sum(axis=2)


Run = Callable[[NDArray[np.float32], NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
"""The sampler: `image [N, C, *S]` (normalised), `masks [N, T, B]` → its outputs."""


def _one_sample_each(run: Run, contract: Contract, draw: int) -> Rows:
    """The maps of samples that have a request's seed of their own: N images with one sample each."""
    image, layout = _prepared(contract)
    rows = []
    for first in range(0, SAMPLES, CHUNK):
        seeds = range(draw * SAMPLES + first, draw * SAMPLES + first + CHUNK)
        masks = np.stack([draw_masks(layout, seed, contract.model_digest, 0, 1) for seed in seeds])
        outputs = run(np.repeat(image, len(seeds), axis=0), masks)
        rows.append(outputs["probabilities" if "probabilities" in outputs else "sum_p"].reshape(len(seeds), -1))
    return np.concatenate(rows)


def _many_samples(run: Run, contract: Contract, draw: int, chunk: int = CHUNK) -> Rows:
    """What is known of each sample of one seed, drawn in chunks: class probabilities, or their sums over voxels."""
    image, layout = _prepared(contract)
    rows = []
    for first in range(0, SAMPLES, chunk):
        outputs = run(image, draw_masks(layout, draw, contract.model_digest, first, chunk)[None])
        rows.append(outputs["probabilities" if "probabilities" in outputs else "volumes"][0])
    return np.concatenate(rows)


def _prepared(contract: Contract):
    image = contract.preprocessing.normalise(_image(contract))[None]
    assert contract.preprocessing.pad(image[0]).shape == image[0].shape
    return image, mask_layout(contract, image.shape[2:])


def _sampler_file(repository: Path, contract: Contract) -> onnx.ModelProto:
    return onnx.load(repository / f"{contract.name}_sampler" / "1" / "model.onnx")


def _told_apart(ours: Callable[[int], Rows], theirs: Callable[[int], Rows]) -> list[PValues]:
    """The p-values of every draw if all of them differ, else nothing. Both sides are called with the draw's number."""
    results = []
    for draw in range(DRAWS):
        results.append(compare(ours(draw), theirs(draw)))
        if results[-1].smallest > LEVEL:
            return []
    return results


def _is_told_apart(sampler: onnx.ModelProto, contract: Contract) -> bool:
    """Whether the maps of this sampler, run in this process, differ from PyTorch's."""
    run = OnnxSampler(sampler.SerializeToString(), threads=1)
    return bool(_told_apart(partial(_one_sample_each, run, contract), partial(_pytorch, contract)))


def _served_maps(grpc_client, contract: Contract, draw: int) -> Rows:
    """`mean` of one sample is that sample: 400 seeds, each with one."""
    image = _image(contract)
    rows = []
    for first in range(0, SAMPLES, CHUNK):
        seeds = range(draw * SAMPLES + first, draw * SAMPLES + first + CHUNK)
        tensors = {
            "image": np.repeat(image[None], len(seeds), axis=0),
            "samples": np.ones((len(seeds), 1), np.int32),
            "seed": np.array(seeds, np.uint64)[:, None],
        }
        rows.append(ask(grpc_client, contract.name, tensors, ("mean",))["mean"].reshape(len(seeds), -1))
    return np.concatenate(rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_served_samples_are_those_of_pytorch(grpc_client, repository, contracts, model):
    """400 served samples, each with its own seed, and 400 of PyTorch agree in mean and variance of every output."""
    contract = contracts[model]
    served = cache(partial(_served_maps, grpc_client, contract))
    assert not _told_apart(served, partial(_pytorch, contract))
    # The mutants below run in this process: here the true sampler does, and is the one that is served.
    run = OnnxSampler(_sampler_file(repository, contract).SerializeToString(), threads=1)
    np.testing.assert_allclose(_one_sample_each(run, contract, 0), served(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_served_samples_of_one_seed_are_those_of_pytorch(grpc_client, contracts, model):
    """400 samples of one seed, drawn by the served sampler in chunks, and 400 of PyTorch agree as well."""
    contract = contracts[model]
    outputs = ("volumes",) if contract.task is Task.SEGMENTATION else ("probabilities",)

    def run(image, masks):
        return ask(grpc_client, f"{model}_sampler", {"image": image, "masks": masks}, outputs)

    assert not _told_apart(partial(_many_samples, run, contract), partial(_pytorch_totals, contract))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_wrong_scaling_is_found(repository, contracts, model):
    """Kept units that are not multiplied by 1/(1 − p) are told apart."""
    contract = contracts[model]
    assert _is_told_apart(without_scaling(_sampler_file(repository, contract)), contract)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_probability_is_found(repository, contracts, model):
    """Masks that drop half as often as the graph was scaled for are told apart."""
    contract = contracts[model]
    halved = replace(contract, sites=tuple(replace(site, p=site.p / 2) for site in contract.sites))
    run = OnnxSampler(_sampler_file(repository, contract).SerializeToString(), threads=1)
    assert _told_apart(partial(_one_sample_each, run, halved), partial(_pytorch, contract))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_masks_shared_over_samples_are_found(repository, contracts, model):
    """A request whose samples all have the first one's masks is told apart."""
    contract = contracts[model]
    mutant = OnnxSampler(with_shared_masks(_sampler_file(repository, contract)).SerializeToString(), threads=1)
    shared = partial(_many_samples, mutant, contract, chunk=SAMPLES)
    assert np.ptp(shared(0), axis=0).max() < 1e-3
    assert _told_apart(shared, partial(_pytorch_totals, contract))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_one_seed_for_all_is_found(repository, contracts, model):
    """400 requests that all draw the same sample are told apart."""
    contract = contracts[model]
    run = OnnxSampler(_sampler_file(repository, contract).SerializeToString(), threads=1)

    def repeated(draw: int) -> Rows:
        return np.repeat(_one_sample_each(run, contract, draw)[:1], SAMPLES, axis=0)

    assert _told_apart(repeated, partial(_pytorch, contract))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_site_left_out_is_found(repository, contracts, model):
    """A sampler that never drops at the site that matters most for this image is told apart."""
    contract, sampler = contracts[model], _sampler_file(repository, contracts[model])
    assert any(_is_told_apart(without_site(sampler, index), contract) for index in range(len(contract.sites)))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_each_site_alone_is_pytorchs_layer(repository, contracts, model):
    """With all other sites left out, each acts as that dropout layer alone does: no two are mixed up, none is idle."""
    contract, sampler = contracts[model], _sampler_file(repository, contracts[model])
    for index, site in enumerate(contract.sites):
        alone = sampler
        for other in set(range(len(contract.sites))) - {index}:
            alone = without_site(alone, other)
        run = OnnxSampler(alone.SerializeToString(), threads=1)
        layer = partial(_pytorch, contract, live=(site.name,))
        assert not _told_apart(partial(_one_sample_each, run, contract), layer), site.name
