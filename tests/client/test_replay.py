import json

import pytest
from equipoise_client.cli.replay import differences, read_record
from equipoise_client.errors import InvalidInput
from equipoise_core.record import FORMAT

RECORD = {
    "format": FORMAT, "model_digest": "a", "policy_digest": "b", "code_digest": "c", "seed": "7", "samples": 8,
    "stopped": True, "score": "s", "route": "accept", "reason": "s 0.1 is at most 0.2", "threshold": 0.2,
    "case_score": 0.1, "scores": {"s": 0.1, "r": None}, "statistics": {"energy_0": -1.0}, "ood_distance": 1.0,
    "volume_ml": {"total": {"mean": 2000.0}},
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
        ({"stopped": False}, "stopped"),
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
