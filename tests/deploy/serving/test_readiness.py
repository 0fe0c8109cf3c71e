"""Which answers to a health probe count as plausible."""

from __future__ import annotations

import numpy as np
import pytest
from equipoise_client.images.synthetic import synthetic_image
from equipoise_deploy.errors import NotReadyError
from equipoise_deploy.serving.readiness import plausible_variance


def test_synthetic_image_has_the_nominal_size_and_structure(tiny_segmentation):
    """Every channel varies: a constant image would hide masks that do not act."""
    image = synthetic_image(tiny_segmentation.contract)
    assert image.shape == (1, 1, 4, 4) and image.dtype == np.float32
    assert np.isfinite(image).all() and image.std() > 0


def test_no_variance_between_samples_is_not_ready(tiny_segmentation, tiny_deterministic):
    """Masks that do not act are the one failure that a look at the mean does not show."""
    answer = {"mean": np.full((1, 2), 0.5, np.float32), "variance": np.zeros((1, 2), np.float32)}
    with pytest.raises(NotReadyError, match="variance 0"):
        plausible_variance(tiny_segmentation.contract, answer)
    assert plausible_variance(tiny_deterministic.contract, answer) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answer_that_is_not_finite_is_not_ready(tiny_segmentation, value):
    """NaN compares false with everything, so it has a check of its own."""
    answer = {"mean": np.array([value], np.float32), "variance": np.array([0.1], np.float32)}
    with pytest.raises(NotReadyError, match="mean that is not finite"):
        plausible_variance(tiny_segmentation.contract, answer)
