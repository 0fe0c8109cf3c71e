"""The mean Dice between pairs of samples' label maps: by hand, pair by pair, and of the samples that are answered."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from equipoise_core.case import Case, Model
from equipoise_core.contract import Activation, Sampler
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.sampling import get_ready
from equipoise_export.calibration.cases import Labelled
from equipoise_export.calibration.metrics import dice
from equipoise_lab.compare import pairwise as module
from equipoise_lab.compare.pairwise import lack_of_pairwise_dice, mean_pairwise_dice


def test_three_maps_by_hand():
    """Of 2, 2 and 1 voxels that share 1, 1 and 0: Dice ½, ⅔ and 0. A structure that no sample has: 1."""
    maps = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]], bool)[:, None]
    assert mean_pairwise_dice(maps) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    both = np.concatenate([maps, np.zeros_like(maps)], axis=1)
    assert mean_pairwise_dice(both) == pytest.approx((7 / 18 + 1) / 2)


def test_it_is_the_mean_over_pairs(monkeypatch):
    """Block by block too: a volume is not multiplied at once."""
    maps = np.random.default_rng(0).random((7, 2, 1000)) < 0.3
    expected = np.mean([[dice(a[k], b[k]) for a, b in combinations(maps, 2)] for k in range(2)])
    assert mean_pairwise_dice(maps) == pytest.approx(expected)
    monkeypatch.setattr(module, "AT_ONCE", 77)
    assert mean_pairwise_dice(maps) == pytest.approx(expected)
    assert mean_pairwise_dice(np.repeat(maps[:1], 5, axis=0)) == 1.0


def sampler(images, masks):
    """Samples move the border: p(lesion) = sigmoid(image + bits kept − 4), summed over them as a graph does it."""
    shift = np.unpackbits(masks, axis=2).sum(axis=2)[:, :, None, None] - 4.0
    lesion = 1 / (1 + np.exp(-(images[:, 0, None] + shift)))
    p = np.stack([1 - lesion, lesion], axis=2).astype(np.float32)  # [N, T, K, *S]
    entropy = -(p * np.log(p)).sum(axis=2, keepdims=True)
    return {
        "sum_p": p.sum(axis=1), "sum_p2": (p * p).sum(axis=1), "sum_entropy": entropy.sum(axis=1),
        "volumes": p.sum(axis=(3, 4)),
    }  # fmt: skip


def test_the_samples_are_those_that_are_answered_with(tiny_segmentation, monkeypatch):
    """Maps made from the masks of the image's own seed, paired one by one; at most `MOST` of them."""
    contract = replace(tiny_segmentation.contract, samplers=(Sampler("tinyseg_sampler", "00" * 32),))
    model = Model(contract, None, "", "")
    image = np.random.default_rng(1).normal(0, 2, (1, 12, 12)).astype(np.float32)
    case = Labelled("c", "c", image, np.zeros((12, 12), np.uint8))
    ready = get_ready(model, Case(image), (contract.samples,))
    masks = draw_masks(mask_layout(contract, ready.window), ready.seed, contract.model_digest, 0, contract.samples)
    normalised = contract.preprocessing.pad(ready.input.normalised, ready.window)[None]
    each = [sampler(normalised, mask[None, None])["sum_p"][0, :, :12, :12] for mask in masks]
    maps = [p.argmax(axis=0) == 1 for p in each]
    expected = 1.0 - np.mean([dice(a, b) for a, b in combinations(maps, 2)])
    assert 0.0 < expected < 1.0 and contract.samples == 20
    monkeypatch.setattr(module, "MOST", 100)
    assert lack_of_pairwise_dice(model, case, [sampler]) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(module, "MOST", 5)
    first = 1.0 - np.mean([dice(a, b) for a, b in combinations(maps[:5], 2)])
    assert lack_of_pairwise_dice(model, case, [sampler]) == pytest.approx(first, abs=1e-6) != expected


def test_without_voxels_or_samples_there_is_none(tiny_segmentation, tiny_classifier):
    """One pass has nothing to pair, and a class no outline."""
    case = Labelled("c", "c", np.zeros((1, 4, 4), np.float32), np.zeros((4, 4), np.uint8))
    one_pass = replace(tiny_segmentation.contract, sites=())
    for contract in (one_pass, tiny_classifier.contract):
        assert np.isnan(lack_of_pairwise_dice(Model(contract, None, "", ""), case, [sampler]))


def test_regions_that_overlap_are_masks_of_their_own(tiny_segmentation):
    """From one half on, whatever the others say."""
    contract = replace(tiny_segmentation.contract, activation=Activation.SIGMOID)
    p = np.array([[[0.5, 0.2]], [[0.9, 0.4]]])
    assert module._regions(contract, p).tolist() == [[True, False], [True, False]]
    assert module._regions(tiny_segmentation.contract, p).tolist() == [[True, True]]
