"""What can go wrong while adapting."""

from __future__ import annotations


class AdaptationError(Exception):
    """No policy was written."""
