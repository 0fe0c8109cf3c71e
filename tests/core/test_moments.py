import numpy as np
import pytest
from equipoise_core.contract import Activation
from equipoise_core.moments import Moments, entropy, moments_of_outputs, moments_of_probabilities
from equipoise_core.uncertainty import Uncertainty, label_confidence
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

ACTIVATIONS = st.sampled_from(list(Activation))


def samples_of(seed: int, samples: int, classes: int, activation: Activation, sharpness: float = 3.0) -> np.ndarray:
    """Random probabilities `[T, K]`, from nearly uniform to saturated."""
    logits = np.random.default_rng(seed).normal(0, sharpness, (samples, classes))
    return special.softmax(logits, axis=1) if activation is Activation.SOFTMAX else special.expit(logits)


@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(2, 5), ACTIVATIONS, st.floats(0.1, 200.0))
@settings(max_examples=200)
def test_total_is_aleatoric_plus_epistemic(seed, samples, classes, activation, sharpness):
    """Depeweg 2018, each term computed from its definition; all finite and of the right sign, saturated or not."""
    p = samples_of(seed, samples, classes, activation, sharpness)
    u = Uncertainty(moments_of_probabilities(p, activation), activation)
    if activation is Activation.SOFTMAX:
        expected = stats.entropy(p, axis=1).mean(), stats.entropy(p.mean(axis=0))
    else:
        binary = special.entr(p) + special.entr(1 - p)
        mean = p.mean(axis=0)
        expected = binary.mean(axis=0), special.entr(mean) + special.entr(1 - mean)
    np.testing.assert_allclose(u.aleatoric, np.reshape(expected[0], u.aleatoric.shape), atol=1e-12)
    np.testing.assert_allclose(u.total, np.reshape(expected[1], u.total.shape), atol=1e-12)
    np.testing.assert_allclose(u.total, u.aleatoric + u.epistemic, atol=1e-15)
    assert (u.epistemic >= 0).all()
    assert (u.total <= (np.log(classes) if activation is Activation.SOFTMAX else np.log(2)) + 1e-12).all()


@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(2, 5), ACTIVATIONS)
def test_variances_sum_to_the_total_variance(seed, samples, classes, activation):
    """Law of total variance: within + between = p̄(1−p̄), exactly, per class; the corrected one is `ddof=1`."""
    p = samples_of(seed, samples, classes, activation)
    u = Uncertainty(moments_of_probabilities(p, activation), activation)
    np.testing.assert_allclose(u.variance, p.var(axis=0), atol=1e-14)
    np.testing.assert_allclose(u.variance_corrected, p.var(axis=0, ddof=1), atol=1e-14)
    np.testing.assert_allclose(u.variance_aleatoric + u.variance, u.mean * (1 - u.mean), atol=1e-14)


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_moments_merge_associatively(seed, a, b, c):
    """Chunks merged in any grouping equal one chunk of all samples."""
    p = samples_of(seed, a + b + c, 3, Activation.SOFTMAX)
    parts = [moments_of_probabilities(x, Activation.SOFTMAX) for x in np.split(p, [a, a + b])]
    whole = moments_of_probabilities(p, Activation.SOFTMAX)
    for merged in ((parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2])):
        assert merged.samples == whole.samples
        for name in ("sum_p", "sum_p2", "sum_entropy", "volumes"):
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-12)


def test_entropy_at_certainty_is_zero():
    """0 ln 0 = 0: no NaN where a class is impossible, in either precision."""
    for dtype in (np.float32, np.float64):
        p = np.array([1.0, 0.0], dtype=dtype)
        assert entropy(p, Activation.SOFTMAX) == 0.0
        assert (entropy(p, Activation.SIGMOID) == 0.0).all()


def test_padding_is_cropped_but_volumes_are_the_graphs(segmentation):
    """Maps lose the padding; per-sample volumes already leave it out."""
    padded = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    outputs = {"sum_p": padded, "sum_p2": padded, "sum_entropy": padded[:, :1], "volumes": np.ones((1, 6, 3))}
    moments = moments_of_outputs(segmentation, outputs, 0, (3, 2))
    assert moments.sum_p.shape == (3, 3, 2) and moments.sum_entropy.shape == (1, 3, 2)
    assert (moments.sum_p == padded[0, :, :3, :2]).all()
    assert moments.samples == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_single_bad_number_shows(bad):
    """One NaN anywhere makes the moments not finite."""
    good = moments_of_probabilities(samples_of(0, 4, 2, Activation.SOFTMAX), Activation.SOFTMAX)
    assert good.finite
    broken = Moments(4, good.sum_p, good.sum_p2 * np.array([1.0, bad]), good.sum_entropy, good.volumes)
    assert not broken.finite


@pytest.mark.parametrize("shape", [(2,), (5,), (1, 4), (3, 9, 7), (14, 4, 5, 6)])
def test_labels_are_the_most_probable_classes(shape):
    """The first of equals, for images and for maps."""
    p = np.random.default_rng(0).integers(0, 4, (2, *shape)).astype(np.float32)
    volumes = np.zeros((2, 0))
    softmax = Uncertainty(Moments(2, p.sum(0), p.sum(0), p.sum(0)[:1], volumes), Activation.SOFTMAX)
    assert softmax.labels.dtype == np.uint8
    np.testing.assert_array_equal(softmax.labels, p.mean(0).argmax(0)[None])
    sigmoid = Uncertainty(softmax.moments, Activation.SIGMOID)
    np.testing.assert_array_equal(sigmoid.labels, (p.mean(0) >= 0.5).astype(np.uint8))


def test_confidence_is_the_probability_of_the_given_label():
    """Softmax: that of the label's class, be it the largest or not. Sigmoid: p where the label is 1, else 1 − p."""
    labels, p = np.array([[0, 1, 1]], np.uint8), np.array([[0.1, 0.9, 0.4]])
    np.testing.assert_allclose(label_confidence(Activation.SIGMOID, labels, p), [[0.9, 0.9, 0.4]])
    labels, p = np.array([[2, 0]], np.uint8), np.array([[0.2, 0.3], [0.1, 0.6], [0.7, 0.1]])
    np.testing.assert_allclose(label_confidence(Activation.SOFTMAX, labels, p), [[0.7, 0.3]])
