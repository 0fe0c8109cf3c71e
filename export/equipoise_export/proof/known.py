"""The network's answers that a serving machine repeats without it (`equipoise doctor --prove`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from equipoise_core.contract import Contract
from equipoise_core.known_answers import IMAGES, VALUES, KnownAnswers, at_points, known_image, known_masks
from numpy.typing import NDArray

from .definitions import outputs, probabilities
from .references import Network

Array = NDArray[Any]


def known_answers(network: Network, contract: Contract) -> KnownAnswers:
    """What the network answers to the images and masks that follow from the contract. Call it where it is `ready`."""
    images = [known_image(contract, number) for number in range(IMAGES[contract.task])]
    p = np.stack([_samples(network, contract, image, number) for number, image in enumerate(images)])  # [I, T, K, *S]
    single = [outputs(contract, np.concatenate(images), p[:, sample : sample + 1]) for sample in range(p.shape[1])]
    points = np.zeros(0, np.int64)
    if contract.per_voxel:
        rows = sum(each.shape[1] for name, each in single[0].items() if name.startswith("sum_"))
        points = _points(p[0, :, : len(contract.classes)], VALUES // (p.shape[0] * p.shape[1] * rows))
    gathered = {}
    for name in single[0]:
        each = [answer[name] for answer in single]  # per sample: maps [I, rows, *S], else [I, 1, K]
        maps = name.startswith("sum_")
        stacked = np.stack([at_points(one, points) for one in each], axis=1) if maps else np.concatenate(each, axis=1)
        gathered[name] = stacked.astype(np.float32)
    return KnownAnswers(contract.digest, points, gathered)


def _samples(network: Network, contract: Contract, image: Array, number: int) -> Array:
    """`[T, K, *S]`"""
    masks = known_masks(contract, number, contract.digest)
    return np.stack([probabilities(network, contract, image, mask) for mask in masks])


def _points(p: Array, most: int) -> NDArray[np.int64]:
    """Voxels of p `[T, K, *S]`: half of them where an error of the logits shows most, the others evenly."""
    shows = (p * (1.0 - p)).mean(axis=(0, 1)).ravel()
    largest = np.argsort(-shows, kind="stable")[: most // 2]
    evenly = np.linspace(0, shows.size - 1, most - most // 2).astype(np.int64)
    return np.unique(np.concatenate([largest, evenly]))
