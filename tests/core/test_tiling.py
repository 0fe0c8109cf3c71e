"""Windows over images that are larger than the network's."""

from itertools import pairwise

import numpy as np
import pytest
from equipoise_core.tiling import OVERLAP, Tiling


@pytest.mark.parametrize(
    ("size", "window"), [((10,), (10,)), ((11,), (10,)), ((100, 37), (16, 20)), ((9, 30, 17), (8, 8, 8))]
)
def test_windows_cover_the_image_and_overlap(size, window):
    """Every voxel lies in a window, neighbours share a quarter, no window leaves the image."""
    tiling = Tiling(size, window)
    assert tiling.coverage.min() > 0
    for axis, (whole, width) in enumerate(zip(size, window, strict=True)):
        starts = sorted({start[axis] for start in tiling.starts})
        assert starts[0] == 0 and starts[-1] == whole - width
        assert all(b - a <= np.ceil(width * (1 - OVERLAP)) for a, b in pairwise(starts))


def test_what_does_not_depend_on_the_window_is_stitched_exactly():
    """A pointwise network sees no difference between the image and its windows."""
    image = np.random.default_rng(0).random((2, 40, 33), dtype=np.float32)
    tiling = Tiling((40, 33), (16, 16))
    for batch in (1, 3, 100):
        assert tiling.stitch(image, batch, lambda windows: windows**2) == pytest.approx(image**2, abs=1e-6)


def test_middles_count_more_than_edges():
    """Two windows that disagree: where both see a voxel, the one in whose middle it lies prevails."""
    tiling = Tiling((14,), (8,))
    answers = iter([0.0, 1.0, 2.0][: len(tiling.starts)])
    stitched = tiling.stitch(np.zeros((1, 14), np.float32), 1, lambda w: np.full((1, 1, 8), next(answers)))[0]
    assert (np.diff(stitched) >= 0).all() and stitched[0] == 0.0
    assert stitched[-1] == len(tiling.starts) - 1
    first, second = tiling.starts[0][0], tiling.starts[1][0]
    middle = (first + second + 7) / 2
    assert stitched[int(np.floor(middle))] + stitched[int(np.ceil(middle))] == pytest.approx(1.0, abs=0.05)


def test_windows_larger_than_the_image_are_refused():
    with pytest.raises(ValueError, match="pad it first"):
        Tiling((7, 20), (8, 8))
