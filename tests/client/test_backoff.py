"""Pauses between attempts."""

from __future__ import annotations

import random

import pytest
from equipoise_client.backoff import Backoff
from equipoise_client.errors import InvalidInput


def test_pauses_double_up_to_the_cap():
    backoff = Backoff(0.5, longest=3.0)
    assert [backoff.pause(attempt) for attempt in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_factor_of_one_waits_equally_long():
    assert {Backoff(2.0, longest=5.0, factor=1.0).pause(attempt) for attempt in range(5)} == {2.0}


def test_a_first_pause_above_the_cap_is_cut():
    assert Backoff(10.0, longest=5.0).pause(0) == 5.0


def test_thousands_of_failures_still_give_the_cap():
    """A destination may be away for days."""
    assert Backoff(0.1, longest=60.0).pause(10_000) == 60.0


def test_jitter_draws_within_its_share_and_from_the_given_source():
    backoff, source = Backoff(1.0, longest=4.0, jitter=0.5), random.Random(0)
    drawn = [backoff.pause(1, source) for _ in range(200)]
    assert all(1.0 <= each <= 2.0 for each in drawn) and max(drawn) - min(drawn) > 0.5
    assert backoff.pause(1, random.Random(0)) == drawn[0]


@pytest.mark.parametrize(
    "wrong", [{"first": -1.0}, {"longest": -1.0}, {"factor": 0.5}, {"jitter": 1.5}, {"first": float("nan")}]
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(InvalidInput, match="Backoff needs"):
        Backoff(**{"first": 1.0, "longest": 2.0, **wrong})
