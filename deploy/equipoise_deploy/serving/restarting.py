"""How often a server may be restarted, and how long to wait before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from equipoise_client.backoff import Backoff

from ..errors import GaveUp


@dataclass
class RestartBudget:
    """The first restart comes at once, each further one within `within` seconds after a pause that grows.

    Args:
        most: restarts within `within` seconds. Raises GaveUp for one more.
        backoff: of the restarts after the first.
        clock: of the monotonic kind.
    """

    most: int = 5
    within: float = 600.0
    backoff: Backoff = Backoff(1.0, longest=30.0)  # noqa: RUF009 (it is frozen)
    clock: Callable[[], float] = time.monotonic
    _made: deque[float] = field(default_factory=deque)
    total: int = 0

    def take(self, reason: str) -> float:
        """Seconds to wait before the restart that is made now."""
        now = self.clock()
        while self._made and now - self._made[0] > self.within:
            self._made.popleft()
        if len(self._made) >= self.most:
            raise GaveUp(
                f"{reason}. Triton was restarted {self.most} times within {self.within:g} s; no further restart: look "
                "at its log above for what these have in common (an input? memory?)"
            )
        self._made.append(now)
        self.total += 1
        return 0.0 if len(self._made) == 1 else self.backoff.pause(len(self._made) - 2)

    def __str__(self) -> str:
        """`2 of 5 within 600 s`"""
        return f"{len(self._made)} of {self.most} within {self.within:g} s"
