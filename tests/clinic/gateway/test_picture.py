"""The picture of the most uncertain slice."""

from __future__ import annotations

import io

import numpy as np
import pytest
from equipoise_clinic.dicom.study import Slice
from equipoise_clinic.gateway.picture import draw
from PIL import Image


def shown(**changes) -> np.ndarray:
    """`[height, width, 3]` of a slice with a 4 × 4 square of uncertainty in a mask of 10 × 10."""
    grey = np.full((40, 20), 90, np.uint8)
    mask, unsure = np.zeros(grey.shape, np.uint8), np.zeros(grey.shape, np.float32)
    mask[10:20, 5:15], unsure[2:6, 2:6] = 1, 0.5
    given = {"mask": mask, "uncertainty": unsure, "limit": 0.69, "spacing": (1.0, 1.0), **changes}
    content = draw(Slice(0, "1.2", grey, given["mask"], given["uncertainty"], given["limit"], given["spacing"]))
    return np.asarray(Image.open(io.BytesIO(content)))


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = (picture.shape[1] - 8) // 2
    return picture[:, :width], picture[:, -width:]


def test_outline_and_heat_lie_where_mask_and_uncertainty_are():
    left, right = halves(shown())
    scale = left.shape[0] // 40
    coloured = np.argwhere(np.ptp(left.astype(int), axis=2) > 30) // scale
    assert (coloured.min(axis=0).tolist(), coloured.max(axis=0).tolist()) == ([10, 5], [19, 14])
    hot = np.argwhere(np.ptp(right.astype(int), axis=2) > 30) // scale
    assert (hot.min(axis=0).tolist(), hot.max(axis=0).tolist()) == ([2, 2], [5, 5])


def test_heat_has_one_scale_for_all_pictures():
    """Half of a small uncertainty's colour must not look like half of a large one's."""
    weak = np.full((40, 20), 0.01, np.float32)
    strong = np.full((40, 20), 0.6, np.float32)
    assert halves(shown(uncertainty=strong))[1].mean() > halves(shown(uncertainty=weak))[1].mean() + 20


def test_an_unknown_uncertainty_looks_like_the_largest():
    hole = np.zeros((40, 20), np.float32)
    most = hole.copy()
    hole[3, 3], most[3, 3] = np.nan, 0.69
    assert np.array_equal(shown(uncertainty=hole), shown(uncertainty=most))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0), (0.5, 0.7), None])
def test_proportions_are_the_patients(spacing):
    left, _ = halves(shown(spacing=spacing))
    down, across = spacing or (1.0, 1.0)
    assert left.shape[0] / left.shape[1] == pytest.approx(40 * down / (20 * across), rel=0.1)


def test_a_classification_shows_its_image_alone():
    left, right = halves(shown(mask=None, uncertainty=None))
    assert np.array_equal(left, right) and len(np.unique(left)) == 1
