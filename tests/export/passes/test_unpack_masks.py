"""The graph unpacks what `equipoise_core.masks` packs."""

from __future__ import annotations

import numpy as np
from equipoise_core.contract import Task
from equipoise_core.masks import mask_layout, unpack_masks

from ...support.graphs import compiled, contract, marked, mask, packed_masks, run


def test_sites_that_start_inside_a_byte_get_their_own_bits() -> None:
    """Three sites of 1, 24 and 2 units share bytes; each reads exactly its bits."""
    body = (
        "c = Concat <axis=1> (image, image) "
        + mask("path", [0], "c", "a", kind="path")
        + mask("all", [0, 1, 2, 3], "image", "b", index=1)
    )
    body += mask("channels", [0, 1], "c", "d", kind="channel", index=2)
    body += "fa = Flatten(a) fb = Flatten(b) fd = Flatten(d) flat = Concat <axis=1> (fa, fb, fd)"
    result = compiled(marked(body, "flat"), contract(task=Task.CLASSIFICATION, classes=120))
    assert [site.shape for site in result.contract.sites] == [(), (1, 4, 6), (2,)]
    packed = packed_masks(result.contract, 2, 4, (4, 6))
    got = run(result.model, {"image": np.ones((2, 1, 4, 6), np.float32), "masks": packed})["probabilities"]
    path, everything, channels = unpack_masks(mask_layout(result.contract, (4, 6)), packed)
    kept = np.concatenate(
        [np.repeat(path.reshape(2, 4, 1), 48, 2), everything.reshape(2, 4, 24), np.repeat(channels, 24, 2)], axis=2
    )
    expected = np.exp(kept * (4 / 3))
    np.testing.assert_allclose(got, expected / expected.sum(-1, keepdims=True), atol=1e-6)
