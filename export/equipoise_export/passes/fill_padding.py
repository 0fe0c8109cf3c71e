"""Replaces voxels outside the image by the intensity that the network is used to there.

    x = fill where image ≤ PADDING_VALUE / 2, else image

A model of one fixed size is never padded, so what answers for the whole image of fixed size needs none of this.
"""

from __future__ import annotations

import numpy as np
from equipoise_core.preprocessing import PADDING_VALUE

from .compilation import Compilation


def fill_padding(c: Compilation) -> None:
    """Ensures that the network never sees PADDING_VALUE."""
    fixed = all(isinstance(size, int) for size in c.contract.spatial)
    if not c.contract.per_voxel and fixed:
        return
    image, inside = c.image, c._made.get("inside")
    # The node of the head that asks which voxels lie inside has to see the image as it came.
    head = None if inside is None else inside.producer()
    users = [use for use in image.uses() if use.node is not head and use.node.op_type not in ("Shape", "Size")]
    outside = c.op("LessOrEqual", image, c.constant(np.float32(PADDING_VALUE / 2)))
    filled = c.op("Where", outside, c.constant(np.float32(c.contract.preprocessing.fill)), image)
    filled.type = image.type
    for node, index in users:
        node.replace_input_with(index, filled)
    c.graph.sort()
