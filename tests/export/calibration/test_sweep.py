"""Figures at a dropout rate: of what the model answers, not of what labels happen to look like."""

import numpy as np
import pytest
from equipoise_core.contract import Activation
from equipoise_export.calibration.cases import Measured, Step
from equipoise_export.calibration.sweep import rate_of


@pytest.mark.parametrize(
    ("activation", "ece", "brier"), [(Activation.SOFTMAX, 0.3, 0.14), (Activation.SIGMOID, 0.2, 0.12)]
)
def test_labels_that_may_hold_together_are_questions_of_their_own(activation, ece, brier):
    """Here each case has one label of three, as exclusive classes have: the model tells them apart."""
    cases = []
    for k in range(3):
        p = np.full((1, 3), 0.1)
        p[0, k] = 0.7 if activation is Activation.SOFTMAX else 0.6
        p[0, k - 1] += 0.1 if activation is Activation.SOFTMAX else 0.0
        step = Step(20, {"lack_of_confidence": 0.3}, {}, 0.0, float("nan"), {}, (), p)
        cases.append(Measured(f"{k}", f"{k}", "", "00", {}, (step,), {}, np.eye(3)[[k]]))
    found = rate_of(None, cases, "lack_of_confidence", activation)
    assert found.ece == pytest.approx(ece)
    assert found.brier == pytest.approx(brier)
