"""What can go wrong while calibrating.

CalibrationError
└── TooFewCases      a guarantee was asked of fewer cases than it takes: how many were given, how many it takes
"""

from __future__ import annotations


class CalibrationError(Exception):
    """No policy was written."""


class TooFewCases(CalibrationError):
    """A guarantee was asked of fewer cases than it takes, whatever they show."""

    def __init__(self, what: str, given: int, needed: int) -> None:
        super().__init__(
            f"{what} takes at least {needed} labelled cases, each of another patient; "
            f"{given} were given: label {needed - given} more"
        )
        self.what = what
        self.given = given
        self.needed = needed
