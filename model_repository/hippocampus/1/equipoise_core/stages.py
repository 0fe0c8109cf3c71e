"""The list of stages that a case goes through until it is decided: perhaps a first pass, then numbers of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, isnan
from typing import Any

FIRST_PASS = 0
"""The number of samples of the first pass: it draws none."""


@dataclass(frozen=True)
class Stage:
    """One step of a sequential decision: accept, send to review, or go on to the next stage.

    Attributes:
        samples: drawn when it is reached, all together; 0: the first pass.
        score: name of the case score that it looks at (`scores.SCORES`).
        accept_up_to: the case is accepted where the score is at most this, in its own unit; None: nothing is.
        review_above: the case goes to review at once where the score is above this; None: it goes on. After the last
            stage whatever is not accepted goes to review.
    """

    samples: int
    score: str
    accept_up_to: float | None = None
    review_above: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"a stage has 0 samples (the first pass) or more; got {self.samples}")
        limits = [limit for limit in (self.accept_up_to, self.review_above) if limit is not None]
        if any(isnan(limit) for limit in limits) or limits != sorted(limits):
            raise ValueError(f"a stage accepts below where it sends to review; got {limits}")

    def document(self) -> dict[str, Any]:
        return dict(vars(self))


def check_order(stages: Sequence[Stage]) -> None:
    """Raises ValueError where samples do not rise from stage to stage, or no stage draws any."""
    samples = [stage.samples for stage in stages]
    if not samples or samples[-1] == FIRST_PASS or samples != sorted(set(samples)):
        raise ValueError(f"stages have rising numbers of samples, and the last one draws some; got {samples}")


def chunk_of(samples: Sequence[int], at_most: int | None = None) -> int:
    """T of every sampler request: it divides the numbers of samples of all stages, so that a GPU sees one shape.

    Args:
        samples: of the stages.
        at_most: a smaller chunk is wanted: the largest divisor up to it.
    """
    whole = gcd(*samples)
    return max(size for size in range(1, min(whole, at_most or whole) + 1) if whole % size == 0)


def parse_stage(document: Mapping[str, Any]) -> Stage:
    limits = (None if document[name] is None else float(document[name]) for name in ("accept_up_to", "review_above"))
    return Stage(int(document["samples"]), str(document["score"]), *limits)
