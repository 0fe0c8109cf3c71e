"""What a pass refuses, it refuses with site and remedy; what it does not understand, with the history of passes."""

from __future__ import annotations

import numpy as np
import pytest
from equipoise_core.contract import Task
from equipoise_export.errors import CaptureRefused, PassFailed
from equipoise_export.passes import run_passes
from equipoise_export.passes.compilation import Compilation

from ...support.graphs import compiled, contract, marked, mask


def refusal(body: str, result: str = "y", weights: dict | None = None) -> CaptureRefused:
    with pytest.raises(CaptureRefused) as caught:
        compiled(marked(body, result, weights), contract(task=Task.CLASSIFICATION, classes=24))
    assert caught.value.site and caught.value.remedy
    return caught.value


def test_masks_on_weights_are_refused() -> None:
    """A mask without batch axis would be the same for all images of a batch."""
    body = mask("drop_connect", [0, 1], "w", "v") + "f = Flatten(image) y = MatMul(f, v)"
    assert refusal(body, weights={"w": np.ones((24, 24), np.float32)}).site == "drop_connect"


def test_mixing_batch_mates_is_refused() -> None:
    """A Gram matrix over the batch has two axes that grow with it."""
    body = mask("a", [0, 1], "image", "m") + "f = Flatten(m) t = Transpose(f) y = MatMul(f, t)"
    assert "mixes the images" in refusal(body).reason


def test_a_graph_that_breaks_at_another_size_is_refused() -> None:
    """Its last layer knows one number of voxels: exported for several sizes it would fail while it serves."""
    model = marked("f = Flatten (image) y = MatMul (f, w)", "y", {"w": np.ones((24, 2), np.float32)})
    draft = contract(task=Task.CLASSIFICATION, spatial=("H", "W"), nominal=(4, 6))
    with pytest.raises(CaptureRefused, match="does not work at every spatial size") as caught:
        compiled(model, draft)
    assert "--sizes fixed" in caught.value.remedy


def test_a_random_operator_that_is_left_is_refused() -> None:
    """Randomness that is not a mask would make every answer unrepeatable."""
    body = mask("a", [0, 1], "image", "m") + "r = RandomNormalLike(m) s = Add(m, r) y = Flatten(s)"
    assert "RandomNormalLike" in refusal(body).reason


def test_a_broken_pass_is_reported_with_its_history() -> None:
    """Whoever has to mend the compiler sees where it broke and what came before."""

    def breaks(_: Compilation) -> None:
        raise KeyError("x")

    def works(_: Compilation) -> None:
        pass

    with pytest.raises(PassFailed, match="`breaks` failed after the passes works: KeyError"):
        run_passes(Compilation(marked("y = Relu(image)", "y"), contract()), (works, breaks))
