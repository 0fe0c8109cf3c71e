"""What can go wrong while a case is assessed.

AssessmentError
├── InvalidRequest     the caller can mend it: says what was given, what is expected, what to do
├── SamplerFailure     the sampler gave no usable samples
└── Cancelled          nobody waits for the answer any more
"""

from __future__ import annotations


class AssessmentError(Exception):
    """No assessment could be made; there is no route, and so nothing is accepted."""


class InvalidRequest(AssessmentError):
    """The request itself is wrong."""


class SamplerFailure(AssessmentError):
    """A chunk of samples failed or came too late."""


class Cancelled(AssessmentError):
    """The client cancelled the request."""
