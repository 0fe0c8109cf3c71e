"""What is said of labels before a calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from equipoise_core.contract import Activation
from equipoise_export.calibration.cases import Labelled
from equipoise_export.calibration.reading import labels_apart

from ...support.graphs import contract

BRAIN = replace(contract(activation=Activation.SIGMOID, spatial=(1, 3)), name="brain", classes=("wt", "tc", "et"))
APART, NESTED = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


def case(truth: object) -> Labelled:
    return Labelled("1", "1", np.zeros((1, 1, 3), np.float32), np.array(truth, np.uint8)[:, None])


@pytest.mark.parametrize(
    ("truths", "warned"), [([APART, APART], True), ([APART, NESTED], False), ([[[1] * 3, [0] * 3, [0] * 3]], False)]
)
def test_regions_that_never_overlap_are_pointed_out(truths: list[object], warned: bool) -> None:
    """A BraTS map read without a table has a tumour without its core: the note says how to state it."""
    notes = labels_apart([case(truth) for truth in truths], BRAIN)
    assert bool(notes) == warned
    assert not warned or '--label-values "wt=1,2,3; tc=2,3; et=3"' in notes[0]


def test_classes_that_exclude_each_other_never_overlap() -> None:
    exclusive = replace(BRAIN, activation=Activation.SOFTMAX)
    assert (
        labels_apart([Labelled("1", "1", np.zeros((1, 1, 3), np.float32), np.array([[0, 1, 2]], np.uint8))], exclusive)
        == ()
    )
