import numpy as np
import pytest
from equipoise_core.ood_distance import OodDistance, parse_ood_distance
from equipoise_core.texture import texture_statistics
from scipy import ndimage


@pytest.fixture
def image():
    return np.random.default_rng(0).gamma(2.0, size=(1, 48, 40)).astype(np.float32)


def test_brightness_and_contrast_move_no_statistic(image):
    """Only the kind of texture counts, not the scale of the intensities."""
    changed = texture_statistics(image * 7.0 + 100.0)
    for name, value in texture_statistics(image).items():
        assert changed[name] == pytest.approx(value, abs=2e-3), name


def test_noise_and_blur_move_the_finest_energy_apart(image):
    """Blur takes fine detail away, noise adds it."""
    blurred = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2) + np.roll(image, (1, 1), (1, 2))) / 4
    assert texture_statistics(blurred)["energy_0"] < texture_statistics(image)["energy_0"] - 0.2


def test_bright_blobs_and_dark_blobs_differ_in_sign():
    """Inverting an image turns `sign` around and moves nothing else."""
    grid = np.add.outer(np.arange(64) % 16, np.arange(64) % 16)
    blobs = np.exp(-((grid - 15.0) ** 2) / 8)[None].astype(np.float32)
    bright, dark = texture_statistics(blobs), texture_statistics(-blobs)
    for name in bright:
        assert bright[name] == pytest.approx(-dark[name] if name.startswith("sign") else dark[name], abs=1e-3)
    assert abs(bright["sign_0"]) > 0.3


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (2, 7, 3, 1), (1, 28, 28), (3, 2, 2)])
def test_every_size_gives_finite_numbers(shape):
    """Also a constant image, a single pixel, odd sizes."""
    for image in (np.zeros(shape, np.float32), np.random.default_rng(1).normal(size=shape).astype(np.float32)):
        numbers = texture_statistics(image)
        assert len(numbers) == 23
        assert np.isfinite(list(numbers.values())).all()


def test_distance_by_hand():
    """z = (3, −1) with unit precision: √((9 + 1)/2); a far value counts as 8, not more."""
    near = OodDistance(("a", "b"), (0.0, 1.0), (1.0, 2.0), (0.0, 0.0), ((1.0, 0.0), (0.0, 1.0)))
    assert near.distance({"a": 3.0, "b": -1.0, "c": 9.0}) == pytest.approx(np.sqrt(5.0))
    assert near.distance({"a": 1e9, "b": 1.0}) == pytest.approx(8.0 / np.sqrt(2.0))
    assert np.isnan(near.distance({"a": np.nan, "b": 1.0}))
    assert parse_ood_distance(near.document()) == near
    with pytest.raises(ValueError, match="one size"):
        OodDistance(("a",), (0.0, 1.0), (1.0,), (0.0,), ((1.0,),))


def test_blur_takes_the_grain_from_the_finest_scale_of_a_quiet_image():
    """A smooth object on a grainy ground: little is left at the finest scale after averaging over neighbours."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:64, :64]
    image = (np.exp(-((y - 30) ** 2 + (x - 35) ** 2) / 200) + random.normal(0, 0.02, (1, 64, 64))).astype(np.float32)
    blurred = sum(np.roll(image, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    assert texture_statistics(blurred)["grain_0"] < texture_statistics(image)["grain_0"] - 0.3


def plain(image: np.ndarray, scale: int) -> dict[str, float]:
    """The definitions in double precision, a block and a voxel at a time."""
    x = image.astype(np.float64)
    x = (x - x.mean()) / x.std()
    rank = x.ndim - 1
    for step in range(scale + 1):
        x = x[(slice(None), *(slice(0, size - size % 2) for size in x.shape[1:]))]
        parts = [size for axis in x.shape[1:] for size in (axis // 2, 2)]
        blocks = x.reshape(len(x), *parts)
        inner = tuple(range(2, 2 + 2 * rank, 2))
        halved = blocks.mean(axis=inner, keepdims=True)
        if step < scale:
            x = halved.reshape(len(x), *parts[::2])
    band = blocks - halved
    sigma = np.sqrt((band**2).mean())
    curvature = ndimage.convolve(x, sum(_second(rank, axis) for axis in range(rank))[None], mode="constant")
    curvature = curvature[(slice(None), *(slice(1, -1),) * rank)]
    third = (curvature**3).mean() / np.sqrt((curvature**2).mean()) ** 3
    return {
        f"energy_{scale}": np.log(sigma),
        f"peak_{scale}": np.log((band**4).mean() / sigma**4),
        f"patch_{scale}": np.log(np.sqrt((band**2).mean(axis=inner)).mean() / sigma),
        f"spread_{scale}": np.log(np.abs(band).mean() / sigma),
        f"sign_{scale}": np.cbrt(third),
    }


def _second(rank: int, axis: int) -> np.ndarray:
    kernel = np.zeros((3,) * rank)
    kernel[tuple(slice(None) if a == axis else 1 for a in range(rank))] = [1.0, -2.0, 1.0]
    return kernel


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 45, 50), (2, 64, 33), (1, 35, 51, 34)])
def test_statistics_are_what_they_are_defined_to_be(shape):
    """Single precision, flat shifts and blocks side by side change no digit that counts; channels do not mix."""
    image = np.random.default_rng(5).gamma(2.0, size=shape).cumsum(axis=1).astype(np.float32)
    found = texture_statistics(image)
    for scale in (0, 1):
        for name, value in plain(image, scale).items():
            assert found[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("shape", [(1, 256, 256), (1, 40, 52, 44), (1, 20, 4000), (2, 300, 260)])
def test_some_lines_of_a_large_image_tell_its_grain(shape):
    """White noise: the median of differences is known; brightness and contrast move it no more than in small images."""
    image = np.random.default_rng(7).normal(0.0, 1.0, shape).astype(np.float32)
    found = texture_statistics(image)
    # Averaging over 2 voxels along each axis divides the deviation of white noise by the square root of their number.
    assert found["grain_0"] == pytest.approx(np.log(np.sqrt(2.0) ** (len(shape) - 1)), abs=0.06)
    for name, value in texture_statistics(image * 8.0 + 100.0).items():
        assert value == pytest.approx(found[name], abs=2e-3), name
