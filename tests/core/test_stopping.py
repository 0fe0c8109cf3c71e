import math

import pytest
from equipoise_core.stopping import Look, Stopping, parse_stopping

LOOK = Look(4, {"s": (-0.5, 0.2)})


@pytest.mark.parametrize(
    ("score", "decided"),
    [(0.0, True), (0.639, True), (0.641, False), (1.0, False), (2.24, False), (2.26, True)],
)
def test_a_look_decides_where_the_limit_is_out_of_reach(score, decided):
    """Limit 1, drift of √s between −0.5 and 0.2: undecided from 0.8² to 1.5²."""
    assert LOOK.decided("s", score, 1.0) is decided


def test_what_is_not_known_is_never_decided():
    """A score without a drift, or a number that is not finite or below 0: go on."""
    assert LOOK.decided("s", 0.1, 1.0)
    assert not LOOK.decided("r", 0.1, 1.0)
    for score in (math.nan, math.inf, -1.0):
        assert not LOOK.decided("s", score, 1.0)


def test_documents_round_trip_and_refuse():
    """Looks that do not rise and a drift without 0 are refused."""
    stopping = Stopping((LOOK,), "words")
    assert parse_stopping(stopping.document()) == stopping
    with pytest.raises(ValueError, match="rising"):
        Stopping((LOOK, LOOK), "")
    with pytest.raises(ValueError, match="include 0"):
        Look(4, {"s": (0.1, 0.2)})
