"""Which images to label first: uncertain ones that differ from each other.

Uncertainty sampling by the epistemic part (BALD, Houlsby et al. 2011, arXiv 1112.5745), and among the most uncertain
images greedy k-centre (Sener & Savarese 2018, arXiv 1708.00489), which spreads what is chosen over what there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from equipoise_client.errors import InvalidInput
from numpy.typing import NDArray

CANDIDATES = 3
"""Images that diversity chooses from, for each one that is to be chosen."""


@dataclass(frozen=True)
class Unlabelled:
    """An image that could be labelled.

    Attributes:
        name: unique; breaks ties.
        score: finite, higher is more uncertain.
        features: finite numbers by name, which say what kind of image it is; the same names for every image.
    """

    name: str
    score: float
    features: Mapping[str, float]


@dataclass(frozen=True)
class Ranked:
    """An image in its place.

    Attributes:
        rank: 1 is to be labelled first.
        proposed: one of those that were to be chosen.
        distance: to the nearest image that is labelled or was chosen before (for one that is not proposed: at all), in
            root mean square standard deviations of the features; infinite for the first one where none is labelled.
    """

    image: Unlabelled
    rank: int
    proposed: bool
    distance: float


def rank_images(
    images: Sequence[Unlabelled],
    count: int,
    candidates: int | None = None,
    labelled: Sequence[Mapping[str, float]] = (),
) -> list[Ranked]:
    """All images in the order in which they should be labelled: the chosen ones, then the rest by score.

    The first is the most uncertain one. Each further one is, of the `candidates` most uncertain ones, the farthest from
    what is labelled or chosen already. Images with the same features, to the last bit, are one image: it is a candidate
    once, and not at all where it is labelled. The order of `images` does not matter.

    Args:
        count: how many are to be chosen, ≥ 1; fewer are where there are fewer different ones.
        candidates: ≥ `count`; by default three times as many. `count` itself leaves diversity out.
        labelled: features of images that are labelled already.

    Raises InvalidInput.
    """
    candidates = CANDIDATES * count if candidates is None else candidates
    if not 1 <= count <= candidates:
        raise InvalidInput(f"{count} of {candidates} candidates are to be chosen; expected 1 or more, of as many")
    if not images:
        return []
    ordered = sorted(images, key=lambda image: (-image.score, image.name))
    table = _table([image.features for image in ordered], labelled, [image.score for image in ordered])
    places = _standardised(table)
    known, free = places[len(ordered) :], places[: len(ordered)]
    pool = list(_different(table, len(ordered)))[:candidates]
    nearest = np.array([_distances(known, row).min(initial=math.inf) for row in free])
    chosen: dict[int, float] = {}
    while pool and len(chosen) < count:
        # Of equally distant ones `max` takes the first, which is the most uncertain.
        best = max(pool, key=lambda row: nearest[row]) if chosen else pool[0]
        chosen[best] = float(nearest[best])
        pool.remove(best)
        nearest = np.minimum(nearest, _distances(free, free[best]))
    rows = [*chosen, *(row for row in range(len(ordered)) if row not in chosen)]
    return [
        Ranked(ordered[row], rank, row in chosen, chosen.get(row, float(nearest[row])))
        for rank, row in enumerate(rows, start=1)
    ]


def _table(
    images: Sequence[Mapping[str, float]], labelled: Sequence[Mapping[str, float]], scores: Sequence[float]
) -> NDArray[np.float64]:
    """Features `[n + labelled, d]`, columns by name."""
    names = sorted(images[0])
    every = [*images, *labelled]
    if not names:
        raise InvalidInput("the images have no features; diversity needs some")
    if any(set(names) != set(features) for features in every):
        raise InvalidInput("the images have different features: they were not all answered by the same model")
    table = np.array([[features[name] for name in names] for features in every], np.float64)
    if not (np.isfinite(table).all() and np.isfinite(np.asarray(scores)).all()):
        raise InvalidInput("a score or a feature is not a finite number; leave such images out")
    return np.asarray(table + 0.0)  # −0 becomes 0: they are equal, and their bits are to be


def _standardised(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of mean 0 and variance 1/d: their distance does not grow with their number. Constant ones count nothing.

    The rows are added up in an order of their own, so that nobody else's order changes the last bit.
    """
    ordered = table[np.lexsort(table.T)]
    centre, spread = ordered.mean(axis=0), ordered.std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(centre), 1e-300)
    scaled = np.where(varies, (table - centre) / np.where(varies, spread, 1.0), 0.0)
    return np.asarray(scaled / math.sqrt(table.shape[1]))


def _distances(rows: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(((rows - row) ** 2).sum(axis=1)))


def _different(table: NDArray[np.float64], count: int) -> Iterator[int]:
    """Of the first `count` rows, which are images to rank, those that equal no earlier and no labelled one."""
    seen = {row.tobytes() for row in table[count:]}
    for index, row in enumerate(table[:count]):
        if (bits := row.tobytes()) not in seen:
            seen.add(bits)
            yield index
