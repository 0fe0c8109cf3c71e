"""What an expert says of a decision."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """On the review page, with `equipoise audit verdict`, and in the log."""

    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"

    @property
    def wrong(self) -> bool:
        """Whether an accepted case should not have been accepted."""
        return self is not Verdict.ACCEPT
