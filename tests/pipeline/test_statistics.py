"""What is served is MC dropout: plain PyTorch, which shares none of our mask code, cannot be told from it.

Every reference model answers one small image 400 times; the permutation test of `permutation` compares that with 400
passes of the trained network with its dropout layers, and only they, in train mode (Gal & Ghahramani 2016). The same
test, through the same machinery, tells every faulty sampler of `mutants` apart.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from equipoise_core.contract import Contract, Task
from equipoise_core.masks import draw_masks
from equipoise_export.graph.session import OnnxSampler

from ..support.asking import MODELS, ask
from ..support.mc_dropout import (
    CHUNK,
    SAMPLES,
    Rows,
    Run,
    image_of,
    one_sample_each,
    prepared,
    samples_of_pytorch,
    told_apart,
)
from ..support.mutants import with_shared_masks, without_scaling, without_site

pytestmark = [pytest.mark.triton, pytest.mark.torch]


def _pytorch_totals(contract: Contract, draw: int) -> Rows:
    """Per sample and class the sum over voxels: what the sampler calls `volumes` (one voxel for classification)."""
    return samples_of_pytorch(contract, draw).reshape(SAMPLES, len(contract.classes), -1).sum(axis=2)


def _many_samples(run: Run, contract: Contract, draw: int, chunk: int = CHUNK) -> Rows:
    """What is known of each sample of one seed, drawn in chunks: class probabilities, or their sums over voxels."""
    image, layout = prepared(contract)
    rows = []
    for first in range(0, SAMPLES, chunk):
        outputs = run(image, draw_masks(layout, draw, contract.model_digest, first, chunk)[None])
        rows.append(outputs["probabilities" if "probabilities" in outputs else "volumes"][0])
    return np.concatenate(rows)


def _sampler_file(repository: Path, contract: Contract) -> onnx.ModelProto:
    return onnx.load(repository / f"{contract.name}_sampler" / "1" / "model.onnx")


def _is_told_apart(sampler: onnx.ModelProto, contract: Contract) -> bool:
    """Whether the maps of this sampler, run in this process, differ from PyTorch's."""
    run = OnnxSampler(sampler.SerializeToString(), threads=1)
    return bool(told_apart(partial(one_sample_each, run, contract), partial(samples_of_pytorch, contract)))


def _served_maps(grpc_client, contract: Contract, draw: int) -> Rows:
    """`mean` of one sample is that sample: 400 seeds, each with one."""
    image = image_of(contract)
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
    assert not told_apart(served, partial(samples_of_pytorch, contract))
    # The mutants below run in this process: here the true sampler does, and is the one that is served.
    run = OnnxSampler(_sampler_file(repository, contract).SerializeToString(), threads=1)
    np.testing.assert_allclose(one_sample_each(run, contract, 0), served(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_served_samples_of_one_seed_are_those_of_pytorch(grpc_client, contracts, model):
    """400 samples of one seed, drawn by the served sampler in chunks, and 400 of PyTorch agree as well."""
    contract = contracts[model]
    outputs = ("volumes",) if contract.task is Task.SEGMENTATION else ("probabilities",)

    def run(image, masks):
        return ask(grpc_client, f"{model}_sampler", {"image": image, "masks": masks}, outputs)

    assert not told_apart(partial(_many_samples, run, contract), partial(_pytorch_totals, contract))


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
    assert told_apart(partial(one_sample_each, run, halved), partial(samples_of_pytorch, contract))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_masks_shared_over_samples_are_found(repository, contracts, model):
    """A request whose samples all have the first one's masks is told apart."""
    contract = contracts[model]
    mutant = OnnxSampler(with_shared_masks(_sampler_file(repository, contract)).SerializeToString(), threads=1)
    shared = partial(_many_samples, mutant, contract, chunk=SAMPLES)
    assert np.ptp(shared(0), axis=0).max() < 1e-3
    assert told_apart(shared, partial(_pytorch_totals, contract))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_one_seed_for_all_is_found(repository, contracts, model):
    """400 requests that all draw the same sample are told apart."""
    contract = contracts[model]
    run = OnnxSampler(_sampler_file(repository, contract).SerializeToString(), threads=1)

    def repeated(draw: int) -> Rows:
        return np.repeat(one_sample_each(run, contract, draw)[:1], SAMPLES, axis=0)

    assert told_apart(repeated, partial(samples_of_pytorch, contract))


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
        layer = partial(samples_of_pytorch, contract, live=(site.name,))
        assert not told_apart(partial(one_sample_each, run, contract), layer), site.name
