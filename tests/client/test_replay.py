import json

import pytest
from equipoise_client.cli.replay import differences, explanation, read_record
from equipoise_client.errors import InvalidInput
from equipoise_core.record import FORMAT

COMPUTED_BY = {"device": "CPU", "provider": "CPUExecutionProvider", "onnxruntime": "1.31", "precision": "fp32"}
RECORD = {
    "format": FORMAT, "model_digest": "a", "policy_digest": "b", "code_digest": "c", "seed": "7", "samples": 8,
    "first_pass": False, "score": "s", "route": "accept", "threshold": 0.2,
    "reason": {
        "code": "score_accepted", "values": {"score": "s", "value": 0.1, "threshold": 0.2, "samples": 20},
        "text": "s 0.1 is at most 0.2, after 20 samples",
    },
    "case_score": 0.1, "scores": {"s": 0.1, "r": None}, "statistics": {"energy_0": -1.0}, "ood_distance": 1.0,
    "volume_ml": {"total": {"mean": 2000.0}}, "computed_by": COMPUTED_BY,
}  # fmt: skip


def test_numbers_within_the_tolerance_are_the_same():
    """1e-5 absolute for small numbers, relative for large ones; None equals None."""
    again = {**RECORD, "case_score": 0.100009, "volume_ml": {"total": {"mean": 2000.01}}}
    assert list(differences(RECORD, again)) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"route": "review"}, "route"),
        ({"case_score": 0.1001}, "case_score"),
        ({"case_score": None}, "case_score"),
        ({"scores": {"s": 0.1}}, None),
        ({"scores": {"s": 0.2, "r": None}}, "scores.s"),
        ({"volume_ml": {"total": {"mean": 2001.0}}}, "volume_ml.total.mean"),
        ({"volume_ml": None}, "volume_ml"),
        ({"policy_digest": "x"}, "policy_digest"),
        ({"samples": 20}, "samples"),
        ({"first_pass": True}, "first_pass"),
        ({"reason": {**RECORD["reason"], "code": "score_too_high"}}, "reason"),
        ({"reason": {**RECORD["reason"], "text": "other digits"}}, None),
        ({"reason": {**RECORD["reason"], "values": {**RECORD["reason"]["values"], "value": 0.11}}}, "reason.value"),
    ],
)
def test_every_difference_is_named(change, what):
    """By where it stands in the record."""
    assert [each.what for each in differences(RECORD, {**RECORD, **change})] == ([what] if what else [])


def test_a_record_is_found_alone_and_among_predictions(tmp_path):
    """Bare, in a prediction, in a list of them; anything else is refused with what was found."""
    path = tmp_path / "a.json"
    for document in (RECORD, {"record": RECORD}, [{"record": None}, {"record": RECORD}]):
        path.write_text(json.dumps(document))
        assert read_record(path, 1 if isinstance(document, list) else 0) == RECORD
    for text in ("{}", "[]", "nonsense", '[{"record": null}]'):
        path.write_text(text)
        with pytest.raises(InvalidInput):
            read_record(path)


def test_the_tolerance_is_that_of_the_devices():
    """What one device must repeat to 1e-5, another need only meet as the proof promises; half precision less so."""
    again = {**RECORD, "case_score": 0.10005}
    gpu = {"device": "NVIDIA H200", "provider": "CUDAExecutionProvider", "precision": "fp32"}
    cpu = {**COMPUTED_BY}
    assert [each.what for each in differences({**RECORD, "computed_by": cpu}, {**again, "computed_by": cpu})]
    assert not list(differences({**RECORD, "computed_by": cpu}, {**again, "computed_by": gpu}))
    far = {**RECORD, "case_score": 0.103, "computed_by": gpu}
    assert [each.what for each in differences({**RECORD, "computed_by": cpu}, far)] == ["case_score"]
    half = {"precision": "fp16"}
    halves = ({**RECORD, "computed_by": {**cpu, **half}}, {**far, "computed_by": {**gpu, **half}})
    assert not list(differences(*halves))


def test_a_flipped_route_is_explained():
    """Only where the number that decided lies at its limit."""
    values = {"score": "s", "value": 0.200001, "threshold": 0.2, "samples": 20}
    flipped = {**RECORD, "route": "review", "reason": {"code": "score_too_high", "values": values}}
    assert "s 0.200001 against 0.2 ± 1e-05" in explanation(RECORD, flipped)
    values = {**values, "value": 0.3}
    assert explanation(RECORD, {**flipped, "reason": {"code": "score_too_high", "values": values}}) is None


def test_a_record_of_an_earlier_format_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**RECORD, "format": "equipoise-record/1"}))
    with pytest.raises(InvalidInput, match="the version that wrote it"):
        read_record(path)


def test_a_text_that_its_code_and_numbers_do_not_say_is_noticed():
    """The recorded one: a log that was edited by hand."""
    edited = {**RECORD, "reason": {**RECORD["reason"], "text": "s 0.1 is at most 0.9, after 20 samples"}}
    assert [each.what for each in differences(edited, RECORD)] == ["reason.text"]
