"""The augmentation: image and labels stay together, and nothing happens when nothing is asked for."""

import numpy as np
import pytest
from equipoise_lab.reference.augmentation import Augmentation


def blob(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An off-centre ellipsoid, as an image `[1, *S]` and as labels `[*S]`."""
    axes = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    inside = sum(((axis - 0.4 * size) / (0.25 * size)) ** 2 for axis, size in zip(axes, shape, strict=True)) < 1
    return inside[None].astype(np.float32), inside.astype(np.uint8)


@pytest.mark.parametrize("shape", [(24, 40), (20, 32, 26)])
def test_labels_follow_the_image(shape: tuple[int, ...]) -> None:
    """Rotated, scaled, shifted and mirrored, the labels still cover what is bright, on unequal axes too."""
    random = np.random.default_rng(0)
    image, labels = blob(shape)
    everything = Augmentation(flips=(0,), rotation=30, scale=0.2, shift=3)
    for _ in range(5):
        moved, relabelled = everything.deform(image, labels, random)
        assert moved.shape == image.shape and relabelled.sum() > 0
        assert ((moved[0] > 0.5) != relabelled).mean() < 0.02


def test_rotation_keeps_sizes_on_unequal_axes() -> None:
    """A rotation is one in voxels, not in the fractions of each axis: a ball stays a ball."""
    axes = np.meshgrid(np.arange(24), np.arange(48), indexing="ij")
    ball = (((axes[0] - 11.5) ** 2 + (axes[1] - 23.5) ** 2) < 36).astype(np.uint8)
    _, labels = Augmentation(rotation=45).deform(ball[None].astype(np.float32), ball, np.random.default_rng(1))
    assert (labels != ball).mean() < 0.01


def test_no_augmentation_changes_nothing() -> None:
    """The default is the identity."""
    random = np.random.default_rng(0)
    image, labels = blob((16, 24))
    moved, relabelled = Augmentation().deform(*Augmentation().cut(image, labels, random), random)
    np.testing.assert_allclose(moved, image, atol=1e-5)
    np.testing.assert_array_equal(relabelled, labels)
    np.testing.assert_allclose(Augmentation().recolour(image, random), image)


def test_cut_takes_the_same_voxels_from_image_and_labels() -> None:
    """Up to `crop` voxels go from each side."""
    image, labels = blob((16, 24))
    cut, cut_labels = Augmentation(crop=3).cut(image, labels, np.random.default_rng(2))
    np.testing.assert_array_equal(cut[0], cut_labels)
    assert all(0 <= before - after <= 6 for before, after in zip(labels.shape, cut_labels.shape, strict=True))
