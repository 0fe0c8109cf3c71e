"""How long to wait before a failed step is tried again: exponential, capped, and drawn at random where many wait."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .errors import InvalidInput


@dataclass(frozen=True)
class Backoff:
    """`Backoff(0.1, longest=2.0)`: 0.1 s after the first failure, then 0.2, 0.4, 0.8, 1.6 and 2.0 s from then on.

    Attributes:
        first: seconds after the first failure.
        longest: seconds; the cap.
        factor: how much longer each pause is than the one before.
        jitter: 0 to 1, share of a pause that is random: with 0.5 it is drawn between half of it and all of it, so that
            clients which failed together do not come back together.
    """

    first: float
    longest: float
    factor: float = 2.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not (self.first >= 0.0 and self.longest >= 0.0 and self.factor >= 1.0 and 0.0 <= self.jitter <= 1.0):
            raise InvalidInput(f"Backoff needs first, longest >= 0 s, factor >= 1 and 0 <= jitter <= 1; got {self}")

    def pause(self, attempt: int, source: random.Random | None = None) -> float:
        """Seconds to wait after a failure.

        Args:
            attempt: number of failures before this one; 0: it is the first.
            source: of the jitter; None: Python's shared generator.
        """
        try:
            pause = min(self.longest, self.first * self.factor**attempt)
        except OverflowError:
            pause = self.longest
        uniform = random.uniform if source is None else source.uniform
        return uniform(pause * (1.0 - self.jitter), pause) if self.jitter else pause
