import numpy as np
import pytest
from equipoise_core.contract import Activation
from equipoise_core.recalibration import Isotonic, Temperature, parse_recalibration
from equipoise_export.calibration.metrics import expected_calibration_error, floor
from equipoise_export.calibration.recalibrate import fit_isotonic, fit_temperature


def sharpened(temperature, classes=3, n=3000, seed=0):
    """Probabilities `[n, classes]` that are too certain by this temperature, and labels drawn from the honest ones."""
    random = np.random.default_rng(seed)
    honest = random.dirichlet([1.0] * classes, n)
    labels = (random.random((n, 1)) >= honest.cumsum(axis=1)).sum(axis=1)
    sharp = honest**temperature
    return sharp / sharp.sum(axis=1, keepdims=True), labels


def test_the_true_temperature_is_recovered():
    """Probabilities sharpened by τ need the temperature τ, within the noise of 3000 cases."""
    p, labels = sharpened(2.5)
    found = fit_temperature(p, np.eye(3)[labels], Activation.SOFTMAX)
    assert found.temperature == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize(("method", "classes"), [("temperature", 3), ("temperature", 2), ("isotonic", 2)])
def test_calibration_error_falls_to_the_floor_on_new_cases(method, classes):
    """Fitted on one set, measured on another; before it is far above the floor."""
    p, labels = sharpened(3.0, classes)
    hits = np.eye(classes)[labels]
    fitted = fit_temperature(p, hits, Activation.SOFTMAX) if method == "temperature" else fit_isotonic(p, hits)
    new, truth = sharpened(3.0, classes, seed=1)
    after = fitted.apply(new.T, Activation.SOFTMAX).T
    assert np.allclose(after.sum(axis=1), 1.0)
    assert expected_calibration_error(new, truth) > 0.1
    assert expected_calibration_error(after, truth) <= floor(after, expected_calibration_error)[1] * 1.3


def test_sigmoid_temperature_divides_the_logit():
    """σ(logit(0.8)/2) = 2/3, since the odds 4 become √4; the label at ½ stays."""
    p = Temperature(2.0).apply(np.array([[0.8, 0.5]]), Activation.SIGMOID)
    assert p == pytest.approx(np.array([[2 / 3, 0.5]]))


def test_temperature_of_one_changes_nothing_and_keeps_the_largest_class():
    """Shapes of maps are kept, and so are labels at any temperature."""
    p = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 5)).transpose(2, 0, 1)
    assert np.allclose(Temperature(1.0).apply(p, Activation.SOFTMAX), p)
    assert (Temperature(7.0).apply(p, Activation.SOFTMAX).argmax(0) == p.argmax(0)).all()


def test_certainties_stay_finite():
    """Probabilities of exactly 0 and 1, in float32, give finite numbers."""
    p = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    for activation in Activation:
        assert np.isfinite(Temperature(0.05).apply(p, activation)).all()
        assert np.isfinite(Isotonic((((0.0, 0.0), (1.0, 1.0)), ((0.5, 0.0),))).apply(p, activation)).all()


def test_documents_round_trip_and_refuse():
    """What is written is read again; an unknown method, a falling table, a temperature of 0 are refused."""
    for each in (Temperature(1.7), Isotonic((((0.0, 0.1), (0.4, 0.1)), ((0.2, 0.3),)))):
        assert parse_recalibration(each.document()) == each
    for bad in (
        {"method": "magic"},
        {"method": "temperature", "temperature": 0.0},
        {"method": "temperature", "temperature": float("nan")},
        {"method": "isotonic", "tables": [[[0.1, 0.5], [0.2, 0.2]]]},
    ):
        with pytest.raises(ValueError):
            parse_recalibration(bad)
