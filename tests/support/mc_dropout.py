"""Samples of a reference model, drawn by plain PyTorch and by a sampler of ours, to be told apart or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from equipoise_core.contract import Contract
from equipoise_core.masks import MaskLayout, draw_masks, mask_layout
from equipoise_lab.reference.specs import REFERENCES
from numpy.typing import NDArray
from torch import nn

from .asking import picture
from .permutation import PValues, compare

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


def image_of(contract: Contract) -> NDArray[np.float32]:
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
def samples_of_pytorch(contract: Contract, draw: int, live: tuple[str, ...] | None = None, device: str = "cpu") -> Rows:
    """Probabilities `[SAMPLES, K * voxels]` of the loop that people write; `live` dropout layers, by default all."""
    reference = REFERENCES[contract.name]
    network = reference.trained().to(device)
    for name, layer in network.named_modules():
        layer.train(isinstance(layer, nn.modules.dropout._DropoutNd) and (live is None or name in live))
    image = torch.from_numpy(contract.preprocessing.normalise(image_of(contract))).to(device)
    copies = image.expand(CHUNK, *image.shape)  # PyTorch draws anew for each image of a batch
    torch.manual_seed(draw)
    with torch.inference_mode(), _one_thread():
        logits = torch.cat([network(copies) for _ in range(SAMPLES // CHUNK)])
    probabilities = logits.sigmoid() if contract.activation.value == "sigmoid" else logits.softmax(1)
    return np.asarray(probabilities.reshape(SAMPLES, -1).cpu())


Run = Callable[[NDArray[np.float32], NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
"""The sampler: `image [N, C, *S]` (normalised), `masks [N, T, B]` → its outputs."""


def one_sample_each(run: Run, contract: Contract, draw: int) -> Rows:
    """The maps of samples that have a request's seed of their own: N images with one sample each."""
    image, layout = prepared(contract)
    rows = []
    for first in range(0, SAMPLES, CHUNK):
        seeds = range(draw * SAMPLES + first, draw * SAMPLES + first + CHUNK)
        masks = np.stack([draw_masks(layout, seed, contract.model_digest, 0, 1) for seed in seeds])
        outputs = run(np.repeat(image, len(seeds), axis=0), masks)
        rows.append(outputs["probabilities" if "probabilities" in outputs else "sum_p"].reshape(len(seeds), -1))
    return np.concatenate(rows)


def prepared(contract: Contract) -> tuple[NDArray[np.float32], MaskLayout]:
    """The image `[1, C, *S]`, normalised, and how its masks lie."""
    image = contract.preprocessing.normalise(image_of(contract))[None]
    assert contract.preprocessing.pad(image[0]).shape == image[0].shape
    return image, mask_layout(contract, image.shape[2:])


def told_apart(ours: Callable[[int], Rows], theirs: Callable[[int], Rows]) -> list[PValues]:
    """The p-values of every draw if all of them differ, else nothing. Both sides are called with the draw's number."""
    results = []
    for draw in range(DRAWS):
        results.append(compare(ours(draw), theirs(draw)))
        if results[-1].smallest > LEVEL:
            return []
    return results
