import math

import pytest
from equipoise_core.stopping import Look, Stopping, parse_stopping, stop_at

LOOK = Look(4, {"s": (-0.5, 0.2)})


@pytest.mark.parametrize(
    ("score", "decided"),
    [(0.0, True), (0.2, True), (math.exp(-0.2) + 1e-6, False), (1.0, False), (1.6, False), (1.7, True)],
)
def test_a_look_decides_where_the_limit_is_out_of_reach(score, decided):
    """Limit 1, drift of ln s between −0.5 and 0.2: undecided from e^−0.2 to e^0.5."""
    assert LOOK.decided({"s": score}, {"s": [1.0]}) is decided


def test_every_limit_of_every_score_must_be_out_of_reach():
    """One near limit, a score without a drift, or a number that is not finite: go on."""
    assert not LOOK.decided({"s": 0.1}, {"s": [1.0, 0.1]})
    assert not LOOK.decided({"s": 0.1, "r": 0.1}, {"s": [1.0], "r": [1.0]})
    assert not LOOK.decided({"s": math.nan}, {"s": [1.0]})
    assert not LOOK.decided({"s": math.inf}, {"s": [1.0]})


def test_stops_at_the_first_look_that_decides_and_else_at_full_t():
    """Between looks nothing is decided, and the last entry always is."""
    stopping = Stopping((LOOK, Look(8, {"s": (-0.1, 0.1)})), "test")
    running = [(4, {"s": 0.9}), (6, {"s": 9.0}), (8, {"s": 0.8}), (20, {"s": 1.0})]
    assert stop_at(running, stopping, {"s": [1.0]}) == 2
    assert stop_at(running, stopping, {"s": [0.85]}) == 3


def test_documents_round_trip_and_refuse():
    """Looks that do not rise and a drift without 0 are refused."""
    stopping = Stopping((LOOK,), "words")
    assert parse_stopping(stopping.document()) == stopping
    with pytest.raises(ValueError, match="rising"):
        Stopping((LOOK, LOOK), "")
    with pytest.raises(ValueError, match="include 0"):
        Look(4, {"s": (0.1, 0.2)})
