"""Masks that are grown and shrunken by a distance in mm, against SciPy's distances."""

import dataclasses

import numpy as np
import pytest
from equipoise_core.outline import BETWEEN, INSIDE, OutlineRule, band, foreground_of, grown, parse_outline, shrunken
from scipy.ndimage import distance_transform_edt


@pytest.fixture(params=[(24, 30), (9, 14, 11)])
def mask(request):
    """Some scattered voxels and a block, at no edge and at an edge."""
    random = np.random.default_rng(sum(request.param))
    found = random.random(request.param) < 0.01
    found[tuple(slice(0, 5) for _ in request.param)] = True
    return found


@pytest.mark.parametrize("radius", [0.0, 0.7, 1.0, 2.5, 6.0, 1e4])
def test_grown_and_shrunken_are_what_distances_say(mask, radius):
    """Anisotropic voxels; a radius of nothing, of less than a voxel, and of more than the image."""
    voxel = (1.0, 0.8, 2.0)[: mask.ndim]
    outside = distance_transform_edt(~mask, voxel)
    assert (grown(mask, radius, voxel) == (outside <= radius * (1 + 1e-9))).all()
    assert (shrunken(mask, radius, voxel) == (distance_transform_edt(mask, voxel) > radius)).all()


def test_a_margin_that_is_a_distance_between_voxels_is_met():
    """Squares of such distances are not exact in floating point."""
    for size in (0.1, 0.3, 0.7, 1.1):
        mask = np.zeros((1, 40), bool)
        mask[0, 0] = True
        for steps in range(1, 39):
            assert grown(mask, steps * size, (1.0, size))[0].sum() == steps + 1


def test_nothing_and_everything():
    """An empty prediction has no outer mask but itself; the image's border is no outline."""
    empty, full = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    assert not grown(empty, 3.0, (1.0, 1.0)).any() and shrunken(full, 3.0, (1.0, 1.0)).all()


def test_the_band_lies_around_the_outline(mask):
    found = band(mask, 1.0, 2.0, None)
    assert (found[mask] >= BETWEEN).all() and (found == INSIDE).sum() < mask.sum() < (found >= BETWEEN).sum()


def test_foreground_is_every_class_but_the_background(segmentation):
    labels = np.array([[[0, 1], [1, 0]]], np.uint8)
    assert (foreground_of(segmentation, labels) == (labels[0] > 0)).all()


def test_a_rule_survives_its_document_and_refuses_margins_that_cannot_be():
    rule = OutlineRule(0.9, 1.0, 2.0, 40, "test")
    assert parse_outline(vars(rule)) == rule
    for wrong in ({"inner": -1.0}, {"outer": np.inf}, {"level": 1.0}, {"inner": np.nan}):
        with pytest.raises(ValueError, match="margins"):
            dataclasses.replace(rule, **wrong)
