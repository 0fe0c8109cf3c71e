import dataclasses

import numpy as np
import pytest
from equipoise_core.statistics import input_statistics, prediction_statistics, simple_statistics


@pytest.fixture
def image():
    random = np.random.default_rng(0)
    return random.normal(0, 1, (1, 24, 20)).cumsum(axis=1).cumsum(axis=2).astype(np.float32)


def test_brightness_and_contrast_move_no_statistic_of_the_input(image):
    """Only what the image shows counts, not the scanner's scale."""
    changed = input_statistics(image * 7.0 + 100.0)
    for name, value in input_statistics(image).items():
        assert changed[name] == pytest.approx(value, abs=1e-3), name


def test_noise_raises_roughness_and_noise(image):
    """And a constant image has finite statistics too."""
    noisy = image + np.random.default_rng(1).normal(0, 0.3 * image.std(), image.shape).astype(np.float32)
    before, after = simple_statistics(image), simple_statistics(noisy)
    assert after["roughness"] > before["roughness"] and after["noise"] > before["noise"]
    assert np.isfinite(list(input_statistics(np.full((1, 5, 5), 3.0, np.float32)).values())).all()


def test_foreground_share_is_the_mean_probability_of_all_foreground_classes(segmentation, classification):
    """Background does not count; two of four voxels at .5 and .25 of either class give (.5 + .25) · 2 / 4."""
    mean = np.zeros((3, 2, 2))
    mean[1:, 0] = [0.5, 0.25]
    mean[0] = 1.0 - mean[1:].sum(axis=0)
    assert prediction_statistics(segmentation, mean) == {"foreground_share": pytest.approx(0.375)}
    assert prediction_statistics(classification, np.array([0.2, 0.8])) == {}
    sigmoid = dataclasses.replace(segmentation, activation="sigmoid", classes=("x",), samplers=())
    assert prediction_statistics(sigmoid, np.full((1, 2, 2), 0.25)) == {"foreground_share": 0.25}


@pytest.mark.parametrize("shape", [(1, 24, 20), (1, 256, 250), (1, 40, 52, 44)])
def test_simple_statistics_are_what_they_are_defined_to_be(shape):
    """In double precision; of a large image, where some lines stand for all, within what those vary by."""
    image = np.random.default_rng(2).normal(0.0, 1.0, shape).cumsum(axis=-1).astype(np.float32)
    x = image.astype(np.float64)
    x = (x - x.mean()) / x.std()
    axes = range(1, x.ndim)
    found, few = simple_statistics(image), x.size < 2**14
    assert found["skewness"] == pytest.approx((x**3).mean(), abs=1e-5)
    assert found["kurtosis"] == pytest.approx((x**4).mean(), abs=1e-5)
    roughness = np.mean([np.abs(np.diff(x, axis=axis)).mean() for axis in axes])
    noise = np.mean([np.median(np.abs(np.diff(x, n=2, axis=axis))) for axis in axes])
    assert found["roughness"] == pytest.approx(roughness, rel=1e-5 if few else 0.03)
    assert found["noise"] == pytest.approx(noise, rel=1e-5 if few else 0.03)
