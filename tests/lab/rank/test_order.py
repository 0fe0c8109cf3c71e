"""The order of labelling, against cases whose answer is known without it."""

from __future__ import annotations

import math
import random

import pytest
from equipoise_client import InvalidInput
from equipoise_lab.rank.order import Ranked, Unlabelled, rank_images
from hypothesis import given
from hypothesis import strategies as st


def line(*places: float, scores: list[float] | None = None) -> list[Unlabelled]:
    """Images a, b, c … at these places, each less certain than the next."""
    scores = scores or [float(len(places) - k) for k in range(len(places))]
    return [Unlabelled(chr(97 + k), score, {"x": x}) for k, (x, score) in enumerate(zip(places, scores, strict=True))]


def names(ranking: list[Ranked], proposed: bool | None = None) -> str:
    return "".join(each.image.name for each in ranking if proposed in (None, each.proposed))


def pools(least: int = 0):
    """Any images, some of them copies of others."""
    one = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
    return st.lists(one, min_size=least, max_size=12).map(
        lambda rows: [Unlabelled(f"{k:02d}", float(s), {"x": float(x), "y": y / 3}) for k, (s, x, y) in enumerate(rows)]
    )


@given(pools(least=1), st.integers(1, 20))
def test_one_is_the_most_uncertain(images, candidates):
    first = rank_images(images, 1, candidates)[0]
    assert first.proposed and first.image.score == max(image.score for image in images)
    assert first.distance == math.inf


@given(pools(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(images, count, chance: random.Random):
    shuffled = list(images)
    chance.shuffle(shuffled)
    assert rank_images(shuffled, count) == rank_images(images, count)


@given(pools(), st.integers(1, 6))
def test_everything_is_ranked_once_and_the_rest_by_score(images, count):
    ranking = rank_images(images, count)
    assert [each.rank for each in ranking] == list(range(1, len(images) + 1))
    assert {each.image.name for each in ranking} == {image.name for image in images}
    assert [each.proposed for each in ranking] == sorted((each.proposed for each in ranking), reverse=True)
    rest = [(-each.image.score, each.image.name) for each in ranking if not each.proposed]
    assert rest == sorted(rest)


@given(pools(), st.integers(1, 12))
def test_copies_are_proposed_once(images, count):
    """As many as are wanted, or as there are different ones; copies use up no candidate's place."""
    chosen = [tuple(each.image.features.items()) for each in rank_images(images, count, count) if each.proposed]
    assert len(chosen) == len(set(chosen)) == min(count, len({tuple(image.features.items()) for image in images}))


def test_twenty_copies_of_the_most_uncertain_image_are_one():
    copies = [Unlabelled(f"copy{k:02d}", 9.0, {"x": 0.0}) for k in range(20)]
    ranking = rank_images([*copies, Unlabelled("other", 1.0, {"x": 1.0})], 2)
    assert [each.image.name for each in ranking if each.proposed] == ["copy00", "other"]
    assert {each.distance for each in ranking if not each.proposed} == {0.0}


def test_the_farthest_of_the_candidates_comes_next():
    """a is the most uncertain; d is farther from it than b and c are; e is farther still, but no candidate."""
    images = line(0.0, 1.0, 2.0, -5.0, 100.0)
    assert names(rank_images(images, 3, 4)) == "adcbe"
    assert names(rank_images(images, 3, 5), proposed=True) == "aed"


def test_as_many_candidates_as_wanted_is_by_score_alone():
    assert sorted(names(rank_images(line(0.0, 0.1, 0.2, 50.0), 3, 3), proposed=True)) == ["a", "b", "c"]


def test_what_is_labelled_keeps_its_neighbours_away():
    """Without it b would be farthest from a; with an image like b labelled, c is."""
    images = line(0.0, 10.0, -4.0)
    assert names(rank_images(images, 2), proposed=True) == "ab"
    assert names(rank_images(images, 2, labelled=[{"x": 9.0}]), proposed=True) == "ac"


def test_what_is_labelled_is_not_proposed_again():
    ranking = rank_images(line(0.0, 1.0), 2, labelled=[{"x": 0.0}])
    assert [(each.image.name, each.proposed) for each in ranking] == [("b", True), ("a", False)]
    assert ranking[1].distance == 0.0


def test_distances_are_in_standard_deviations():
    """Two images ±1 apart have mean 0 and deviation 1 in each feature: they are 2 apart, however many features."""
    one, other = ({f"f{k}": sign * (k + 1.0) for k in range(5)} for sign in (1.0, -1.0))
    second = rank_images([Unlabelled("a", 1.0, one), Unlabelled("b", 0.0, other)], 2)[1]
    assert second.distance == pytest.approx(2.0)


def test_units_do_not_matter():
    """A feature in other units, and one that is the same everywhere, change nothing."""
    places = [(0.0, 0.0), (1.0, 3.0), (4.0, 1.0), (2.0, -7.0), (9.0, 2.0)]
    plain = [Unlabelled(str(k), -float(k), {"x": x, "y": y}) for k, (x, y) in enumerate(places)]
    other = [Unlabelled(i.name, i.score, {"x": 1e6 * i.features["x"] + 3, "y": i.features["y"]}) for i in plain]
    constant = [Unlabelled(i.name, i.score, {**i.features, "z": 0.1}) for i in plain]
    order = [each.image.name for each in rank_images(plain, 4)]
    assert order == [each.image.name for each in rank_images(other, 4)]
    assert order == [each.image.name for each in rank_images(constant, 4)]


def test_nothing_to_rank_is_an_empty_ranking():
    assert rank_images([], 5, labelled=[{"x": 1.0}]) == rank_images([], 5) == []


@pytest.mark.parametrize(
    ("images", "count", "candidates", "says"),
    [
        (line(0.0), 0, None, "1 or more"),
        (line(0.0), 3, 2, "3 of 2"),
        (line(math.nan), 1, None, "finite"),
        (line(0.0, scores=[math.inf]), 1, None, "finite"),
        ([Unlabelled("a", 1.0, {"x": 1.0}), Unlabelled("b", 1.0, {"y": 1.0})], 1, None, "same model"),
        ([Unlabelled("a", 1.0, {})], 1, None, "no features"),
    ],
)
def test_nonsense_is_refused(images, count, candidates, says):
    with pytest.raises(InvalidInput, match=says):
        rank_images(images, count, candidates)
