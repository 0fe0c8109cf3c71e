"""What a client makes of a regression's answer: numbers with intervals and units, and doubts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from equipoise_client import BadAnswer, InvalidInput, Route
from equipoise_client.cli.predict import PredictedFile, wanted_of
from equipoise_client.cli.replay import differences
from equipoise_client.images import fit, read_image
from equipoise_client.prediction import Prediction
from equipoise_client.wire import MAPS, arguments_of, build_request, read_answer
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from equipoise_core.targets import Target

IMAGE = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)


@pytest.fixture
def contract() -> Contract:
    return Contract(
        "bone", Task.REGRESSION, Activation.SIGMOID, (), 1, (8, 8), (8, 8), (8, 8), Preprocessing((ZScore(),)), (),
        targets=(Target("age", "mo"), Target("share", "1")),
    )  # fmt: skip


def answered(contract: Contract, values: Any, outputs: tuple[str, ...] = MAPS) -> Prediction:
    request = build_request(contract, IMAGE, None, None, None, outputs, None)
    record = {"route": "accept", "model": "bone", "values": {"age": {"mean": 130.0, "unit": "mo"}}}
    sent = {
        "values": np.array([values], np.float32), "case_score": np.array([[0.5]]), "samples_used": np.array([[20]]),
        "route": np.array([[b"accept"]], object), "reason": np.array([[b"why"]], object),
        "record": np.array([[json.dumps(record).encode()]], object),
        **{name: np.zeros((1, 2), np.float32) for name in request.outputs},
    }  # fmt: skip
    (prediction,) = read_answer(contract, request, sent.get)
    return prediction


VALUES = [[130.0, 4.0, 120.0, 145.0], [0.5, 0.1, 0.25, 0.75]]


def test_values_have_interval_and_unit(contract):
    found = answered(contract, VALUES)
    assert found.route is Route.ACCEPT and found.volume is None
    age = found.values["age"]
    assert (age.mean, age.low, age.high, age.unit) == (130.0, 120.0, 145.0, "mo")
    assert [str(each) for each in found.values.values()] == ["130 mo (120 to 145)", "0.5 (0.25 to 0.75)"]
    document = json.loads(json.dumps(found.document()))["values"]["age"]
    assert document == {"mean": 130.0, "sd": 4.0, "low": 120.0, "high": 145.0, "unit": "mo"}
    assert set(found.arrays) == {"mean", "variance", "aleatoric", "epistemic"}


@pytest.mark.parametrize("end", [0, 2, 3])
def test_a_number_that_is_none_is_not_accepted(contract, end):
    values = np.array(VALUES)
    values[1, end] = np.nan
    found = answered(contract, values)
    assert found.route is Route.REVIEW and "not finite" in found.reason
    assert None in found.document()["values"]["share"].values()


def test_values_of_another_shape_are_no_answer(contract):
    with pytest.raises(BadAnswer, match="values"):
        answered(contract, VALUES[:1])


def test_there_are_no_labels_to_ask_for(contract):
    with pytest.raises(InvalidInput, match=r"labels.*do not exist"):
        build_request(contract, IMAGE, None, None, None, ("labels",), None)
    request = build_request(contract, IMAGE, None, None, None, MAPS, None)
    asked = {each.name() for each in arguments_of(contract, request, {}, 1.0)["outputs"]}
    assert "values" in asked and not {"labels", "calibrated", "volume", "volume_total"} & asked


def test_the_command_shows_and_draws_them(contract, tmp_path):
    from equipoise_client.cli.predict import _table
    from equipoise_client.figure import write_figure
    from rich.console import Console

    np.save(tmp_path / "image.npy", IMAGE[0])
    prepared = fit(read_image(tmp_path / "image.npy"), contract)
    assert wanted_of(contract, prepared, True) == ()
    outcome = PredictedFile(tmp_path / "image.npy", "bone", contract, answered(contract, VALUES))
    assert outcome.document()["values"]["age"]["unit"] == "mo"
    console = Console(width=200, record=True, file=(tmp_path / "log").open("w"))
    console.print(_table("bone", [outcome]))
    assert "age 130 mo (120 to 145)" in console.export_text()
    write_figure(tmp_path / "image.png", "image", contract, prepared, outcome.prediction)
    assert (tmp_path / "image.png").stat().st_size > 5000


def test_a_replay_compares_numbers_within_the_tolerance_and_units_exactly(contract):
    record = dict(answered(contract, VALUES).record)
    near, far, other = ({**record, "values": {"age": each}} for each in (
        {"mean": 130.0 * (1 + 1e-6), "unit": "mo"}, {"mean": 131.0, "unit": "mo"}, {"mean": 130.0, "unit": "a"},
    ))  # fmt: skip
    assert not [each for each in differences(record, near) if each.what.startswith("values")]
    for changed, name in ((far, "values.age.mean"), (other, "values.age.unit")):
        assert name in [each.what for each in differences(record, changed)]
