"""What can go wrong while comparing."""

from __future__ import annotations


class ComparisonError(Exception):
    """Nothing was compared."""
